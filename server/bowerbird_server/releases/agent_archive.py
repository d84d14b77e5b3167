"""The form in which a release of the agent travels to the server: a plain tar of flat files. Packing one, and unpacking one safely.

In: a folder with wheels, a lock file and a bill of materials; or an archive that came from anywhere. Out: an archive; or a
folder whose release has been verified. The archive is not compressed, since wheels are; nothing in it can name a place outside
the folder, since every member must be a regular file with a plain name of a release.

Unpacking, numbered as in the code:

1. the file is a plain tar, no larger than a release may be; compressed ones are refused, so that no size is a surprise;
2. every member is a regular file: no folder, link, device or sparse file;
3. every name is one that a release may have, and stands there once;
4. no member is larger than its kind may be, and there are not more of them than a release has;
5. what was unpacked is a release (`agent_release.py`).
"""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from bowerbird_models.agent_release import (
    LOCK,
    MAX_LOCK_BYTES,
    MAX_RELEASE_BYTES,
    MAX_SBOM_BYTES,
    MAX_WHEEL_BYTES,
    MAX_WHEELS,
    SBOM,
    ReleaseOnDisk,
    load_release,
)
from bowerbird_models.durable import sync_file, sync_folder
from bowerbird_models.manifest import MANIFEST, MAX_MANIFEST_BYTES, PackageError
from bowerbird_models.wheels import WheelName
from bowerbird_server.errors import BadInput

_LIMITS = {MANIFEST: MAX_MANIFEST_BYTES, LOCK: MAX_LOCK_BYTES, SBOM: MAX_SBOM_BYTES}
_TAR_OVERHEAD_BYTES = 1024 * (MAX_WHEELS + 16)


def archive_name(release: ReleaseOnDisk) -> str:
    """`bowerbird-agent-0.2.0-x86_64-py311.tar`."""
    manifest = release.manifest
    return f"bowerbird-agent-{manifest.version}-{manifest.machine}-py{manifest.python.replace('.', '')}.tar"


def pack(release: ReleaseOnDisk, out: Path) -> Path:
    """Write a release's archive into the folder `out`; the same release gives the same bytes.

    Raises:
        OSError: it cannot be written.
    """
    path = out / archive_name(release)
    part = path.with_name(f".{path.name}.part")
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted({MANIFEST, *(file.name for file in release.manifest.files)}):
            member = tarfile.TarInfo(name)
            member.size, member.mode = (release.dir / name).stat().st_size, 0o644
            with (release.dir / name).open("rb") as content:
                archive.addfile(member, content)
    sync_file(part)
    part.replace(path)
    sync_folder(out)
    return path


def unpack(archive: Path, folder: Path) -> ReleaseOnDisk:
    """Unpack an archive into a new folder and verify the release in it; on an error nothing is left.

    Raises:
        BadInput: a step failed; the message says which.
    """
    folder.mkdir(parents=True)
    try:
        _unpack(archive, folder)
        # 5. A release.
        return load_release(folder)
    except (PackageError, tarfile.TarError, OSError, EOFError, ValueError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise BadInput(f"{archive.name} is no release of the agent that can be used: {error}") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _unpack(archive: Path, folder: Path) -> None:
    # 1. A plain tar of a bounded size.
    if archive.stat().st_size > MAX_RELEASE_BYTES + _TAR_OVERHEAD_BYTES:
        raise PackageError("bad_file", f"it has more than {MAX_RELEASE_BYTES} bytes")
    seen: set[str] = set()
    with tarfile.open(archive, "r:") as tar:
        while (member := tar.next()) is not None:
            # 2. A regular file.
            if member.type not in {tarfile.REGTYPE, tarfile.AREGTYPE} or member.sparse is not None:
                raise PackageError("bad_file", f"member {member.name[:80]!r} is no regular file")
            # 3. A plain name, once.
            if member.name not in _LIMITS:
                WheelName.parse(member.name)
            if member.name in seen:
                raise PackageError("bad_file", f"member {member.name[:80]!r} is there twice")
            seen.add(member.name)
            # 4. Bounded.
            if member.size > _LIMITS.get(member.name, MAX_WHEEL_BYTES) or len(seen) > MAX_WHEELS + len(_LIMITS):
                raise PackageError("bad_file", f"member {member.name[:80]!r} is too large, or there are too many")
            content = tar.extractfile(member)
            if content is None:
                raise PackageError("bad_file", f"member {member.name[:80]!r} has no content")
            handle = os.open(folder / member.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            with os.fdopen(handle, "wb") as out:
                shutil.copyfileobj(content, out, 1024 * 1024)
                out.flush()
                os.fsync(out.fileno())
    sync_folder(folder)
