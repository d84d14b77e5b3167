"""A film or scene run through the real selection, faster than real time and without a server: what would have gone up, and why.

In: a camera, a model, one or more policies with their byte budgets, perhaps ground truth. Out: a `Trial` for each policy: frames
picked, bytes, reasons, misses found. The path is the device's own: `Inference`, `Selector`, `FrameEncoder`, `TokenBucket` and the spool
thread's tasks; only disk and network are left out. The film's own timeline is the clock. Each picture goes through the model once,
however many policies look at it. It writes no file.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from bowerbird_agent.budget.budget import DAY_S, ByteLimits, TokenBucket
from bowerbird_agent.capture.exchange import FrameExchange
from bowerbird_agent.errors import AgentError, SourceError
from bowerbird_agent.health.counters import DESIRED_FRAMES, Counters
from bowerbird_agent.inference.detecting import LoadedModel
from bowerbird_agent.inference.inference import Inference
from bowerbird_agent.link.config import BudgetConfig
from bowerbird_agent.replay.misses import Misses
from bowerbird_agent.selection.campaign_book import CampaignBook
from bowerbird_agent.selection.pace import room_bytes
from bowerbird_agent.selection.select import Selector
from bowerbird_agent.storing.encode import FrameEncoder
from bowerbird_agent.storing.storing import StoringThread
from bowerbird_agent.storing.storing_config import ImageConfig
from bowerbird_models.errors import ModelOutputError
from bowerbird_wire import codec
from bowerbird_wire.messages import FrameMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from bowerbird_agent.capture.capture import Camera, Frame
    from bowerbird_agent.selection.decisions import Decision
    from bowerbird_agent.selection.policy import Policy
    from bowerbird_models.detections import Detections
    from bowerbird_models.detector import Detector
    from bowerbird_models.mot import MotBox
    from bowerbird_wire.messages import Campaign, FrameHeader

_MODEL_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Setting:
    """What a device would be configured with.

    Args:
        name: for the report.
        policy: which frames.
        limits: how many bytes.
        image: how they are encoded.
        frames_total: how many frames the server wants in all; None for no limit.
        campaigns: that run, with this device's share.
    """

    name: str
    policy: Policy
    limits: ByteLimits = field(default_factory=lambda: BudgetConfig().to_limits())
    image: ImageConfig = field(default_factory=ImageConfig)
    frames_total: int | None = None
    campaigns: tuple[Campaign, ...] = ()


@dataclass(frozen=True)
class Pick:
    """A frame that was chosen for sending.

    Args:
        header, jpeg: as it would have gone up.
        size_bytes: of the message.
        sent_at_ms: when the budget let it go, on the film's timeline; None when it still waited at the end.
        missed: tracks of objects in it that the model did not show; None without ground truth for it.
    """

    header: FrameHeader
    jpeg: bytes
    size_bytes: int
    sent_at_ms: int | None
    missed: tuple[int, ...] | None


@dataclass(frozen=True)
class Trial:
    """What a setting did with the film.

    Args:
        frames: shown to it.
        seconds: of the film's timeline.
        picks: in the order of sending.
        refused, dropped: reason -> frames that were never candidates; that were, and were not chosen.
        missed_tracks: distinct objects that the model did not show at least once; None without ground truth.
        missed_boxes: how often it did not show one, over all frames with ground truth.
        truth_frames: frames with ground truth.
        truth_note: what to know of the comparison with it; "" for nothing.
    """

    setting: Setting
    frames: int
    seconds: float
    picks: tuple[Pick, ...]
    refused: Mapping[str, int]
    dropped: Mapping[str, int]
    missed_tracks: int | None = None
    missed_boxes: int = 0
    truth_frames: int = 0
    truth_note: str = ""

    @property
    def picked_bytes(self) -> int:
        """Bytes of all chosen frames."""
        return sum(pick.size_bytes for pick in self.picks)

    @property
    def sent_bytes(self) -> int:
        """Bytes that the budget let go before the film ended."""
        return sum(pick.size_bytes for pick in self.picks if pick.sent_at_ms is not None)

    @property
    def picked_bytes_per_day(self) -> float:
        """Bytes a day if every day were like the film; the budget may let less go."""
        return self.picked_bytes * DAY_S / self.seconds if self.seconds else 0.0

    @property
    def found_tracks(self) -> int:
        """Distinct objects that the model missed in a picked frame: those that a label would teach it."""
        return len({track for pick in self.picks for track in pick.missed or ()})

    @property
    def found_boxes(self) -> int:
        """Missed boxes in the picked frames."""
        return sum(len(pick.missed or ()) for pick in self.picks)

    @property
    def note(self) -> str:
        """What to know before believing the figures; "" for nothing."""
        return "; ".join(filter(None, (self._note_on_selection, self.truth_note)))

    @property
    def _note_on_selection(self) -> str:
        if self.setting.frames_total is not None and len(self.picks) >= self.setting.frames_total:
            return "the server's wish was fulfilled before the film ended, so bytes a day say little"
        window = self.setting.policy.window_frames
        if self.frames >= window or not self.setting.policy.epsilon:
            return ""
        return (
            f"the film is shorter than one window of {window} frames, so less is taken at random than on a device that runs on; "
            "set selection.window_frames lower, or replay more of it"
        )

    def plain(self) -> dict[str, Any]:
        """For JSON, without pictures."""
        found: dict[str, Any] = {
            "policy": self.setting.name,
            "frames": self.frames,
            "seconds": round(self.seconds, 3),
            "picked": len(self.picks),
            "picked_at_random": sum(pick.header.arm == "explore" for pick in self.picks),
            "picked_bytes": self.picked_bytes,
            "picked_bytes_per_day": round(self.picked_bytes_per_day),
            "sent": sum(pick.sent_at_ms is not None for pick in self.picks),
            "sent_bytes": self.sent_bytes,
            "reasons": dict(Counter(reason for pick in self.picks for reason in pick.header.reasons).most_common()),
            "refused": dict(self.refused),
            "dropped": dict(self.dropped),
            "note": self.note,
            "picks": [_plain(pick) for pick in self.picks],
        }
        if self.missed_tracks is not None:
            found["misses"] = {
                "frames_with_ground_truth": self.truth_frames,
                "missed_boxes": self.missed_boxes,
                "missed_objects": self.missed_tracks,
                "found_boxes": self.found_boxes,
                "found_objects": self.found_tracks,
            }
        return found


def replay(
    camera: Camera,
    detector: Detector,
    settings: Sequence[Setting],
    *,
    truth: Mapping[int, Sequence[MotBox]] | None = None,
    truth_class: str = "person",
    most_frames: int | None = None,
    progress: Callable[[int], None] = lambda done: None,  # noqa: ARG005 - the default looks at nothing
) -> list[Trial]:
    """Run a camera's frames through each setting.

    Args:
        camera: one that ends; `most_frames` ends any.
        truth: sequence -> tracks and boxes in pixels; frames beyond its last are unknown, those between with no entry are empty.
        truth_class: the class that `truth` is about; boxes of other classes find nothing, unless the model does not know it.
        progress: called with the number of frames done after each.

    Raises:
        CameraError: the source cannot be read.
        SourceError: it gave no frame.
        AgentError: the ground truth is not this film's.
    """
    shared = _OnePass(detector)
    runs = [_Run(setting, shared, camera) for setting in settings]
    misses = None if truth is None else Misses(truth, detector.class_names, truth_class)
    done, began_at_ms = 0, 0
    last: Frame | None = None
    while most_frames is None or done < most_frames:
        frame = camera.read()
        if frame is None:
            break
        if last is None:
            began_at_ms = frame.captured_at_ms
        # The film's time, not this machine's: windows in seconds end where they would.
        last = replace(frame, monotonic_ns=(frame.captured_at_ms - began_at_ms) * 1_000_000)
        for run in runs:
            run.show(last, misses)
        done += 1
        progress(done)
    if last is None:
        raise SourceError(f"camera {camera.name} gave no frame; check the source")
    if misses is not None and not misses.objects_in_view:
        height, width = last.image_bgr.shape[:2]
        raise AgentError(
            f"the ground truth names no object inside the {width}x{height} pixels of any of the {done} frames; give that of this film"
        )
    # The last frame lasts as long as the others on average.
    span_s = (last.captured_at_ms - began_at_ms) / 1000.0
    seconds = span_s * done / (done - 1) if done > 1 else span_s
    return [run.finish(done, seconds, "" if misses is None else misses.note) for run in runs]


class _OnePass:
    """A detector that looks at a picture once for all who ask with the same threshold; implements `Detector`."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._image: NDArray[np.uint8] | None = None
        self._found: dict[tuple[float, float], Detections] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._detector.class_names)

    @property
    def file_digest(self) -> str:
        return self._detector.file_digest

    def detect(self, image_bgr: NDArray[np.uint8], *, confidence: float = 0.05, iou: float = 0.7) -> Detections:
        if image_bgr is not self._image:
            self._image, self._found = image_bgr, {}
        key = (confidence, iou)
        if key not in self._found:
            self._found[key] = self._detector.detect(image_bgr, confidence=confidence, iou=iou)
        return self._found[key]


