"""The inference thread: it owns the model and the selector, and waits for neither disk nor network.

In: frames from the exchange, models and limits from the control thread. Out: encoded frames and decisions for the spool thread.
A model is swapped between two frames. A detector that fails is reported to the updater and never ends the process; without
detections the selector still takes its random share. It writes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bowerbird_agent import counters as names
from bowerbird_agent.campaign import ARM, REASON
from bowerbird_agent.decisions import Decision
from bowerbird_agent.errors import AgentError, RedactionError
from bowerbird_agent.fleet_novelty import fleet_novelty
from bowerbird_agent.guard import rest_s
from bowerbird_agent.heartbeat import no_pulse
from bowerbird_agent.pace import Pace, close_window
from bowerbird_agent.select import Candidate, Selector, rule_would_send
from bowerbird_agent.storing import HOLD_AT, CountBytes, PictureAround, Promote, StoreFrame
from bowerbird_agent.telemetry import count_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bowerbird_agent.campaign_book import CampaignBook
    from bowerbird_agent.capture import Frame
    from bowerbird_agent.counters import Counters, SeenFrames
    from bowerbird_agent.dry_run import DryRun
    from bowerbird_agent.encode import FrameEncoder
    from bowerbird_agent.exchange import FrameExchange
    from bowerbird_agent.heartbeat import Pulse
    from bowerbird_agent.histogram_book import HistogramBook
    from bowerbird_agent.policy import Policy
    from bowerbird_agent.select import Judgement
    from bowerbird_agent.storing import StoringThread
    from bowerbird_models.detections import Detections
    from bowerbird_models.detector import Detector
    from bowerbird_wire.messages import FrameHeader

logger = logging.getLogger(__name__)

_SWAP_TIMEOUT_S = 60.0
_RECENT = 256  # frames over which speed and latency are told
_STALE_ROUND = "round_over"
_STALE_POLICY = "policy_changed"
_NO_DETECTIONS_PAUSE_S = 0.05
# What `select.py` refuses for a reason that holds for campaigns too.
_NOT_FOR_CAMPAIGNS = frozenset({"already_chosen", "switched_off", "scoring_failed"})
_MOST_SOURCES_HELD = 4  # tasks that wait from which on whole pictures are not held for more than is sent


class Observer(Protocol):
    """Who wants to know how the running model does: the updater, for a model on trial."""

    def observe(self, ok: bool, inference_ms: float, detections: int) -> None: ...


@dataclass(frozen=True)
class LoadedModel:
    """A detector ready to run. `digest` is the package's (of a bare ONNX file: the file's), what reports and headers carry;
    `runs_with` says in plain values on which file and runtime, for health messages."""

    detector: Detector
    digest: str
    runs_with: Mapping[str, object] = field(default_factory=dict)


class _Idle:
    """Nobody watches the model."""

    def observe(self, ok: bool, inference_ms: float, detections: int) -> None:
        del ok, inference_ms, detections


class Audience(Protocol):
    """Who wants every frame's detections: `publish.LocalPublisher`. Must not block."""

    def offer(self, frame: Frame, detections: Detections, class_names: Sequence[str], model_digest: str) -> bool: ...


