"""The update repository on the disk: idempotent publishing, crashes between steps, approval, renewal, keys, and what it serves."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from bowerbird_models.durable import write_durably
from bowerbird_models.package import PackageOnDisk, build_package
from bowerbird_models.signing import SigningError, sign_file
from bowerbird_server.errors import BadInput, Conflict, EnvironmentFault, NotFound
from bowerbird_server.releases import repository as module
from bowerbird_server.releases import repository_store
from bowerbird_server.releases.repository import AwaitingSignature, Lifetimes, Mode, Repository, raise_later
from bowerbird_server.releases.repository_files import answer, file_of
from bowerbird_testing.tiny_yolo import write_tiny_yolo
from bowerbird_testing.update_device import UpdateDevice
from bowerbird_wire.messages import BlockRequest, Job, Report

DAY_S = 86_400.0
Make = Callable[[str], PackageOnDisk]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def build(salt: str) -> PackageOnDisk:
        onnx = write_tiny_yolo(tmp_path / f"{salt}.onnx", salt=salt)
        return build_package(tmp_path / f"package-{salt}", onnx, created_at="2026-01-01T00:00:00.000Z")

    return build


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository", tmp_path / "keys")
    made.create()
    return made


class Device:
    """A device that is answered from the repository's folder."""

    def __init__(self, repository: Repository, state_dir: Path, root: bytes) -> None:
        self.repository = repository
        self.reports: list[Report] = []
        self.device = UpdateDevice(state_dir, root, self.send)

    def send(self, message: BlockRequest | Report) -> None:
        if isinstance(message, Report):
            self.reports.append(message)
            return
        for block in answer(self.repository.dir, message):
            self.device.runner.block(block)

    def update(self, job: Job) -> Report:
        with self.device:
            self.device.runner.job(job)
            deadline_s = time.monotonic() + 30
            while time.monotonic() < deadline_s:
                for report in list(self.reports):
                    if report.job_id == job.job_id and report.state in {"committed", "refused", "rolled_back"}:
                        return report
                time.sleep(0.01)
        raise AssertionError(f"no end among {self.reports}")


def job_for(repository: Repository, package: PackageOnDisk, job_id: str = "job-1") -> Job:
    release = repository.release_of(package.digest)
    assert release is not None
    return repository.sign_job(Job(job_id, package.digest, release), device="cam-01")


def test_publishing_the_same_digest_again_keeps_its_release(repository: Repository, make: Make) -> None:
    first, second = make("first"), make("second")
    assert [repository.publish(p) for p in (first, second, first, second)] == [1, 2, 1, 2]
    assert repository.publish(first, again=True) == 3
    assert repository.releases() == {first.digest: 3, second.digest: 2}


def test_creating_again_keeps_keys_and_root(repository: Repository) -> None:
    root = repository.trusted_root()
    repository.create()
    assert repository.trusted_root() == root


