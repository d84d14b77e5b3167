"""The install script and the agent's unit under a systemd that runs, in a container of a bare Debian: `make install-test`.

`systemd-nspawn` boots it; a unit in it runs the steps below and writes what it saw. The container shares this machine's network, so
that the agent in it reaches a broker of the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bowerbird_testing.bare_debian import PATH, inside, make_debian, why_not
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.device_release import ROOT, VERSION, build_wheel

pytestmark = [
    pytest.mark.chroot,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.skipif(shutil.which("systemd-nspawn") is None, reason="no systemd-nspawn: apt-get install systemd-container"),
]

STEPS = """\
#!/bin/bash
export LC_ALL=C.UTF-8
unit=bowerbird-agent
install="/srv/deploy/install.sh --wheelhouse /srv/wheelhouse"
step() { # NAME COMMAND...: its exit code, the current version, the unit's state and the number of restarts by systemd
  name=$1; shift
  "$@" >>/srv/log 2>&1; code=$?
  echo "$name $code $(basename "$(readlink /opt/bowerbird/current)" | cut -d- -f1)" \\
    "$(systemctl show -P ActiveState $unit) $(systemctl show -P NRestarts $unit)" >>/srv/steps
}
until_restarted() {
  for _ in $(seq 60); do
    sleep 1
    [ "$(systemctl show -P NRestarts $unit)" = 1 ] && [ "$(systemctl show -P ActiveState $unit)" = active ] && return 0
  done
  return 1
}
step first $install --model /srv/first.onnx --device cam-01 --broker mqtt://127.0.0.1:BROKER_PORT --camera 'synthetic:?seed=1'
sleep 3
systemctl show -P StatusText $unit >/srv/status
grep -E '^(CapEff|NoNewPrivs|Seccomp):' "/proc/$(systemctl show -P MainPID $unit)/status" >/srv/process
step reload systemctl reload $unit
kill -STOP "$(systemctl show -P MainPID $unit)"
step hang until_restarted
step update $install --wheel /srv/newer/bowerbird-8.2.0-py3-none-any.whl
step bad $install --wheel /srv/bad/bowerbird-8.3.0-py3-none-any.whl
step rollback /srv/deploy/install.sh --rollback
journalctl --namespace=bowerbird -u $unit --no-pager >/srv/journal 2>&1
/srv/deploy/install.sh --uninstall --purge >>/srv/log 2>&1
echo "uninstall $? $(systemctl show -P LoadState $unit)" >>/srv/steps
systemctl poweroff
"""


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian with Python and systemd, with three releases in /srv: this version, 8.2.0, and 8.3.0, which does not start."""
    root = make_debian(tmp_path_factory.mktemp("booted"))
    done = inside(root, "apt-get", "install", "-y", "-qq", "--no-install-recommends", "systemd", "systemd-sysv", "dbus")
    if done.returncode != 0:
        pytest.skip(f"systemd cannot be installed there: {done.stderr.strip()[-300:]}")
    build_wheel(root / "srv" / "newer", version="8.2.0")
    build_wheel(root / "srv" / "bad", version="8.3.0", dies_at_start=True)
    return root


def boot(root: Path, steps: str) -> None:
    """Boot the container, let it run the steps, and wait until it has switched itself off."""
    script = root / "srv" / "steps.sh"
    script.write_text(steps)
    script.chmod(0o755)
    units = root / "etc" / "systemd" / "system"
    (units / "steps.service").write_text(
        "[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nTimeoutStartSec=900\nExecStart=/srv/steps.sh\n"
    )
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "steps.service").symlink_to("/etc/systemd/system/steps.service")
    command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--console=pipe", "-D", str(root), "--boot"]
    subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=1000, check=False, env={**os.environ, "PATH": PATH}
    )
    if not (root / "srv" / "steps").exists():
        pytest.skip("systemd-nspawn cannot boot a container on this machine")


def test_the_unit_runs_is_watched_updated_and_goes_back(debian: Path, start_broker: Callable[..., Mosquitto]) -> None:
    boot(debian, STEPS.replace("BROKER_PORT", str(start_broker().port)))
    log = (debian / "srv" / "log").read_text()
    assert (debian / "srv" / "steps").read_text().splitlines() == [
        f"first 0 {VERSION} active 0",
        f"reload 0 {VERSION} active 0",
        f"hang 0 {VERSION} active 1",  # the watchdog of a stopped process
        "update 0 8.2.0 active 0",
        "bad 1 8.2.0 active 0",
        f"rollback 0 {VERSION} active 0",
        "uninstall 0 not-found",
    ], log
    assert "8.2.0" in log.partition("does not start; ")[2].partition(" is current again")[0]
    assert "1 of 1 cameras ok" in (debian / "srv" / "status").read_text()
    process = dict(line.split(":\t") for line in (debian / "srv" / "process").read_text().splitlines())
    assert (int(process["CapEff"], 16), process["NoNewPrivs"], process["Seccomp"]) == (0, "1", "2")
    journal = (debian / "srv" / "journal").read_text()
    assert journal.count("connected to the broker") >= 3
    assert "Operation not permitted" not in journal
    assert (ROOT / "deploy" / "install.sh").read_bytes() == (debian / "srv" / "deploy" / "install.sh").read_bytes()
