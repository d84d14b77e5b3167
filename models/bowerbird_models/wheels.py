"""Python wheels as files from elsewhere: what their names promise, and whether unpacking one could do harm.

In: file names, and wheel files that nobody has unpacked. Out: `WheelName`, the unpacked size, or a `PackageError`. It installs
nothing and imports nothing of a wheel; pip does the first, and only after this has looked.

Source: "Binary distribution format" and "Platform compatibility tags" of the Python packaging specifications (PEP 427, 425, 600).
"""

from __future__ import annotations

import re
import stat
import zipfile
import zlib
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from bowerbird_models.manifest import PackageError

MAX_MEMBERS = 20_000
MAX_UNPACKED_BYTES = 2 * 1024**3
MAX_METADATA_BYTES = 1024 * 1024
_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._]*[A-Za-z0-9])?)-(?P<version>[0-9][A-Za-z0-9.!+_]{0,63})(?:-(?P<build>[0-9][A-Za-z0-9_.]*))?"
    r"-(?P<python>[A-Za-z0-9_.]+)-(?P<abi>[A-Za-z0-9_.]+)-(?P<platform>[A-Za-z0-9_.]+)\.whl"
)
_MANYLINUX = re.compile(r"manylinux_(\d+)_(\d+)_(\w+)")
_OLD_MANYLINUX = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
_CPYTHON = re.compile(r"cp3(\d{1,2})")


@dataclass(frozen=True)
class WheelName:
    """A wheel's file name, taken apart; `project` is normalised (PEP 503)."""

    project: str
    version: str
    pythons: tuple[str, ...]
    abis: tuple[str, ...]
    platforms: tuple[str, ...]

    @classmethod
    def parse(cls, name: str) -> WheelName:
        """Raises PackageError `bad_name` for every other file, source packages included."""
        match = _NAME.fullmatch(name) if len(name) <= 200 else None
        if match is None:
            raise PackageError("bad_name", f"{name[:80]!r} is no wheel; a release holds wheels only, never a source package")
        return cls(
            normalised(match["name"]),
            match["version"].replace("_", "-"),
            tuple(match["python"].split(".")),
            tuple(match["abi"].split(".")),
            tuple(match["platform"].split(".")),
        )

    def fits(self, *, python: tuple[int, int], machine: str, glibc: tuple[int, int] | None = None) -> bool:
        """Whether pip would take the wheel for CPython `python` on Linux with this `machine`; a glibc of None counts as new enough."""
        minor = python[1]
        fits_python = any(
            tag in {"py3", f"py3{minor}", f"cp3{minor}"}
            or ("abi3" in self.abis and (found := _CPYTHON.fullmatch(tag)) is not None and int(found[1]) <= minor)
            for tag in self.pythons
        )
        fits_abi = bool({"none", "abi3", f"cp3{minor}"} & set(self.abis))
        return python[0] == 3 and fits_python and fits_abi and any(_runs_on(tag, machine, glibc) for tag in self.platforms)


def normalised(project: str) -> str:
    """A project's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", project).lower()


def check_wheel(path: Path) -> int:
    """Look through a wheel without unpacking it; its unpacked size in bytes.

    Raises:
        PackageError: `bad_file`: no zip file, a member that would leave the folder, a link or device, too many or too large members, or
            metadata that names another project or version than the file's name.
    """
    wheel = WheelName.parse(path.name)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise PackageError("bad_file", f"{path.name} has {len(members)} members; at most {MAX_MEMBERS} are allowed")
            size = sum(member.file_size for member in members)
            if size > MAX_UNPACKED_BYTES:
                raise PackageError("bad_file", f"{path.name} would unpack to {size} bytes; {MAX_UNPACKED_BYTES} are allowed")
            for member in members:
                _check_member(path.name, member)
            if len({member.filename for member in members}) != len(members):
                raise PackageError("bad_file", f"{path.name} has two members of one name; build it again")
            _check_metadata(path.name, wheel, archive)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError) as error:
        raise PackageError("bad_file", f"{path.name} is no wheel that can be read ({error}); fetch it again") from error
    return size


def _check_member(wheel: str, member: zipfile.ZipInfo) -> None:
    name = member.filename
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or ":" in parts[0]:
        raise PackageError("bad_file", f"{wheel}: member {name[:80]!r} would leave the folder; do not use this file")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise PackageError("bad_file", f"{wheel}: member {name[:80]!r} is a link or a device; do not use this file")
    if member.flag_bits & 1:
        raise PackageError("bad_file", f"{wheel}: member {name[:80]!r} is encrypted; do not use this file")


def _check_metadata(name: str, wheel: WheelName, archive: zipfile.ZipFile) -> None:
    found = [m for m in archive.infolist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", m.filename)]
    if len(found) != 1 or found[0].file_size > MAX_METADATA_BYTES:
        raise PackageError("bad_file", f"{name} does not have one METADATA of a reasonable size; build it again")
    if found[0].compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise PackageError("bad_file", f"{name} is packed in a way that no wheel is; build it again")
    headers = HeaderParser().parsestr(archive.read(found[0]).decode("utf-8", "replace"))
    says = (normalised(str(headers["Name"])), str(headers["Version"]))
    if says != (wheel.project, wheel.version):
        raise PackageError("bad_file", f"{name} says of itself that it is {says[0]} {says[1]}; do not use this file")


def _runs_on(tag: str, machine: str, glibc: tuple[int, int] | None) -> bool:
    if tag in {"any", f"linux_{machine}"}:
        return True
    match = _MANYLINUX.fullmatch(tag)
    if match is not None:
        needs, made_for = (int(match[1]), int(match[2])), match[3]
    else:
        old, _, made_for = tag.partition("_")
        if old not in _OLD_MANYLINUX:
            return False
        needs = _OLD_MANYLINUX[old]
    return made_for == machine and (glibc is None or needs <= glibc)
