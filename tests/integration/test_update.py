"""A whole update with real TUF metadata and real ONNX files: what is taken, what is refused, what is rolled back."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bowerbird_agent.updates.model_store import ModelStore
from bowerbird_agent.updates.runner import RunnerSettings
from bowerbird_agent.updates.selftest import verdict_of
from bowerbird_agent.updates.updater import TrialLimits
from bowerbird_models.errors import ModelOutputError
from bowerbird_models.manifest import ModelManifest, PackageFile, Probation, canonical_json
from bowerbird_models.package import PackageOnDisk, build_package
from bowerbird_testing.tiny_yolo import write_tiny_yolo
from bowerbird_testing.update_device import SETTINGS, UpdateDevice
from bowerbird_testing.update_server import DAY_S, LinkFaults, UpdateServer
from bowerbird_wire.messages import Job, Report

Make = Callable[..., PackageOnDisk]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Packages of tiny models; another salt, another digest."""

    def build(salt: str, **model: Any) -> PackageOnDisk:
        onnx = write_tiny_yolo(tmp_path / f"{salt}.onnx", salt=salt, **model)
        return build_package(tmp_path / f"package-{salt}", onnx, created_at="2026-01-01T00:00:00.000Z")

    return build


@pytest.fixture
def server() -> UpdateServer:
    return UpdateServer()


def device_for(server: UpdateServer, tmp_path: Path, **arguments: Any) -> UpdateDevice:
    device = UpdateDevice(tmp_path / "state", server.root, server.send, **arguments)
    server.connect(device.runner.block)
    return device


def update(server: UpdateServer, tmp_path: Path, job: Job, **arguments: Any) -> tuple[Report, UpdateDevice]:
    """One boot in which one job comes to its end."""
    server.reports.clear()
    with device_for(server, tmp_path, **arguments) as device:
        device.runner.job(job)
        report = server.wait_for("committed", "rolled_back", "refused", job_id=job.job_id)
    return report, device


def swapped_file(package: PackageOnDisk, role: str, content: bytes, name: str | None = None) -> PackageOnDisk:
    """The package with one file replaced and its manifest made to match, as someone with the models key could."""
    files = dict(package.manifest.files)
    file = files[role]
    (package.dir / file.name).write_bytes(content)
    files[role] = PackageFile(name or file.name, hashlib.sha256(content).hexdigest(), len(content))
    manifest = replace(package.manifest, files=files)
    (package.dir / "manifest.json").write_bytes(manifest.to_bytes())
    return PackageOnDisk(package.dir, manifest, hashlib.sha256(manifest.to_bytes()).hexdigest())


# -- taken ------------------------------------------------------------------------------------------------------------------


def test_a_model_is_fetched_tested_tried_and_committed_without_a_restart(
    server: UpdateServer, make: Make, tmp_path: Path
) -> None:
    first, second = make("first"), make("second")
    release = server.publish(second)
    report, device = update(server, tmp_path, server.job(second, release), factory=first.dir)
    assert (report.state, report.code) == ("committed", "")
    assert report.running_digest == second.digest == device.active_digest
    assert report.running_file_digest == second.file_digest
    assert device.loaded == [first.digest, second.digest]
    assert [r.state for r in server.reports] == [
        "accepted", "fetching", "verifying", "selftest", "trial", "trial", "committed",
    ]  # fmt: skip
    assert device.store.digest("previous") == first.digest