class _Shelf:
    """What the spool thread writes to: candidates and chosen frames in memory. Implements `storing.Store`."""

    def __init__(self) -> None:
        self._candidates: dict[str, tuple[FrameHeader, bytes, int]] = {}
        self.promoted: deque[tuple[FrameHeader, bytes, int]] = deque()  # with the bytes of the message
        self.dropped: Counter[str] = Counter()

    def put(self, header: FrameHeader, image: bytes, state: Literal["candidate", "new"] = "candidate") -> bool:
        entry = (header, image, len(codec.encode_frame(FrameMessage(header, image))))
        if state == "new":
            self.promoted.append(entry)
        else:
            self._candidates[header.frame_id] = entry
        return True

    def promote(self, frame_ids: Iterable[str]) -> tuple[str, ...]:
        here = tuple(frame_id for frame_id in frame_ids if frame_id in self._candidates)
        self.promoted.extend(self._candidates.pop(frame_id) for frame_id in here)
        return here

    def drop(self, frame_ids: Iterable[str], reason: str) -> int:
        here = [frame_id for frame_id in frame_ids if self._candidates.pop(frame_id, None) is not None]
        self.dropped[reason] += len(here)
        return len(here)

    def add_counters(self, deltas: Mapping[str, int], *, durable: bool = False) -> None:
        del deltas, durable

    def set_note(self, name: str, value: str) -> None:
        del name, value


