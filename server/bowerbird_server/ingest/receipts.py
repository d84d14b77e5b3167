"""What the devices of one group are told, gathered into one receipt for each. Pure.

In: frames that are committed, refused or wanted, by the device that asked. Out: topics and receipts. It publishes nothing; who
publishes has made durable what is called committed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from bowerbird_wire.messages import Receipt, Refusal, Want
from bowerbird_wire.topics import DeviceTopic, ReceiptTopic


@dataclass
class _Told:
    committed: dict[str, None] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    wanted: list[Want] = field(default_factory=list)
    hold_s: float = 0.0


class Receipts:
    """The answers to one group, by device in the order of their first answer."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], _Told] = {}  # (site, device), names that a topic has already checked

    def committed(self, asker: DeviceTopic, frame: str) -> None:
        """A frame is safe here."""
        self._of(asker).committed[frame] = None

    def refused(self, asker: DeviceTopic, refusal: Refusal) -> None:
        """A frame will never be taken."""
        self._of(asker).refused.append(refusal)

    def wanted(self, asker: DeviceTopic, want: Want) -> None:
        """A frame, or the rest of it, may be sent. Not said of one that is committed by now."""
        if want.frame.hex() not in self._of(asker).committed:
            self._of(asker).wanted.append(want)

    def hold(self, asker: DeviceTopic, seconds: float) -> None:
        """The device is over its limit: it should keep its frames for so long."""
        self._of(asker).hold_s = seconds

    def messages(self) -> Iterator[tuple[ReceiptTopic, Receipt]]:
        """One receipt a device; none for a device that there is nothing to tell."""
        for (site, device), told in self._told.items():
            if told.committed or told.refused or told.wanted or told.hold_s:
                yield (
                    ReceiptTopic(site, device),
                    Receipt(tuple(told.committed), tuple(told.refused), tuple(told.wanted), hold_s=told.hold_s),
                )

    def _of(self, asker: DeviceTopic) -> _Told:
        names = asker.site, asker.device
        if names not in self._told:
            self._told[names] = _Told()
        return self._told[names]
