"""A release of the agent: a folder with `manifest.json`, wheels, the lock file that names them, and a bill of materials.

In: a folder that came from anywhere. Out: `ReleaseOnDisk`, whose *release digest* is the SHA-256 of the manifest's bytes: the
only thing that is compared, signed and rolled out. Server and device run the same checks. It signs nothing (`signing.py`),
installs nothing and runs nothing of what it looks at.

Verification, numbered as in the code of `load_release`:

1. the manifest is a small regular file, canonical JSON of a schema that this release knows;
2. its digest is the one that was asked for;
3. every name is a plain file name: wheels, one lock file, one bill of materials; no source package;
4. every file is regular and has the declared length and SHA-256;
5. the lock file names exact versions with hashes and nothing else: no option, no address, no requirement without a hash;
6. wheels and lock file agree one to one, digest by digest, and the agent itself is among them in the version that the manifest says;
7. every wheel is for the Python and the machine that the manifest says, and unpacks to where it should, to a bounded size;
8. the bill of materials is CycloneDX.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bowerbird_models.manifest import MANIFEST, MAX_MANIFEST_BYTES, PackageError, PackageFile, canonical_json, parse_json
from bowerbird_models.wheels import WheelName, check_wheel, normalised

SCHEMA = 1
KIND = "bowerbird-agent"
PROJECT = "bowerbird"
LOCK, SBOM = "requirements.txt", "sbom.cdx.json"
MACHINES = ("x86_64", "aarch64")
MAX_WHEELS = 120
MAX_WHEEL_BYTES = 700 * 1024**2
MAX_LOCK_BYTES = 2 * 1024**2
MAX_SBOM_BYTES = 16 * 1024**2
MAX_RELEASE_BYTES = 1024**3
_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(?:(?:a|b|rc|\.dev|\.post)[0-9]+)?")
_PYTHON = re.compile(r"3\.(?:1[0-9])")
_EXTRA = re.compile(r"[a-z][a-z0-9-]{0,30}")
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(?:\[[a-z0-9,-]+\])?==(?P<version>[A-Za-z0-9.!+]+)(?P<hashes>(?: --hash=\S+)*)"
)


@dataclass(frozen=True)
class AgentManifest:
    """What a release says about itself. Its release counter is not in it: the same content may be released again.

    Args:
        version: of the agent, as its wheel has it.
        python: "3.11": the CPython that the wheels are for.
        machine: "x86_64" or "aarch64".
        extras: which of the agent's extras are installed.
        created_at: UTC ISO text.
        lock, sbom: requirements.txt and sbom.cdx.json.
        wheels: in the order of their names.
        installed_bytes: what all wheels unpack to.
        system_site_packages: whether the environment must see the system's packages (a Jetson's OpenCV).
        notes: free text for people.
    """

    version: str
    python: str
    machine: str
    extras: tuple[str, ...]
    created_at: str
    lock: PackageFile
    sbom: PackageFile
    wheels: tuple[PackageFile, ...]
    installed_bytes: int
    system_site_packages: bool = False
    notes: str = ""

    @property
    def files(self) -> tuple[PackageFile, ...]:
        """All files but the manifest."""
        return (self.lock, self.sbom, *self.wheels)

    @property
    def total_bytes(self) -> int:
        """Length of all files together, the manifest apart."""
        return sum(file.bytes for file in self.files)

    @property
    def python_version(self) -> tuple[int, int]:
        """(3, 11)."""
        major, minor = self.python.split(".")
        return int(major), int(minor)

    def to_bytes(self) -> bytes:
        """Canonical JSON; equal manifests have equal bytes."""
        return canonical_json(
            {
                "schema": SCHEMA,
                "kind": KIND,
                "version": self.version,
                "python": self.python,
                "machine": self.machine,
                "extras": list(self.extras),
                "created_at": self.created_at,
                "lock": _plain(self.lock),
                "sbom": _plain(self.sbom),
                "wheels": [_plain(file) for file in self.wheels],
                "installed_bytes": self.installed_bytes,
                "system_site_packages": self.system_site_packages,
                "notes": self.notes,
            }
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> AgentManifest:
        """Read and check a manifest; keys that a later release added are passed over.

        Raises:
            PackageError: not canonical JSON, another schema or kind, a value of the wrong type, or a name that is not allowed.
        """
        plain = parse_json(content, MAX_MANIFEST_BYTES, MANIFEST)
        if not isinstance(plain, dict) or canonical_json(plain) != content:
            raise PackageError("bad_manifest", "manifest.json is not canonical JSON; pack the release again")
        if plain.get("kind") != KIND or plain.get("schema") != SCHEMA:
            raise PackageError(
                "bad_manifest",
                f"{str(plain.get('kind'))[:40]!r} of schema {plain.get('schema')!r}; this version knows {KIND!r} of {SCHEMA}",
            )
        try:
            return _manifest(plain)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PackageError("bad_manifest", f"manifest.json: {type(error).__name__}: {error}; pack it again") from error


@dataclass(frozen=True)
class ReleaseOnDisk:
    """A release whose files were verified: its folder, what it says, and its release digest (64 hex digits)."""

    dir: Path
    manifest: AgentManifest
    digest: str


def load_release(folder: Path, *, digest: str | None = None) -> ReleaseOnDisk:
    """A release that passed every numbered verification step of this module.

    Raises:
        PackageError: a step failed.
    """
    # 1. The manifest is a small regular file, canonical JSON of a known schema.
    content = _read_regular(folder / MANIFEST, MAX_MANIFEST_BYTES)
    manifest = AgentManifest.from_bytes(content)
    # 2. Its digest is the one that was asked for.
    found = hashlib.sha256(content).hexdigest()
    if digest is not None and found != digest:
        raise PackageError("wrong_digest", f"the release in {folder} is {found[:12]}, not {digest[:12]}; fetch it again")
    # 3. Names: AgentManifest.from_bytes has checked them.
    # 4. Regular, of the declared length and digest.
    for file in manifest.files:
        sha256, length = _digest_regular(folder / file.name, file.bytes)
        if (sha256, length) != (file.sha256, file.bytes):
            raise PackageError("wrong_digest", f"{file.name} is not the file that the manifest declares; fetch it again")
    # 5. and 6. The lock file, and the wheels one to one.
    _check_lock(read_lock((folder / LOCK).read_bytes()), manifest)
    # 7. Wheels of this Python and machine, harmless to unpack.
    unpacked = 0
    for file in manifest.wheels:
        if not WheelName.parse(file.name).fits(python=manifest.python_version, machine=manifest.machine):
            raise PackageError(
                "wrong_abi", f"{file.name} is not for Python {manifest.python} on {manifest.machine}; pack the release again"
            )
        unpacked += check_wheel(folder / file.name)
    if unpacked != manifest.installed_bytes:
        raise PackageError("bad_file", f"the wheels unpack to {unpacked} bytes, the manifest says {manifest.installed_bytes}")
    # 8. The bill of materials.
    bill = parse_json((folder / SBOM).read_bytes(), MAX_SBOM_BYTES, SBOM)
    if not isinstance(bill, dict) or bill.get("bomFormat") != "CycloneDX":
        raise PackageError("bad_file", f"{SBOM} is no bill of materials in CycloneDX's format; pack the release again")
    return ReleaseOnDisk(folder, manifest, found)


@dataclass(frozen=True)
class Locked:
    """One line of a lock file: project (normalised), exact version, SHA-256 digests that its file may have."""

    project: str
    version: str
    sha256: frozenset[str]


def read_lock(content: bytes) -> tuple[Locked, ...]:
    """The requirements of a lock file, each exact and with hashes.

    Raises:
        PackageError: `bad_lock`: an option, an address, a range, a marker, another hash than SHA-256, a requirement without any.
    """
    if len(content) > MAX_LOCK_BYTES:
        raise PackageError("bad_lock", f"{LOCK} has {len(content)} bytes; at most {MAX_LOCK_BYTES} are allowed")
    text = re.sub(r"\\\r?\n", " ", content.decode("utf-8", "replace"))
    locked: dict[str, Locked] = {}
    for line in text.splitlines():
        plain = " ".join(re.sub(r"(^|\s)#.*", "", line).split())
        if not plain:
            continue
        match = _REQUIREMENT.fullmatch(plain)
        if match is None:
            raise PackageError("bad_lock", f"{LOCK}: {plain[:80]!r} is not `name==version --hash=sha256:...`; lock it again")
        hashes = match["hashes"].split()
        digests = frozenset(each.removeprefix("--hash=sha256:") for each in hashes)
        if not digests or not all(_DIGEST.fullmatch(each) for each in digests):
            raise PackageError("bad_lock", f"{LOCK}: {plain[:60]!r} has no SHA-256 hash, or another one as well; lock it again")
        project = normalised(match["name"])
        if project in locked:
            raise PackageError("bad_lock", f"{LOCK} names {project} twice; lock it again")
        locked[project] = Locked(project, match["version"], digests)
    return tuple(locked.values())


def _check_lock(locked: tuple[Locked, ...], manifest: AgentManifest) -> None:
    wheels = {WheelName.parse(file.name).project: file for file in manifest.wheels}
    names = {each.project for each in locked}
    if len(wheels) != len(manifest.wheels) or names != wheels.keys():
        odd = sorted(names ^ wheels.keys())[:5]
        raise PackageError("bad_lock", f"wheels and {LOCK} do not agree one to one ({', '.join(odd)}); pack the release again")
    for each in locked:
        file = wheels[each.project]
        if file.sha256 not in each.sha256 or WheelName.parse(file.name).version != each.version:
            raise PackageError(
                "bad_lock", f"{file.name} is not the file that {LOCK} means; it was swapped, or locked for another"
            )
    ours = next((each for each in locked if each.project == PROJECT), None)
    if ours is None or ours.version != manifest.version:
        raise PackageError("bad_lock", f"{LOCK} does not name {PROJECT} {manifest.version}; pack the release again")


def describe_release(
    folder: Path,
    *,
    python: str,
    machine: str,
    extras: tuple[str, ...],
    created_at: str,
    system_site_packages: bool = False,
    notes: str = "",
) -> ReleaseOnDisk:
    """Write the manifest of a folder that holds wheels, lock file and bill of materials, and verify it.

    Raises:
        PackageError: the folder is no release.
    """
    wheels = tuple(_describe(path) for path in sorted(folder.glob("*.whl")))
    ours = [name.version for file in wheels if (name := WheelName.parse(file.name)).project == PROJECT]
    if len(ours) != 1:
        raise PackageError("missing", f"{folder} does not hold one wheel of {PROJECT}; build it and copy it there")
    manifest = AgentManifest(
        version=ours[0],
        python=python,
        machine=machine,
        extras=extras,
        created_at=created_at,
        lock=_describe(folder / LOCK),
        sbom=_describe(folder / SBOM),
        wheels=wheels,
        installed_bytes=sum(check_wheel(folder / file.name) for file in wheels),
        system_site_packages=system_site_packages,
        notes=notes,
    )
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return load_release(folder)


def _describe(path: Path) -> PackageFile:
    sha256, length = _digest_regular(path, MAX_WHEEL_BYTES)
    return PackageFile(path.name, sha256, length)


def _plain(file: PackageFile) -> dict[str, Any]:
    return {"name": file.name, "sha256": file.sha256, "bytes": file.bytes}


def _manifest(plain: Mapping[str, Any]) -> AgentManifest:
    if not 1 <= len(plain["wheels"]) <= MAX_WHEELS:
        raise ValueError(f"{len(plain['wheels'])} wheels; 1 to {MAX_WHEELS} are allowed")
    wheels = tuple(_file(entry, MAX_WHEEL_BYTES) for entry in plain["wheels"])
    for file in wheels:
        WheelName.parse(file.name)
    lock, sbom = _file(plain["lock"], MAX_LOCK_BYTES), _file(plain["sbom"], MAX_SBOM_BYTES)
    if (lock.name, sbom.name) != (LOCK, SBOM):
        raise PackageError("bad_name", f"lock and sbom must be called {LOCK} and {SBOM}")
    extras = tuple(_matches(_EXTRA, each, "extra") for each in plain["extras"])
    if plain["machine"] not in MACHINES:
        raise ValueError(f"machine {str(plain['machine'])[:40]!r}; there are {', '.join(MACHINES)}")
    installed = plain["installed_bytes"]
    if isinstance(installed, bool) or not isinstance(installed, int) or installed < 0:
        raise TypeError("installed_bytes must be a whole number")
    if not isinstance(plain["system_site_packages"], bool):
        raise TypeError("system_site_packages must be true or false")
    manifest = AgentManifest(
        version=_matches(_VERSION, plain["version"], "version"),
        python=_matches(_PYTHON, plain["python"], "python"),
        machine=plain["machine"],
        extras=extras,
        created_at=_matches(re.compile(r"[0-9TZ:.+-]{10,40}"), plain["created_at"], "created_at"),
        lock=lock,
        sbom=sbom,
        wheels=wheels,
        installed_bytes=installed,
        system_site_packages=plain["system_site_packages"],
        notes=_matches(re.compile(r"(?s).{0,2000}"), plain["notes"], "notes"),
    )
    if len({file.name for file in manifest.files}) != len(manifest.files):
        raise ValueError("two files share one name")
    if manifest.total_bytes > MAX_RELEASE_BYTES:
        raise ValueError(f"{manifest.total_bytes} bytes in all; at most {MAX_RELEASE_BYTES} are allowed")
    return manifest


def _file(entry: Mapping[str, Any], limit: int) -> PackageFile:
    name, sha256, length = entry["name"], entry["sha256"], entry["bytes"]
    if not isinstance(name, str) or not isinstance(sha256, str) or isinstance(length, bool) or not isinstance(length, int):
        raise TypeError("a file needs name, sha256 and bytes")
    if _DIGEST.fullmatch(sha256) is None or not 0 < length <= limit:
        raise ValueError(f"{name[:80]}: digest or length of {length} bytes is out of range")
    return PackageFile(name, sha256, length)


def _matches(form: re.Pattern[str], value: Any, what: str) -> str:
    if not isinstance(value, str) or form.fullmatch(value) is None:
        raise ValueError(f"{what} {str(value)[:60]!r} has not the form that it must have")
    return value


def _open_regular(path: Path) -> int:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise PackageError(
            "missing", f"cannot read {path} ({error.strerror}); the release is incomplete, fetch it again"
        ) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise PackageError("bad_file", f"{path} is not a regular file; releases hold nothing else")
    return handle


def _read_regular(path: Path, limit: int) -> bytes:
    with os.fdopen(_open_regular(path), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise PackageError("bad_file", f"{path.name} is larger than the {limit} bytes that are allowed")
    return content


def _digest_regular(path: Path, limit: int) -> tuple[str, int]:
    """SHA-256 and length, read in pieces; stops soon after `limit`."""
    sha256, length = hashlib.sha256(), 0
    with os.fdopen(_open_regular(path), "rb") as file:
        while length <= limit and (piece := file.read(1024 * 1024)):
            sha256.update(piece)
            length += len(piece)
    return sha256.hexdigest(), length
