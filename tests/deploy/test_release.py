"""The files of a release: equal when built again, complete, and checked by whoever receives them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from bowerbird_models.agent_release import load_release, read_lock
from bowerbird_server.releases.agent_archive import unpack
from bowerbird_testing.device_release import ROOT

pytestmark = [pytest.mark.xdist_group("install"), pytest.mark.timeout(600)]


def run(*command: object, cwd: Path = ROOT, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*map(str, command)], cwd=cwd, input=stdin, capture_output=True, timeout=500, check=False)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen: apt-get install openssh-client")
    path = tmp_path_factory.mktemp("key") / "release"
    assert run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path).returncode == 0
    return path


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    """What `scripts/release --sign` makes of the last commit."""
    if run("git", "rev-parse", "--verify", "HEAD").returncode != 0:
        pytest.skip("this is no git repository with a commit")
    out = tmp_path_factory.mktemp("release") / "out"
    done = run("scripts/release", "--sign", key, out)
    if b"ERROR: No matching distribution" in done.stderr or b"ERROR: Could not find a version" in done.stderr:
        pytest.skip("the tools of the dependency group `release` cannot be had without a package index")
    assert done.returncode == 0, done.stderr.decode()
    return out


def test_a_release_is_whole_and_its_checksums_are_those_of_its_files(release: Path) -> None:
    kinds = sorted(re.sub(r"\d+\.\d+\.\d+", "V", path.name) for path in release.iterdir())
    assert kinds == [
        "SHA256SUMS",
        "SHA256SUMS.sig",
        "bowerbird-V-device-py310.cdx.json",
        "bowerbird-V-device-py311.cdx.json",
        "bowerbird-V-py3-none-any.whl",
        "bowerbird-V-server-py311.cdx.json",
        "bowerbird-V.tar.gz",
        "bowerbird-install-V.tar.gz",
    ]
    assert len((release / "SHA256SUMS").read_text().splitlines()) == 6
    assert run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=release).returncode == 0


def test_the_signature_holds_for_these_checksums_and_for_no_others(release: Path, key: Path, tmp_path: Path) -> None:
    signers = tmp_path / "allowed_signers"
    signers.write_text(f"release@example.org {key.with_suffix('.pub').read_text()}")
    command = ["ssh-keygen", "-Y", "verify", "-f", signers, "-I", "release@example.org", "-n", "bowerbird-release"]
    command += ["-s", release / "SHA256SUMS.sig"]
    sums = (release / "SHA256SUMS").read_bytes()
    assert run(*command, stdin=sums).returncode == 0
    assert run(*command, stdin=sums.replace(sums[:1], b"x", 1)).returncode != 0


def test_a_release_is_verified_by_one_command_which_notices_a_change_a_stranger_and_an_addition(
    release: Path, key: Path, tmp_path: Path
) -> None:
    signers = tmp_path / "allowed_signers"
    signers.write_text(f"release@example.org {key.with_suffix('.pub').read_text()}")
    assert run("scripts/verify-release", release, signers).returncode == 0
    other = tmp_path / "other"
    assert run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other).returncode == 0
    signers_of_others = tmp_path / "others"
    signers_of_others.write_text(f"release@example.org {other.with_suffix('.pub').read_text()}")
    assert b"is not signed by" in run("scripts/verify-release", release, signers_of_others).stderr
    changed = tmp_path / "changed"
    shutil.copytree(release, changed)
    (changed / "stowaway.whl").write_bytes(b"")
    assert b"stowaway.whl is not part of the release" in run("scripts/verify-release", changed, signers).stderr
    (changed / "stowaway.whl").unlink()
    (wheel,) = changed.glob("*.whl")
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    done = run("scripts/verify-release", changed, signers)
    assert (done.returncode, b"a file is not the one that was signed" in done.stderr) == (1, True)


def test_the_same_commit_gives_the_same_release_again_byte_for_byte(release: Path, tmp_path: Path) -> None:
    head = run("git", "rev-parse", "HEAD").stdout.decode().strip()
    done = run("scripts/release", "--commit", head, tmp_path / "again")
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "again" / "SHA256SUMS").read_bytes() == (release / "SHA256SUMS").read_bytes()


@pytest.mark.parametrize(
    ("platform", "machine", "python", "is_system"),
    [("x86", "x86_64", "3.11", False), ("rpi", "aarch64", "3.11", False), ("jp6", "aarch64", "3.10", True)],
)
def test_the_archive_for_a_platform_holds_its_wheels_and_is_the_same_when_made_again(
    release: Path, tmp_path: Path, platform: str, machine: str, python: str, is_system: bool
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        done = run("scripts/agent-release", platform, release, tmp_path / name)
        if b"No matching distribution" in done.stderr or b"Could not find a version" in done.stderr:
            pytest.skip(f"the package index has no wheels for {platform}: {done.stderr.decode()[-200:]}")
        assert done.returncode == 0, done.stderr.decode()
    (one,), (two,) = (tmp_path / "one").iterdir(), (tmp_path / "two").iterdir()
    assert one.read_bytes() == two.read_bytes()
    manifest = unpack(one, tmp_path / "out").manifest
    assert (manifest.machine, manifest.python, manifest.system_site_packages) == (machine, python, is_system)
    locked = {each.project: each for each in read_lock((tmp_path / "out" / "requirements.txt").read_bytes())}
    assert {"bowerbird", "numpy", "onnxruntime", "tuf", "cryptography"} <= locked.keys()
    assert ("opencv-python-headless" in locked) is not is_system
    assert all(len(each.sha256) == 1 for each in locked.values())
    assert load_release(tmp_path / "out").digest


def test_no_known_vulnerability_in_what_devices_and_server_install() -> None:
    done = run("scripts/audit")
    if done.returncode == 3:
        pytest.skip(done.stderr.decode().strip()[-300:])
    assert done.returncode == 0, done.stdout.decode()


def test_the_install_archive_holds_a_script_that_runs_and_what_it_needs(release: Path, tmp_path: Path) -> None:
    (archive,) = release.glob("bowerbird-install-*.tar.gz")
    subprocess.run(["tar", "-xzf", archive, "-C", tmp_path], check=True)
    (folder,) = tmp_path.iterdir()
    assert run(folder / "install.sh", "--help").stdout.startswith(b"usage: install.sh")
    assert (folder / "systemd/bowerbird-agent.service").is_file()
    assert (folder / "launch.sh").stat().st_mode & 0o111
    assert (folder / "constraints/device-py310.txt").is_file()


def test_the_bill_of_materials_names_every_locked_package(release: Path) -> None:
    for bill in release.glob("*.cdx.json"):
        lock = ROOT / "deploy" / "constraints" / f"{bill.name.split('-', 2)[2].removesuffix('.cdx.json')}.txt"
        locked = set(re.findall(r"^(\S+)==(\S+)", lock.read_text(), re.MULTILINE))
        named = {(part["name"], part["version"]) for part in json.loads(bill.read_text())["components"]}
        assert named == locked


def test_a_second_release_into_the_same_folder_is_refused(release: Path) -> None:
    done = run("scripts/release", release)
    assert (done.returncode, b"is there already" in done.stderr) == (1, True)


def test_the_wheel_holds_all_four_packages_and_nothing_beside_them(release: Path) -> None:
    (wheel,) = release.glob("*.whl")
    names = {name.partition("/")[0].partition("-")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert names == {"bowerbird_wire", "bowerbird_models", "bowerbird_agent", "bowerbird_server", "bowerbird"}


@pytest.mark.parametrize("lock", sorted((ROOT / "deploy" / "constraints").glob("*-py3*.txt")), ids=lambda path: path.stem)
def test_a_lock_file_holds_every_package_exactly_and_with_hashes(lock: Path) -> None:
    parts = [part for part in re.split(r"^(?=\w)", lock.read_text(), flags=re.MULTILINE) if not part.startswith("#")]
    assert len(parts) > 10
    assert all(re.match(r"\S+==\S+ \\\n", part) and "--hash=sha256:" in part for part in parts)
    names = {part.partition("==")[0] for part in parts}
    assert {"numpy", "onnxruntime", "paho-mqtt", "tuf", "cryptography"} <= names
    assert names.isdisjoint({"torch", "ultralytics"})
    assert ("fastapi" in names) is lock.name.startswith("server-")
    assert "://" not in lock.read_text()


def test_jetpacks_opencv_finds_the_numpy_that_it_was_built_for() -> None:
    lock = (ROOT / "deploy" / "constraints" / "device-py310.txt").read_text()
    assert re.search(r"^numpy==1\.", lock, re.MULTILINE)
    assert "opencv" not in lock
