"""From nothing to an enrolled agent whose first frame is at the server, as somebody would type it: three commands."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bowerbird_server.catalogue import Catalogue, fleet, frames
from bowerbird_testing.agent_process import UNSURE_BOXES
from bowerbird_testing.broker import mosquitto_path
from bowerbird_testing.tiny_yolo import write_tiny_yolo

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(mosquitto_path() is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]
BIN = Path(sys.executable).parent
WITHIN_S = 60.0  # a deadline for the test, far beyond what it takes; benchmarks/enrolment.py measures


@contextmanager
def running(line: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command that goes on until the test ends."""
    log = (folder / f"{line.split(maxsplit=1)[0]}.log").open("wb")
    process = subprocess.Popen(
        [BIN / line.split(maxsplit=1)[0], *line.split()[1:]], cwd=folder, stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


def type_in(line: str, folder: Path) -> str:
    done = subprocess.run(
        [BIN / line.split(maxsplit=1)[0], *line.split()[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def until(condition, folder: Path) -> None:  # type: ignore[no-untyped-def]
    deadline_s = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline_s, "\n".join(path.read_text()[-3000:] for path in folder.rglob("*.log"))
        time.sleep(0.1)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """A folder in which a server runs, with a model and nothing else."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bowerbird.toml").write_text('[signing]\nmode = "automatic"\n[models]\nvariants = []\n')
    write_tiny_yolo(tmp_path / "best.onnx", boxes=UNSURE_BOXES)
    with running("bowerbird serve --data data", tmp_path):
        until((tmp_path / "data" / "serve.json").exists, tmp_path)
        until(lambda: '"claims"' in (tmp_path / "data" / "serve.json").read_text(), tmp_path)
        type_in("bowerbird models import best.onnx --promote --data data", tmp_path)
        type_in("bowerbird rollout start --data data", tmp_path)  # before there is a device: who comes later gets it
        yield tmp_path


def test_three_commands_lead_from_nothing_to_the_first_frame(served: Path) -> None:
    camera = "gate=synthetic:?seed=1&fps=20"
    type_in(f"bowerbird devices invite SN-1 --camera {camera} --data data", served)
    type_in("bowerbird-agent enrol SN-1.bundle.json --config board/agent.toml", prepared(served))
    with open(served / "board" / "agent.toml", "a") as config:  # noqa: PTH123 - so that a window closes within seconds
        config.write(
            '\n[model]\nruntime = "onnxruntime-cpu"\n'
            "[selection]\nwindow_frames = 60\nframes_per_window = 5\nmin_gap_s = 0.1\n[health]\ninterval_s = 0.5\n"
        )
    with running("bowerbird-agent run --config board/agent.toml", served), Catalogue(served / "data" / "catalogue.db") as cat:
        until(lambda: sum(frames.count_by_state(cat).values()) > 0, served)
        row = next(row for row in fleet.list_devices(cat) if row["label"] == "SN-1")
    assert (row["id"][:4], row["state"]) == ("dev-", "active")


def prepared(folder: Path) -> Path:
    (folder / "board").mkdir()
    return folder


def test_a_copied_identity_on_a_second_machine_is_noticed_and_both_are_shut_out(served: Path) -> None:
    type_in("bowerbird devices add cam-01 --camera synthetic:?seed=1 --data data", served)
    shutil.copytree(served / "data" / "devices" / "cam-01", served / "board")
    type_in("bowerbird-agent enrol board/bundle.json --config board/agent.toml", served)
    shutil.copytree(served / "board", served / "twin")
    with running("bowerbird-agent run --config board/agent.toml", served), Catalogue(served / "data" / "catalogue.db") as cat:
        until(lambda: fleet.get(cat, "cam-01")["online"] == 1, served)
        os.rename(served / "bowerbird-agent.log", served / "first.log")  # noqa: PTH104
        with running("bowerbird-agent run --config twin/agent.toml", served):
            until(lambda: fleet.get(cat, "cam-01")["state"] == "suspended", served)
        assert "two agents" in fleet.get(cat, "cam-01")["state_why"]
    assert "two agents" in type_in("bowerbird devices alarms --data data", served)


def test_a_site_of_passwords_is_upgraded_device_by_device_and_each_keeps_its_id(served: Path) -> None:
    with Catalogue(served / "data" / "catalogue.db") as cat:
        fleet.add_device(cat, "cam-07", "site", "before certificates")
    old = prepared(served) / "board"
    port = (served / "data" / "broker" / "broker.json").read_text().split('"port": ')[1].split(",")[0]
    (old / "password").write_text("secret\n")
    (old / "password").chmod(0o600)
    (old / "agent.toml").write_text(
        f'[device]\nid = "cam-07"\nsite = "site"\nstate_dir = "state"\n[broker]\nhost = "127.0.0.1"\nport = {port}\n'
        'username = "cam-07"\npassword_file = "password"\n[update]\ntrusted_root = "root.json"\n'
        '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1"\n'
    )
    kept = (old / "agent.toml").read_text()
    type_in("bowerbird devices add cam-07 --again --data data", served)
    type_in("bowerbird-agent enrol data/devices/cam-07/bundle.json --config board/agent.toml", served)
    assert (old / "agent.toml").read_text() == kept
    with running("bowerbird-agent run --config board/agent.toml", served), Catalogue(served / "data" / "catalogue.db") as cat:
        until(lambda: fleet.get(cat, "cam-07")["online"] == 1, served)
