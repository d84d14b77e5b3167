"""The spool thread: everything that touches the disk on behalf of frames.

In: tasks from the inference thread (store this frame, promote these, drop those, count those bytes). Out: the spool's files and
counters. The hand-over never blocks the inference thread: when the disk is behind, frames of live cameras are dropped and
counted, cameras that may wait are held. A disk that refuses (full, read-only) is counted and told; the agent goes on.
"""

from __future__ import annotations

import base64
import logging
import sqlite3
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from bowerbird_agent.errors import AgentError, SpoolFull
from bowerbird_agent.health import counters as names
from bowerbird_agent.health.heartbeat import no_pulse
from bowerbird_agent.selection.campaign_book import counter_names
from bowerbird_wire.messages import FrameHeader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from bowerbird_agent.capture.capture import Frame
    from bowerbird_agent.health.counters import Counters
    from bowerbird_agent.health.heartbeat import Pulse
    from bowerbird_agent.selection.campaign_book import CampaignBook
    from bowerbird_agent.selection.decision_log import DecisionLog
    from bowerbird_agent.storing.encode import CoveredFrame, FrameEncoder
    from bowerbird_agent.storing.fetching import Fetching

logger = logging.getLogger(__name__)

HOLD_AT = 16  # frames waiting for the disk from which on patient cameras are held
MAX_WAITING = 64  # frames waiting for the disk from which on frames are dropped
_FLUSH_EVERY_S = 1.0
_LOOK_AFTER_EVERY_S = 60.0
_FULL_EVERY_S = 600.0
SELECTOR_NOTE = "selector"


class Store(Protocol):
    """What this thread needs of the spool."""

    def put(self, header: FrameHeader, image: bytes, state: Literal["candidate", "new"] = "candidate") -> bool: ...
    def promote(self, frame_ids: Iterable[str]) -> tuple[str, ...]: ...
    def drop(self, frame_ids: Iterable[str], reason: str) -> int: ...
    def add_counters(self, deltas: Mapping[str, int], *, durable: bool = False) -> None: ...
    def set_note(self, name: str, value: str) -> None: ...


class Forgotten(Protocol):
    """Which frames are to be forgotten: `erasing.Erasing`."""

    def covers(self, header: FrameHeader) -> bool: ...
    def late(self, header: FrameHeader) -> None: ...


@dataclass(frozen=True)
class StoreFrame:
    """Keep a frame as a candidate, or at once as one to be sent, counted for a campaign.

    `source` is for more of it than is sent, None when there is no time for that.
    """

    header: FrameHeader
    jpeg: bytes
    campaign: str = ""
    source: Frame | None = None


@dataclass(frozen=True)
class PictureAround:
    """A picture for the surroundings of its camera."""

    covered: CoveredFrame


@dataclass(frozen=True)
class OnDisk:
    """Work of another thread that touches the disk."""

    work: Callable[[], None]


@dataclass(frozen=True)
class CountBytes:
    """Encode a frame only to know what sending it would have cost.

    Args:
        image_bgr: (H, W, 3) uint8.
        rule_would_send: count it for the rule `max conf < 0.6` as well.
    """

    image_bgr: NDArray[np.uint8]
    rule_would_send: bool


@dataclass(frozen=True)
class Promote:
    """End of a window: these go up, in this order; the others are dropped for the reason given.

    `selector_state` is kept for the next start, None to leave it as it is. What was left before choosing, None for no limit, and the
    share of the explore candidates that was chosen are for the log of decisions.
    """

    chosen: tuple[str, ...]
    dropped: Mapping[str, str] = field(default_factory=dict)
    closes_window: bool = True
    round_number: int = 0
    selector_state: bytes | None = None
    frames_left: int | None = None
    bytes_left: int | None = None
    explore_share: float = 1.0


Task = StoreFrame | CountBytes | Promote | PictureAround | OnDisk


