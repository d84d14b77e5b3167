"""Keep or skip: judges every frame, holds a window's candidates, and at its end chooses the best that differ.

In: frames with the model's detections. Out: a `Judgement` per frame, and per window a `WindowResult`. Pure: no clock, no file, no
random generator; equal inputs give equal choices. Not thread-safe: one thread owns it, or a lock does. It neither encodes nor
stores frames (the pipeline and the spool do) and knows nothing of the network.

The random audit is decided before a frame is looked at. Everything else waits: deferring the decision to the window's end makes
it a comparison of frames instead of a guess at a threshold.
"""

from __future__ import annotations

import logging
import struct
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import cbor2
import numpy as np

from bowerbird_agent.selection.allowance import Allowance
from bowerbird_agent.selection.calibration_book import CalibrationBook
from bowerbird_agent.selection.camera_view import CameraView
from bowerbird_agent.selection.choose import Candidate, Judgement, WindowResult, choose
from bowerbird_agent.selection.explore import AuditDraw, keyed_unit
from bowerbird_agent.selection.frame_scores import FrameScores, speakers
from bowerbird_agent.selection.gate import HASH_BYTES, changed_cells, dhash, thumbnail
from bowerbird_agent.selection.novelty import Bank, Fingerprint, Ranks
from bowerbird_agent.selection.pool import WORTH_REPLACING, Pool
from bowerbird_agent.selection.ring import Ring, of_plain, to_plain
from bowerbird_agent.selection.temporal import Tracks, periodic
from bowerbird_agent.selection.typicality import WindowSample
from bowerbird_agent.selection.uncertainty import rule_max_below
from bowerbird_models.frame_value import noisy_or

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from numpy.typing import NDArray

    from bowerbird_agent.capture.capture import Frame
    from bowerbird_agent.selection.choose import Arm
    from bowerbird_agent.selection.fleet_novelty import FleetNovelty
    from bowerbird_agent.selection.policy import Policy
    from bowerbird_models.detections import Detections
    from bowerbird_models.score_calibration import ScoreCalibration

__all__ = ["Candidate", "Judgement", "Selector", "WindowResult", "rule_would_send"]

logger = logging.getLogger(__name__)

# Not chosen for these reasons, a candidate may wait for a later window.
_MAY_WAIT = frozenset({"weaker", "byte_budget", "byte_pace", "explore_share"})
# Share of a value that typicality makes up while there is no model; early on typical frames teach more than odd ones.
_COLD_TYPICALITY = 0.5


def rule_would_send(detections: Detections, *, visible: float = 0.25) -> bool:
    """Whether the field's rule of thumb, `max conf < 0.6`, would send this frame; frames without a shown box are skipped."""
    return rule_max_below(detections, visible=visible)


class _Seen(NamedTuple):
    """What one look at a frame gave; the fields are those of `Judgement`."""

    rank: float
    value: float
    reasons: tuple[str, ...]
    scores: dict[str, float]
    fingerprint: Fingerprint


