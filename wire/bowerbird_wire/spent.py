"""What a device's bytes went into, as health tells it: kinds and the letters that stand for them in the message.

In: nothing. Out: a table that agent and server share. `extra["spent"]` of a health message maps letters to bytes since the
agent's first start, both directions, every byte in exactly one kind. `extra["uplink"]` says, where caps are set, `total` and (over a
metered interface) `metered`: bytes of the last 24 hours, their cap or none, bytes of the last 31 days, their cap or none; and
`quiet` in quiet hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

FRAMES, FETCHED, CHUNKS, OFFERS, HEALTH, DETECTIONS, BLOCKS, CONTROL, REFERENCES = (
    "frames",
    "fetched",
    "chunks",
    "offers",
    "health",
    "detections",
    "update blocks",
    "control",
    "references",
)

# Kind -> letter. A letter is never given another meaning; readers skip those that they do not know.
LETTERS: Mapping[str, str] = MappingProxyType(
    {
        FRAMES: "f",
        FETCHED: "w",
        CHUNKS: "c",
        OFFERS: "o",
        HEALTH: "h",
        DETECTIONS: "d",
        BLOCKS: "b",
        CONTROL: "k",
        REFERENCES: "r",
    }
)


def kinds_of(letters: object) -> dict[str, int]:
    """Kind -> bytes, the largest first, from `extra["spent"]`; what cannot be read is left out."""
    if not isinstance(letters, Mapping):
        return {}
    found = {kind: letters.get(letter) for kind, letter in LETTERS.items()}
    counted = {
        kind: size for kind, size in found.items() if isinstance(size, int) and not isinstance(size, bool) and 0 < size < 2**63
    }
    return dict(sorted(counted.items(), key=lambda item: -item[1]))
