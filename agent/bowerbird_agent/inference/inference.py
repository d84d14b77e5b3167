"""The inference thread: it owns the model and the selector, and waits for neither disk nor network.

In: frames from the exchange; models, policies and limits from other threads. Out: decisions, and frames for the spool thread
(`keeping.py`). A model is swapped between two frames (`detecting.py` runs it), a policy between two windows (`selection/window.py`).
Without detections the selector still takes its random share; without any model it chooses by novelty, typicality and chance, and
nothing goes before a server has asked for frames. It writes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from bowerbird_agent.errors import AgentError
from bowerbird_agent.health import counters as names
from bowerbird_agent.health.heartbeat import no_pulse
from bowerbird_agent.inference.detecting import Audience, Detecting, LoadedModel, Observer
from bowerbird_agent.inference.judging_rate import JudgingRate
from bowerbird_agent.inference.wishes import Wishes
from bowerbird_agent.selection.calibration_book import doubted_boxes
from bowerbird_agent.selection.decisions import Decision
from bowerbird_agent.selection.fleet_novelty import fleet_novelty
from bowerbird_agent.selection.gate import glance
from bowerbird_agent.selection.select import Candidate, Selector, rule_would_send
from bowerbird_agent.selection.window import SelectionWindow
from bowerbird_agent.storing.keeping import Keeping
from bowerbird_agent.storing.storing import HOLD_AT, CountBytes, Promote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from bowerbird_agent.capture.capture import Frame
    from bowerbird_agent.capture.exchange import FrameExchange
    from bowerbird_agent.health.counters import Counters, SeenFrames
    from bowerbird_agent.health.heartbeat import Pulse
    from bowerbird_agent.health.histogram_book import HistogramBook
    from bowerbird_agent.selection.campaign_book import CampaignBook
    from bowerbird_agent.selection.dry_run import DryRun
    from bowerbird_agent.selection.policy import Policy
    from bowerbird_agent.selection.select import Judgement
    from bowerbird_agent.storing.encode import FrameEncoder
    from bowerbird_agent.storing.storing import StoringThread
    from bowerbird_models.detections import Detections

logger = logging.getLogger(__name__)

_SWAP_TIMEOUT_S = 60.0
_STALE_ROUND = "round_over"
_STALE_POLICY = "policy_changed"
# In place of a digest in the selector's state: what it remembers was judged without a model.
_NO_MODEL = "none"


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
        self._exchange, self._storing, self._selector = exchange, storing, selector
        self._counters, self._seen = counters, seen
        self.encode_everything = encode_everything
        self._sources_done = sources_done
        self._stop = threading.Event()
        self.rate = JudgingRate(self._stop.wait)
        self.detecting = Detecting(
            counters,
            lambda: encoder.redactors,
            decode_confidence=decode_confidence,
            pause=self._stop.wait,
            observer=observer,
            audience=audience,
        )
        self._keeping = Keeping(storing, encoder, counters, bytes_left=bytes_left, campaigns=campaigns)
        self._window = SelectionWindow(
            storing, counters, bytes_left=bytes_left, even_bytes_per_s=even_bytes_per_s, on_promoted=on_promoted
        )
        self.witness = witness
        self._wishes = Wishes()
        self._model: LoadedModel | None = None
        self._round = counters.round
        self._boosts: Mapping[str, float] = {}
        self._is_flushed = False
        self._said_no_model = False
        selector.expect(self._window.frames_left)

    # --- other threads -------------------------------------------------------------------------------------------------

    def swap_model(self, model: LoadedModel | None) -> None:
        """Run `model` from the next frame on, None for none; returns when it does.

        Raises:
            AgentError: the inference thread did not take it in time.
        """
        taken = threading.Event()
        self._wishes.model.put((model, taken))
        if not taken.wait(_SWAP_TIMEOUT_S):
            raise AgentError("the inference thread did not take the new model within a minute; the agent should be restarted")

    def set_desired(self, version: int, frames_total: int | None) -> bool:
        """Take up what the server wants; a new version starts a new round. False for a version that is not newer.

        `frames_total`: frames that may have been sent since the device was made, None for no limit.
        """
        if not self._window.set_desired(version, frames_total):
            return False
        self._wishes.restart.put(f"desired version {version}")
        return True

    def set_enough(self, sketch: bytes) -> None:
        """From the next frame on nothing is new that the fleet has enough of; b"" for no such word. See `fleet_novelty.py`."""
        self._wishes.enough.put_if_other(sketch)

    def set_calibration(self, table: bytes) -> None:
        """From the next frame on doubt goes by this table, if it is the running model's; b"" for none. See `calibration_book.py`."""
        self._wishes.calibration.put(table)

    def set_boosts(self, factors: Mapping[str, float]) -> None:
        """From the next frame on these cameras explore more and have a higher target rate; see `Selector.boost`."""
        self._wishes.boosts.put(dict(factors))

    def selector_state(self) -> bytes:
        """What the next start needs to go on, candidates of the open window included. Only once `run` has returned."""
        return self._selector.to_state()

    def set_policy(self, policy: Policy, *, device: str, cameras: int) -> None:
        """Choose by another policy, or for another number of cameras, from the next frame on.

        The open window is closed under the old policy; what was sent so far stays remembered. Candidates that wait for a later window
        go on waiting, unless other strategies make their values incomparable.
        """
        self._wishes.selector.put(lambda state: Selector(policy, device=device, cameras=cameras, state=state))

    @property
    def frames_left(self) -> int | None:
        """Frames that the server still wants, None for no limit."""
        return self._window.frames_left

    @property
    def own_share(self) -> float:
        """Time in the model per second over the last frames, in [0, 1]."""
        return min(1.0, self.rate.fps * self.inference_ms / 1000.0)

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
        return self.detecting.inference_ms

    @property
    def redaction_trouble(self) -> list[str]:
        """Why frames of a camera are not kept: they cannot be redacted. One line each camera, until one can be again."""
        return self._keeping.redaction_trouble

    @property
    def window_frames(self) -> int:
        """Frames judged since the last window was closed."""
        return self._window.frames

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
        is_another_model = self._take_model()
        self._take_restart()
        is_another_selector = self._take_policy()
        self._take_boosts()
        self._take_enough()
        self._take_calibration(anyway=is_another_model or is_another_selector)
        if self.rate.rests(timeout_s):
            return False
        if self._selector.window_closed():
            self._close_window()
        # A film that can wait is not used up on frames that may not be sent.
        is_idle = self._model is None and self._window.frames_left == 0
        self._exchange.hold(is_idle or self._storing.backlog >= HOLD_AT)
        frame = self._exchange.take(timeout_s)
        if frame is None:
            self._flush_if_done()
            return False
        if self._model is None:
            self._begin_without_model()
        self._is_flushed = False
        started_s = time.monotonic()
        self._work(self._model, frame)
        self.rate.worked(started_s, arrival_s=self._exchange.arrival_s)
        return True

    def _work(self, model: LoadedModel | None, frame: Frame) -> None:
        digest = "" if model is None else model.digest
        seen = self._seen.get(frame.camera)  # a camera may be taken out of the configuration between two frames
        is_new = not frame.repeat if seen is None else seen.is_new(frame.sequence)
        if frame.repeat == is_new:
            frame = replace(frame, repeat=not is_new)
        if is_new:
            self._counters.add(names.FRAMES_SEEN)
            self._counters.add(names.ROUND_FRAMES_SEEN)
        thumb = glance(frame.image_bgr)
        seen_low = None if model is None else self.detecting.detect(model, frame)
        detections = None if seen_low is None else self.detecting.for_selection(frame.camera, seen_low)
        self._keeping.around(model, frame, seen_low)
        if self._histograms is not None and is_new and detections is not None:
            self._histograms.note(frame, detections, model_digest=digest, decode_confidence=self.detecting.decode_confidence)
        judgement = self._judge(frame, detections, thumb)
        if self.dry_run is not None:
            chosen_by = self._selector
            self.dry_run.look(
                frame,
                detections,
                thumb,
                model_digest=digest,
                calibration=chosen_by.calibration,
                fleet=chosen_by.fleet,
                boosts=self._boosts,
            )
        self._window.frames += 1
        self.rate.judged()
        would_send = is_new and detections is not None and rule_would_send(detections)
        if would_send:
            self._counters.add(names.RULE_FRAMES)
        counts = is_new and self.encode_everything
        frame_id = ""
        sent = self._keeping.for_campaign(model, frame, seen_low, detections, judgement)
        if sent is not None:
            judgement, frame_id, size_bytes = sent
            self._selector.sent_otherwise(frame.camera, frame.captured_at_ms)
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
                    digest,
                    judgement,
                    selector.policy.strategies,
                    selector.frames_left,
                    selector.waiting,
                    doubted_boxes(selector.calibration, detections, () if model is None else model.detector.class_names),
                )
            )

    def _keep(
        self, model: LoadedModel | None, frame: Frame, detections: Detections | None, judgement: Judgement
    ) -> tuple[str, int]:
        """Make an admitted frame a candidate; returns as `Keeping.candidate`."""
        frame_id, size_bytes = self._keeping.candidate(model, frame, detections, judgement)
        if not frame_id:
            return "", size_bytes
        self._window.pace.note_size(size_bytes)
        if self.dry_run is not None:
            self.dry_run.encoded(frame_id, frame.camera, frame.captured_at_ms, size_bytes)
        dropped = self._selector.add(Candidate(frame_id, frame.camera, frame.captured_at_ms, judgement, size_bytes))
        if dropped:
            self._storing.submit(Promote((), dropped, closes_window=False))
        return frame_id, size_bytes

    def _judge(self, frame: Frame, detections: Detections | None, thumb: NDArray[np.uint8] | None) -> Judgement | None:
        """The selector's word; with a failing score only its random share, and None when even that fails."""
        try:
            judgement = self._selector.judge(frame, detections, thumb)
        except Exception as error:  # scoring is never a reason to stop looking
            self._scoring_failed(frame, error)
            try:
                return self._selector.judge(frame, None, thumb)
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

    def _begin_without_model(self) -> None:
        """Say it once. Values that a model gave cannot be compared with those to come."""
        if not self._said_no_model:
            self._said_no_model = True
            logger.warning(
                "there is no model yet; until one comes frames are chosen by novelty, typicality and chance, "
                "and only those go that a server has asked for"
            )
        if self._selector.model != _NO_MODEL:
            if self._selector.model:
                self._start_round("no model", new_model=True)
            self._selector.model = _NO_MODEL

    # --- windows -------------------------------------------------------------------------------------------------------

    def _close_window(self, *, is_last: bool = False) -> None:
        self._window.close(self._selector, self.dry_run, round_number=self._round, is_last=is_last)

    def _flush_if_done(self) -> None:
        """Once no frame can come any more, the last window ends before it is full."""
        if self._is_flushed or not self._sources_done() or not self._exchange.is_empty:
            return
        if self._model is None and self._selector.model != _NO_MODEL:
            return
        self._close_window(is_last=True)
        self._is_flushed = True

    # --- models and rounds ---------------------------------------------------------------------------------------------

    def _take_model(self) -> bool:
        offered = self._wishes.model.take()
        if offered is None:
            return False
        model, taken = offered
        before, self._model = self._model, model
        self._window.needs_wish = model is None
        self._selector.expect(self._window.frames_left)
        if self.dry_run is not None:
            self.dry_run.expect()
        self._wishes.enough.again()  # it was compared with the model before
        self._said_no_model = False
        self.detecting.begin()
        if model is not None:
            logger.info("model %s runs now", model.digest[:12])
        # After a restart the model may be another than the one whose embeddings and values are remembered; the first one is
        # another than none.
        known = "" if model is None else self._selector.model
        if before is not None or (model is not None and known not in ("", model.digest)):
            self._start_round("new model", new_model=True)
        if model is not None:
            self._selector.model = model.digest
        taken.set()
        return True

    def _take_restart(self) -> None:
        why = self._wishes.restart.take()
        if why is not None:
            self._start_round(why)

    def _take_policy(self) -> bool:
        make = self._wishes.selector.take()
        if make is None:
            return False
        if self._window.frames:
            self._close_window()
        waited = self._selector.candidates
        self._selector = make(self._selector.to_state())
        gone = [frame_id for frame_id in waited if frame_id not in self._selector.candidates]
        if gone:
            self._storing.submit(Promote((), dict.fromkeys(gone, _STALE_POLICY), closes_window=False))
        self._wishes.enough.again()
        self._wishes.boosts.again()
        self._selector.is_unwell = self._is_unwell
        self.detecting.decode_confidence = self._selector.policy.decode_confidence
        self._selector.expect(self._window.frames_left)
        logger.info("the selection goes on with the new configuration")
        return True

    def _take_boosts(self) -> None:
        factors = self._wishes.boosts.take()
        if factors is not None:
            self._boosts = factors
            self._selector.boost(factors)

    def _take_enough(self) -> None:
        sketch = self._wishes.enough.take()
        if sketch is not None:
            fleet = self._selector.fleet = fleet_novelty(sketch, self.model_digest)
            if fleet is not None:
                logger.info("the fleet has enough of %d kinds of frames; those are not new here either", fleet.kinds)

    def _take_calibration(self, *, anyway: bool) -> None:
        table = self._wishes.calibration.take()
        if table is not None:
            self._selector.calibrations.take(table, self.model_digest)
        if anyway or table is not None:
            self._selector.use(self._selector.calibrations.of(self.model_digest))

    def _start_round(self, why: str, *, new_model: bool = False) -> None:
        """Ranks, candidates and the round's counters begin again."""
        dropped = self._selector.restart(why, new_model=new_model)
        self._selector.expect(self._window.frames_left)
        if self.dry_run is not None:
            self.dry_run.restart(why, new_model=new_model)
        self._window.frames = 0
        self._is_flushed = False
        self._round = self._counters.begin_round()
        if dropped:
            self._storing.submit(Promote((), dict.fromkeys(dropped, _STALE_ROUND), closes_window=False))
        logger.info("a new round begins: %s", why)
