"""Killed with SIGKILL at each step of enrolment and renewal: never without an identity that it had, never with half of one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bowerbird_agent.config import read_config
from bowerbird_agent.identity.enrolment import enrol, read_bundle
from bowerbird_agent.identity.identity import NoIdentity, load_identity
from bowerbird_agent.identity.renewal import renew
from bowerbird_server.catalogue import fleet
from bowerbird_server.catalogue import identity as rows
from bowerbird_testing import identity_child
from bowerbird_testing.claim_site import ClaimSite, claim_site
from bowerbird_testing.power_cut import DISKS, Control, after_the_cut, compiled_shim, shim_environment

FEWEST_STEPS = 12  # a run with fewer has not killed where it should


@pytest.fixture
def place(tmp_path: Path) -> Iterator[ClaimSite]:
    with claim_site(tmp_path / "server") as running:
        yield running


def run_child(*arguments: object) -> int:
    folder = Path(identity_child.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    argv = [sys.executable, "-m", "bowerbird_testing.identity_child", *map(str, arguments)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def test_killed_at_each_step_of_enrolment_it_is_enrolled_at_the_next_try_as_the_same_device(
    place: ClaimSite, tmp_path: Path
) -> None:
    for step in range(200):
        board = tmp_path / f"board-{step}"
        bundle = place.bundle(board, device=f"cam-{step}")
        ended = run_child("enrol", bundle, board / "agent.toml", step)
        folder = board / "state" / "identity"
        try:
            before = load_identity(folder).certificate_file.read_bytes()
        except NoIdentity:
            before = b""
        identity = (
            enrol(read_bundle(bundle), board / "agent.toml", version="0.1.0").identity if ended else load_identity(folder)
        )
        assert identity.device == f"cam-{step}"
        assert read_config(board / "agent.toml").device.id == identity.device
        assert load_identity(folder).generation == identity.generation
        if before:  # `load_identity` found it whole; trying again must not have changed what it was
            assert b"-----BEGIN CERTIFICATE-----" in before
            assert identity.certificate_file.read_bytes() == before
        issued = rows.certificates(place.site.catalogue, identity.device)
        assert len(issued) == (2 if identity.generation == 2 else 1)
        assert not [path for path in folder.iterdir() if path.suffix in (".part", ".new", ".key")]
        if ended == 0:
            break
    assert step >= FEWEST_STEPS
    assert set(fleet.active_devices(place.site.catalogue)) == {f"cam-{number}" for number in range(step + 1)}


def test_killed_at_each_step_of_a_renewal_it_has_an_identity_all_the_time_and_the_next_one_at_the_next_try(
    place: ClaimSite, tmp_path: Path
) -> None:
    for step in range(200):
        board = tmp_path / f"board-{step}"
        bundle = place.bundle(board, device=f"cam-{step}")
        enrol(read_bundle(bundle), board / "agent.toml", version="0.1.0")
        folder = board / "state" / "identity"
        ended = run_child("renew", folder, step)
        found = load_identity(folder)
        assert found.generation in (1, 2)
        found.tls_context()
        if ended == 0:
            assert found.generation == 2
            break
        renewed = renew(folder)
        assert load_identity(folder).generation == renewed.generation >= 2
        renewed.tls_context()
        assert not [path for path in folder.iterdir() if path.suffix in (".part", ".new", ".key")]
        assert fleet.get(place.site.catalogue, f"cam-{step}")["state"] == "active"
    assert step >= FEWEST_STEPS


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_while_renewing_leaves_the_identity_that_was_there(
    place: ClaimSite, tmp_path: Path, small_disk: Path
) -> None:
    bundle = read_bundle(place.bundle(tmp_path, device="cam-01"))
    enrol(bundle, small_disk / "agent.toml", version="0.1.0", in_memory_ok=True)
    folder = small_disk / "state" / "identity"
    content = (folder / "1.pem").read_bytes()
    free = shutil.disk_usage(small_disk).free
    failed = 0
    for left in range(0, 13):  # pages of 4 KiB that are left for the renewal
        filler = small_disk / "filler"
        filler.write_bytes(b"x" * (free - left * 4096))
        try:
            renewed = renew(folder)
        except OSError:
            failed += 1
        else:
            assert load_identity(folder).generation == renewed.generation
            break
        finally:
            filler.unlink()
        assert (folder / "1.pem").read_bytes() == content
        load_identity(folder).tls_context()
    assert failed > 0
    assert load_identity(folder).generation >= 2


def test_a_read_only_disk_while_renewing_leaves_the_identity_that_was_there(
    place: ClaimSite, tmp_path: Path, small_disk: Path
) -> None:
    """As after an error of the file system; with the disk writable again it renews."""
    enrol(read_bundle(place.bundle(tmp_path, device="cam-01")), small_disk / "agent.toml", version="0.1.0", in_memory_ok=True)
    folder = small_disk / "state" / "identity"
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        with pytest.raises(OSError, match="Read-only"):
            renew(folder)
        assert load_identity(folder).generation == 1
        load_identity(folder).tls_context()
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert renew(folder).generation >= 2


def test_a_power_cut_at_each_step_of_writing_the_identity_leaves_what_was_promised(place: ClaimSite, tmp_path: Path) -> None:
    """What was not fsynced is gone, names and contents: an identity that `enrol` or `renew` has returned is there all the same."""
    dice = random.Random(4)
    environment = shim_environment(
        compiled_shim(tmp_path),
        control=Control(tmp_path / "control").path,
        root=tmp_path / "none",
        shadow=tmp_path / "none-shadow",
    )
    argv = [sys.executable, "-m", "bowerbird_testing.identity_power_cut"]
    promised: set[int] = set()
    with subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for at in range(1, 200):
            board, notes = tmp_path / f"board-{at}", tmp_path / f"notes-{at}"
            task = {"bundle": place.bundle(tmp_path / f"bundle-{at}", device=f"cam-{at}"), "root": board / "root"}
            task |= {"shadow": board / "shadow", "notes": notes}
            for folder in (board / "root", board / "shadow"):
                folder.mkdir(parents=True)
            child.stdin.write(json.dumps({**{key: str(value) for key, value in task.items()}, "at": at}) + "\n")
            child.stdin.flush()
            ended = child.stdout.readline().strip()
            generations = [int(line) for line in notes.read_text().split()] if notes.exists() else []
            promised |= set(generations)
            for disk in DISKS:
                found = after_the_cut(board / "root", board / "shadow", board / disk, disk, dice) / "state" / "identity"
                if found.exists():
                    found.chmod(0o700)
                    for file in found.iterdir():
                        file.chmod(0o600)
                try:
                    generation = load_identity(found).generation
                except NoIdentity:
                    generation = 0
                assert generation >= max(generations, default=0), (at, disk)
            if ended == "through":
                break
            assert ended == "killed"
    assert at >= FEWEST_STEPS
    assert promised == {1, 2}
