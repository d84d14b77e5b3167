"""Reads how hot and how crowded the machine is from the files in which Linux says so.

In: folders and files, passed in so that a test can bring its own. Out: a temperature, a pressure; None for what cannot be read. It
judges nothing (`guard.py` does) and never raises: a sensor that fails is a sensor less.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Chips without a probe answer with numbers such as -274 or 127.
_LEAST_C, _MOST_C = -40.0, 125.0


@dataclass(frozen=True)
class MachineSensors:
    """Where to read.

    Args:
        thermal: folder of `thermal_zone*`, each with `temp` in thousandths of a degree and `type`.
        hwmon: folder of `hwmon*`, each with `temp*_input` in thousandths of a degree and `name`.
        pressure: the kernel's pressure stall file for the CPU.
        load: the load averages, used where there is no such file.
        cpus: CPUs that this process may use; None asks the system.
    """

    thermal: Path = Path("/sys/class/thermal")
    hwmon: Path = Path("/sys/class/hwmon")
    pressure: Path = Path("/proc/pressure/cpu")
    load: Path = Path("/proc/loadavg")
    cpus: int | None = None

    def hottest(self) -> tuple[float | None, str]:
        """Degrees Celsius of the hottest sensor and its name; None and "" where there is none."""
        readings = [(degrees, name) for degrees, name in self._temperatures() if _LEAST_C < degrees < _MOST_C]
        return max(readings, default=(None, ""), key=lambda reading: reading[0] or 0.0)

    def cpu_pressure(self) -> float | None:
        """Per cent of the last ten seconds in which some task waited for a CPU.

        Where the kernel does not say, the share of the runnable tasks that have no CPU, from the load average.
        """
        words = _text(self.pressure).split()
        for word in words[:2]:
            if words[0] == "some" and word.startswith("avg10="):
                return _number(word.removeprefix("avg10="))
        load = _number((_text(self.load).split() or [""])[0])
        if load is None:
            return None
        cpus = self.cpus or len(os.sched_getaffinity(0))
        return 0.0 if load <= cpus else 100.0 * (load - cpus) / load

    def _temperatures(self) -> Iterator[tuple[float, str]]:
        for zone in _matching(self.thermal, "thermal_zone*"):
            degrees = _number(_text(zone / "temp"))
            if degrees is not None:
                yield degrees / 1000.0, _text(zone / "type").strip() or zone.name
        for chip in _matching(self.hwmon, "hwmon*"):
            for probe in _matching(chip, "temp*_input"):
                degrees = _number(_text(probe))
                if degrees is not None:
                    yield degrees / 1000.0, _text(chip / "name").strip() or chip.name


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:  # a sensor may be there and refuse to be read while its chip sleeps
        return ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
