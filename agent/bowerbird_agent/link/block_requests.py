"""Asks the server for blocks of what is updated, as far as the byte budget has room for the answer.

In: block requests of the updater, the budget's word. Out: publishes. While there is no room the link is down as far as the updater
knows, so that it neither waits nor counts a failure. It reads no block and keeps no request: the updater asks again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from bowerbird_wire import codec
from bowerbird_wire.topics import BlockRequestTopic

if TYPE_CHECKING:
    from bowerbird_agent.link.mqtt_link import MqttLink
    from bowerbird_agent.link.upload_runner import UploadRunner
    from bowerbird_agent.updates.updater import Subject
    from bowerbird_wire.messages import Block, BlockRequest, Job

logger = logging.getLogger(__name__)

_BLOCK_BESIDE_BYTES = 256  # of a block's message, beside its data


class Updates(Protocol):
    """What is needed of `update_runner.UpdateRunner`; its methods return at once."""

    def job(self, job: Job, subject: Subject = ...) -> None: ...
    def block(self, block: Block) -> None: ...
    def link_up(self) -> None: ...
    def link_down(self) -> None: ...


class BlockRequests:
    """One thread owns it.

    Args:
        uploads: knows what may be downloaded now.
    """

    def __init__(self, link: MqttLink, uploads: UploadRunner) -> None:
        self._link, self._uploads = link, uploads
        self._topic = BlockRequestTopic(link.site, link.device)
        self._held_bytes = 0  # of the download that waits for the budget

    def link_up(self) -> None:
        """The updater begins anew on a new connection; nothing of it is held back any more."""
        self._held_bytes = 0

    def ask(self, request: BlockRequest, now_s: float, updates: Updates | None) -> None:
        """Ask the server, if the budget has room for the answer; if not, the link is down as far as `updates` knows."""
        size = request.blocks * (request.block_bytes + _BLOCK_BESIDE_BYTES)
        # A trial is proved by the repository's small metadata: that is control, and never held back.
        if not request.path.startswith("metadata/") and not self._uploads.may_ask_for(size, now_s):
            if not self._held_bytes and updates is not None:
                logger.info("the download of %s waits for the byte budget or for the end of quiet hours", request.path)
                updates.link_down()
            self._held_bytes = size
            return
        if self._link.publish(self._topic, codec.encode(request), qos=0):
            self._uploads.asked_for(size, now_s)

    def let_go(self, now_s: float, updates: Updates | None) -> None:
        """A download that was held back goes on when there is room for it again."""
        if self._held_bytes and self._link.connected and self._uploads.may_ask_for(self._held_bytes, now_s):
            self._held_bytes = 0
            if updates is not None:
                updates.link_up()