def test_a_device_without_any_model_gets_its_first(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    model = make("only")
    report, device = update(server, tmp_path, server.job(model, server.publish(model)))
    assert report.state == "committed"
    assert device.loaded == [model.digest]


def test_a_bare_onnx_file_is_a_factory_model(server: UpdateServer, tmp_path: Path) -> None:
    onnx = write_tiny_yolo(tmp_path / "factory.onnx")
    with device_for(server, tmp_path, factory=onnx) as device:
        assert device.runner.running is not None
        assert device.runner.running.file_digest == hashlib.sha256(onnx.read_bytes()).hexdigest()


def test_the_same_job_delivered_three_times_is_done_once(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    model = make("model")
    job = server.job(model, server.publish(model))
    with device_for(server, tmp_path) as device:
        for _ in range(3):
            device.runner.job(job)
        server.wait_for("committed")
        server.reports.clear()
        device.runner.job(job)
        assert server.wait_for("committed").running_digest == model.digest
    assert device.loaded == [model.digest]


def test_a_link_that_loses_doubles_and_reorders_blocks_only_takes_longer(make: Make, tmp_path: Path) -> None:
    server = UpdateServer(faults=LinkFaults(loss=0.2, duplicate=0.3, reorder=True, seed=7))
    model = make("model", image_size=768)
    assert model.onnx.stat().st_size > 4 * 32768
    report, _ = update(server, tmp_path, server.job(model, server.publish(model)))
    assert report.state == "committed"


def test_one_corrupt_block_is_found_and_fetched_again(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    server.faults = LinkFaults(corrupt_paths=("model.onnx",), corruptions_left=1)
    model = make("model")
    report, _ = update(server, tmp_path, server.job(model, server.publish(model)))
    assert report.state == "committed"


def test_old_content_comes_back_under_a_new_release(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    first, second = make("first"), make("second")
    update(server, tmp_path, server.job(first, server.publish(first), job_id="a"))
    update(server, tmp_path, server.job(second, server.publish(second), job_id="b"))
    report, device = update(server, tmp_path, server.job(first, server.publish(first), job_id="c"))
    assert (report.state, device.active_digest) == ("committed", first.digest)


def test_a_job_for_the_running_model_commits_without_a_trial(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    model = make("model")
    update(server, tmp_path, server.job(model, server.publish(model), job_id="a"))
    report, device = update(server, tmp_path, server.job(model, server.publish(model), job_id="b"))
    assert report.state == "committed"
    assert device.loaded == [model.digest]
    assert "trial" not in [r.state for r in server.reports]


def test_a_transfer_goes_on_after_a_restart_where_it_stopped(make: Make, tmp_path: Path) -> None:
    server = UpdateServer()
    model = make("model", image_size=768)
    job = server.job(model, server.publish(model))
    blocks = -(-model.onnx.stat().st_size // 32768)
    server.faults = LinkFaults(loss=0.0)
    seen = 0

    def half(path: str) -> bool:
        nonlocal seen
        seen += path.endswith(".onnx")
        return path.endswith(".onnx") and seen > 2

    server.faults.black_hole = half
    with device_for(server, tmp_path) as device:
        device.runner.job(job)
        server.wait_for("fetching")
        device._done.wait(1.0)
    server.faults.black_hole = lambda path: False
    server.requests.clear()
    with device_for(server, tmp_path):
        assert server.wait_for("committed").running_digest == model.digest
    asked = sum(request.blocks for request in server.requests if request.path.endswith(".onnx"))
    assert 0 < asked < blocks


# -- refused ----------------------------------------------------------------------------------------------------------------


def refuse(server: UpdateServer, tmp_path: Path, job: Job, code: str, **arguments: Any) -> None:
    report, device = update(server, tmp_path, job, **arguments)
    assert (report.state, report.code) == ("refused", code), report.detail
    assert report.running_digest == device.active_digest != job.model_digest


def test_a_tampered_target_is_refused(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    server.faults = LinkFaults(corrupt_paths=("model.onnx",))
    model = make("model")
    refuse(server, tmp_path, server.job(model, server.publish(model)), "wrong_digest")


def test_a_digest_that_no_metadata_lists_is_refused(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    refuse(server, tmp_path, server.job(make("model"), 1), "unknown_model")


def test_expired_metadata_is_refused(make: Make, tmp_path: Path) -> None:
    server = UpdateServer()
    model = make("model")
    release = server.publish(model)
    job = server.job(model, release)
    server.now_s -= 2 * DAY_S
    server.refresh()
    refuse(server, tmp_path, job, "metadata_expired")


def test_metadata_signed_by_foreign_keys_is_refused(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    stranger, model = UpdateServer(), make("model")
    job = stranger.job(model, stranger.publish(model))
    stranger.root = server.root
    refuse(stranger, tmp_path, job, "metadata")


def test_a_job_signed_by_another_key_is_refused(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    model = make("model")
    refuse(server, tmp_path, server.job(model, server.publish(model), key="timestamp"), "job_signature")


def test_a_job_whose_signed_content_was_changed_is_refused(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    first, second = make("first"), make("second")
    job = server.job(first, server.publish(first))
    release = server.publish(second)
    refuse(server, tmp_path, replace(job, model_digest=second.digest, release=release), "job_signature")


def test_a_job_for_another_device_is_refused(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    model = make("model")
    refuse(server, tmp_path, server.job(model, server.publish(model), device="cam-02"), "job_device")


def test_a_rollback_to_an_older_release_is_refused_also_with_tufs_folder_wiped(
    server: UpdateServer, make: Make, tmp_path: Path
) -> None:
    first, second = make("first"), make("second")
    old_job = server.job(first, server.publish(first), job_id="old")
    old_files = dict(server.files)
    update(server, tmp_path, server.job(second, server.publish(second), job_id="new"))
    refuse(server, tmp_path, old_job, "release_floor")
    # The attacker wipes TUF's memory and replays everything that was once valid, with a newer release in an unsigned job.
    shutil.rmtree(tmp_path / "state" / "update" / "tuf")
    server.files = old_files
    refuse(server, tmp_path, old_job, "release_floor")
    refuse(server, tmp_path, replace(old_job, release=3, job_id="forged"), "job_signature")


def test_old_metadata_is_refused_while_the_clock_is_set_back(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    first, second = make("first"), make("second")
    update(server, tmp_path, server.job(first, server.publish(first), job_id="a"))
    job = server.job(second, server.publish(second), job_id="b")
    refuse(server, tmp_path, job, "clock", wall_ms=lambda: int((server.now_s - DAY_S) * 1000))


def test_the_release_floor_survives_a_damaged_database(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    first, second = make("first"), make("second")
    old_job = server.job(first, server.publish(first), job_id="old")
    update(server, tmp_path, server.job(second, server.publish(second), job_id="new"))
    (tmp_path / "state" / "update" / "update.db").write_bytes(b"not a database at all, but long enough to be read" * 50)
    refuse(server, tmp_path, old_job, "release_floor")


@pytest.mark.parametrize("name", ["../../evil.onnx", "/etc/evil.onnx", "model.pt", "model.engine", ".onnx", "a/b.onnx"])
def test_a_signed_manifest_that_names_a_forbidden_file_is_refused(
    server: UpdateServer, make: Make, tmp_path: Path, name: str
) -> None:
    model = make("model")
    manifest = replace(model.manifest, files={**model.manifest.files, "extra": PackageFile(name, "0" * 64, 10)})
    content = manifest.to_bytes()
    (model.dir / "manifest.json").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    bad = PackageOnDisk(model.dir, manifest, digest)
    server.packages.append((bad, 1))
    server.files[f"targets/models/{digest}/{digest}.manifest.json"] = content
    server.refresh()
    refuse(server, tmp_path, server.job(bad, 1), "bad_name")
    assert not list(tmp_path.rglob("*evil*"))


def pickled_npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, image_0=np.array([{"boom": 1}], dtype=object), allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize(
    ("role", "content", "code"),
    [
        ("golden", pickled_npz(), "bad_file"),
        ("golden", b"\x80\x04\x95pickle", "bad_file"),
        ("onnx-fp32", b"\x80\x04\x95pickle under another name", "bad_file"),
        ("classes", canonical_json(["cat"]), "bad_file"),
    ],
    ids=["npz-with-pickle", "pickle-as-npz", "pickle-as-onnx", "other-classes"],
)
def test_a_signed_package_with_forbidden_content_is_refused(
    server: UpdateServer, make: Make, tmp_path: Path, role: str, content: bytes, code: str
) -> None:
    bad = swapped_file(make("model"), role, content)
    refuse(server, tmp_path, server.job(bad, server.publish(bad)), code)


# -- failed self-tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"emit_nan": True}, "bad_model"),
        ({"wrong_shape": True}, "bad_model"),
        ({"boxes": ()}, "golden"),
        ({"class_names": ("cat", "dog")}, "wrong_classes"),
        ({"image_size": 96}, "wrong_shape"),
        ({"external_data": True}, "bad_file"),
    ],
    ids=["nan", "wrong-output-shape", "sees-nothing", "other-classes", "other-input-size", "external-data"],
)
def test_a_signed_model_that_is_not_what_its_golden_file_says_is_refused(
    server: UpdateServer, make: Make, tmp_path: Path, fault: dict[str, Any], code: str
) -> None:
    good, factory = make("good"), make("factory")
    faulty = write_tiny_yolo(tmp_path / "faulty.onnx", **fault)
    bad = swapped_file(good, "onnx-fp32", faulty.read_bytes())
    refuse(server, tmp_path, server.job(bad, server.publish(bad)), code, factory=factory.dir)


def test_a_model_with_appended_classes_follows_and_one_that_lost_a_class_is_refused(
    server: UpdateServer, make: Make, tmp_path: Path
) -> None:
    def listed(*names: str) -> PackageOnDisk:
        onnx = write_tiny_yolo(tmp_path / f"{'-'.join(names)}.onnx", class_names=names)
        return build_package(tmp_path / "-".join(names), onnx, created_at="2026-01-01T00:00:00.000Z", class_list=len(names))

    factory, grown, shrunk = listed("bird", "fox"), listed("bird", "fox", "elk"), listed("bird", "elk", "owl")
    report, _ = update(server, tmp_path / "grown", server.job(grown, server.publish(grown)), factory=factory.dir)
    assert report.state == "committed"
    report, _ = update(server, tmp_path / "shrunk", server.job(shrunk, server.publish(shrunk)), factory=factory.dir)
    assert (report.state, report.code) == ("refused", "wrong_classes")
    assert "the model lost fox" in report.detail


def test_a_model_that_hangs_in_the_self_test_is_killed_and_refused(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    slow = write_tiny_yolo(tmp_path / "slow.onnx", sleep_loops=10_000_000)
    bad = swapped_file(make("good"), "onnx-fp32", slow.read_bytes())
    settings = replace(SETTINGS, selftest_s=3.0)
    refuse(server, tmp_path, server.job(bad, server.publish(bad)), "selftest_timeout", settings=settings)


def test_a_model_that_uses_up_its_processor_time_hangs_too_whatever_the_clock_says(make: Make, tmp_path: Path) -> None:
    """Beside a busy machine the clock ends first, on two quiet cores the processor time."""
    slow = write_tiny_yolo(tmp_path / "slow.onnx", sleep_loops=10_000_000)
    bad = swapped_file(make("good"), "onnx-fp32", slow.read_bytes())
    command = [sys.executable, "-m", "bowerbird_agent.updates.selftest", str(bad.dir), "--digest", bad.digest, "--cpu-s", "1"]
    child = subprocess.run(command, capture_output=True, timeout=100, check=False)
    assert verdict_of(child.stdout, child.returncode).code == "selftest_timeout"


def test_a_self_test_that_dies_is_a_refusal_and_the_agent_lives_on(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    model = make("model")
    settings = replace(SETTINGS, selftest_memory_bytes=64 * 1024 * 1024)  # not even the runtime fits
    report, _ = update(server, tmp_path, server.job(model, server.publish(model)), settings=settings)
    assert report.state == "refused"
    assert report.code.startswith("selftest")


def test_a_model_that_failed_here_is_not_tried_again(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    bad = swapped_file(make("good"), "onnx-fp32", write_tiny_yolo(tmp_path / "nan.onnx", emit_nan=True).read_bytes())
    refuse(server, tmp_path, server.job(bad, server.publish(bad), job_id="a"), "bad_model")
    server.requests.clear()
    refuse(server, tmp_path, server.job(bad, server.publish(bad), job_id="b"), "known_bad")
    assert server.requests == []


# -- trials -----------------------------------------------------------------------------------------------------------------


def roll_back(server: UpdateServer, tmp_path: Path, make: Make, code: str, **arguments: Any) -> None:
    first, second = make("first"), make("second")
    report, device = update(server, tmp_path, server.job(second, server.publish(second)), factory=first.dir, **arguments)
    assert (report.state, report.code) == ("rolled_back", code), report.detail
    assert report.running_digest == first.digest == device.active_digest
    assert device.loaded == [first.digest, second.digest, first.digest]


def test_a_model_that_fails_on_frames_in_its_trial_is_rolled_back(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    first = make("first")

    def fail(digest: str) -> None:
        if digest != first.digest:
            raise ModelOutputError("made to fail")

    roll_back(server, tmp_path, make, "bad_frames", frame_fault=fail)


def test_a_trial_without_frames_is_rolled_back_at_its_deadline(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    settings = replace(SETTINGS, probation=Probation(good_frames=10**6, deadline_s=0.3, server_deadline_s=20.0))
    roll_back(server, tmp_path, make, "no_frames", settings=settings)


def test_a_much_slower_model_is_rolled_back(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    settings = replace(SETTINGS, limits=TrialLimits(slower_than=0.0, slack_ms=0.0))
    roll_back(server, tmp_path, make, "too_slow", settings=settings)


def test_a_model_under_which_the_server_cannot_be_reached_is_rolled_back_but_may_come_again(
    server: UpdateServer, make: Make, tmp_path: Path
) -> None:
    server.faults.black_hole = lambda path: any(r.state == "trial" for r in server.reports)
    settings: RunnerSettings = replace(
        SETTINGS, patience_s=0.2, probation=Probation(good_frames=1, deadline_s=20.0, server_deadline_s=0.5)
    )
    roll_back(server, tmp_path, make, "unreachable", settings=settings)
    server.faults.black_hole = lambda path: False
    second = next(package for package, _ in server.packages)
    report, _ = update(server, tmp_path, server.job(second, server.publish(second), job_id="again"))
    assert report.state == "committed"


# -- cancel and supersede ---------------------------------------------------------------------------------------------------


def test_a_signed_cancel_ends_a_job_and_an_unsigned_one_does_not(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    model = make("model")
    job = server.job(model, server.publish(model))
    server.faults.black_hole = lambda path: path.endswith(".onnx")
    with device_for(server, tmp_path) as device:
        device.runner.job(job)
        server.wait_for("fetching")
        device.runner.job(replace(job, action="cancel"))
        device._done.wait(0.6)
        assert device.runner.state.value == "fetching"
        device.runner.job(server.sign(Job(job.job_id, job.model_digest, job.release, action="cancel")))
        assert server.wait_for("refused").code == "cancelled"


def test_a_newer_job_takes_the_place_of_one_that_is_stuck(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    first, second = make("first"), make("second")
    job = server.job(first, server.publish(first), job_id="a")
    server.faults.black_hole = lambda path: first.digest in path and path.endswith(".onnx")
    with device_for(server, tmp_path) as device:
        device.runner.job(job)
        server.wait_for("fetching")
        device.runner.job(server.job(second, server.publish(second), job_id="b"))
        assert server.wait_for("refused").code == "superseded"
        assert server.wait_for("committed", job_id="b").running_digest == second.digest


def test_while_the_link_is_down_nothing_is_asked_and_nothing_is_lost(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    model = make("model")
    with device_for(server, tmp_path) as device:
        device.runner.link_down()
        device.runner.job(server.job(model, server.publish(model)))
        server.wait_for("accepted")
        device._done.wait(0.5)
        assert server.requests == []
        device.runner.link_up()
        server.wait_for("committed")


# -- the disk ---------------------------------------------------------------------------------------------------------------


def test_a_damaged_active_model_gives_way_to_the_previous_at_boot(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    first, second = make("first"), make("second")
    update(server, tmp_path, server.job(second, server.publish(second)), factory=first.dir)
    onnx = next((tmp_path / "state" / "models" / "packages" / second.digest).glob("*.onnx"))
    content = bytearray(onnx.read_bytes())
    content[100] ^= 1
    onnx.write_bytes(bytes(content))
    with device_for(server, tmp_path) as device:
        assert device.loaded == [first.digest]
        assert device.active_digest == first.digest


def test_only_the_models_in_slots_are_kept(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    models = [make(f"model-{n}") for n in range(3)]
    for n, model in enumerate(models):
        update(server, tmp_path, server.job(model, server.publish(model), job_id=f"job-{n}"))
    store = ModelStore(tmp_path / "state" / "models")
    assert {folder.name for folder in store.packages.iterdir()} == {models[1].digest, models[2].digest}
    assert json.loads((store.root / "slots.json").read_text())["active"] == models[2].digest
    assert not list((tmp_path / "state" / "update").glob("incoming/*"))


def test_a_manifest_reads_back_as_it_was_written(make: Make) -> None:
    package = make("model")
    content = (package.dir / "manifest.json").read_bytes()
    assert ModelManifest.from_bytes(content).to_bytes() == content
