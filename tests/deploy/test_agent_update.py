"""The agent updated as an operator does it: a real server, an installed device, a stand-in for systemd, two releases of this tree.

`install.sh` makes the device, `bowerbird agents import` and `rollout start --agent` the update; the wheels are the real ones,
installed without an index. The stand-in starts the unit's command again whenever it ends, as `Restart=always` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bowerbird_models.agent_release import LOCK, SBOM
from bowerbird_server.releases.agent_archive import pack
from bowerbird_testing.agent_releases import describe
from bowerbird_testing.device_release import ROOT, build_wheel, fill_wheelhouse
from bowerbird_testing.tiny_yolo import write_tiny_yolo

pytestmark = [pytest.mark.xdist_group("install"), pytest.mark.timeout(1200), pytest.mark.broker]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false"}


def bowerbird(*arguments: object) -> str:
    """A command of the server, which must succeed."""
    command = [sys.executable, "-m", "bowerbird_server.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=ENV)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


def wait_for(what: str, condition: Callable[[], bool], details: Callable[[], str], timeout_s: float = 240.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: {details()}"
        time.sleep(0.5)


class Unit:
    """The start command of an installed unit, started again whenever it ends."""

    def __init__(self, prefix: Path) -> None:
        text = (prefix / "etc/systemd/system/bowerbird-agent.service").read_text()
        self.command = shlex.split(re.search(r"^ExecStart=(.*)", text, re.MULTILINE)[1])  # type: ignore[index]
        self.log = prefix / "unit.log"
        self.codes: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Unit:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _keep(self) -> None:
        while not self._stop.is_set():
            with self.log.open("ab") as log:
                child = subprocess.Popen(
                    self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=ENV, start_new_session=True
                )
            while child.poll() is None and not self._stop.is_set():
                time.sleep(0.1)
            if child.poll() is None:
                child.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            self.codes.append(child.wait(10))
            time.sleep(0.3)


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheelhouse")
    if said := fill_wheelhouse(folder, build_wheel(folder)):
        pytest.skip(f"the wheelhouse cannot be filled without a package index: {said}")
    return folder


def archive_of(folder: Path, wheelhouse: Path, version: str, **faults: Any) -> Path:
    """The archive of a release of this tree under another version, with the packages of the wheelhouse."""
    wheel = build_wheel(folder / "build", version=version, **faults)
    release = folder / "release"
    release.mkdir()
    shutil.copy(wheel, release)
    for path in wheelhouse.glob("*.whl"):
        if not path.name.startswith("bowerbird-"):
            os.link(path, release / path.name)
    lines = []
    for path in sorted(release.glob("*.whl")):
        name, of = path.name.split("-")[:2]
        extras = "[agent,opencv]" if name == "bowerbird" else ""
        lines.append(f"{name}{extras}=={of} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    (release / LOCK).write_text("".join(lines))
    (release / SBOM).write_text(json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6", "components": []}))
    return pack(describe(release), folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running site, without TLS and on loopback."""
    folder = tmp_path_factory.mktemp("site") / "data"
    with (folder.parent / "server.log").open("wb") as log:
        command = [sys.executable, "-m", "bowerbird_server.cli", "serve", "--data", str(folder), "--port", "0"]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=ENV)
        try:
            wait_for("the server", (folder / "serve.json").exists, (folder.parent / "server.log").read_text, 90)
            yield folder
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory, wheelhouse: Path, data: Path) -> Path:
    """An installed device that the site knows."""
    bowerbird("devices", "add", "cam-01", "--camera", "synthetic:?seed=1", "--data", data)
    config = tmp_path_factory.mktemp("bundle") / "cam-01"
    shutil.copytree(data / "devices" / "cam-01", config)
    toml = config / "agent.toml"
    text = toml.read_text()
    model = write_tiny_yolo(tmp_path_factory.mktemp("model") / "first.onnx")
    toml.write_text(f'{text}\n[model]\nfactory = "{model}"\nruntime = "onnxruntime-cpu"\n\n[health]\ninterval_s = 1.0\n')
    folder = tmp_path_factory.mktemp("device")
    done = subprocess.run(
        [
            *("bash", str(ROOT / "deploy" / "install.sh"), "--prefix", str(folder), "--python", sys.executable),
            *("--wheelhouse", str(wheelhouse), "--config", str(config)),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def device_of(data: Path) -> dict[str, Any]:
    (device,) = json.loads(bowerbird("devices", "list", "--json", "--data", data))
    return dict(device)


def rollout_of(data: Path) -> dict[str, Any]:
    return dict(json.loads(bowerbird("rollout", "list", "--json", "--data", data))[0])


def test_a_device_updates_its_agent_and_takes_back_one_that_does_not_start(
    prefix: Path, data: Path, wheelhouse: Path, tmp_path: Path
) -> None:
    good = archive_of(tmp_path / "good", wheelhouse, "0.9.0")
    bad = archive_of(tmp_path / "bad", wheelhouse, "0.9.1", dies_at_start=True)
    with Unit(prefix) as unit:
        wait_for("online", lambda: bool(device_of(data)["online"]), unit.log.read_text)
        before = device_of(data)["agent_version"]

        bowerbird("agents", "import", good, "--data", data)
        bowerbird("agents", "publish", "0.9.0", "--data", data) if _is_automatic(data) else _sign(data, "0.9.0")
        bowerbird("rollout", "start", "--agent", "0.9.0", "--data", data)
        wait_for("0.9.0", lambda: rollout_of(data)["state"] == "completed", lambda: _story(data, unit))
        assert device_of(data)["agent_version"] == "0.9.0" != before
        assert 75 in unit.codes
        # Only what had changed came over the link: the installed version's wheels are the same files.
        (version,) = (prefix / "var/lib/bowerbird-agent/agent/versions").iterdir()
        assert (version / "wheels").is_dir()
        assert "agent 0.9.0" in bowerbird("rollout", "list", "--data", data)
        assert "0.9.0" in bowerbird("devices", "list", "--data", data)

        bowerbird("agents", "import", bad, "--data", data)
        bowerbird("agents", "publish", "0.9.1", "--data", data) if _is_automatic(data) else _sign(data, "0.9.1")
        bowerbird("rollout", "start", "--agent", "0.9.1", "--data", data)
        wait_for("0.9.1 taken back", lambda: rollout_of(data)["state"] == "paused", lambda: _story(data, unit))
        (execution,) = rollout_of(data)["executions"]
        assert (execution["state"], execution["code"]) == ("failed", "crash_loop")
        wait_for("back", lambda: bool(device_of(data)["online"]), unit.log.read_text)
        assert device_of(data)["agent_version"] == "0.9.0"

    done = subprocess.run(
        ["bash", str(ROOT / "deploy" / "install.sh"), "--prefix", str(prefix), "--rollback"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "came over the air is put aside" in done.stdout) == (0, True), done.stderr
    with Unit(prefix) as unit:
        wait_for("the installed version", lambda: device_of(data)["agent_version"] == before, unit.log.read_text)


def _is_automatic(data: Path) -> bool:
    return (data / "keys" / "agents.pem").exists()


def _sign(data: Path, version: str) -> None:
    """Mode `approved`: a person signs with the key that the first run put aside."""
    command = [sys.executable, "-m", "bowerbird_server.cli", "agents", "publish", version, "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=ENV)
    assert done.returncode == 4
    assert "awaits a signature" in done.stderr
    bowerbird("agents", "sign", "--key", data / "keys" / "offline" / "agents.pem", "--data", data)


def _story(data: Path, unit: Unit) -> str:
    return f"{rollout_of(data)}\n{device_of(data)}\n{unit.codes}\n{unit.log.read_text()[-4000:]}"
