"""What a device keeps for people who want more of a frame than was sent: the `[fetch]` section of agent.toml.

In: values from the file. Out: `FetchConfig`. `originals.py` and `surroundings.py` keep, `fetching.py` answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from bowerbird_agent.selection.policy import STRATEGIES
from bowerbird_wire.linked import MAX_AROUND_S


@dataclass(frozen=True)
class FetchConfig:
    """Originals and surroundings of kept frames, and what sending them may cost.

    Args:
        originals_max_bytes: cap of what is kept on disk beside the spool, originals and surroundings together; 0 keeps nothing.
        originals_quality: JPEG quality of pictures at the camera's resolution.
        around_memory_mb: memory a camera for its last seconds as JPEG at the sending resolution; 0 keeps none.
        around_fps: how many pictures a second of them.
        around_reasons: "explore" or strategies: a kept frame for which one of them spoke keeps its surroundings on disk.
        around_s: how far around such a frame, to both sides, in seconds.
        bytes_per_day: what fetched pictures may cost in any 24 hours, on top of being held by `[budget]`; None for no cap.
    """

    originals_max_bytes: int = 100_000_000
    originals_quality: int = 92
    around_memory_mb: float = 2.0
    around_fps: float = 1.0
    around_reasons: tuple[str, ...] = ()
    around_s: float = 3.0
    bytes_per_day: int | None = 20_000_000

    def __post_init__(self) -> None:
        faults = [
            (self.originals_max_bytes < 0, f"originals_max_bytes is {self.originals_max_bytes}; it must not be negative"),
            (
                not 10 <= self.originals_quality <= 100,
                f"originals_quality is {self.originals_quality}; it must be 10 to 100",
            ),
            (not 0 <= self.around_memory_mb <= 1000, f"around_memory_mb is {self.around_memory_mb}; it must be 0 to 1000"),
            (not 0.01 <= self.around_fps <= 30, f"around_fps is {self.around_fps}; it must be 0.01 to 30"),
            (
                not 0 < self.around_s <= MAX_AROUND_S,
                f"around_s is {self.around_s}; it must be above 0 and at most {MAX_AROUND_S:g}",
            ),
            (
                self.bytes_per_day is not None and self.bytes_per_day < 10_000,
                f"bytes_per_day is {self.bytes_per_day}; a picture needs more (10000), or leave it out for no cap",
            ),
        ]
        known = ("explore", *STRATEGIES)
        unknown = sorted(set(self.around_reasons) - set(known))
        faults.append((bool(unknown), f"around_reasons knows no {', '.join(unknown)}; known are {', '.join(known)}"))
        found = [text for is_wrong, text in faults if is_wrong]
        if found:
            raise ValueError("; ".join(found))
