"""The last row of the fault table: all of it mixed. The long form is `benchmarks/soak.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bowerbird_testing.broker import mosquitto_path
from bowerbird_testing.fault_rows import row
from bowerbird_testing.fault_soak import Soak
from bowerbird_testing.mqtt_device import wait_until

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(mosquitto_path() is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]


@row("seeded_soak_mixes_them")
def test_seeded_soak_mixes_them(tmp_path: Path, fault_seed: int) -> None:
    """Interrupted once, it goes on where it was, with another draw for each step."""
    first = Soak(tmp_path, fault_seed)
    first.run(12, check_every=6)
    again = Soak(tmp_path, fault_seed)
    assert (again.step, again.lives) == (first.step, first.lives)
    numbers = again.run(26, check_every=8)
    assert sum(numbers["kills"].values()) >= 26
    assert numbers["rows"] >= numbers["accepted"] > 20


def test_the_processes_of_the_suite_die_with_whoever_started_them(tmp_path: Path) -> None:
    """An interrupted soak must not leave an agent that holds the spool."""
    script = (
        "import sys, time; from pathlib import Path; from bowerbird_testing import fault_processes\n"
        "print(fault_processes.start(Path(sys.argv[1]), time.sleep, 600).pid, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    argv = [sys.executable, "-c", script, str(tmp_path / "log")]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        child = int(starter.stdout.readline())
        state = Path(f"/proc/{child}/stat")

        def is_alive() -> bool:
            return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"

        assert is_alive()
        starter.kill()
    wait_until(lambda: not is_alive(), "the end of the child", 20)


def test_a_soak_with_another_seed_is_refused_in_the_same_folder(tmp_path: Path) -> None:
    Soak(tmp_path, 1).next_life()
    with pytest.raises(ValueError, match="go on with that seed"):
        Soak(tmp_path, 2)
