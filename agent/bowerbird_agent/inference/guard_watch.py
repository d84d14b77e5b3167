"""The guard's thread: reads the sensors every two seconds and tells the inference which share of the frame rate it may take.

In: sensors and the inference's own figures. Out: `JudgingRate.share`, one log line per change, and the state for health. Sensors are
files of drivers and may hang; hence a thread of its own. It decides nothing (`guard.py` does).
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from bowerbird_agent.health.heartbeat import no_pulse
from bowerbird_agent.inference.guard import GuardState, Reading, advance

if TYPE_CHECKING:
    from bowerbird_agent.health.heartbeat import Pulse
    from bowerbird_agent.inference.guard import GuardConfig
    from bowerbird_agent.inference.inference import Inference
    from bowerbird_agent.inference.machine_sensors import MachineSensors

logger = logging.getLogger(__name__)

_EVERY_S = 2.0


class GuardWatch:
    """The loop; `run` belongs to a thread of its own.

    Args:
        config: may be replaced while running, by assignment.
        pulse: this thread's heartbeat.
    """

    def __init__(
        self, config: GuardConfig, sensors: MachineSensors, inference: Inference, *, pulse: Pulse | None = None
    ) -> None:
        self.config = config
        self._sensors, self._inference, self._pulse = sensors, inference, pulse or no_pulse()
        self._stop = threading.Event()
        self.state = GuardState()
        self.hottest_c: float | None = None  # degrees Celsius of the hottest sensor, where there is one and the guard looks

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stop.set()

    def run(self) -> None:
        """Watch until `stop`."""
        while not self._stop.wait(_EVERY_S):
            self._pulse.beat()
            self.step(time.monotonic())

    def step(self, now_s: float) -> None:
        """One reading. `now_s`: monotonic seconds."""
        config, before = self.config, self.state
        reading = Reading()
        if config.enabled:
            degrees, sensor = self._sensors.hottest()
            reading = Reading(degrees, sensor, self._sensors.cpu_pressure(), self._inference.own_share)
        self.hottest_c = reading.temperature_c
        self.state = state = advance(before, reading, config, now_s)
        self._inference.rate.share = state.share
        if state.share < before.share:
            logger.warning(
                "the guard lowers the frame rate to %.0f %% (%s); cool the board or lower its load",
                state.share * 100,
                "; ".join(state.reasons),
            )
        elif state.share > before.share:
            logger.info("the guard raises the frame rate to %.0f %%", state.share * 100)
