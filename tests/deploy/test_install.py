"""The install script, whole, in a folder of its own as any user: first installation, update, a bad release, the way back, removal."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.device_release import ROOT, VERSION, build_wheel, fill_wheelhouse
from bowerbird_testing.tiny_yolo import write_tiny_yolo

SCRIPT = ROOT / "deploy" / "install.sh"
CAMERA = "synthetic:?seed=1"

pytestmark = [pytest.mark.xdist_group("install"), pytest.mark.timeout(900)]


@dataclass
class Prefix:
    """A folder that stands for a device's root, and the release that lies beside it."""

    folder: Path
    wheelhouse: Path

    def install(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the script on this folder, with nothing from a network."""
        options = ["--prefix", self.folder, "--python", sys.executable, "--wheelhouse", self.wheelhouse, *arguments]
        return run(*options)

    @property
    def opt(self) -> Path:
        return self.folder / "opt" / "bowerbird"

    def versions(self) -> list[str]:
        return sorted(path.name.partition("-")[0] for path in (self.opt / "versions").iterdir())

    def link(self, name: str) -> str:
        return (self.opt / name).readlink().name.partition("-")[0]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheelhouse")
    wheel = build_wheel(folder)
    if said := fill_wheelhouse(folder, wheel):
        pytest.skip(f"the wheelhouse cannot be filled without a package index: {said}")
    return folder


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory, wheelhouse: Path) -> Prefix:
    """A device with this version, whose wheelhouse holds that version only."""
    prefix = Prefix(tmp_path_factory.mktemp("device"), wheelhouse)
    model = write_tiny_yolo(tmp_path_factory.mktemp("model") / "first.onnx")
    done = prefix.install("--model", model, "--device", "cam-01", "--site", "north-gate", "--camera", CAMERA)
    assert done.returncode == 0, done.stderr
    return prefix


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck: apt-get install shellcheck")
@pytest.mark.parametrize(
    "script",
    [
        "deploy/install.sh",
        "deploy/launch.sh",
        "scripts/agent-release",
        "scripts/audit",
        "scripts/lock",
        "scripts/release",
        "scripts/release-data",
        "scripts/verify-release",
    ],
)
def test_a_script_that_others_run_has_no_fault_that_shellcheck_knows(script: str) -> None:
    done = subprocess.run(["shellcheck", str(ROOT / script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""


def test_the_first_installation_makes_program_configuration_unit_and_state(device: Prefix) -> None:
    assert device.versions() == [VERSION]
    assert device.link("current") == VERSION
    assert not (device.opt / "previous").exists()
    unit = (device.folder / "etc/systemd/system/bowerbird-agent.service").read_text()
    agent, toml = device.opt / "current/bin/bowerbird-agent", device.folder / "etc/bowerbird/agent.toml"
    launcher, state = device.opt / "launch.sh", device.folder / "var/lib/bowerbird-agent"
    assert f"ExecStart={launcher} {device.opt / 'current'} {state} run --config {toml}\n" in unit
    assert launcher.read_bytes() == (ROOT / "deploy" / "launch.sh").read_bytes()
    assert launcher.stat().st_mode & 0o777 == 0o755
    done = subprocess.run([agent, "--check-config", "--config", toml], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{toml}: ok, device cam-01 with 1 camera(s)\n"
    assert toml.stat().st_mode & 0o777 == 0o640
    assert (device.folder / "var/lib/bowerbird-agent").stat().st_mode & 0o777 == 0o700


def test_neither_torch_nor_the_server_is_installed(device: Prefix) -> None:
    packages = {path.name.lower() for path in (device.opt / "current" / "lib").glob("python*/site-packages/*")}
    assert {"onnxruntime", "paho", "cv2"} <= packages
    assert packages.isdisjoint({"torch", "ultralytics", "fastapi", "uvicorn"})


def test_the_doctor_passes_where_broker_and_camera_are_there(
    device: Prefix, start_broker: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    broker = start_broker()
    toml = device.folder / "etc/bowerbird/agent.toml"
    toml.unlink()
    model = write_tiny_yolo(tmp_path / "first.onnx")
    done = device.install(
        "--model", model, "--device", "cam-01", "--broker", f"mqtt://127.0.0.1:{broker.port}", "--camera", CAMERA
    )
    assert done.returncode == 0, done.stderr
    assert "is there already" in done.stdout
    assert f"broker login: 127.0.0.1:{broker.port} lets cam-01 in" in done.stdout
    assert "the doctor found something to do" not in done.stdout


def test_a_second_run_changes_nothing(device: Prefix) -> None:
    toml = device.folder / "etc/bowerbird/agent.toml"
    toml.write_text(toml.read_text() + "\n[budget]\nbytes_per_s = 8000\n")
    before = {path: path.read_bytes() for path in (toml, *sorted((device.opt / "current" / "bin").iterdir())) if path.is_file()}
    done = device.install("--model", toml.with_name("factory.onnx"), "--device", "another")
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert device.versions() == [VERSION]


def test_the_folder_that_the_server_made_for_the_device_is_taken_over(device: Prefix, tmp_path: Path) -> None:
    toml = device.folder / "etc/bowerbird/agent.toml"
    kept = toml.read_text()
    toml.unlink()
    for name, text in (
        ("agent.toml", kept.replace(str(device.folder / "var/lib/bowerbird-agent"), "state")),
        ("password", "secret\n"),
        ("root.json", "{}"),
    ):
        (tmp_path / name).write_text(text)
    done = device.install("--config", tmp_path)
    assert done.returncode == 0, done.stderr
    assert toml.read_text() == kept
    assert (toml.with_name("password")).stat().st_mode & 0o777 == 0o600
    assert "secret" not in done.stdout + done.stderr


def test_two_installations_at_once_do_not_meet(device: Prefix) -> None:
    with (device.opt / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = device.install()
    assert done.returncode == 1
    assert "another installation is under way" in done.stderr


def kill_midway(device: Prefix, wheel: Path) -> None:
    """Begin an installation and kill it, children and all, once pip has begun to fill the new environment."""
    options = ["--prefix", device.folder, "--python", sys.executable, "--wheelhouse", device.wheelhouse, "--wheel", wheel]
    process = subprocess.Popen(["bash", str(SCRIPT), *map(str, options)], stdout=subprocess.DEVNULL, start_new_session=True)
    deadline_s = time.monotonic() + 120
    while not list(device.opt.glob("versions/8.2.0-*/lib/python*/site-packages/numpy")) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with (device.opt / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # its children hold the lock until the last of them is gone


def test_an_update_that_is_killed_midway_a_bad_release_and_the_way_back(device: Prefix, tmp_path: Path) -> None:
    newer = build_wheel(tmp_path / "newer", version="8.2.0")
    kill_midway(device, newer)
    assert device.link("current") == VERSION
    assert not list(device.opt.glob("versions/8.2.0-*/.complete"))
    done = device.install("--wheel", newer)
    assert done.returncode == 0, done.stderr
    assert (device.link("current"), device.link("previous")) == ("8.2.0", VERSION)

    bad = build_wheel(tmp_path / "bad", version="8.3.0", broken=True)
    done = device.install("--wheel", bad)
    assert done.returncode == 1
    assert "install check: imports: cannot import name 'not_yet_written'" in done.stderr
    assert "does not work here and was not made current; 8.2.0" in done.stderr
    assert (device.link("current"), device.versions()) == ("8.2.0", [VERSION, "8.2.0"])

    done = run("--prefix", device.folder, "--rollback")
    assert done.returncode == 0, done.stderr
    assert (device.link("current"), device.link("previous")) == (VERSION, "8.2.0")


def test_a_wheel_that_the_lock_does_not_know_is_refused(device: Prefix, tmp_path: Path) -> None:
    tampered = tmp_path / "wheelhouse"
    tampered.mkdir()
    for wheel in device.wheelhouse.iterdir():
        if not wheel.name.startswith("paho_mqtt"):
            (tampered / wheel.name).symlink_to(wheel)
    (paho,) = device.wheelhouse.glob("paho_mqtt-*")
    shutil.copy(paho, tampered / paho.name)
    with (tampered / paho.name).open("ab") as file:
        file.write(b"\0")
    lock = ROOT / "deploy" / "constraints" / f"device-py{sys.version_info[0]}{sys.version_info[1]}.txt"
    if not lock.is_file():
        pytest.skip("there is no lock file for this Python")
    done = run(
        *("--prefix", tmp_path / "device", "--python", sys.executable, "--wheelhouse", tampered, "--camera", CAMERA),
    )
    assert done.returncode == 1
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "device/opt/bowerbird/current").exists()


def test_what_is_missing_is_said_before_anything_is_made(tmp_path: Path) -> None:
    for arguments, said in (
        ((), "name bowerbird's wheel with --wheel"),
        (("--wheel",), "--wheel needs a value"),
        (("--wheel", "none.whl"), "there is no none.whl"),
        (("--wheelhouse", tmp_path), "there is no bowerbird-*.whl"),
        (("--frobnicate",), "unknown option --frobnicate"),
        (("--rollback",), "there is no version before the current one"),
    ):
        done = run("--prefix", tmp_path / "device", *arguments)
        assert (done.returncode, said in done.stderr) == (1, True), (arguments, done.stderr)


def test_an_older_version_that_cannot_read_the_state_is_not_gone_back_to(device: Prefix) -> None:
    before = {name: device.link(name) for name in ("current", "previous")}
    marker = device.folder / "var/lib/bowerbird-agent/format.json"
    kept = marker.read_bytes() if marker.exists() else None
    marker.write_text('{"format": 99, "version": "9.9.9"}')
    done = run("--prefix", device.folder, "--rollback")
    assert done.returncode == 1
    assert "Install 9.9.9 or a later one" in done.stderr
    assert "nothing was changed" in done.stderr
    assert {name: device.link(name) for name in before} == before
    marker.unlink()
    if kept is not None:
        marker.write_bytes(kept)


def test_a_version_that_came_over_the_air_is_put_aside_by_a_rollback(device: Prefix) -> None:
    home = device.folder / "var/lib/bowerbird-agent/agent"
    digest = "a" * 64
    (home / "versions" / digest).mkdir(parents=True)
    (home / "current").symlink_to(f"versions/{digest}")
    before = device.link("current")
    done = run("--prefix", device.folder, "--rollback")
    assert done.returncode == 0, done.stderr
    assert f"is put aside; {before}" in done.stdout
    assert not (home / "current").is_symlink()
    assert (home / "failed").read_text() == f"{digest} put_aside\n"
    assert device.link("current") == before
    shutil.rmtree(home)


def test_removal_keeps_configuration_and_state_unless_told(device: Prefix) -> None:
    kept = [device.folder / "etc/bowerbird/agent.toml", device.folder / "var/lib/bowerbird-agent"]
    assert run("--prefix", device.folder, "--uninstall").returncode == 0
    assert not device.opt.exists()
    assert not list(device.folder.rglob("*.service"))
    assert all(path.exists() for path in kept)
    assert run("--prefix", device.folder, "--uninstall", "--purge").returncode == 0
    assert not any(path.exists() for path in kept)
