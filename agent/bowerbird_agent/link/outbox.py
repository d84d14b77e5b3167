"""Control messages that must arrive (reports, status): kept until the broker has taken them, sent again after a broken link.

In: topics and payloads, and the link's events. Out: publishes through a callable. Bounded; a newer message of one key replaces the
older one. It keeps nothing on disk: who needs that (the updater) reports again after a restart.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bowerbird_wire.topics import DeviceTopic

_MAX_WAITING = 64


@dataclass
class _Letter:
    topic: DeviceTopic
    payload: bytes
    retain: bool
    token: int = 0  # 0: not on its way


class Outbox:
    """Letters waiting for a PUBACK. One thread owns it.

    Args:
        publish: (topic, payload, retain) -> a token, 0 when the link did not take it.
    """

    def __init__(self, publish: Callable[[DeviceTopic, bytes, bool], int]) -> None:
        self._publish = publish
        self._letters: OrderedDict[str, _Letter] = OrderedDict()

    def put(self, key: str, topic: DeviceTopic, payload: bytes, *, retain: bool = False) -> None:
        """Send a message as soon as possible; one that waits under the same key is replaced."""
        self._letters.pop(key, None)
        self._letters[key] = _Letter(topic, payload, retain)
        while len(self._letters) > _MAX_WAITING:
            self._letters.popitem(last=False)

    def published(self, token: int, *, accepted: bool) -> None:
        """The broker answered: taken, or to be tried again."""
        for key, letter in self._letters.items():
            if letter.token == token:
                letter.token = 0
                if accepted:
                    del self._letters[key]
                return

    def link_down(self) -> None:
        """What was on its way may be lost."""
        for letter in self._letters.values():
            letter.token = 0

    def pump(self) -> None:
        """Hand over what is not on its way, in order, until the link takes no more."""
        for letter in self._letters.values():
            if letter.token == 0:
                letter.token = self._publish(letter.topic, letter.payload, letter.retain)
                if letter.token == 0:
                    return

    def has(self, key: str) -> bool:
        """Whether the message of this key still waits for the broker's word."""
        return key in self._letters

    def __len__(self) -> int:
        return len(self._letters)
