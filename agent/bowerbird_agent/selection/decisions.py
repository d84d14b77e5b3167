"""One decision of the selection with everything that went into it: what `explain` tells and `replay` counts.

In: a judged frame, and what the selector knew then. Out: a value, and the same as plain values for a log. It decides nothing and
writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bowerbird_agent.selection.calibration_book import DoubtedBoxes
    from bowerbird_agent.selection.choose import Judgement

# Why a frame is no candidate, as `select.py` calls it -> as a person says it.
REFUSALS: Mapping[str, str] = MappingProxyType(
    {
        "nothing_to_learn": "no strategy says that a label would teach anything",
        "camera_fault": "its camera is dark or frozen: a label would teach nothing",
        "audit_only": "this policy takes frames by chance alone",
        "duplicate": "nothing has changed since the last candidate",
        "too_close_to_chosen": "too soon after a frame that was sent",
        "weaker_than_neighbour": "a frame shortly before it is worth as much or more",
        "pool_full": "enough frames wait already, and each is worth more",
        "ring_full": "frames that wait for bytes already are worth more",
        "no_frames_left": "the server wants no more frames, or without a model has not asked for any yet",
        "already_chosen": "this frame was sent before",
        "scoring_failed": "the frame could not be scored; the log says why",
        "switched_off": "the policy sends no frame at all",
    }
)
# Why a candidate was not chosen, as `choose.py`, `pool.py` and `inference.py` call it.
DROPS: Mapping[str, str] = MappingProxyType(
    {
        "weaker_than_neighbour": "a frame shortly after it was worth more",
        "pool_full": "too many frames waited, and each was worth more",
        "weaker": "others of its window were worth more or more unlike each other",
        "too_close": "too near in time to a frame that was chosen",
        "byte_budget": "its bytes did not fit into what was left of the budget",
        "byte_pace": "its window's part of the day's bytes was spent",
        "ring_full": "its window's bytes were spent, and those that wait for later ones are worth more",
        "explore_share": "the random share of the window was full",
        "no_frames_left": "the server wanted no more frames",
        "round_over": "another model or another wish of the server began a new round",
        "policy_changed": "it waited for bytes when the policy changed, and its value says nothing under the new one",
        "window_cut_short": "the agent ended before its window did",
    }
)


@dataclass(frozen=True)
class Decision:
    """What was decided about one frame when it was looked at; whether it was sent is decided at the window's end.

    Args:
        camera, sequence, captured_at_ms: of the frame.
        frame_id: 64 hex digits of an admitted frame; "" for one that was not encoded.
        model: digest of the model that looked at it; "" while there was none.
        judgement: from `Selector.judge`.
        weights: strategy -> weight, of the policy in force.
        frames_left: what could still be sent then; None for no limit.
        waiting: candidates in the window then, this one included.
        doubted: its boxes and what their scores are worth; None where scores are taken at their word.
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
    doubted: DoubtedBoxes | None = None

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
            **({} if self.doubted is None else {"doubted": self.doubted.plain()}),
            **({"twin": judged.twin} if judged.twin else {}),
        }