class Selector:
    """Judges frames and chooses among them, for all cameras of one device.

    The pipeline calls, in order: `expect` when the server's wish is known; for each frame `judge`, and `add` once an admitted
    frame is encoded and stored; when `window_closed`, and at the end of a film, `close_window`; `to_state` after that. A new
    model or a new wish is a `restart`.

    Args:
        policy: the numbers.
        device: its name; part of every keyed draw.
        cameras: how many cameras it has, at least 1.
        frame_rate: frames per second of one camera, for windows in seconds; None when unknown.
        state: from `to_state`, None for a first start.

    Raises:
        ValueError: the state is damaged; start without it.
    """

    def __init__(
        self, policy: Policy, *, device: str, cameras: int = 1, frame_rate: float | None = None, state: bytes | None = None
    ) -> None:
        if cameras < 1:
            raise ValueError(f"a selector needs at least one camera, not {cameras}")
        self.policy = policy
        self._device = device
        self._allowance = Allowance(policy, cameras=cameras, frame_rate=frame_rate)
        self._scores = FrameScores(policy)
        self._ring = Ring(policy.max_candidates)
        self._views: dict[str, CameraView] = {}
        self._bank = Bank(policy.bank_size)
        self._windows = 0  # windows begun since the device was made; part of the key of every draw
        self._scoring_failed = False
        # What the fleet has enough of, set by the owner; not part of the state, since the server says it again at each connection.
        self.fleet: FleetNovelty | None = None
        # What the server has said of models' scores, kept with the state; `use` puts that of the model which runs in force.
        self.calibrations = CalibrationBook()
        # Digest of the model whose embeddings and values are remembered, set by the owner; "" while none was.
        self.model = ""
        # Whether a camera shows nothing (dark, frozen), set by the owner: then chance alone takes frames of it.
        self.is_unwell: Callable[[str], bool] = lambda _camera: False
        if state is not None:
            self._restore(state)
        self._forget_ranks()
        self._begin_window()

    def expect(self, frames_left: int | None, frames_a_window: float | None = None) -> None:
        """Say how many frames may still be sent: None no limit, 0 none. The audit's probability follows from the next frame on.

        Args:
            frames_left: what the server still wants.
            frames_a_window: what the byte budget allows in one window, a fraction too; None when it is not spread over the day.
        """
        self._allowance.expect(frames_left, frames_a_window)

    def boost(self, factors: Mapping[str, float]) -> None:
        """From the next frame on these cameras explore more, and the window has more frames for them.

        Args:
            factors: camera -> by how much its audit's share, and its part of the frames of a window, are multiplied; above 1.
        """
        self._allowance.boosts = factors

    def use(self, calibration: ScoreCalibration | None) -> None:
        """From the next frame on doubt goes by this table, None for the scores; ranks of values start again with another."""
        before, self._scores.calibration = self._scores.calibration, calibration
        if (None if before is None else before.table) != (None if calibration is None else calibration.table):
            self._value_ranks = Ranks(self.policy.rank_history)

    @property
    def calibration(self) -> ScoreCalibration | None:
        """What the scores of the model that runs are worth; None where they are taken at their word."""
        return self._scores.calibration

    @property
    def frames_left(self) -> int | None:
        """How many frames may still be sent, as told last; None for no limit."""
        return self._allowance.frames_left

    @property
    def waiting(self) -> int:
        """Frames that have a place in the open window, stored or on their way to the disk."""
        return len(self._pool)

    @property
    def candidates(self) -> tuple[str, ...]:
        """Frame ids waiting for the end of this window or a later one."""
        return (*self._pool.frame_ids, *self._ring.frame_ids)

    @property
    def window_span_s(self) -> float:
        """Monotonic seconds between the first and the newest frame of the open window."""
        return (self._newest_ns - self._first_ns) / 1e9

    @property
    def newest_s(self) -> float:
        """Monotonic seconds of the newest frame of the open window; 0 before its first."""
        return self._newest_ns / 1e9

    def judge(self, frame: Frame, detections: Detections | None, thumb: NDArray[np.uint8] | None = None) -> Judgement:
        """Judge one frame. Every frame of every camera is shown once, in order; the window counts them.

        A failure while scoring is logged and leaves the audit alone to work: inference goes on.

        Args:
            frame: the frame as captured.
            detections: decoded at the policy's `decode_confidence`; None while there is no model.
            thumb: from `gate.glance`, before the model ran; None to look at the picture now, which takes longer.
        """
        view = self._view(frame.camera)
        taken, probability = self._audit(view, frame.camera, cold=detections is None)
        self._count(frame)
        try:
            if thumb is None:
                thumb = thumbnail(frame.image_bgr)
            seen = self._look(view, frame, detections, thumb)
        except Exception as error:  # whatever a model or a picture does to the scores, the audit and inference must go on
            log = logger.debug if self._scoring_failed else logger.warning
            log("frame %s of %s cannot be scored, only the random audit goes on: %r", frame.sequence, frame.camera, error)
            self._scoring_failed = True
            seen, thumb = _Seen(0.0, 0.0, (), {}, Fingerprint(np.zeros(HASH_BYTES, np.uint8))), None
        arm: Arm = "policy"
        reasons, refused, bar = seen.reasons, "", None
        at_ms = frame.captured_at_ms
        gap_ms = view.gap_to_kept_ms(at_ms)
        if self._allowance.frames_left == 0:
            refused = "no_frames_left"
        elif self.policy.frames_per_window == 0:
            refused = "switched_off"
        elif gap_ms == 0 or self._pool.has(frame.camera, at_ms) or self._ring.has(frame.camera, at_ms):
            refused = "already_chosen"
        elif taken:
            arm, reasons = "explore", ("random_audit", *reasons)
        elif thumb is None:
            refused = "scoring_failed"
        else:
            refused, bar = self._why_not(view, frame, seen.value, gap_ms, thumb)
            if not refused:
                view.last_admitted = (thumb, seen.value)
        twin = view.twins.look(frame, thumb) if arm == "explore" and thumb is not None else ""
        judgement = Judgement(
            not refused, arm, seen.rank, seen.value, reasons, seen.scores, probability, seen.fingerprint, refused, bar, twin
        )
        if not refused:
            self._pool.enter(frame.camera, at_ms, judgement)
        return judgement

    def add(self, candidate: Candidate) -> dict[str, str]:
        """Take an admitted frame, now stored, into the window.

        Returns:
            Frame ids that give way to it, each with the reason, for the spool to drop; possibly its own.
        """
        self._view(candidate.camera).twins.stored(candidate.captured_at_ms, candidate.frame_id)
        given_up = self._pool.stored(candidate)
        self._never_sent(given_up)
        return given_up

    def sent_otherwise(self, camera: str, at_ms: int) -> None:
        """A campaign sends this frame, judged just now: it is no candidate, and those chosen later keep their distance from it."""
        self._pool.withdraw(camera, at_ms)
        self._view(camera).keep(at_ms)

    def window_closed(self, now_monotonic_ns: int | None = None) -> bool:
        """Whether the window is over: call `close_window` then.

        It is over when the cameras that took part have shown `window_frames` each on average (a camera that died does not hold it
        up for ever), or `window_s` after its first frame.

        Args:
            now_monotonic_ns: the clock of `Frame.monotonic_ns`; None for the newest frame's.
        """
        if not self._seen:
            return False
        if sum(self._seen.values()) >= self.policy.window_frames * len(self._seen):
            return True
        now_ns = self._newest_ns if now_monotonic_ns is None else now_monotonic_ns
        return self.policy.window_s is not None and now_ns - self._first_ns >= self.policy.window_s * 1e9

    def close_window(
        self, *, frames_left: int | None, bytes_left: int | None, saved_bytes: float | None = None, carried_bytes: int = 0
    ) -> WindowResult:
        """Choose among the candidates, remember the chosen for good, and begin the next window.

        Args:
            frames_left: how many frames the server still wants; None for no limit.
            bytes_left: bytes that the budget leaves for them (`TokenBucket.left_today_bytes`); None for no limit.
            saved_bytes: this window's part of them (`pace.py`); None for all.
            carried_bytes: candidates of so many bytes may wait for a later window instead of being dropped, the best ones.
        """
        allowance = self._allowance
        allowance.left_now(frames_left)
        candidates = (*self._pool.candidates, *map(self._as_novel_as_now, self._ring.candidates))
        usual = self.policy.frames_per_window
        share = self._typicality_share
        result = choose(
            candidates,
            replace(self.policy, typicality=share),
            limit=allowance.limit(len(candidates)),
            bytes_left=bytes_left,
            epsilon=allowance.audit_share(self._cold),
            draw_key=self._draw_key(),
            typicality=self._sample.typicality(candidates) if share else None,
            saved_bytes=saved_bytes,
            extra_for=frozenset(allowance.boosts) if allowance.boosts and usual is not None else None,
            usual_limit=usual,
        )
        by_id = {candidate.frame_id: candidate for candidate in candidates}
        for frame_id in result.chosen:
            chosen = by_id[frame_id]
            self._bank.add(chosen.judgement.fingerprint)
            self._view(chosen.camera).keep(chosen.captured_at_ms)
        allowance.sent(len(result.chosen))
        dropped = dict(result.dropped)
        if allowance.frames_left == 0:
            carried_bytes = 0
        gone = self._ring.refill((by_id[f] for f, why in dropped.items() if why in _MAY_WAIT), carried_bytes)
        for frame_id in self._ring.frame_ids:
            del dropped[frame_id]
        if carried_bytes:
            dropped |= dict.fromkeys(gone, "ring_full")
        explore = sum(by_id[f].judgement.arm == "explore" for f in result.chosen)
        lost = sum(by_id[f].judgement.arm == "explore" for f in dropped)
        dropped |= self._pool.take_given_up()
        self._never_sent(dropped)
        self._begin_window()
        return replace(result, dropped=dropped, explore_share=explore / (explore + lost) if lost else 1.0)

    def _never_sent(self, frame_ids: Collection[str]) -> None:
        for view in self._views.values() if frame_ids else ():
            view.twins.gone(frame_ids)

    def _as_novel_as_now(self, candidate: Candidate) -> Candidate:
        """A candidate that has waited, valued anew: what looks like it may have been chosen meanwhile."""
        judgement, share = candidate.judgement, self.policy.novelty_share
        if judgement.arm == "explore" or not share:
            return candidate
        was = 1.0 - share + share * judgement.strategy_scores.get("novelty", 1.0)
        novelty = self._novelty_ranks.rank(self._bank.distance(judgement.fingerprint))
        value = judgement.value * (1.0 - share + share * novelty) / was if was > 0 else judgement.value
        scores = {**judgement.strategy_scores, "novelty": novelty}
        return replace(candidate, judgement=replace(judgement, value=min(1.0, value), strategy_scores=scores))

    def restart(self, why: str, *, new_model: bool = False) -> tuple[str, ...]:
        """Begin a new window now: ranks start again, and every candidate is given up.

        Args:
            why: for the log, e.g. "new_model", "new_desired".
            new_model: the embeddings mean something else from now on.

        Returns:
            The frame ids that waited, for the spool to drop.
        """
        dropped = self.candidates
        self._ring.refill((), 0)
        logger.info("selection starts again (%s): %s candidates given up", why, len(dropped))
        if new_model:
            self._bank.forget_embeddings()
            self._scores.forget_classes()
            for view in self._views.values():
                view.tracks = Tracks()
        for view in self._views.values():
            view.twins.forget()
        self._scoring_failed = False
        self._forget_ranks()
        self._begin_window()
        return dropped

    def to_state(self) -> bytes:
        """What must survive a restart of the agent: kept frames' fingerprints and times, and the stored candidates, which wait
        for a later window then. Ranks do not."""
        kept = {name: struct.pack(f"<{len(v.kept_at_ms)}q", *v.kept_at_ms) for name, v in self._views.items() if v.kept_at_ms}
        state = {
            "v": 1,
            "windows": self._windows,
            "kept": kept,
            "bank": self._bank.to_state(),
            "model": self.model,
            "calibrations": self.calibrations.to_state(),
            "weights": dict(self.policy.strategies),
            "waiting": [to_plain(candidate) for candidate in (*self._ring.candidates, *self._pool.candidates)],
        }
        return bytes(cbor2.dumps(state))

    def keep_waiting(self, frame_ids: Collection[str]) -> None:
        """After a restart: of the candidates that waited before it, only these are still in the spool."""
        self._ring.keep(frame_ids)

    def _restore(self, state: bytes) -> None:
        try:
            fields = cbor2.loads(state)
            self._windows = int(fields["windows"])
            self._bank = Bank.from_state(fields["bank"], self.policy.bank_size)
            for name, packed in fields["kept"].items():
                view = self._view(str(name))
                view.kept_at_ms = sorted(struct.unpack(f"<{len(packed) // 8}q", packed))
            self.model = str(fields.get("model", ""))
            self.calibrations = CalibrationBook(fields.get("calibrations"))
            # Values of other strategies cannot be compared; what chance took needs none.
            is_same = fields.get("weights", {}) == dict(self.policy.strategies)
            waiting = map(of_plain, fields.get("waiting", ()))
            self._ring.restore(c for c in waiting if is_same or c.judgement.arm == "explore")
        except (cbor2.CBORDecodeError, struct.error, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError("the saved selection state is damaged; delete it to start with an empty one") from error

    def _begin_window(self) -> None:
        self._windows += 1
        # Half the gap leaves the choice alternatives: frames in places a whole gap apart would seldom all fit.
        self._pool = Pool(self.policy.min_gap_s * 500.0, self._allowance.capacity)
        self._seen: dict[str, int] = {}
        self._first_ns = self._newest_ns = 0
        self._cold = self._warm = False  # whether frames came without detections, and with
        self._sample = WindowSample()
        for view in self._views.values():
            view.draw = None
            view.last_admitted = None

    def _forget_ranks(self) -> None:
        self._value_ranks = Ranks(self.policy.rank_history)
        self._novelty_ranks = Ranks(self.policy.rank_history)

    def _draw_key(self) -> str:
        return f"{self.policy.seed}/{self._device}/{self._windows}"

    def _view(self, camera: str) -> CameraView:
        view = self._views.get(camera)
        if view is None:
            view = self._views[camera] = CameraView()
        return view

    def _audit(self, view: CameraView, camera: str, *, cold: bool) -> tuple[bool, float]:
        if view.draw is None:
            view.draw = AuditDraw(self._draw_key(), camera)
        return view.draw.take(self._allowance.audit_probability(camera, cold=cold))

    def _count(self, frame: Frame) -> None:
        if not self._seen:
            self._first_ns = frame.monotonic_ns
        self._newest_ns = max(self._newest_ns, frame.monotonic_ns)
        self._seen[frame.camera] = self._seen.get(frame.camera, 0) + 1

    def _look(self, view: CameraView, frame: Frame, detections: Detections | None, thumb: NDArray[np.uint8]) -> _Seen:
        """Score a frame, whatever becomes of it; ranks and background learn from every one."""
        motion = view.background.observe(thumb)
        fingerprint = Fingerprint.of(partial(dhash, thumb), None if detections is None else detections.embedding)
        distance = self._bank.distance(fingerprint)
        if self.fleet is not None and fingerprint.embedding is not None:
            distance = min(distance, self.fleet.distance(fingerprint.embedding))
        novelty = self._novelty_ranks.rank_and_add(distance)
        scores: dict[str, float] = {"novelty": novelty}
        if detections is None:
            self._cold = True
        else:
            self._warm = True
            scores |= self._scores.of(frame, detections, motion, view.tracks)
        draw = 0.0
        if "random" in self.policy.strategies or self._samples:
            draw = keyed_unit(self._draw_key(), "score", frame.camera, frame.sequence)
        if "random" in self.policy.strategies:
            scores["random"] = draw
        if "periodic" in self.policy.strategies:
            scores["periodic"] = periodic(self._seen[frame.camera] - 1, self._allowance.stretch)
        # Without a model there is no doubt to measure: every frame is equally worth a label, but for novelty and typicality.
        doubt = 1.0 if detections is None else noisy_or(scores, self.policy.strategies)
        share = self.policy.novelty_share
        value = doubt * (1.0 - share + share * novelty)
        if motion.known and not motion.cells:
            value *= 1.0 - self.policy.quiet_discount
        rank = self._value_ranks.rank_and_add(value)
        if self._samples:
            self._sample.add(draw, fingerprint)
        return _Seen(rank, value, speakers(scores, self.policy), scores, fingerprint)

    def _why_not(
        self, view: CameraView, frame: Frame, value: float, gap_ms: float, thumb: NDArray[np.uint8]
    ) -> tuple[str, float | None]:
        """Why a frame that chance did not take is no candidate, "" when it is one; and the value it had to exceed, if any."""
        policy = self.policy
        if policy.epsilon >= 1.0:
            return "audit_only", None
        if self.is_unwell(frame.camera):
            return "camera_fault", None
        if value <= 0.0:
            return "nothing_to_learn", 0.0
        if gap_ms < policy.min_gap_s * 1000.0:
            return "too_close_to_chosen", None
        if value <= self._ring.floor:
            return "ring_full", self._ring.floor
        refused, bar = self._pool.why_not(frame.camera, frame.captured_at_ms, value)
        if refused:
            return refused, bar
        if policy.near_duplicates and view.last_admitted is not None:
            last_thumb, last_value = view.last_admitted
            if value <= last_value + WORTH_REPLACING and not changed_cells(thumb, last_thumb).any():
                return "duplicate", last_value + WORTH_REPLACING
        return "", bar

    @property
    def _samples(self) -> bool:
        """Whether somebody will ask what is typical of this window."""
        return bool(self.policy.typicality) or self._cold

    @property
    def _typicality_share(self) -> float:
        """The policy's, and at least half in a window in which no model saw anything."""
        return max(self.policy.typicality, _COLD_TYPICALITY) if self._cold and not self._warm else self.policy.typicality
