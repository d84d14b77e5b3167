"""The install script as root in a bare Debian: `make install-test`. It takes minutes and is not part of `make test`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bowerbird_testing.bare_debian import inside, make_debian, why_not
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.device_release import ROOT

pytestmark = [
    pytest.mark.chroot,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_debian(tmp_path_factory.mktemp("bare"))


def owner(root: Path, path: str) -> str:
    return inside(root, "stat", "-c", "%a %U:%G", path).stdout.strip()


def test_a_bare_debian_becomes_a_device_and_is_bare_again(debian: Path, start_broker: Callable[..., Mosquitto]) -> None:
    port = start_broker().port
    options = ["--wheelhouse", "/srv/wheelhouse", "--model", "/srv/first.onnx"]
    options += ["--device", "cam-01", "--broker", f"mqtt://127.0.0.1:{port}", "--camera", "synthetic:?seed=1"]
    done = inside(debian, "/srv/deploy/install.sh", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"broker login: 127.0.0.1:{port} lets cam-01 in" in done.stdout
    assert "the doctor found something to do" not in done.stdout

    assert owner(debian, "/etc/bowerbird") == "750 root:bowerbird-agent"
    assert owner(debian, "/etc/bowerbird/agent.toml") == "640 root:bowerbird-agent"
    assert owner(debian, "/var/lib/bowerbird-agent") == "700 bowerbird-agent:bowerbird-agent"
    assert owner(debian, "/opt/bowerbird/current/bin/bowerbird-agent") == "755 root:root"
    unit = (debian / "etc/systemd/system/bowerbird-agent.service").read_text()
    assert unit == (ROOT / "deploy/systemd/bowerbird-agent.service").read_text()
    assert "video" in inside(debian, "id", "-nG", "bowerbird-agent").stdout.split()

    # The program as the unit starts it, as the user it starts it as.
    start = next(line for line in unit.splitlines() if line.startswith("ExecStart=")).removeprefix("ExecStart=").split()
    identity = ["--reuid=bowerbird-agent", "--regid=bowerbird-agent", "--init-groups"]
    run = ["timeout", "--preserve-status", "--signal=TERM", "15", "setpriv", *identity, "--", *start]
    done = inside(debian, *run)
    assert done.returncode == 0, done.stderr
    assert "INFO connected to the broker" in done.stderr
    assert "INFO camera camera: frames of 320x240 pixels come" in done.stderr
    assert "Traceback" not in done.stderr
    assert (debian / "var/lib/bowerbird-agent/spool").is_dir()

    again = inside(debian, "/srv/deploy/install.sh", *options)
    assert again.returncode == 0, again.stderr
    assert "is there already" in again.stdout

    assert inside(debian, "/srv/deploy/install.sh", "--uninstall", "--purge").returncode == 0
    left = ["etc/bowerbird", "opt/bowerbird", "var/lib/bowerbird-agent", "etc/systemd/system/bowerbird-agent.service"]
    assert not any((debian / path).exists() for path in left)
    assert inside(debian, "id", "bowerbird-agent").returncode != 0
