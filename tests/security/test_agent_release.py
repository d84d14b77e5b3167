"""Hostile releases of the agent: each is refused by name, before anything of it is installed or run."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bowerbird_models.agent_release import LOCK, SBOM, AgentManifest, load_release, read_lock
from bowerbird_models.manifest import MANIFEST, PackageError, PackageFile, canonical_json
from bowerbird_models.wheels import WheelName, check_wheel
from bowerbird_server.errors import BadInput
from bowerbird_server.releases.agent_archive import pack, unpack
from bowerbird_testing.agent_releases import (
    MACHINE,
    PYTHON,
    agent_wheel,
    describe,
    lock_of,
    make_release,
    write_sources,
    write_wheel,
)


def code_of(folder: Path) -> str:
    with pytest.raises(PackageError) as refused:
        load_release(folder)
    return refused.value.code


def changed(folder: Path, **fields: object) -> None:
    """Rewrite single keys of the manifest, as someone with the agents key could."""
    plain = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_bytes(canonical_json({**plain, **fields}))


# -- the folder -------------------------------------------------------------------------------------------------------------


def test_an_honest_release_verifies_and_has_one_digest(tmp_path: Path) -> None:
    one, two = make_release(tmp_path / "one"), make_release(tmp_path / "two")
    assert one.digest == two.digest == load_release(one.dir, digest=one.digest).digest
    assert [file.name for file in one.manifest.wheels] == ["bowerbird-0.2.0-py3-none-any.whl", "needed-1.0-py3-none-any.whl"]


def test_a_swapped_wheel_is_refused_although_name_and_length_are_right(tmp_path: Path) -> None:
    release = make_release(tmp_path)
    wheel = tmp_path / "needed-1.0-py3-none-any.whl"
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.write_bytes(content)
    assert code_of(release.dir) == "wrong_digest"


def test_a_wheel_that_the_manifest_knows_and_the_lock_does_not_is_refused(tmp_path: Path) -> None:
    """Whoever packs a release can write any manifest; the lock file is made elsewhere."""
    write_sources(tmp_path)
    lock = (tmp_path / LOCK).read_text()
    write_wheel(tmp_path, "needed", "1.0", {"needed.py": "print('swapped')\n"})
    assert (tmp_path / LOCK).read_text() == lock
    with pytest.raises(PackageError, match=r"is not the file that requirements\.txt means") as refused:
        describe(tmp_path)
    assert refused.value.code == "bad_lock"


def test_a_wheel_beside_the_locked_ones_is_refused(tmp_path: Path) -> None:
    write_sources(tmp_path)
    write_wheel(tmp_path, "stowaway", "1.0", {"stowaway.py": ""})
    with pytest.raises(PackageError, match="stowaway"):
        describe(tmp_path)


def test_a_locked_package_without_its_wheel_is_refused(tmp_path: Path) -> None:
    write_sources(tmp_path)
    (tmp_path / "needed-1.0-py3-none-any.whl").unlink()
    with pytest.raises(PackageError, match="needed"):
        describe(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["evil-1.0.tar.gz", "evil-1.0.zip", "../evil-1.0-py3-none-any.whl", "sub/evil-1.0-py3-none-any.whl", ".pth", "a.whl"],
)
def test_a_source_package_or_a_path_among_the_wheels_is_refused(tmp_path: Path, name: str) -> None:
    release = make_release(tmp_path)
    wheels = [*json.loads((release.dir / MANIFEST).read_bytes())["wheels"], {"name": name, "sha256": "0" * 64, "bytes": 1}]
    changed(release.dir, wheels=wheels)
    assert code_of(release.dir) == "bad_name"


@pytest.mark.parametrize(
    "line",
    [
        "needed==1.0",
        "needed>=1.0 --hash=sha256:" + "0" * 64,
        "needed==1.0 --hash=md5:" + "0" * 32,
        "needed==1.0 --hash=sha256:" + "0" * 64 + " --hash=md5:" + "0" * 32,
        "needed==1.0 --hash=sha256:12",
        "needed @ https://example.org/needed-1.0.whl --hash=sha256:" + "0" * 64,
        "https://example.org/needed-1.0-py3-none-any.whl",
        "-e .",
        "--index-url https://example.org/simple",
        "--extra-index-url=https://example.org/simple",
        "--no-binary :all:",
        "--trusted-host example.org",
        "-r other.txt",
        "needed==1.0 ; python_version < '4' --hash=sha256:" + "0" * 64,
        "needed==1.0 --hash=sha256:" + "0" * 64 + " --global-option=x",
    ],
)
def test_a_lock_file_with_anything_but_exact_versions_and_hashes_is_refused(line: str) -> None:
    good = f"bowerbird==0.2.0 --hash=sha256:{'1' * 64}\n"
    assert [each.project for each in read_lock(good.encode())] == ["bowerbird"]
    with pytest.raises(PackageError) as refused:
        read_lock((good + line + "\n").encode())
    assert refused.value.code == "bad_lock"


def test_a_package_that_is_locked_twice_is_refused() -> None:
    line = f"needed==1.0 --hash=sha256:{'1' * 64}\n"
    with pytest.raises(PackageError, match="twice"):
        read_lock((line + line.replace("needed", "Needed")).encode())


@pytest.mark.parametrize("tag", ["cp310-cp310-manylinux_2_17_ppc64le", "cp39-cp39-manylinux2014_x86_64", "py2-none-any"])
def test_a_wheel_of_another_python_or_machine_is_refused(tmp_path: Path, tag: str) -> None:
    write_sources(tmp_path)
    (tmp_path / "needed-1.0-py3-none-any.whl").unlink()
    write_wheel(tmp_path, "needed", "1.0", {"needed.py": ""}, tag=tag)
    (tmp_path / LOCK).write_text(lock_of(tmp_path))
    with pytest.raises(PackageError) as refused:
        describe(tmp_path)
    assert refused.value.code == "wrong_abi"


def test_another_version_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    release = make_release(tmp_path)
    changed(release.dir, version="9.9.9")
    assert code_of(release.dir) == "bad_lock"


def test_a_link_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    release = make_release(tmp_path)
    (tmp_path / "elsewhere").write_bytes((tmp_path / LOCK).read_bytes())
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    assert code_of(release.dir) == "missing"


def test_a_bill_of_materials_that_is_none_is_refused(tmp_path: Path) -> None:
    write_sources(tmp_path)
    (tmp_path / SBOM).write_text("{}")
    with pytest.raises(PackageError, match="CycloneDX"):
        describe(tmp_path)


def test_a_manifest_of_a_model_is_no_manifest_of_the_agent(tmp_path: Path) -> None:
    release = make_release(tmp_path)
    changed(release.dir, kind="something-else")
    assert code_of(release.dir) == "bad_manifest"


@pytest.mark.parametrize(
    "fields",
    [
        {"version": "../../etc"},
        {"python": "2.7"},
        {"machine": "riscv64"},
        {"wheels": []},
        {"installed_bytes": "many"},
        {"extras": ["; rm -rf /"]},
        {"system_site_packages": 1},
        {"lock": {"name": "other.txt", "sha256": "0" * 64, "bytes": 1}},
        {"sbom": {"name": SBOM, "sha256": "0" * 64, "bytes": 2**40}},
        {"schema": 2},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_manifest_with_a_wrong_value_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    release = make_release(tmp_path)
    changed(release.dir, **fields)
    with pytest.raises(PackageError):
        load_release(release.dir)


def test_a_manifest_survives_its_bytes(tmp_path: Path) -> None:
    manifest = make_release(tmp_path).manifest
    assert AgentManifest.from_bytes(manifest.to_bytes()) == manifest
    assert AgentManifest.from_bytes(replace(manifest, notes="x").to_bytes()) != manifest


# -- wheels -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", ["../evil.py", "/etc/evil.py", "a/../../evil.py", "a\\..\\evil.py", "C:/evil.py"])
def test_a_wheel_with_a_member_that_would_leave_the_folder_is_refused(tmp_path: Path, member: str) -> None:
    with pytest.raises(PackageError, match="would leave the folder"):
        check_wheel(write_wheel(tmp_path, "evil", "1.0", {member: ""}))


def test_a_wheel_with_a_link_in_it_is_refused(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, "evil", "1.0", {})
    with zipfile.ZipFile(wheel, "a") as archive:
        link = zipfile.ZipInfo("evil/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(PackageError, match="is a link or a device"):
        check_wheel(wheel)


def test_a_wheel_that_would_unpack_to_more_than_is_allowed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bowerbird_models.wheels.MAX_UNPACKED_BYTES", 100_000)
    wheel = write_wheel(tmp_path, "bomb", "1.0", {})
    with zipfile.ZipFile(wheel, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.bin", bytes(1_000_000))
    assert wheel.stat().st_size < 5_000
    with pytest.raises(PackageError, match="would unpack to"):
        check_wheel(wheel)


def test_a_wheel_that_says_another_name_than_its_file_is_refused(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, "honest", "1.0", {})
    with pytest.raises(PackageError, match="says of itself"):
        check_wheel(wheel.rename(tmp_path / "other-1.0-py3-none-any.whl"))


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("a-1-py3-none-any.whl", True),
        ("a-1-py2.py3-none-any.whl", True),
        ("a-1-cp311-cp311-manylinux_2_28_x86_64.whl", True),
        ("a-1-cp39-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        ("a-1-cp312-abi3-manylinux_2_17_x86_64.whl", False),
        ("a-1-cp311-cp311-manylinux_2_40_x86_64.whl", False),
        ("a-1-cp310-cp310-manylinux_2_17_x86_64.whl", False),
        ("a-1-cp311-cp311-manylinux_2_17_aarch64.whl", False),
        ("a-1-cp311-cp311-musllinux_1_2_x86_64.whl", False),
        ("a-1-cp311-cp311-win_amd64.whl", False),
    ],
)
def test_a_wheels_name_says_where_it_runs(name: str, fits: bool) -> None:
    assert WheelName.parse(name).fits(python=(3, 11), machine="x86_64", glibc=(2, 36)) is fits


# -- the archive ------------------------------------------------------------------------------------------------------------


def test_an_archive_gives_back_the_release_and_is_the_same_when_made_again(tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    archive = pack(release, tmp_path / "a")
    assert archive.name == f"bowerbird-agent-0.2.0-{MACHINE}-py{PYTHON.replace('.', '')}.tar"
    assert archive.read_bytes() == pack(release, tmp_path / "b").read_bytes()
    assert unpack(archive, tmp_path / "out").digest == release.digest


def _file(name: str, content: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content


def _special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


HOSTILE: dict[str, Callable[[], tuple[tarfile.TarInfo, bytes]]] = {
    "traversal": lambda: _file("../evil-1.0-py3-none-any.whl"),
    "absolute": lambda: _file("/tmp/evil-1.0-py3-none-any.whl"),
    "folder in the name": lambda: _file("sub/evil-1.0-py3-none-any.whl"),
    "symlink": lambda: _special("evil-1.0-py3-none-any.whl", tarfile.SYMTYPE, "/etc/passwd"),
    "symlink to a folder": lambda: _special("sub", tarfile.SYMTYPE, ".."),
    "hard link": lambda: _special("evil-1.0-py3-none-any.whl", tarfile.LNKTYPE, MANIFEST),
    "device": lambda: _special("evil-1.0-py3-none-any.whl", tarfile.CHRTYPE),
    "pipe": lambda: _special("evil-1.0-py3-none-any.whl", tarfile.FIFOTYPE),
    "folder": lambda: _special("sub", tarfile.DIRTYPE),
    "source package": lambda: _file("evil-1.0.tar.gz"),
    "second manifest": lambda: _file(MANIFEST, b"{}"),
    "huge lock file": lambda: _file(LOCK, bytes(3 * 1024 * 1024)),
}


@pytest.mark.parametrize("member", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_archive_with_a_hostile_member_is_refused_and_leaves_nothing(
    tmp_path: Path, member: Callable[[], tuple[tarfile.TarInfo, bytes]]
) -> None:
    release = make_release(tmp_path / "release")
    archive = pack(release, tmp_path)
    info, content = member()
    with tarfile.open(archive, "a") as tar:
        tar.addfile(info, io.BytesIO(content))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadInput):
        unpack(archive, tmp_path / "out" / "release")
    assert [*(tmp_path / "out").iterdir()] == []
    (tmp_path / "out").rmdir()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("name", "size"), [(LOCK, 3 * 1024**2), (SBOM, 17 * 1024**2), (MANIFEST, 300 * 1024)])
def test_a_member_that_is_larger_than_its_kind_may_be_is_refused_by_its_size(tmp_path: Path, name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(member, io.BytesIO(bytes(size)))
    with pytest.raises(BadInput, match="is too large"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


def test_an_archive_that_declares_a_member_of_a_terabyte_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    member = tarfile.TarInfo("evil-1.0-py3-none-any.whl")
    member.size = 2**40
    (tmp_path / "huge.tar").write_bytes(member.tobuf(format=tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(BadInput):
        unpack(tmp_path / "huge.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_compressed_archive_is_refused_so_that_no_size_is_a_surprise(tmp_path: Path, mode: str) -> None:
    release = make_release(tmp_path / "release")
    with tarfile.open(tmp_path / "a.tar", mode) as tar:
        for path in release.dir.iterdir():
            tar.add(path, path.name)
    with pytest.raises(BadInput):
        unpack(tmp_path / "a.tar", tmp_path / "out")


def test_what_is_no_archive_at_all_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"PK\3\4", bytes(10_240), os.urandom(4096)):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(BadInput):
            unpack(tmp_path / "a.tar", tmp_path / "out")


def test_a_release_cut_short_is_refused(tmp_path: Path) -> None:
    archive = pack(make_release(tmp_path / "release"), tmp_path)
    archive.write_bytes(archive.read_bytes()[:-4_000])
    with pytest.raises(BadInput):
        unpack(archive, tmp_path / "out")


def test_a_wheel_of_our_own_name_twice_is_refused(tmp_path: Path) -> None:
    write_sources(tmp_path)
    agent_wheel(tmp_path, "0.3.0")
    with pytest.raises(PackageError, match="one wheel of bowerbird"):
        describe(tmp_path)


def test_the_files_of_a_manifest_are_lock_bill_and_wheels(tmp_path: Path) -> None:
    manifest = make_release(tmp_path).manifest
    assert manifest.total_bytes == sum((tmp_path / file.name).stat().st_size for file in manifest.files)
    assert all(isinstance(file, PackageFile) for file in manifest.files)
