"""Times and limits of the update runner, and what tells one boot of the machine from the next.

In: nothing, or the file in which Linux names its boot. Out: `RunnerSettings`, a boot id. It reads no configuration file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bowerbird_agent.updates.selftest import MEMORY_BYTES, TIMEOUT_S
from bowerbird_agent.updates.updater import TrialLimits
from bowerbird_models.manifest import Probation

QUIET_S = 3.0  # silence after which blocks that were asked for count as lost
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class RunnerSettings:
    """Times and limits of the runner.

    Args:
        patience_s: silence of the server, link up, after which a download is given up and tried again.
        quiet_s: silence after which blocks that were asked for count as lost.
        retry_s: first wait before a step is tried again; doubles up to 16 times this.
        selftest_s, selftest_memory_bytes: limits of the child.
        probation: replaces the package's own trial limits where given.
        limits: health limits of the trial.
    """

    patience_s: float = 120.0
    quiet_s: float = QUIET_S
    retry_s: float = 5.0
    selftest_s: float = TIMEOUT_S
    selftest_memory_bytes: int = MEMORY_BYTES
    probation: Probation | None = None
    limits: TrialLimits = field(default_factory=TrialLimits)


def machine_boot_id() -> str:
    """Changes with every boot of the machine; "" where the system does not say, which counts every restart as a crash."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