class StoringThread:
    """The spool thread and the queue in front of it; `run` belongs to a thread of its own.

    Args:
        spool: where frames go.
        counters: totals, flushed at least every second and at each window's end.
        encoder: for frames that are only counted.
        pulse: this thread's heartbeat.
        decisions: the log that this thread writes; None for no log.
        campaigns: told of what was claimed and did not come into the spool; None where nothing is claimed.
        forgotten: frames that must not be stored; None for no such.
        look_after: called every minute, for what else is to be done to the spool's files.

    `fetching`, when it is set, keeps what people may ask for; this thread owns it.
    """

    def __init__(
        self,
        spool: Store,
        counters: Counters,
        encoder: FrameEncoder,
        pulse: Pulse | None = None,
        decisions: DecisionLog | None = None,
        campaigns: CampaignBook | None = None,
        *,
        forgotten: Forgotten | None = None,
        look_after: Callable[[], None] | None = None,
    ) -> None:
        self._forgotten, self._look_after, self._looked_s = forgotten, look_after, float("-inf")
        self._decisions, self._campaigns = decisions, campaigns
        self.dry_decisions: DecisionLog | None = None  # of the policy in dry run; written here as well
        self.fetching: Fetching | None = None
        self._pulse = pulse or no_pulse()
        self._spool, self._counters, self._encoder = spool, counters, encoder
        self._tasks: deque[Task] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._flushed_s = 0.0
        self._is_failing = False
        self._full_said_s: float | None = None
        self.on_promoted: Callable[[int], None] = _nobody
        self.trouble = ""

    def submit(self, task: Task) -> bool:
        """Queue a task without blocking; False when the disk is so far behind that a frame is dropped (commands never are)."""
        with self._changed:
            if not isinstance(task, Promote | OnDisk) and len(self._tasks) >= MAX_WAITING:
                return False
            self._tasks.append(task)
            self._changed.notify()
            return True

    @property
    def backlog(self) -> int:
        """Tasks that wait."""
        return len(self._tasks)

    def stop(self) -> None:
        """Let `run` finish what is queued, flush and return."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()

    def run(self) -> None:
        """Work until `stop`, then once more through the queue."""
        while True:
            self._pulse.beat()
            with self._changed:
                self._changed.wait_for(lambda: self._tasks or self._is_stopping, _FLUSH_EVERY_S)
                task = self._tasks.popleft() if self._tasks else None
                is_last = task is None and self._is_stopping
            self._work(task)
            if self.fetching is not None:
                self.fetching.tick(time.monotonic())
            if is_last or time.monotonic() - self._flushed_s >= _FLUSH_EVERY_S:
                self.flush()
            if self._decisions is not None:
                self._decisions.write_if_due(time.monotonic())
            if self.dry_decisions is not None:
                self.dry_decisions.write_if_due(time.monotonic())
            self._look_after_spool()
            if is_last:
                if self._decisions is not None:
                    self._decisions.write(time.monotonic())
                if self.dry_decisions is not None:
                    self.dry_decisions.write(time.monotonic())
                return

    def drain(self) -> None:
        """Work through what is queued in the caller's thread, where nobody runs `run`: a replay knows no disk that is behind."""
        while self._tasks:
            self._work(self._tasks.popleft())

    def flush(self) -> None:
        """Write the counters; what cannot be written now is kept for the next time."""
        self._flushed_s = time.monotonic()
        changes = self._counters.take_changes()
        if not changes:
            return
        try:
            self._spool.add_counters(changes)
        except (OSError, sqlite3.Error, AgentError) as error:
            self._counters.give_back(changes)
            self._failed("the counters cannot be written", error)

    def count(self, size_bytes: int, *, rule_would_send: bool) -> None:
        """Add a frame to what sending everything, and perhaps the rule, would have cost."""
        self._counters.add(names.ALL_BYTES, size_bytes)
        if rule_would_send:
            self._counters.add(names.RULE_BYTES, size_bytes)

    def _look_after_spool(self) -> None:
        now_s = time.monotonic()
        if self._look_after is None or now_s - self._looked_s < _LOOK_AFTER_EVERY_S:
            return
        self._looked_s = now_s
        try:
            self._look_after()
        except (OSError, sqlite3.Error, AgentError) as error:
            self._failed("frames that are too old cannot be deleted", error)

    def _work(self, task: Task | None) -> None:
        if isinstance(task, StoreFrame) and task.campaign:
            self._store_for_campaign(task)
        elif isinstance(task, StoreFrame):
            self._store(task)
        elif isinstance(task, CountBytes):
            self.count(len(self._encoder.image(task.image_bgr).jpeg), rule_would_send=task.rule_would_send)
        elif isinstance(task, Promote):
            self._promote(task)
        elif isinstance(task, PictureAround) and self.fetching is not None:
            self._pass_by(task.covered)
        elif isinstance(task, OnDisk):
            task.work()

    def _store(self, task: StoreFrame) -> None:
        header = task.header
        if self._is_forgotten(header):
            return
        try:
            if not self._spool.put(header, task.jpeg, "candidate"):
                logger.debug("frame %s is already known to the spool", header.frame_id[:12])
            elif self.fetching is not None and task.source is not None:
                self.fetching.kept(header, task.source, time.monotonic())
            self._is_failing, self.trouble = False, ""
        except (OSError, sqlite3.Error, AgentError) as error:
            self._refused(header, error)

    def _is_forgotten(self, header: FrameHeader) -> bool:
        """Whether a frame must not be stored, since its time or itself was to be forgotten before it came here; counted."""
        if self._forgotten is None or not self._forgotten.covers(header):
            return False
        self._forgotten.late(header)
        logger.info("frame %s is to be forgotten; it is not stored", header.frame_id[:12])
        return True

    def _pass_by(self, covered: CoveredFrame) -> None:
        frame = covered.frame
        moment = FrameHeader("", "", "", frame.camera, frame.sequence, frame.captured_at_ms, 0, 0)
        if self.fetching is not None and not (self._forgotten is not None and self._forgotten.covers(moment)):
            self.fetching.passed(covered)

    def _store_for_campaign(self, task: StoreFrame) -> None:
        """Count first and durably, then store: a share may be used up by a frame that a crash took, but never exceeded."""
        size = len(task.jpeg)
        if self._is_forgotten(task.header):
            if self._campaigns is not None:
                self._campaigns.give_back(task.campaign, size)
            return
        frames_name, bytes_name = counter_names(task.campaign)
        is_counted = is_stored = False
        try:
            self._spool.add_counters({frames_name: 1, bytes_name: size}, durable=True)
            is_counted = True
            is_stored = self._spool.put(task.header, task.jpeg, "new")
            self._is_failing, self.trouble = False, ""
        except (OSError, sqlite3.Error, AgentError) as error:
            self._refused(task.header, error)
        if is_stored:
            self._counters.add(names.FRAMES_SELECTED)
            self._counters.add(names.CAMPAIGN_FRAMES)
            if self._decisions is not None:
                self._decisions.window((task.header.frame_id,), {}, closed=False)
            return
        if self._campaigns is not None:
            self._campaigns.give_back(task.campaign, size)
        if is_counted:
            try:
                self._spool.add_counters({frames_name: -1, bytes_name: -size})
            except (OSError, sqlite3.Error, AgentError) as error:
                logger.debug("a campaign's count stays one too high: %s", error)

    def _promote(self, task: Promote) -> None:
        if self._decisions is not None:
            self._decisions.window(
                task.chosen,
                task.dropped,
                closed=task.closes_window,
                frames_left=task.frames_left,
                bytes_left=task.bytes_left,
                explore_share=task.explore_share,
            )
        promoted = 0
        if self.fetching is not None:
            self.fetching.not_chosen(task.dropped)
        try:
            promoted = len(self._spool.promote(task.chosen)) if task.chosen else 0
            by_reason: dict[str, list[str]] = {}
            for frame_id, reason in task.dropped.items():
                by_reason.setdefault(reason, []).append(frame_id)
            for reason, frame_ids in by_reason.items():
                self._spool.drop(frame_ids, reason)
            if task.selector_state is not None:
                self._spool.set_note(SELECTOR_NOTE, base64.b64encode(task.selector_state).decode())
        except (OSError, sqlite3.Error, AgentError) as error:
            self._failed("the end of a selection window cannot be written", error)
        self._counters.add(names.FRAMES_SELECTED, promoted)
        if task.closes_window:
            self._counters.add(names.WINDOWS_CLOSED)
            self._counters.add_in_round(names.ROUND_WINDOWS_CLOSED, task.round_number)
        self.on_promoted(len(task.chosen))
        self.flush()

    def _refused(self, header: FrameHeader, error: Exception) -> None:
        """A frame was not stored: counted, and told. In a full spool that is its policy at work and happens between frames that
        are stored, so it is said at most every ten minutes."""
        self._counters.add(names.STORE_REFUSED)
        what = f"frame {header.sequence} of camera {header.camera} cannot be stored"
        if not isinstance(error, SpoolFull):
            self._failed(what, error)
            return
        self.trouble = f"{what}: {error}"
        now_s = time.monotonic()
        if self._full_said_s is None or now_s - self._full_said_s >= _FULL_EVERY_S:
            self._full_said_s = now_s
            logger.warning(
                "the spool is full: frames that are worth less than all that waits are not kept, but counted (%s)", error
            )
        else:
            logger.debug("%s (%s)", what, error)

    def _failed(self, what: str, error: Exception) -> None:
        level = logging.DEBUG if self._is_failing else logging.WARNING
        self._is_failing = True
        self.trouble = f"{what}: {error}"
        logger.log(level, "%s (%s); free some space or check the folder, the agent goes on", what, error)


def _nobody(promoted: int) -> None:
    del promoted
