"""One decision of the selection with everything that went into it: what `explain` tells and `replay` counts.

In: a judged frame, and what the selector knew then. Out: a value, and the same as plain values for a log. It decides nothing and
writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bowerbird_agent.choose import Judgement


@dataclass(frozen=True)
class Decision:
    """What was decided about one frame when it was looked at; whether it was sent is decided at the window's end.

    Args:
        camera, sequence, captured_at_ms: of the frame.
        frame_id: 64 hex digits of an admitted frame; "" for one that was not encoded.
        model: digest of the model that looked at it.
        judgement: from `Selector.judge`.
        weights: strategy -> weight, of the policy in force.
        frames_left: what could still be sent then; None for no limit.
        waiting: candidates in the window then, this one included.
    """

    camera: str
    sequence: int
    captured_at_ms: int
    frame_id: str
    model: str
    judgement: Judgement
    weights: Mapping[str, float]
    frames_left: int | None
    waiting: int

    def plain(self) -> dict[str, Any]:
        """For JSON, numbers to four places."""
        judged = self.judgement
        return {
            "camera": self.camera,
            "sequence": self.sequence,
            "captured_at_ms": self.captured_at_ms,
            "frame_id": self.frame_id,
            "model": self.model,
            "admitted": judged.admit,
            "refused": judged.refused,
            "arm": judged.arm,
            "inclusion_probability": round(judged.inclusion_probability, 6),
            "value": round(judged.value, 4),
            "rank": round(judged.score, 4),
            "bar": None if judged.bar is None else round(judged.bar, 4),
            "reasons": list(judged.reasons),
            "strategies": {name: round(float(score), 4) for name, score in judged.strategy_scores.items()},
            "weights": dict(self.weights),
            "frames_left": self.frames_left,
            "waiting": self.waiting,
        }