@pytest.mark.parametrize("writes", range(8))
def test_a_publish_cut_short_at_any_write_is_finished_by_doing_it_again(
    repository: Repository, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Four target files, models, snapshot, timestamp: until the last of these the old state is in force."""
    old, new = make("old"), make("new")
    repository.publish(old)
    left = writes

    def die_after(path: Path, content: bytes, mode: int = 0o644) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        write_durably(path, content, mode)

    monkeypatch.setattr(module, "write_durably", die_after)
    monkeypatch.setattr(repository_store, "write_durably", die_after)
    if writes < 7:
        with pytest.raises(KeyboardInterrupt):
            repository.publish(new)
        monkeypatch.undo()
        assert repository.releases() == {old.digest: 1}
        assert (
            Device(repository, tmp_path / "first", repository.trusted_root()).update(job_for(repository, old)).state
            == "committed"
        )
    monkeypatch.undo()
    assert repository.publish(new) == 2
    assert (
        Device(repository, tmp_path / "state", repository.trusted_root()).update(job_for(repository, new)).state == "committed"
    )


def test_in_approved_mode_nothing_is_published_before_the_offline_key_has_signed(tmp_path: Path, make: Make) -> None:
    repository = Repository(tmp_path / "repository", tmp_path / "keys")
    repository.create("approved")
    assert repository.mode == "approved"
    first, second = make("first"), make("second")
    for package in (first, second, first):
        with pytest.raises(AwaitingSignature, match="sign"):
            repository.publish(package)
    assert repository.releases() == {}
    assert repository.awaiting_signature() == {first.digest: 1, second.digest: 2}
    assert repository.sign(tmp_path / "keys" / "offline" / "models.pem") == {first.digest: 1, second.digest: 2}
    assert repository.awaiting_signature() == {}
    assert repository.publish(first) == 1
    report = Device(repository, tmp_path / "state", repository.trusted_root()).update(job_for(repository, second))
    assert report.state == "committed"
    with pytest.raises(NotFound):
        repository.finish()


def test_a_signature_may_be_made_elsewhere_and_only_the_models_key_counts(tmp_path: Path, make: Make) -> None:
    repository = Repository(tmp_path / "repository", tmp_path / "keys")
    repository.create("approved")
    model = make("model")
    with pytest.raises(AwaitingSignature):
        repository.publish(model)
    sign_file(repository.pending("models"), tmp_path / "keys" / "director.pem")
    with pytest.raises(Conflict, match="models key"):
        repository.finish()
    assert repository.releases() == {}
    sign_file(repository.pending("models"), tmp_path / "keys" / "offline" / "models.pem")
    assert repository.finish() == {model.digest: 1}


def test_keys_that_others_can_read_are_refused(repository: Repository, make: Make, tmp_path: Path) -> None:
    key = tmp_path / "keys" / "models.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o640)
    with pytest.raises(EnvironmentFault, match="chmod 600"):
        repository.publish(make("model"))
    with pytest.raises(SigningError, match="chmod 600"):
        sign_file(tmp_path / "any", key)


def test_refresh_renews_what_has_lived_half_its_life_and_devices_follow(tmp_path: Path, make: Make) -> None:
    now_s = [time.time()]
    repository = Repository(tmp_path / "repository", tmp_path / "keys", now=lambda: now_s[0])
    repository.create()
    model = make("model")
    repository.publish(model)
    assert not repository.refresh()
    now_s[0] += 0.6 * DAY_S
    assert repository.refresh()
    assert not repository.refresh()
    now_s[0] += 200 * DAY_S
    assert repository.refresh()
    assert len(list(repository.metadata_dir.glob("*.root.json"))) == 2
    then = datetime.fromtimestamp(now_s[0], tz=timezone.utc)
    for role in ("root", "targets", "models", "snapshot"):
        newest = max(repository.metadata_dir.glob(f"*.{role}.json"), key=lambda path: int(path.name.split(".")[0]))
        assert not Metadata.from_bytes(newest.read_bytes()).signed.is_expired(then), role
    assert not Metadata.from_bytes((repository.metadata_dir / "timestamp.json").read_bytes()).signed.is_expired(then)


def test_a_device_made_with_the_first_root_follows_its_renewal(tmp_path: Path, make: Make) -> None:
    now_s = [time.time()]
    lifetimes = Lifetimes(root_s=DAY_S)
    repository = Repository(tmp_path / "repository", tmp_path / "keys", now=lambda: now_s[0], lifetimes=lifetimes)
    repository.create()
    first_root, model = repository.trusted_root(), make("model")
    repository.publish(model)
    now_s[0] += 0.6 * DAY_S
    repository.refresh()
    assert repository.trusted_root() != first_root
    now_s[0] -= 0.6 * DAY_S
    assert Device(repository, tmp_path / "state", first_root).update(job_for(repository, model)).state == "committed"


@pytest.mark.parametrize("mode", ["automatic", "approved"])
def test_devices_go_on_with_a_repository_restored_from_a_backup(mode: Mode, tmp_path: Path, make: Make) -> None:
    """They have seen newer metadata and a higher release than the backup holds, and refuse what goes backwards."""
    repository = Repository(tmp_path / "repository", tmp_path / "keys")
    repository.create(mode)

    def publish(salt: str) -> PackageOnDisk:
        package = make(salt)
        try:
            repository.publish(package)
        except AwaitingSignature:
            repository.sign(tmp_path / "keys" / "offline" / "models.pem")
        return package

    first = publish("first")
    shutil.copytree(repository.dir, tmp_path / "backup")
    root = repository.trusted_root()
    seen = publish("seen")
    assert Device(repository, tmp_path / "device", root).update(job_for(repository, seen)).state == "committed"
    shutil.rmtree(repository.dir)
    shutil.copytree(tmp_path / "backup", repository.dir)
    raise_later(repository.dir, 1000)
    assert repository.refresh()
    if mode == "approved":
        repository.sign(tmp_path / "keys" / "offline" / "models.pem")
    newer = publish("newer")
    assert repository.releases()[newer.digest] > 1000
    assert repository.releases()[first.digest] == 1
    assert Device(repository, tmp_path / "device", root).update(job_for(repository, newer, "job-2")).state == "committed"
    assert not repository.refresh(), "versions are raised once"


def test_a_package_that_was_changed_is_not_published(repository: Repository, make: Make) -> None:
    package = make("model")
    package.onnx.write_bytes(package.onnx.read_bytes() + b"x")
    with pytest.raises(BadInput):
        repository.publish(package)
    assert repository.releases() == {}


@pytest.mark.parametrize(
    "path",
    [
        "../keys/models.pem",
        "metadata/../../keys/models.pem",
        "/etc/passwd",
        "metadata/timestamp.json\n",
        "pending/models.json",
        ".lock",
        "",
        "metadata/01.root.json",
    ],
)
def test_no_request_leaves_what_is_meant_to_be_read(repository: Repository, path: str) -> None:
    assert file_of(repository.dir, path) is None
    (block,) = answer(repository.dir, BlockRequest(path))
    assert block.error == "not_found"
    assert block.data == b""


def test_requests_are_answered_with_the_files_bytes_and_bounded(repository: Repository) -> None:
    content = (repository.metadata_dir / "timestamp.json").read_bytes()
    blocks = list(answer(repository.dir, BlockRequest("metadata/timestamp.json", 0, 10_000, 1024)))
    assert b"".join(block.data for block in blocks) == content
    assert all(block.total_bytes == len(content) for block in blocks)
    for request in (BlockRequest("metadata/timestamp.json", 0, 1, 10**9), BlockRequest("metadata/timestamp.json", -1)):
        (block,) = answer(repository.dir, request)
        assert block.error == "bad_request"


def test_without_a_repository_the_message_says_so(tmp_path: Path, make: Make) -> None:
    repository = Repository(tmp_path / "none", tmp_path / "keys")
    assert repository.release_of("a" * 64) is None
    with pytest.raises(NotFound, match="no update repository"):
        repository.trusted_root()
    with pytest.raises(NotFound):
        repository.publish(make("model"))
