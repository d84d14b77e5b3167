"""All cameras' hours: the ones that are being counted, and those that wait to be sent. On disk, so that a restart loses little.

In: every new frame with its detections, from the inference thread. Out: closed hours for the control thread, which says when the broker
has them. An hour is one of capture time; it also closes with another model (drift is measured within one model), when its camera has
shown nothing for long, and at the end of all sources. A power cut loses what was counted since the file was written last, five minutes
at most; what is counted again of that hour is another part of it. It sends nothing.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bowerbird_agent.health.hour_counts import UNWELL, HourCounts, mean_level
from bowerbird_agent.selection.explore import keyed_unit
from bowerbird_models.durable import write_durably
from bowerbird_wire import codec
from bowerbird_wire.errors import WireError
from bowerbird_wire.histograms import HOUR_MS, CameraHour, Histograms

if TYPE_CHECKING:
    from bowerbird_agent.capture.capture import Frame
    from bowerbird_agent.link.outbox import Outbox
    from bowerbird_models.detections import Detections
    from bowerbird_wire.topics import HistogramsTopic

logger = logging.getLogger(__name__)

_OPEN, _CLOSED = "open-hours.cbor", "closed-hours.cbor"
_KEEP_EVERY_S = 300.0
_SILENT_S = 600.0  # a camera that shows nothing for so long has its hour closed
MOST_CLOSED = 1000  # hours that wait; a device that is offline for weeks gives up the oldest
_AT_ONCE = 24


class HistogramBook:
    """The hours of one device. Thread-safe.

    Args:
        folder: where they are kept over a restart; None keeps nothing.
        state_of: camera -> its state, as in health.
        clock_ok: whether wall time may be trusted now.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        state_of: Callable[[str], str] = lambda _camera: "ok",
        clock_ok: Callable[[], bool] = lambda: True,
    ) -> None:
        self._folder, self._state_of, self._clock_ok = folder, state_of, clock_ok
        self._lock = threading.Lock()
        self._open: dict[str, HourCounts] = {}
        self._touched_s: dict[str, float] = {}
        self._closed: list[CameraHour] = []
        self._is_new = False  # closed hours that the file does not have
        self._now_s = 0.0
        self._load()

    def note(self, frame: Frame, detections: Detections, *, model_digest: str, decode_confidence: float) -> None:
        """Count one frame that is seen for the first time."""
        model, floor = bytes.fromhex(model_digest[:16]), round(decode_confidence * 100)
        fault = self._state_of(frame.camera).partition(";")[0]
        at_ms = frame.captured_at_ms
        with self._lock:
            hour = self._open.get(frame.camera)
            if hour is None or (hour.from_ms // HOUR_MS, hour.model, hour.floor) != (at_ms // HOUR_MS, model, floor):
                self._close(frame.camera)
                hour = self._open[frame.camera] = HourCounts(frame.camera, model, floor, at_ms, clock_ok=self._clock_ok())
            self._touched_s[frame.camera] = self._now_s
            if fault in UNWELL:
                hour.add_unwell(fault, at_ms)
                return
            height, width = frame.image_bgr.shape[:2]
            hour.add(detections, level=mean_level(frame.image_bgr), size_wh=(width, height), at_ms=at_ms)

    def close_all(self) -> None:
        """No frame will come for now: what was counted is sent as it is."""
        with self._lock:
            for camera in list(self._open):
                self._close(camera)

    def waiting(self, now_s: float) -> tuple[CameraHour, ...]:
        """The hours that are over, oldest first.

        Args:
            now_s: monotonic; cameras without a frame for long have their hours closed.
        """
        with self._lock:
            self._now_s = now_s
            for camera, touched_s in list(self._touched_s.items()):
                if math.isinf(touched_s):
                    self._touched_s[camera] = now_s  # goes on after a restart, if its camera does
                elif now_s - touched_s >= _SILENT_S:
                    self._close(camera)
            return tuple(self._closed)

    def sent(self, hours: tuple[CameraHour, ...]) -> None:
        """The broker has these."""
        with self._lock:
            self._closed = [hour for hour in self._closed if hour not in hours]
            self._is_new = True

    def keep(self) -> None:
        """Write everything down; what cannot be written is logged and counted on."""
        if self._folder is None:
            return
        with self._lock:
            open_hours = tuple(hour.message() for hour in self._open.values())
            closed, is_new, self._is_new = tuple(self._closed), self._is_new, False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_durably(self._folder / _OPEN, codec.encode(Histograms(open_hours)), 0o600)
            if is_new:
                write_durably(self._folder / _CLOSED, codec.encode(Histograms(closed)), 0o600)
        except OSError as error:
            logger.warning("the hours' histograms cannot be written (%s); a restart would lose them", error)
            with self._lock:
                self._is_new = self._is_new or is_new

    def _close(self, camera: str) -> None:
        hour = self._open.pop(camera, None)
        self._touched_s.pop(camera, None)
        if hour is not None and hour.frames:
            self._closed.append(hour.message())
            del self._closed[:-MOST_CLOSED]
            self._is_new = True

    def _load(self) -> None:
        if self._folder is None:
            return
        for name in (_CLOSED, _OPEN):
            try:
                hours = codec.decode(Histograms, (self._folder / name).read_bytes()).hours
                if name == _CLOSED:
                    self._closed = list(hours)
                    continue
                closed = {(hour.camera, hour.from_ms, hour.model) for hour in self._closed}
                for hour in hours:
                    # The file of open hours is older than that of closed ones when a power cut came between the two.
                    if (hour.camera, hour.from_ms, hour.model) not in closed:
                        self._open[hour.camera] = HourCounts.of(hour)
                        self._touched_s[hour.camera] = math.inf
            except FileNotFoundError:
                continue
            except (OSError, WireError) as error:
                logger.warning("%s cannot be read (%s); these hours are counted anew", self._folder / name, error)


class HistogramSender:
    """Gives closed hours to the outbox, and lets go of them when the broker has them. The control thread owns it.

    Args:
        spread_s: hours end everywhere at once; a device waits its own part of this time before it sends.
    """

    def __init__(self, book: HistogramBook, outbox: Outbox, topic: HistogramsTopic, *, spread_s: float = 300.0) -> None:
        self._book, self._outbox, self._topic = book, outbox, topic
        self._wait_s = spread_s * keyed_unit("histograms", topic.device)
        self._due_s = math.inf
        self._keep_s = -math.inf
        self._key = ""
        self._number = 0
        self._on_way: tuple[CameraHour, ...] = ()

    def pump(self, now_s: float, *, at_once: bool = False) -> None:
        """Hand over what is due, one message at a time.

        Args:
            at_once: all sources are done; nothing is waited for.
        """
        if now_s >= self._keep_s + _KEEP_EVERY_S:
            self._keep_s = now_s
            self._book.keep()
        if self._on_way:
            if self._outbox.has(self._key):
                return
            self._book.sent(self._on_way)
            self._on_way = ()
            self._book.keep()
        if at_once:
            self._book.close_all()
        hours = self._book.waiting(now_s)[:_AT_ONCE]
        if not hours:
            self._due_s = math.inf
            return
        if math.isinf(self._due_s):
            self._due_s = now_s + self._wait_s
        if now_s < self._due_s and not at_once:
            return
        self._number += 1
        self._key, self._on_way = f"histograms {self._number}", hours
        self._outbox.put(self._key, self._topic, codec.encode(Histograms(hours)))
