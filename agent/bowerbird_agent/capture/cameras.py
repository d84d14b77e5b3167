"""The cameras of a running device: one worker and thread each, started, replaced and stopped one by one.

In: camera sections of the configuration. Out: frames in the exchange, and the workers for health to ask. A camera that is replaced or
removed is turned away at once, even if its driver hangs and its thread ends only later. How a camera is read is `capture/worker.py`'s
business.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from bowerbird_agent.capture.capture import is_live
from bowerbird_agent.capture.exchange import CameraPort
from bowerbird_agent.capture.worker import CaptureWorker
from bowerbird_agent.health.counters import FRAMES_DROPPED, SeenFrames
from bowerbird_agent.health.heartbeat import Kind

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable

    from bowerbird_agent.capture.camera_config import CameraConfig
    from bowerbird_agent.capture.exchange import FrameExchange
    from bowerbird_agent.health.counters import Counters
    from bowerbird_agent.health.heartbeat import Heartbeats, Pulse
    from bowerbird_agent.health.stages import Stages

logger = logging.getLogger(__name__)


class _Place:
    """One camera and what belongs to it."""

    def __init__(self, worker: CaptureWorker, port: CameraPort, pulse: Pulse) -> None:
        self.worker, self.port, self.pulse = worker, port, pulse
        self.thread: threading.Thread | None = None


class Cameras:
    """All cameras. Changed by the main thread only; health and inference read `workers` and `seen`.

    Args:
        configs: the cameras to begin with; their threads begin with `start`.
    """

    def __init__(
        self,
        configs: Iterable[CameraConfig],
        exchange: FrameExchange,
        counters: Counters,
        heartbeats: Heartbeats,
        stages: Stages,
    ) -> None:
        self._exchange, self._counters, self._heartbeats, self._stages = exchange, counters, heartbeats, stages
        # Which frames were counted, by camera: handed to the inference thread, which looks a camera up at each of its frames.
        self.seen: dict[str, SeenFrames] = {}
        self._places: dict[str, _Place] = {}
        for config in configs:
            self._make(config)
        self._publish()

    @property
    def all_done(self) -> bool:
        """Whether no camera will ever give another frame."""
        return all(worker.is_done for worker in self.workers)

    def state_of(self, camera: str) -> str:
        """A camera's state, as in health; "ok" for one that is not here any more."""
        place = self._places.get(camera)
        return "ok" if place is None else place.worker.state

    def start(self) -> None:
        """Begin with every camera that has not begun."""
        for name, place in self._places.items():
            if place.thread is None:
                place.thread = self._stages.start(f"camera-{name}", place.worker.run, place.pulse)

    def change(
        self, added: Iterable[CameraConfig], changed: Iterable[CameraConfig], removed: Iterable[str], *, wait_s: float
    ) -> None:
        """Add, replace and remove cameras; the others go on undisturbed.

        Args:
            wait_s: how long the old threads may take in all to let go of their devices; the new ones begin anyway.
        """
        added, changed = tuple(added), tuple(changed)
        leaving = [self._places.pop(name) for name in (*removed, *(camera.name for camera in changed)) if name in self._places]
        for place in leaving:
            place.worker.stop()
            self._counters.add(FRAMES_DROPPED, place.port.close())
        deadline_s = time.monotonic() + wait_s
        for place in leaving:
            if place.thread is not None:
                place.thread.join(max(0.0, deadline_s - time.monotonic()))
                if place.thread.is_alive():
                    logger.warning("camera %s has not let go yet; the configuration's camera begins anyway", place.worker.name)
        for name in removed:
            self.seen.pop(name, None)
        for config in (*changed, *added):
            self._make(config)
        self._publish()
        self.start()

    def stop(self) -> None:
        """Ask every thread to return."""
        for place in self._places.values():
            place.worker.stop()

    def _make(self, config: CameraConfig) -> None:
        seen = SeenFrames(config, self._counters)
        kind = Kind.CAMERA if is_live(config.source) else Kind.FILM
        port, pulse = CameraPort(self._exchange, config.name), self._heartbeats.add(f"camera-{config.name}", kind)
        worker = CaptureWorker(config, port, resume_after=seen.resume_after, pulse=pulse)
        self.seen[config.name] = seen
        self._places[config.name] = _Place(worker, port, pulse)

    def _publish(self) -> None:
        # Replaced whole: other threads iterate over it.
        self.workers: tuple[CaptureWorker, ...] = tuple(place.worker for place in self._places.values())
