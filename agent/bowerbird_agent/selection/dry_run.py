"""A policy on trial beside the one in force: it sees the same frames, decides, is counted and logged, and nothing of it is sent.

In: every frame with its detections, what the policy in force decided. Out: decisions in a log of their own, and counts for health. The
trial has the same allowance at each window's end as the policy in force has then. What it costs is a second scoring of each frame;
whatever fails in it ends the trial and nothing else. It encodes and stores no frame: a frame counts as large as those in force are on
average. Its counts and what it remembers of chosen frames survive a restart, as they were at the end of its last window; of frames
that only one of the two policies had chosen by then it is not known any more whether the other one followed.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from dataclasses import fields as fields_of
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import cbor2

from bowerbird_agent.selection.choose import Candidate
from bowerbird_agent.selection.decisions import Decision
from bowerbird_agent.selection.select import Selector
from bowerbird_models.durable import write_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from bowerbird_agent.capture.capture import Frame
    from bowerbird_agent.selection.decision_log import DecisionLog
    from bowerbird_agent.selection.fleet_novelty import FleetNovelty
    from bowerbird_agent.selection.policy import Policy
    from bowerbird_models.detections import Detections
    from bowerbird_models.score_calibration import ScoreCalibration

logger = logging.getLogger(__name__)

FOLDER = "decisions-dry"
FILE = "trial.cbor"  # beside its decisions
_REMEMBERED = 20_000  # chosen frames that are compared with those of the other policy
_FRAME_BYTES = 50_000  # until the first frame was encoded
_NO_BOOSTS: Mapping[str, float] = MappingProxyType({})

Key = tuple[str, int]  # camera and capture time


class DryRun:
    """One trial. The inference thread owns it; others read `facts`.

    Args:
        policy: on trial.
        device, cameras: as of the policy in force, so that chance falls alike.
        log: where its decisions go; None for nowhere.
        frames_left, bytes_left: what the policy in force may still send; None for no limit.
        now_ms: UTC.
        state: what `keep` was given before a restart; None for a trial that begins, which that of another policy is as well.
        keep: takes the state at the end of each window; must not block.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        device: str,
        cameras: int,
        log: DecisionLog | None = None,
        frames_left: Callable[[], int | None] = lambda: None,
        bytes_left: Callable[[], int | None] = lambda: None,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        state: bytes | None = None,
        keep: Callable[[bytes], None] = lambda _state: None,
    ) -> None:
        self.policy = policy
        self._keep = keep
        self._log, self._frames_left, self._bytes_left = log, frames_left, bytes_left
        self._since_ms = now_ms()
        self._waiting: dict[str, tuple[Key, str, int]] = {}  # candidate of the trial -> key, arm, size
        self._candidates: OrderedDict[str, Key] = OrderedDict()  # of the policy in force
        self._chosen: OrderedDict[Key, None] = OrderedDict()
        self._in_force: OrderedDict[Key, None] = OrderedDict()
        self._sizes = [0, 0]  # frames encoded for the policy in force, and their bytes
        self._counts = {"frames": 0, "chosen": 0, "explore": 0, "bytes": 0, "in_force": 0, "both": 0}
        self._refused: dict[str, int] = {}
        self._has_failed = False
        self._selector = Selector(policy, device=device, cameras=cameras, state=None if state is None else self._restore(state))
        self._selector.keep_waiting(())  # what the trial would have kept waiting lies on no disk
        self._selector.expect(frames_left())

    def look(
        self,
        frame: Frame,
        detections: Detections | None,
        thumb: NDArray[np.uint8] | None = None,
        *,
        model_digest: str,
        calibration: ScoreCalibration | None = None,
        fleet: FleetNovelty | None = None,
        boosts: Mapping[str, float] = _NO_BOOSTS,
    ) -> None:
        """Judge one frame, after the policy in force has, by all that counts for that one as well.

        Args: those of `Selector.judge`, `Selector.use`, `Selector.fleet` and `Selector.boost`.
        """
        if self._has_failed:
            return
        try:
            if calibration is not self._selector.calibration:
                self._selector.use(calibration)
            self._selector.fleet = fleet
            self._selector.boost(boosts)
            self._look(frame, detections, thumb, model_digest)
        except Exception as error:  # a trial is never a reason to stop looking
            self._has_failed = True
            logger.warning("the policy in dry run failed and is given up until it is set again: %r", error)

    def encoded(self, frame_id: str, camera: str, at_ms: int, size_bytes: int) -> None:
        """The policy in force made a candidate."""
        self._sizes[0] += 1
        self._sizes[1] += size_bytes
        self._candidates[frame_id] = (camera, at_ms)
        while len(self._candidates) > _REMEMBERED:
            self._candidates.popitem(last=False)

    def sent(self, frame_ids: Collection[str]) -> None:
        """The policy in force chose these."""
        for frame_id in frame_ids:
            key = self._candidates.pop(frame_id, None)
            if key is not None:
                self._counts["in_force"] += 1
                self._counts["both"] += key in self._chosen
                _remember(self._in_force, key)

    def expect(self) -> None:
        """Take up what the policy in force may still send."""
        self._selector.expect(self._frames_left())

    def restart(self, why: str, *, new_model: bool) -> None:
        """A new round began, or another model answers."""
        self._waiting.clear()
        self._selector.restart(f"dry run, {why}", new_model=new_model)
        self._selector.expect(self._frames_left())

    def facts(self) -> Mapping[str, object]:
        """For health: what the trial would have done since it began, and how that compares.

        `frames` judged, `chosen` of them, `explore` of these, `bytes` by estimate; `in_force` what the policy in force chose meanwhile,
        `both` what both did; `refused` by reason.
        """
        failed = {"failed": True} if self._has_failed else {}
        strategies = {name: round(weight, 3) for name, weight in self.policy.strategies.items()}
        return {"since_ms": self._since_ms, "strategies": strategies, **self._counts, "refused": dict(self._refused), **failed}

    def to_state(self) -> bytes:
        """For the next start: the policy that is tried, the counts, and what its selector remembers."""
        counts = {"since_ms": self._since_ms, "counts": self._counts, "refused": self._refused, "sizes": self._sizes}
        return bytes(cbor2.dumps({"v": 1, "policy": _plain(self.policy), **counts, "selector": self._selector.to_state()}))

    def _restore(self, state: bytes) -> bytes | None:
        """Take up the counts of the same policy; what its selector remembered then, None when it begins anew."""
        try:
            fields = cbor2.loads(state)
            if fields["policy"] != _plain(self.policy):
                return None
            counts = {name: int(fields["counts"][name]) for name in self._counts}
            refused = {str(why): int(count) for why, count in fields["refused"].items()}
            since_ms, sizes, selector = (
                int(fields["since_ms"]),
                [int(size) for size in fields["sizes"]],
                bytes(fields["selector"]),
            )
            Selector(self.policy, device="", state=selector)
        except (cbor2.CBORDecodeError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            logger.warning("what was counted of the policy in dry run is damaged (%r); it is counted anew", error)
            return None
        if len(sizes) == 2:
            self._counts, self._refused, self._since_ms, self._sizes = counts, refused, since_ms, sizes
        return selector

    def _look(self, frame: Frame, detections: Detections | None, thumb: NDArray[np.uint8] | None, model_digest: str) -> None:
        selector = self._selector
        if selector.window_closed():
            self._close_window()
        judgement = selector.judge(frame, detections, thumb)
        self._counts["frames"] += not frame.repeat
        key = (frame.camera, frame.captured_at_ms)
        frame_id = ""
        if judgement.admit:
            frame_id = hashlib.sha256(f"dry/{frame.camera}/{frame.sequence}/{frame.captured_at_ms}".encode()).hexdigest()
            size = self._sizes[1] // self._sizes[0] if self._sizes[0] else _FRAME_BYTES
            self._waiting[frame_id] = key, judgement.arm, size
            for dropped in selector.add(Candidate(frame_id, frame.camera, frame.captured_at_ms, judgement, size)):
                self._waiting.pop(dropped, None)
        else:
            self._refused[judgement.refused] = self._refused.get(judgement.refused, 0) + 1
        if self._log is not None:
            self._log.note(
                Decision(
                    frame.camera,
                    frame.sequence,
                    frame.captured_at_ms,
                    frame_id,
                    model_digest,
                    judgement,
                    self.policy.strategies,
                    selector.frames_left,
                    selector.waiting,
                )
            )

    def _close_window(self) -> None:
        frames_left, bytes_left = self._frames_left(), self._bytes_left()
        result = self._selector.close_window(frames_left=frames_left, bytes_left=bytes_left)
        self._selector.expect(frames_left)  # what the trial chose was not sent: only the policy in force uses the allowance up
        for frame_id in result.chosen:
            key, arm, size = self._waiting[frame_id]
            self._counts["chosen"] += 1
            self._counts["explore"] += arm == "explore"
            self._counts["bytes"] += size
            self._counts["both"] += key in self._in_force
            _remember(self._chosen, key)
        self._waiting.clear()
        self._keep(self.to_state())
        if self._log is not None:
            self._log.window(
                result.chosen,
                result.dropped,
                closed=True,
                frames_left=frames_left,
                bytes_left=bytes_left,
                explore_share=result.explore_share,
            )


def _plain(policy: Policy) -> dict[str, Any]:
    """Every field of a policy, for comparison."""
    return {field.name: getattr(policy, field.name) for field in fields_of(policy)} | {"strategies": dict(policy.strategies)}


def read_trial(folder: Path) -> bytes | None:
    """What was kept of a trial before a restart; None for nothing that can be read."""
    try:
        return (folder / FILE).read_bytes()
    except OSError:
        return None


def keep_trial(folder: Path, state: bytes | None) -> None:
    """Write a trial's state, None for a trial that is over. A disk that refuses is told; the counts are then those of before."""
    try:
        if state is None:
            (folder / FILE).unlink(missing_ok=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / FILE, state, 0o600)
    except OSError as error:
        logger.warning("the counts of the policy in dry run cannot be written (%s); a restart would lose some", error)


def _remember(keys: OrderedDict[Key, None], key: Key) -> None:
    keys[key] = None
    while len(keys) > _REMEMBERED:
        keys.popitem(last=False)
