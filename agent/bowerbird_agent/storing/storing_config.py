"""What agent.toml says of frames that are kept: the spool's bounds, how a picture is stored, what is kept for the record.

In: plain values of `[spool]`, `[image]` and `[accounting]`. Out: frozen types that check themselves, or ValueError with what to write
instead. It looks at no disk (`spool.py`, `encode.py`) and says nothing about which frames are kept (`policy.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bowerbird_agent.selection.policy import STRATEGIES
from bowerbird_agent.spool.eviction import FLOORS
from bowerbird_agent.structuring import require

MAX_LONG_SIDE_PX = 4096


@dataclass(frozen=True)
class SpoolConfig:
    """Bounds of the durable queue on disk.

    Args:
        max_bytes: hard cap of frames, index and all.
        min_free_bytes: the spool does not grow while the disk has less free than this.
        floors: "explore" or a strategy -> the share of the spool that is its frames' own. Below it they make way for no others.
        max_age_days: frames captured longer ago are given up unsent; None keeps them until they are sent.
    """

    max_bytes: int = 500_000_000
    min_free_bytes: int = 200_000_000
    floors: dict[str, float] = field(default_factory=lambda: dict(FLOORS))
    max_age_days: float | None = None

    def __post_init__(self) -> None:
        require(self.max_bytes >= 3_000_000, f"max_bytes is {self.max_bytes}; it must be at least 3000000")
        require(
            self.max_age_days is None or 0.01 <= self.max_age_days <= 3660,
            f"max_age_days is {self.max_age_days}; it must be 0.01 to 3660",
        )
        require(self.min_free_bytes >= 0, f"min_free_bytes is {self.min_free_bytes}; it must not be negative")
        known = ("explore", *STRATEGIES)
        unknown = sorted(set(self.floors) - set(known))
        require(not unknown, f"floors knows no {', '.join(unknown)}; known are {', '.join(known)}")
        require(all(0 <= share <= 1 for share in self.floors.values()), "a share in floors must be 0 to 1")
        require(sum(self.floors.values()) <= 1, f"floors add up to {sum(self.floors.values()):g}; together at most 1")


@dataclass(frozen=True)
class ImageConfig:
    """How a frame is stored and sent: JPEG of at most `long_side` pixels (never enlarged) and this quality."""

    long_side: int = 640
    quality: int = 90

    def __post_init__(self) -> None:
        require(64 <= self.long_side <= MAX_LONG_SIDE_PX, f"long_side is {self.long_side}; it must be 64 to {MAX_LONG_SIDE_PX}")
        require(10 <= self.quality <= 100, f"quality is {self.quality}; it must be 10 to 100")


@dataclass(frozen=True)
class AccountingConfig:
    """What is kept for the record.

    Args:
        encode_everything: encodes each distinct frame, to know what sending everything or the 0.6 rule would have cost.
        keep_decisions: newest decisions kept in the state folder for `bowerbird-agent explain`, some 40 bytes each; 0 for none.
    """

    encode_everything: bool = False
    keep_decisions: int = 20_000

    def __post_init__(self) -> None:
        require(0 <= self.keep_decisions <= 1_000_000, f"keep_decisions is {self.keep_decisions}; it must be 0 to 1000000")
