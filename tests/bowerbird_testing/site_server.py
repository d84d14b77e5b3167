"""A whole server reduced to its MQTT side, over a real broker: receipts, wishes, jobs and blocks for agents that run as they are.

In: the broker's address. Out: what devices sent, decoded (`frames`, `health`, `status`, `reports`), and retained messages to them.
Frames are verified as the real ingest does. With an `UpdateServer` it also serves that repository's files. It stores nothing on disk.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

import paho.mqtt.client as mqtt

from bowerbird_testing.broker_client import BrokerClient
from bowerbird_testing.parts import Parts
from bowerbird_wire.codec import decode, decode_frame, encode
from bowerbird_wire.messages import (
    Block,
    BlockRequest,
    Desired,
    EraseWish,
    FrameMessage,
    Health,
    Job,
    Offer,
    Receipt,
    Report,
    Reported,
    Status,
)
from bowerbird_wire.topics import (
    BlockRequestTopic,
    BlocksTopic,
    ChunkTopic,
    DesiredTopic,
    DeviceTopic,
    FrameTopic,
    HealthTopic,
    JobTopic,
    OfferTopic,
    ReceiptTopic,
    ReportedTopic,
    ReportTopic,
    StatusTopic,
    parse_topic,
)

if TYPE_CHECKING:
    from bowerbird_testing.update_server import UpdateServer


class SiteServer:
    """Runs from `with` to its end, reconnecting when the broker dies.

    Args:
        updates: a repository whose blocks are served, None for none.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        site: str = "demo",
        username: str = "",
        password: str = "",
        tls: ssl.SSLContext | None = None,
        updates: UpdateServer | None = None,
    ) -> None:
        self.site = site
        self.frames: dict[str, FrameMessage] = {}
        self.arrivals: Counter[str] = Counter()
        self.health: list[Health] = []
        self.status: list[Status] = []
        self.reports: list[Report] = []
        self.reported: list[Reported] = []
        self._changed = threading.Condition()
        self._updates = updates
        self._parts = Parts()
        self._block_device = ""
        if updates is not None:
            updates.connect(self._send_block)
        self._client = BrokerClient(
            "site-server",
            host,
            port,
            [f"bowerbird/v1/{site}/up/+/+"],
            self._on_message,
            username=username,
            password=password,
            tls=tls,
        )

    def __enter__(self) -> SiteServer:
        self._client.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.stop()

    def desire(self, device: str, version: int, frames_total: int | None, *, erase: tuple[EraseWish, ...] = ()) -> None:
        """Say how many frames are wanted of a device in all, and which it must forget."""
        self._retain(DesiredTopic(self.site, device), encode(Desired(version, frames_total, erase=erase)))

    def wish(self, device: str, desired: Desired) -> None:
        """Say everything that is wanted of a device."""
        self._retain(DesiredTopic(self.site, device), encode(desired))

    def offer(self, device: str, job: Job) -> None:
        """Offer a model to a device."""
        self._retain(JobTopic(self.site, device), encode(job))

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        """Return as soon as `condition()` holds; fail with `what` when it never does."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                assert left > 0, f"timed out: {what}; last health: {self.health[-1:]}"
                self._changed.wait(min(left, 0.2))

    def _retain(self, topic: DeviceTopic, payload: bytes) -> None:
        self._client.publish(str(topic), payload, retain=True)

    def _send_block(self, block: Block) -> None:
        self._client.publish(str(BlocksTopic(self.site, self._block_device)), encode(block), qos=0)

    def _on_message(self, client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        topic, payload = parse_topic(message.topic), message.payload
        with self._changed:
            whole = self._parts.take(payload) if isinstance(topic, ChunkTopic) else payload
            if isinstance(topic, OfferTopic):
                known = decode(Offer, payload).frame.hex() in self.frames
                receipt = self._parts.answer(payload, committed=known)
                client.publish(str(ReceiptTopic(self.site, topic.device)), encode(receipt), qos=1)
            elif isinstance(topic, FrameTopic | ChunkTopic) and whole is not None:
                frame = decode_frame(whole)
                self.frames[frame.header.frame_id] = frame
                self.arrivals[frame.header.frame_id] += 1
                receipt = Receipt(committed=(frame.header.frame_id,))
                client.publish(str(ReceiptTopic(self.site, topic.device)), encode(receipt), qos=1)
            elif isinstance(topic, HealthTopic):
                self.health.append(decode(Health, payload))
            elif isinstance(topic, StatusTopic):
                self.status.append(decode(Status, payload))
            elif isinstance(topic, ReportedTopic):
                self.reported.append(decode(Reported, payload))
            elif isinstance(topic, ReportTopic):
                self.reports.append(decode(Report, payload))
            elif isinstance(topic, BlockRequestTopic) and self._updates is not None:
                self._block_device = topic.device
                self._updates.send(decode(BlockRequest, payload))
            self._changed.notify_all()