class _Run:
    """One setting's device."""

    def __init__(self, setting: Setting, detector: Detector, camera: Camera) -> None:
        self._setting, self._detector = setting, detector
        self._shelf = _Shelf()
        counters = Counters({} if setting.frames_total is None else {DESIRED_FRAMES: setting.frames_total + 1})
        encoder = FrameEncoder(setting.image, device="replay", boot_id="replay")
        self._now_s, self._now_ms = 0.0, 0
        campaigns = CampaignBook(now_s=lambda: self._now_s, wall_s=lambda: self._now_ms / 1000)
        campaigns.take_up(1, setting.campaigns)
        self._storing = StoringThread(self._shelf, counters, encoder, campaigns=campaigns)
        self._exchange = FrameExchange(lambda _camera: None)
        self._bucket = TokenBucket(setting.limits, 0.0)
        self._is_over = False
        self._refused: Counter[str] = Counter()
        self._missed: dict[int, tuple[int, ...]] = {}  # sequence -> tracks
        self._picks: list[Pick] = []
        self._inference = Inference(
            self._exchange,
            self._storing,
            Selector(setting.policy, device="replay", frame_rate=camera.fps or None),
            encoder=encoder,
            counters=counters,
            seen={},
            decode_confidence=setting.policy.decode_confidence,
            encode_everything=False,
            bytes_left=self._bytes_left,
            even_bytes_per_s=lambda: setting.limits.even_bytes_per_s,
            sources_done=lambda: self._is_over,
            witness=self._see,
            campaigns=campaigns,
        )
        self._load(LoadedModel(detector, detector.file_digest))

    def show(self, frame: Frame, misses: Misses | None) -> None:
        """Judge a frame, and send what waits as far as the budget goes."""
        self._now_s, self._now_ms = frame.monotonic_ns / 1e9, frame.captured_at_ms
        self._exchange.put_newest(frame)
        self._inference.step(timeout_s=0.0)
        policy = self._setting.policy
        if misses is not None:
            try:
                found = self._detector.detect(frame.image_bgr, confidence=policy.decode_confidence)
            except ModelOutputError:
                found = None
            missed = None if found is None else misses.of(frame, found, policy.visible_confidence)
            if missed is not None:
                self._missed[frame.sequence] = missed
        self._send()

    def finish(self, frames: int, seconds: float, truth_note: str) -> Trial:
        """Close the last window."""
        self._is_over = True
        while not self._inference.is_flushed:
            self._inference.step(timeout_s=0.0)
        self._send()
        left = [self._pick(header, jpeg, size, None) for header, jpeg, size in self._shelf.promoted]
        missed = self._missed.values()
        known = bool(self._missed)
        return Trial(
            self._setting,
            frames,
            seconds,
            (*self._picks, *left),
            dict(self._refused.most_common()),
            dict(self._shelf.dropped.most_common()),
            missed_tracks=len({track for tracks in missed for track in tracks}) if known else None,
            missed_boxes=sum(len(tracks) for tracks in missed),
            truth_frames=len(self._missed),
            truth_note=truth_note,
        )

    def _load(self, model: LoadedModel) -> None:
        """Hand the model over as the device's main thread does; the step in between is the inference thread's."""
        loading = threading.Thread(target=self._inference.swap_model, args=(model,), daemon=True)
        loading.start()
        deadline_s = time.monotonic() + _MODEL_TIMEOUT_S
        while not self._inference.model_digest and time.monotonic() < deadline_s:
            self._inference.step(timeout_s=0.001)
        loading.join()

    def _bytes_left(self) -> int | None:
        left = self._bucket.left_today_bytes(self._now_s)
        unsent = sum(size for _, _, size in self._shelf.promoted)
        return room_bytes(left, unsent, self._setting.limits.even_bytes_per_s)

    def _see(self, decision: Decision) -> None:
        if decision.judgement.refused:
            self._refused[decision.judgement.refused] += 1

    def _send(self) -> None:
        """Work through what the inference handed over, and let go what the bucket allows."""
        self._storing.drain()
        while self._shelf.promoted:
            header, jpeg, size_bytes = self._shelf.promoted[0]
            if not self._bucket.allow(self._now_s, size_bytes):
                break
            self._bucket.spend(self._now_s, size_bytes)
            self._shelf.promoted.popleft()
            self._picks.append(self._pick(header, jpeg, size_bytes, self._now_ms))

    def _pick(self, header: FrameHeader, jpeg: bytes, size_bytes: int, sent_at_ms: int | None) -> Pick:
        return Pick(header, jpeg, size_bytes, sent_at_ms, self._missed.get(header.sequence))


def _plain(pick: Pick) -> dict[str, Any]:
    header = pick.header
    found: dict[str, Any] = {
        "frame_id": header.frame_id,
        "sequence": header.sequence,
        "captured_at_ms": header.captured_at_ms,
        "arm": header.arm,
        "reasons": list(header.reasons),
        "rank": round(header.score, 4),
        "inclusion_probability": round(header.inclusion_probability, 6),
        "bytes": pick.size_bytes,
        "sent_at_ms": pick.sent_at_ms,
    }
    if pick.missed is not None:
        found["missed_objects"] = list(pick.missed)
    return found