class Inference:
    """The loop; `run` belongs to a thread of its own. Other threads call `swap_model`, `set_desired` and read the properties.

    Args:
        exchange: frames come from here.
        storing: tasks go there.
        selector: judges; owned by this thread.
        encoder: makes headers and JPEGs of the frames that are kept.
        counters: totals that survive.
        seen: camera -> which of its frames were counted before.
        decode_confidence: lowest score asked of the detector, in (0, 1).
        encode_everything: have each distinct frame encoded, to count what sending all would cost.
        bytes_left: bytes that the caps leave for more frames, None for no limit; must not block.
        even_bytes_per_s: rate at which the tightest cap is spent evenly, None for no such cap; must not block.
        sources_done: whether no camera will ever give another frame; the last window is then closed early.
        observer: told of every detection, for a model on trial.
        audience: offered every frame's detections, None for nobody.
        pulse: this thread's heartbeat.
        witness: told of every decision, for `explain` and `replay`; must not block. None for nobody.
        on_promoted: called in the spool thread when frames became ready to send.
        campaigns: which frames are looked for beside the policy; None for none.
        histograms: counts every new frame; None for nobody.
        is_unwell: whether a camera shows nothing, so that its frames are not worth a label; must not block.
    """

    def __init__(
        self,
        exchange: FrameExchange,
        storing: StoringThread,
        selector: Selector,
        *,
        encoder: FrameEncoder,
        counters: Counters,
        seen: Mapping[str, SeenFrames],
        decode_confidence: float,
        encode_everything: bool,
        bytes_left: Callable[[], int | None] = lambda: None,
        even_bytes_per_s: Callable[[], float | None] = lambda: None,
        sources_done: Callable[[], bool] = lambda: False,
        observer: Observer | None = None,
        audience: Audience | None = None,
        witness: Callable[[Decision], None] | None = None,
        on_promoted: Callable[[], None] = lambda: None,
        pulse: Pulse | None = None,
        campaigns: CampaignBook | None = None,
        histograms: HistogramBook | None = None,
        is_unwell: Callable[[str], bool] = lambda _camera: False,
    ) -> None:
        self._histograms = histograms
        self._is_unwell = selector.is_unwell = is_unwell
        self.dry_run: DryRun | None = None  # replaced whole, by the main thread
        self._pulse = pulse or no_pulse()
        self._campaigns = campaigns
        # Allowed share of the frame rate, in (0, 1]: set by the guard.
        self.share = 1.0
        self._rest_until_s = 0.0
        self._is_resting = False
        self._exchange, self._storing, self._selector = exchange, storing, selector
        self._encoder, self._counters, self._seen = encoder, counters, seen
        self._decode_confidence = decode_confidence
        self.encode_everything = encode_everything
        self._bytes_left, self._even_bytes_per_s, self._sources_done = bytes_left, even_bytes_per_s, sources_done
        self._pace = Pace()
        self.observer: Observer = observer or _Idle()
        self.audience = audience
        self.witness = witness
        self.on_promoted = on_promoted
        storing.on_promoted = self._settle
        self._lock = threading.Lock()
        self._model: LoadedModel | None = None
        self._next_model: tuple[LoadedModel | None, threading.Event] | None = None
        self._restart_why = ""
        self._round = counters.round
        self._enough, self._enough_is_news = b"", False
        self._next_selector: Callable[[bytes], Selector] | None = None
        self._boosts: Mapping[str, float] = {}
        self._boosts_are_news = False
        self._stop = threading.Event()
        self._reserved = 0
        self._window_frames = 0
        self._is_flushed = False
        self._is_failing = False
        self._unredacted: dict[str, str] = {}  # camera -> why its last frame could not be redacted
        self._latencies_ms: deque[float] = deque(maxlen=_RECENT)
        self._frame_times_s: deque[float] = deque(maxlen=_RECENT)
        self._said_no_model = False
        selector.expect(self._frames_left())

    # --- other threads -------------------------------------------------------------------------------------------------

    def swap_model(self, model: LoadedModel | None) -> None:
        """Run `model` from the next frame on, None for none; returns when it does.

        Raises:
            AgentError: the inference thread did not take it in time.
        """
        taken = threading.Event()
        with self._lock:
            self._next_model = (model, taken)
        if not taken.wait(_SWAP_TIMEOUT_S):
            raise AgentError("the inference thread did not take the new model within a minute; the agent should be restarted")

    def set_desired(self, version: int, frames_total: int | None) -> bool:
        """Take up what the server wants; a new version starts a new round. False for a version that is not newer.

        `frames_total`: frames that may have been sent since the device was made, None for no limit.
        """
        if version <= self._counters.value(names.DESIRED_VERSION):
            return False
        frames = 0 if frames_total is None else frames_total + 1
        # The new version with the old round's counters would tell the server that the new round is over, after a kill as well.
        before = self._counters.value(names.CAMPAIGN_FRAMES)
        self._counters.begin_round(
            {names.DESIRED_VERSION: version, names.DESIRED_FRAMES: frames, names.CAMPAIGN_FRAMES_BEFORE: before}
        )
        with self._lock:
            self._restart_why = f"desired version {version}"
        return True

    def set_enough(self, sketch: bytes) -> None:
        """From the next frame on nothing is new that the fleet has enough of; b"" for no such word. See `fleet_novelty.py`."""
        with self._lock:
            if sketch != self._enough:
                self._enough, self._enough_is_news = sketch, True

    def set_boosts(self, factors: Mapping[str, float]) -> None:
        """From the next frame on these cameras explore more and have a higher target rate; see `Selector.boost`."""
        with self._lock:
            self._boosts, self._boosts_are_news = dict(factors), True

    def selector_state(self) -> bytes:
        """What the next start needs to go on, candidates of the open window included. Only once `run` has returned."""
        return self._selector.to_state()

    def set_policy(self, policy: Policy, *, device: str, cameras: int) -> None:
        """Choose by another policy, or for another number of cameras, from the next frame on.

        The open window is closed under the old policy; what was sent so far stays remembered. Candidates that wait for a later window
        go on waiting, unless other strategies make their values incomparable.
        """
        with self._lock:
            self._next_selector = lambda state: Selector(policy, device=device, cameras=cameras, state=state)

    @property
    def frames_left(self) -> int | None:
        """Frames that the server still wants, None for no limit."""
        return self._frames_left()

    @property
    def is_resting(self) -> bool:
        """Whether the guard lets a moment pass without taking a frame; what live cameras replace meanwhile, it has skipped."""
        return self._is_resting

    @property
    def own_share(self) -> float:
        """Time in the model per second over the last frames, in [0, 1]."""
        return min(1.0, self.fps * self.inference_ms / 1000.0)

    @property
    def model_digest(self) -> str:
        """Digest of the model that answers frames now, "" for none."""
        model = self._model
        return "" if model is None else model.digest

    @property
    def runs_with(self) -> Mapping[str, object]:
        """File, runtime and settings of that model, {} for none."""
        model = self._model
        return {} if model is None else model.runs_with

    @property
    def inference_ms(self) -> float:
        """Median time of one detection over the last frames, 0 before the first."""
        recent = list(self._latencies_ms)
        return float(np.median(recent)) if recent else 0.0

    @property
    def fps(self) -> float:
        """Frames judged per second over the last frames."""
        times = list(self._frame_times_s)
        if len(times) < 2 or time.monotonic() - times[-1] > 10:
            return 0.0
        return (len(times) - 1) / max(1e-6, times[-1] - times[0])

    @property
    def redaction_trouble(self) -> list[str]:
        """Why frames of a camera are not kept: they cannot be redacted. One line each camera, until one can be again."""
        return list(self._unredacted.values())

    @property
    def window_frames(self) -> int:
        """Frames judged since the last window was closed."""
        return self._window_frames

    @property
    def is_flushed(self) -> bool:
        """Whether all sources are done and the last window was closed."""
        return self._is_flushed

    def stop(self) -> None:
        """Ask `run` to return after the frame in work."""
        self._stop.set()

    # --- the inference thread ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Judge frames until `stop`."""
        while not self._stop.is_set():
            self._pulse.beat()
            self.step(timeout_s=0.1)

    def step(self, *, timeout_s: float) -> bool:
        """One round of the loop; False when no frame came in `timeout_s` seconds."""
        self._take_model()
        self._take_restart()
        self._take_policy()
        self._take_boosts()
        self._take_enough()
        if self._rests(timeout_s):
            return False
        if self._selector.window_closed():
            self._close_window()
        self._exchange.hold(self._model is None or self._storing.backlog >= HOLD_AT)
        frame = self._exchange.take(timeout_s)
        if frame is None:
            self._flush_if_done()
            return False
        if self._model is None:
            self._drop_without_model(frame)
            return True
        self._is_flushed = False
        started_s = time.monotonic()
        self._work(self._model, frame)
        work_s = time.monotonic() - started_s
        self._rest_until_s = started_s + work_s + rest_s(self.share, work_s=work_s, arrival_s=self._exchange.arrival_s)
        return True

    def _rests(self, timeout_s: float) -> bool:
        """While the guard asks for a lower rate: let time pass without taking a frame.

        Nothing is taken instead of being thrown away: live cameras replace their frame, which is counted, and files wait.
        """
        left_s = self._rest_until_s - time.monotonic() if self.share < 1.0 else 0.0
        self._is_resting = left_s > 0
        if self._is_resting:
            self._stop.wait(min(timeout_s, left_s))
        return self._is_resting

    def _work(self, model: LoadedModel, frame: Frame) -> None:
        seen = self._seen.get(frame.camera)  # a camera may be taken out of the configuration between two frames
        is_new = not frame.repeat if seen is None else seen.is_new(frame.sequence)
        if frame.repeat == is_new:
            frame = replace(frame, repeat=not is_new)
        if is_new:
            self._counters.add(names.FRAMES_SEEN)
            self._counters.add(names.ROUND_FRAMES_SEEN)
        seen_low = self._detect(model, frame)
        detections = None if seen_low is None else self._for_selection(frame.camera, seen_low)
        self._keep_around(model, frame, seen_low)
        if self._histograms is not None and is_new and detections is not None:
            self._histograms.note(frame, detections, model_digest=model.digest, decode_confidence=self._decode_confidence)
        judgement = self._judge(frame, detections)
        if self.dry_run is not None:
            self.dry_run.look(frame, detections, model_digest=model.digest)
        self._window_frames += 1
        self._frame_times_s.append(time.monotonic())
        would_send = is_new and detections is not None and rule_would_send(detections)
        if would_send:
            self._counters.add(names.RULE_FRAMES)
        counts = is_new and self.encode_everything
        frame_id = ""
        sent = self._for_campaign(model, frame, seen_low, detections, judgement)
        if sent is not None:
            judgement, frame_id, size_bytes = sent
            if counts:
                self._storing.count(size_bytes, rule_would_send=would_send)
        elif judgement is not None and judgement.admit:
            frame_id, size_bytes = self._keep(model, frame, seen_low, judgement)
            if counts:
                self._storing.count(size_bytes, rule_would_send=would_send)
        elif counts:
            self._storing.submit(CountBytes(frame.image_bgr, would_send))
        if self.witness is not None and judgement is not None:
            selector = self._selector
            self.witness(
                Decision(
                    frame.camera,
                    frame.sequence,
                    frame.captured_at_ms,
                    frame_id,
                    model.digest,
                    judgement,
                    selector.policy.strategies,
                    selector.frames_left,
                    selector.waiting,
                )
            )

    def _for_campaign(
        self,
        model: LoadedModel,
        frame: Frame,
        seen_low: Detections | None,
        detections: Detections | None,
        judgement: Judgement | None,
    ) -> tuple[Judgement, str, int] | None:
        """Send a frame that a campaign looks for, whatever the policy thinks of it.

        Not what chance took (the audit must stay whole), what was sent before, or anything while sending is switched off; and inside
        the campaign's share and the byte budget. None: the frame goes its usual way. `seen_low` is what a redactor needs to see.

        Returns:
            The judgement as it is recorded, the frame's id and the size of its JPEG.
        """
        campaigns = self._campaigns
        if campaigns is None or campaigns.is_empty or detections is None or judgement is None or frame.repeat:
            return None
        if judgement.arm == "explore" or judgement.refused in _NOT_FOR_CAMPAIGNS:
            return None
        name = campaigns.match(frame.camera, frame.captured_at_ms, detections, model.detector.class_names)
        if not name:
            return None
        reasons = (REASON + name, *judgement.reasons)
        judgement = replace(judgement, admit=True, arm=ARM, reasons=reasons, refused="", bar=None)
        made = self._encode(model, frame, seen_low, judgement)
        if made is None:
            return None
        header, jpeg = made
        bytes_left = self._bytes_left()
        if (bytes_left is not None and len(jpeg) > bytes_left) or not campaigns.claim(name, len(jpeg)):
            return None
        if not self._storing.submit(StoreFrame(header, jpeg, name)):
            campaigns.give_back(name, len(jpeg))
            return None
        self._selector.sent_otherwise(frame.camera, frame.captured_at_ms)
        return judgement, header.frame_id, len(jpeg)

    def _keep(self, model: LoadedModel, frame: Frame, detections: Detections | None, judgement: Judgement) -> tuple[str, int]:
        """Make an admitted frame a candidate; returns its id and the size of its JPEG.

        The id is "" when the disk was behind, or when the frame could not be redacted and is therefore not kept.
        """
        made = self._encode(model, frame, detections, judgement)
        if made is None:
            return "", 0
        header, jpeg = made
        source = None
        if self._storing.fetching is not None and self._storing.backlog < _MOST_SOURCES_HELD:
            source = self._encoder.covered(frame, detections, model.detector.class_names).frame
        if not self._storing.submit(StoreFrame(header, jpeg, source=source)):
            self._counters.count_dropped(frame.camera)
            return "", len(jpeg)
        self._pace.note_size(len(jpeg))
        if self.dry_run is not None:
            self.dry_run.encoded(header.frame_id, frame.camera, frame.captured_at_ms, len(jpeg))
        dropped = self._selector.add(Candidate(header.frame_id, frame.camera, frame.captured_at_ms, judgement, len(jpeg)))
        if dropped:
            self._storing.submit(Promote((), dropped, closes_window=False))
        return header.frame_id, len(jpeg)

    def _for_selection(self, camera: str, detections: Detections) -> Detections:
        """Redaction may ask the model for more than the policy wants to see; selection shall not change because of it."""
        redactor = self._encoder.redactors.get(camera)
        if redactor is None or redactor.config.confidence >= self._decode_confidence:
            return detections
        return detections.above(self._decode_confidence)

    def _encode(
        self, model: LoadedModel, frame: Frame, seen_low: Detections | None, judgement: Judgement
    ) -> tuple[FrameHeader, bytes] | None:
        """Header and JPEG of a frame, None when it could not be redacted and must not be kept."""
        try:
            made = self._encoder.frame(
                frame, judgement, seen_low, class_names=model.detector.class_names, model_digest=model.digest
            )
        except RedactionError as error:
            self._not_redacted(frame.camera, error)
            return None
        if frame.camera in self._unredacted:  # replaced whole: health reads it from another thread
            self._unredacted = {name: why for name, why in self._unredacted.items() if name != frame.camera}
        return made

    def _keep_around(self, model: LoadedModel, frame: Frame, seen_low: Detections | None) -> None:
        """Give the surroundings of its camera a picture, covered like every other."""
        more = self._storing.fetching
        if more is None or self._storing.backlog >= _MOST_SOURCES_HELD or not more.wants(frame):
            return
        try:
            self._storing.submit(PictureAround(self._encoder.covered(frame, seen_low, model.detector.class_names)))
        except RedactionError as error:
            self._not_redacted(frame.camera, error)

    def _not_redacted(self, camera: str, error: RedactionError) -> None:
        self._counters.add(names.REDACTION_FAILURES)
        self._counters.count_dropped(camera)
        level = logging.DEBUG if camera in self._unredacted else logging.ERROR
        self._unredacted = {**self._unredacted, camera: str(error)}
        logger.log(level, "%s", error)

    def _detect(self, model: LoadedModel, frame: Frame) -> Detections | None:
        """Detections, or None when the model failed; either is told to the observer."""
        started_s = time.perf_counter()
        confidence, redactor = self._decode_confidence, self._encoder.redactors.get(frame.camera)
        if redactor is not None:
            confidence = min(confidence, redactor.config.confidence)
        try:
            detections = model.detector.detect(frame.image_bgr, confidence=confidence)
        except Exception as error:  # whatever a model does, cameras and updates must go on
            self._counters.add(names.DETECTOR_FAILURES)
            level = logging.DEBUG if self._is_failing else logging.WARNING
            self._is_failing = True
            logger.log(level, "model %s failed on frame %d of %s: %s", model.digest[:12], frame.sequence, frame.camera, error)
            self.observer.observe(False, (time.perf_counter() - started_s) * 1000, 0)
            self._stop.wait(_NO_DETECTIONS_PAUSE_S)
            return None
        took_ms = (time.perf_counter() - started_s) * 1000
        self._is_failing = False
        self._latencies_ms.append(took_ms)
        chosen = self._for_selection(frame.camera, detections)
        count_frame(self._counters, took_ms, float(chosen.scores.max()) if len(chosen) else 0.0)
        if self.audience is not None:
            self.audience.offer(frame, chosen, model.detector.class_names, model.digest)
        self.observer.observe(True, took_ms, len(chosen))
        return detections

    def _judge(self, frame: Frame, detections: Detections | None) -> Judgement | None:
        """The selector's word; with a failing score only its random share, and None when even that fails."""
        try:
            judgement = self._selector.judge(frame, detections)
        except Exception as error:  # scoring is never a reason to stop looking
            self._scoring_failed(frame, error)
            try:
                return self._selector.judge(frame, None)
            except Exception as second:
                self._scoring_failed(frame, second)
                return None
        if detections is not None:
            self._counters.add(names.FRAMES_SCORED)
        return judgement

    def _scoring_failed(self, frame: Frame, error: Exception) -> None:
        self._counters.add(names.SCORING_FAILURES)
        level = logging.WARNING if self._counters.value(names.SCORING_FAILURES) == 1 else logging.DEBUG
        logger.log(level, "scoring frame %d of %s failed (%s); random share only", frame.sequence, frame.camera, error)

    def _drop_without_model(self, frame: Frame) -> None:
        if not self._said_no_model:
            self._said_no_model = True
            logger.warning("there is no model yet; frames are dropped and counted until one comes from the server")
        self._counters.count_dropped(frame.camera)

    # --- windows -------------------------------------------------------------------------------------------------------

    def _close_window(self, *, is_last: bool = False) -> None:
        frames_left, bytes_left = self._frames_left(), self._bytes_left()
        rate = None if is_last else self._even_bytes_per_s()  # nothing comes after the last window that bytes could be kept for
        result = close_window(self._selector, self._pace, frames_left=frames_left, bytes_left=bytes_left, even_bytes_per_s=rate)
        with self._lock:
            self._reserved += len(result.chosen)
        state = self._selector.to_state()
        self._storing.submit(
            Promote(
                result.chosen,
                result.dropped,
                round_number=self._round,
                selector_state=state,
                frames_left=frames_left,
                bytes_left=bytes_left,
                explore_share=result.explore_share,
            )
        )
        if self.dry_run is not None:
            self.dry_run.sent(result.chosen)
        if result.chosen:
            logger.info("window of %d frames closed: %d chosen", self._window_frames, len(result.chosen))
        self._window_frames = 0

    def _flush_if_done(self) -> None:
        """Once no frame can come any more, the last window ends before it is full."""
        if self._is_flushed or not self._sources_done() or not self._exchange.is_empty or self._model is None:
            return
        self._close_window(is_last=True)
        self._is_flushed = True

    def _frames_left(self) -> int | None:
        limit = self._counters.value(names.DESIRED_FRAMES)
        if limit == 0:
            return None
        with self._lock:
            # What campaigns took since then is not of this wish.
            apart = self._counters.value(names.CAMPAIGN_FRAMES) - self._counters.value(names.CAMPAIGN_FRAMES_BEFORE)
            return max(0, limit - 1 - (self._counters.value(names.FRAMES_SELECTED) - apart) - self._reserved)

    def _settle(self, wanted: int) -> None:
        """The spool thread has promoted a window's frames and counted those that were really there."""
        with self._lock:
            self._reserved -= wanted
        if wanted:
            self.on_promoted()

    # --- models and rounds ---------------------------------------------------------------------------------------------

    def _take_model(self) -> None:
        with self._lock:
            offered, self._next_model = self._next_model, None
        if offered is None:
            return
        model, taken = offered
        before, self._model = self._model, model
        self._enough_is_news = True  # it says nothing about another model
        self._said_no_model = self._is_failing = False
        self._latencies_ms.clear()
        if model is not None:
            logger.info("model %s runs now", model.digest[:12])
        # After a restart the model may be another than the one whose embeddings and values are remembered.
        known = "" if model is None else self._selector.model
        if before is not None or (model is not None and known not in ("", model.digest)):
            self._start_round("new model", new_model=True)
        if model is not None:
            self._selector.model = model.digest
        taken.set()

    def _take_restart(self) -> None:
        with self._lock:
            why, self._restart_why = self._restart_why, ""
        if why:
            self._start_round(why)

    def _take_policy(self) -> None:
        with self._lock:
            make, self._next_selector = self._next_selector, None
        if make is None:
            return
        if self._window_frames:
            self._close_window()
        waited = self._selector.candidates
        self._selector = make(self._selector.to_state())
        gone = [frame_id for frame_id in waited if frame_id not in self._selector.candidates]
        if gone:
            self._storing.submit(Promote((), dict.fromkeys(gone, _STALE_POLICY), closes_window=False))
        self._enough_is_news = bool(self._enough)
        self._boosts_are_news = bool(self._boosts)
        self._selector.is_unwell = self._is_unwell
        self._decode_confidence = self._selector.policy.decode_confidence
        self._selector.expect(self._frames_left())
        logger.info("the selection goes on with the new configuration")

    def _take_boosts(self) -> None:
        with self._lock:
            is_news, self._boosts_are_news = self._boosts_are_news, False
            factors = self._boosts
        if is_news:
            self._selector.boost(factors)

    def _take_enough(self) -> None:
        with self._lock:
            is_news, self._enough_is_news = self._enough_is_news, False
            sketch = self._enough
        if is_news:
            self._selector.fleet = fleet_novelty(sketch, self.model_digest)

    def _start_round(self, why: str, *, new_model: bool = False) -> None:
        """Ranks, candidates and the round's counters begin again."""
        dropped = self._selector.restart(why, new_model=new_model)
        self._selector.expect(self._frames_left())
        if self.dry_run is not None:
            self.dry_run.restart(why, new_model=new_model)
        self._window_frames = 0
        self._is_flushed = False
        self._round = self._counters.begin_round()
        if dropped:
            self._storing.submit(Promote((), dict.fromkeys(dropped, _STALE_ROUND), closes_window=False))
        logger.info("a new round begins: %s", why)
