"""The unit files hold before systemd's own linters, and what they name is what the install script makes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = ("bowerbird-agent.service", "bowerbird.service")
MAX_EXPOSURE = 2.0

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze: apt-get install systemd")


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def exposure(unit: Path) -> float:
    """What `systemd-analyze security` says of a unit file, 0 (nothing is open) to 10."""
    done = analyze("security", "--offline=yes", unit)
    return float(re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)[1])  # type: ignore[index]


def verified(folder: Path, unit: str, text: str) -> subprocess.CompletedProcess[str]:
    """`systemd-analyze verify` of a unit whose program is one that this machine has."""
    (folder / unit).write_text(re.sub(r"/opt/bowerbird\S*(?:/bin/\S+|/launch\.sh)", sys.executable, text))
    return analyze("verify", "--recursive-errors=yes", "--man=no", folder / unit)


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_is_hardened_to_2_0_or_better(unit: str) -> None:
    assert exposure(SYSTEMD / unit) <= MAX_EXPOSURE


def test_the_measure_of_hardening_can_fail(tmp_path: Path) -> None:
    weak = tmp_path / "weak.service"
    weak.write_text("[Service]\nExecStart=/bin/true\n")
    assert exposure(weak) > 9


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_has_no_error_at_all(unit: str, tmp_path: Path) -> None:
    done = verified(tmp_path, unit, (SYSTEMD / unit).read_text())
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS)
def test_a_misspelt_key_is_noticed(unit: str, tmp_path: Path) -> None:
    done = verified(tmp_path, unit, (SYSTEMD / unit).read_text().replace("NoNewPrivileges=", "NoNewPriviledges="))
    assert done.returncode != 0
    assert "NoNewPriviledges" in done.stderr


def test_the_unit_for_jetson_has_no_error_with_its_drop_in(tmp_path: Path) -> None:
    # Offline, the linters read one file: systemd takes a drop-in as if its lines stood at the end of the section.
    unit, _, install = (SYSTEMD / UNITS[0]).read_text().partition("[Install]")
    drop_in = (SYSTEMD / "jetson" / "jetson.conf").read_text()
    whole = f"{unit}{drop_in}\n[Install]{install}"
    assert (done := verified(tmp_path, UNITS[0], whole)).returncode == 0, done.stderr
    assert done.stderr == ""
    assert exposure(tmp_path / UNITS[0]) <= 2.3  # the price of the GPU: devices and the common /tmp


def test_the_agent_may_open_cameras_and_no_other_device() -> None:
    text = (SYSTEMD / UNITS[0]).read_text()
    assert re.findall(r"^Device\w+=.*", text, re.MULTILINE) == ["DevicePolicy=closed", "DeviceAllow=char-video4linux rw"]
    assert "SupplementaryGroups=video\n" in text


def test_the_start_commands_are_commands_that_exist() -> None:
    from bowerbird_agent.cli.app import _parser

    started = {unit: re.search(r"^ExecStart=(\S+) (.*)", (SYSTEMD / unit).read_text(), re.MULTILINE) for unit in UNITS}
    agent, server = started[UNITS[0]], started[UNITS[1]]
    assert agent is not None
    assert server is not None
    assert Path(agent[1]).name == "launch.sh"
    base, state, *arguments = agent[2].split()
    assert (base, state) == ("/opt/bowerbird/current", "/var/lib/bowerbird-agent")
    assert str(_parser().parse_args(arguments).config) == "/etc/bowerbird/agent.toml"
    done = subprocess.run(
        [sys.executable, "-m", "bowerbird_server.cli", server[2].split()[0], "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert Path(server[1]).name == "bowerbird"
    assert "--data" in done.stdout


def test_the_journal_of_the_units_is_bounded_in_size_and_age() -> None:
    for unit in UNITS:
        assert "LogNamespace=bowerbird\n" in (SYSTEMD / unit).read_text()
    journal = dict(re.findall(r"^(\w+)=(.*)", (SYSTEMD / "journald@bowerbird.conf").read_text(), re.MULTILINE))
    assert {"SystemMaxUse", "RuntimeMaxUse", "MaxRetentionSec"} <= journal.keys()
