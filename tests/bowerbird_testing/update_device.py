"""A device that only updates: real store, real runner, and a thread that runs the loaded model on frames as an inference thread does.

In: a state folder, an update server to talk to. Out: a running `UpdateRunner` and which models were loaded, in order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bowerbird_agent.updates.model_store import ModelSlot, ModelStore
from bowerbird_agent.updates.runner import RunnerSettings, UpdateRunner
from bowerbird_models.errors import ModelError
from bowerbird_models.manifest import Probation
from bowerbird_models.onnx_detector import OnnxDetector
from bowerbird_wire.messages import BlockRequest, Report

SETTINGS = RunnerSettings(
    patience_s=3.0,
    quiet_s=0.15,
    retry_s=0.02,
    selftest_s=30.0,
    probation=Probation(good_frames=20, deadline_s=20.0, server_deadline_s=20.0),
)


class UpdateDevice:
    """One boot of a device. Use as a context manager; `kill` is the end without a clean stop.

    Args:
        state_dir: survives from boot to boot.
        root: TUF root metadata it was made with.
        send: where messages go.
        factory: model it was made with.
        frame_fault: called with the running digest before each frame; raise to make the model fail on it.
    """

    def __init__(
        self,
        state_dir: Path,
        root: bytes,
        send: Callable[[BlockRequest | Report], None],
        *,
        factory: Path | None = None,
        settings: RunnerSettings = SETTINGS,
        frame_fault: Callable[[str], None] = lambda digest: None,
        **runner_arguments: Any,
    ) -> None:
        self.store = ModelStore(state_dir / "models")
        if factory is not None:
            self.store.install_factory(factory)
        self.loaded: list[str] = []
        self._detector: OnnxDetector | None = None
        self._digest = ""
        self._lock = threading.Lock()
        self._frame_fault = frame_fault
        self._done = threading.Event()
        self.runner = UpdateRunner(
            self.store, root, state_dir, device="cam-01", send=send, swap=self.swap, settings=settings, **runner_arguments
        )
        slot = self.runner.running
        if slot is not None:
            self.swap(slot)
        self._camera = threading.Thread(target=self._frames, daemon=True)

    def __enter__(self) -> UpdateDevice:
        self._camera.start()
        self.runner.start()
        self.runner.link_up()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.runner.stop()
        self._camera.join(5)

    def swap(self, slot: ModelSlot | None) -> None:
        """Load a model between two frames."""
        detector = OnnxDetector(slot.onnx) if slot is not None else None
        with self._lock:
            self._detector, self._digest = detector, slot.digest if slot else ""
            self.loaded.append(self._digest)

    @property
    def active_digest(self) -> str:
        """What the store says is active."""
        return self.store.digest("active")

    def _frames(self) -> None:
        frame = np.full((64, 64, 3), 120, np.uint8)
        while not self._done.is_set():
            with self._lock:
                if self._detector is not None:
                    try:
                        self._frame_fault(self._digest)
                        started_s = time.perf_counter()
                        seen = len(self._detector.detect(frame))
                        self.runner.observe(True, (time.perf_counter() - started_s) * 1000, seen)
                    except ModelError:
                        self.runner.observe(False, 0.0, 0)
            self._done.wait(0.005)
