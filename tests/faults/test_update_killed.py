"""kill -9 of the updater in every persisted state: after the next boot exactly one model is active and the job has one end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bowerbird_agent.updates.model_store import ModelStore
from bowerbird_models.package import PackageOnDisk, build_package
from bowerbird_server.releases.repository import Repository
from bowerbird_testing.tiny_yolo import write_tiny_yolo
from bowerbird_wire.codec import encode
from bowerbird_wire.messages import Job

TESTS = Path(__file__).parent.parent


@dataclass
class Bench:
    """A repository with one release, and a device that has a factory model."""

    folder: Path
    factory: PackageOnDisk
    model: PackageOnDisk
    options: dict[str, Any]

    def boot(self, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the device until it dies or its job has come to an end."""
        path = self.folder / "options.json"
        path.write_text(json.dumps({**self.options, **options}))
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "bowerbird_testing.update_child", str(path)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)

    @property
    def store(self) -> ModelStore:
        return ModelStore(self.folder / "state" / "models")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    def package(name: str) -> PackageOnDisk:
        onnx = write_tiny_yolo(tmp_path / f"{name}.onnx", salt=name, image_size=512)
        return build_package(tmp_path / name, onnx, created_at="2026-01-01T00:00:00.000Z")

    repository = Repository(tmp_path / "repository", tmp_path / "keys")
    repository.create()
    factory, model = package("factory"), package("model")
    job = repository.sign_job(Job("job-1", model.digest, repository.publish(model)), device="cam-01")
    root = tmp_path / "root.json"
    root.write_bytes(repository.trusted_root())
    options = {
        "state": str(tmp_path / "state"),
        "repository": str(tmp_path / "repository"),
        "root": str(root),
        "factory": str(factory.dir),
        "job": encode(job).hex(),
        "boot_id": "boot-1",
        "die_in": "",
        "die_in_swap": False,
        "die_at_boot": False,
        "die_after_blocks": 0,
    }
    return Bench(tmp_path, factory, model, options)


def ends_committed(bench: Bench, last: subprocess.CompletedProcess[str]) -> None:
    assert last.returncode == 0, last.stderr
    end = json.loads(last.stdout)
    assert (end["state"], end["running"]) == ("committed", bench.model.digest)
    assert bench.store.digest("active") == bench.model.digest
    assert bench.store.digest("candidate") == ""
    assert bench.store.is_intact(bench.model.digest)


KILLS: dict[str, dict[str, Any]] = {
    "Killed_in_accepted": {"die_in": "accepted"},
    "Killed_in_fetching": {"die_in": "fetching"},
    "Killed_in_fetching_between_two_blocks": {"die_after_blocks": 3},
    "Killed_in_verifying": {"die_in": "verifying"},
    "Killed_in_selftest": {"die_in": "selftest"},
    "Killed_in_trial_before_the_swap": {"die_in": "trial"},
    "Killed_in_trial_during_the_swap": {"die_in_swap": True},
    "Killed_in_committed": {"die_in": "committed"},
}


@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS.keys())
def test_a_device_killed_once_ends_committed(bench: Bench, kill: dict[str, Any]) -> None:
    assert bench.boot(**kill).returncode == -signal.SIGKILL
    ends_committed(bench, bench.boot())


def test_killed_in_every_state_one_after_the_other_it_still_ends_committed(bench: Bench) -> None:
    for state in ("accepted", "fetching", "verifying", "selftest", "trial", "committed"):
        assert bench.boot(die_in=state).returncode == -signal.SIGKILL, state
    ends_committed(bench, bench.boot())


def test_crash_loop_in_trial_rolls_back_to_the_model_before(bench: Bench) -> None:
    """The process dies in each start of one boot of the machine: the fourth start runs the old model."""
    assert bench.boot(die_in="trial").returncode == -signal.SIGKILL
    for _ in range(2):
        assert bench.boot(die_at_boot=True).returncode == -signal.SIGKILL
        assert bench.store.digest("active") == bench.model.digest
    last = bench.boot()
    end = json.loads(last.stdout)
    assert (end["state"], end["code"]) == ("rolled_back", "crash_loop")
    assert end["running"] == end["loaded"][0] == bench.factory.digest == bench.store.digest("active")
    assert not bench.store.folder(bench.model.digest).exists()


def test_power_cuts_in_trial_are_not_held_against_a_good_model(bench: Bench) -> None:
    """The same deaths, each in another boot of the machine."""
    assert bench.boot(die_in="trial").returncode == -signal.SIGKILL
    for number in range(2, 6):
        assert bench.boot(die_at_boot=True, boot_id=f"boot-{number}").returncode == -signal.SIGKILL
    ends_committed(bench, bench.boot(boot_id="boot-9"))


def test_killed_in_rolled_back_it_comes_up_with_the_model_before(bench: Bench) -> None:
    assert bench.boot(die_in="trial").returncode == -signal.SIGKILL
    for _ in range(3):
        assert bench.boot(die_at_boot=True).returncode == -signal.SIGKILL
    end = json.loads(bench.boot().stdout)
    assert (end["state"], end["running"]) == ("rolled_back", bench.factory.digest)
    assert bench.store.digest("active") == bench.factory.digest
