"""The selection policy: every number that says which frames are worth a label, as one typed value.

In: a template's name and fields that override it (from `[selection]` in agent.toml). Out: a checked, frozen `Policy`. It
chooses nothing itself (`select.py` does) and it reads no file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from bowerbird_models.frame_value import BALANCED

# Every strategy that can be named in a policy. `uncertainty.py` holds those that look at detections, `temporal.py` those that look
# at several frames; `select.py` adds motion, novelty and chance.
STRATEGIES: Mapping[str, str] = MappingProxyType(
    {
        "entropy": "binary entropy of every box's score, summed over the boxes",
        "least_confidence": "one minus the score of the least certain visible box",
        "margin": "how close a visible box's top two classes are",
        "localisation": "how blurred a box's edges are (models with a DFL head only)",
        "close_to_threshold": "how close a box's score is to the threshold for being shown",
        "count": "how many boxes are shown, for crowded frames",
        "missed_object": "strong boxes below the threshold and motion that no box explains, summed over the objects",
        "flicker": "an object that was seen in one frame and is lost in the next",
        "rule_max": "the printed rule `max conf < 0.6`",
        "rule_min": "its other printing, `min conf < 0.6`",
        "rare_class": "a box of a class that is seldom seen here",
        "novelty": "how far the frame is from the frames already kept",
        "periodic": "the middle of each of as many equal stretches as frames may be sent",
        "random": "chance, by a keyed hash",
    }
)


@dataclass(frozen=True)
class Policy:
    """Which frames to keep, and how many. The defaults are the template `balanced`.

    Args:
        window_frames: frames per camera that are compared with each other before the best are sent; at least 1.
        window_s: the same in seconds of a live camera's monotonic time; whichever ends first ends the window. None: frames only.
        frames_per_window: most frames sent from one window; None leaves it to the server's `frames_total` alone.
        strategies: name in STRATEGIES -> weight in (0, 1]; combined as 1 - product of (1 - weight x score).
        epsilon: share in [0, 1] of the frame budget that goes to frames taken at random, without looking.
        cold_epsilon: the same while there is no model, and for frames that the model failed on.
        min_gap_s: no two policy frames of one camera are closer than this in capture time, in this or any earlier window.
        spread: the wanted gap is this share in [0, 1] of (time in the window / frames to choose); it gives way down to
            `min_gap_s` when too few frames are left. 0 switches it off.
        novelty_share: share in [0, 1] of the value that depends on novelty; 0 judges by the strategies alone.
        quiet_discount: share in [0, 1] of the value that a frame loses in which nothing moves against the known background: what a
            model imagines on an empty scene is the same in every frame, a few labels cure it.
        typicality: share in [0, 1] of the value that depends on how typical the frame is; for the first labels of a new camera.
        shortlist: farthest-first picks among this many times as many frames as it has to choose, the best by value; at least 1.
            1 switches diversity off.
        near_duplicates: drop a frame in which nothing changed since the camera's last candidate.
        max_candidates: most frames waiting for the window's end, explore frames included; at least 1.
        decode_confidence: lowest detection score asked of the detector, in (0, 1).
        visible_confidence: score from which a box counts as shown to a user, in (0, 1), above decode_confidence.
        bank_size: fingerprints of kept frames that novelty remembers; at least 1.
        rank_history: judged frames among which a score's rank is taken; at least 1.
        seed: changes every keyed draw.

    Raises:
        ValueError: lists every field that is out of range.
    """

    window_frames: int = 600
    window_s: float | None = None
    frames_per_window: int | None = None
    strategies: Mapping[str, float] = field(default_factory=lambda: BALANCED)
    epsilon: float = 0.2
    cold_epsilon: float = 0.5
    min_gap_s: float = 1.0
    spread: float = 0.35
    novelty_share: float = 0.75
    quiet_discount: float = 0.5
    typicality: float = 0.0
    shortlist: int = 4
    near_duplicates: bool = True
    max_candidates: int = 200
    decode_confidence: float = 0.05
    visible_confidence: float = 0.25
    bank_size: int = 512
    rank_history: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        faults: list[str] = []
        for name in ("window_frames", "max_candidates", "shortlist", "bank_size", "rank_history"):
            if not _is_whole(getattr(self, name)) or getattr(self, name) < 1:
                faults.append(f"{name} must be a whole number of at least 1, not {getattr(self, name)!r}")
        for name in ("epsilon", "cold_epsilon", "spread", "novelty_share", "quiet_discount", "typicality"):
            if not _is_number(getattr(self, name)) or not 0.0 <= getattr(self, name) <= 1.0:
                faults.append(f"{name} must be between 0 and 1, not {getattr(self, name)!r}")
        if not _is_number(self.min_gap_s) or self.min_gap_s < 0:
            faults.append(f"min_gap_s must be 0 or more seconds, not {self.min_gap_s!r}")
        if self.window_s is not None and not (_is_number(self.window_s) and self.window_s > 0):
            faults.append(f"window_s must be more than 0 seconds, not {self.window_s!r}")
        if self.frames_per_window is not None and not (_is_whole(self.frames_per_window) and self.frames_per_window >= 0):
            faults.append(f"frames_per_window must be a whole number of at least 0, not {self.frames_per_window!r}")
        if not _is_whole(self.seed):
            faults.append(f"seed must be a whole number, not {self.seed!r}")
        if not (
            _is_number(self.decode_confidence)
            and _is_number(self.visible_confidence)
            and 0.0 < self.decode_confidence < self.visible_confidence < 1.0
        ):
            faults.append(
                f"0 < decode_confidence ({self.decode_confidence!r}) < visible_confidence ({self.visible_confidence!r}) < 1 must hold"
            )
        faults += _strategy_faults(self.strategies)
        if faults:
            raise ValueError("the selection policy is not usable: " + "; ".join(faults))
        object.__setattr__(self, "strategies", MappingProxyType(dict(self.strategies)))

    @classmethod
    def template(cls, name: str, **overrides: Any) -> Policy:
        """The policy of that name with single fields replaced.

        Raises:
            ValueError: no such template, no such field, or a value out of range.
        """
        if name not in TEMPLATES:
            raise ValueError(f"no selection template {name!r}; choose one of {', '.join(sorted(TEMPLATES))}")
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(overrides) - known):
            raise ValueError(f"unknown selection field {', '.join(unknown)}; the fields are {', '.join(sorted(known))}")
        return cls(**{**TEMPLATES[name], **overrides})


# What each is for is in its comment; every number is a field of Policy.
TEMPLATES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # Uncertain, missed and new frames, spread over time and content, with a random audit. The default.
        "balanced": {},
        # The classic: only the model's doubt, best first, with a time gap.
        "uncertain_only": {
            "strategies": {"entropy": 1.0},
            "epsilon": 0.1,
            "spread": 0.0,
            "novelty_share": 0.0,
            "quiet_discount": 0.0,
            "shortlist": 1,
        },
        # Hunts for what the model does not see.
        "missed_objects": {"strategies": {"missed_object": 1.0, "flicker": 0.5, "close_to_threshold": 0.3, "novelty": 0.05}},
        # The long tail: frames with a class that the model seldom finds here, faint boxes included.
        "rare_class": {"strategies": {"rare_class": 1.0, "entropy": 0.2, "novelty": 0.05}, "epsilon": 0.2},
        # Frames unlike those already kept, whatever the model says.
        "novel": {"strategies": {"novelty": 1.0}, "novelty_share": 0.0, "quiet_discount": 0.0},
        # The first labels of a new camera or class: typical frames teach more than odd ones.
        "first_labels": {"strategies": {"random": 1.0}, "epsilon": 0.5, "novelty_share": 0.5, "typicality": 0.5},
        # Nothing but chance, one frame in each equal stretch of time: the baseline to beat, and an honest evaluation set.
        "random_audit": {
            "strategies": {"random": 1.0},
            "epsilon": 1.0,
            "novelty_share": 0.0,
            "quiet_discount": 0.0,
            "shortlist": 1,
        },
        # Every frame, as far as the byte budget goes: for a first recording. Nothing is compared, nothing left out.
        "collect_everything": {
            "strategies": {"random": 1.0},
            "window_frames": 60,
            "frames_per_window": 10_000,
            "max_candidates": 10_000,
            "epsilon": 0.0,
            "cold_epsilon": 0.0,
            "min_gap_s": 0.0,
            "spread": 0.0,
            "novelty_share": 0.0,
            "quiet_discount": 0.0,
            "shortlist": 1,
            "near_duplicates": False,
        },
        # No frame at all, not even at random: the model runs, is updated and is watched, and no picture leaves the device.
        "off": {"frames_per_window": 0, "epsilon": 0.0, "cold_epsilon": 0.0},
        # The field's rule of thumb, with a time gap and a random pick among the flagged.
        "seed_rule": {
            "strategies": {"rule_max": 1.0},
            "epsilon": 0.0,
            "spread": 0.0,
            "novelty_share": 0.0,
            "quiet_discount": 0.0,
            "shortlist": 1,
        },
    }
)


def _strategy_faults(strategies: object) -> list[str]:
    if not isinstance(strategies, Mapping) or not strategies:
        return [f"strategies must name at least one of {', '.join(STRATEGIES)} with its weight"]
    faults = []
    for name, weight in strategies.items():
        if name not in STRATEGIES:
            faults.append(f"unknown strategy {name!r}; the strategies are {', '.join(STRATEGIES)}")
        elif not _is_number(weight) or not 0.0 < weight <= 1.0:
            faults.append(f"the weight of strategy {name} must be above 0 and at most 1, not {weight!r}")
    return faults


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
