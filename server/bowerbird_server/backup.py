"""Backups of a site while it runs, and a site from a backup.

In: an open site, or a backup's folder. Out: `DIR/blobs` and one folder of the rest, named by its time and complete only once it holds
`backup.json`; or a data folder. A second backup into the same folder copies only blobs that are new there. Private keys, passwords and
tokens are left out unless asked for. Data sets laid out, trainings, logs and payloads of dead letters are never in it: they can be
made again or are of no use elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from bowerbird_models.durable import write_durably
from bowerbird_server.blobs import LocalBlobs, sync_folder
from bowerbird_server.catalogue import accounts, campaigns, device_config, fleet, frames, kept
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.catalogue.identity import forget_tokens
from bowerbird_server.catalogue.rebuild import read_records
from bowerbird_server.catalogue.record_keeping import keep_records
from bowerbird_server.catalogue.verify import verify_rows
from bowerbird_server.config import CONFIG_NAME
from bowerbird_server.errors import BadInput, Conflict, EnvironmentFault, NotFound, ServerError
from bowerbird_server.layout import DataFolder
from bowerbird_server.privacy.deletion_log import NAME as LOG_NAME
from bowerbird_server.privacy.deletion_log import DeletionLog
from bowerbird_server.privacy.erase import replay
from bowerbird_server.releases.repository import raise_later
from bowerbird_server.sealed import seal, unseal
from bowerbird_server.site import Site

OnProgress = Callable[[str, int, int], None]

RAISE_BY = 1000
"""How far counters are raised at a restore: more than a site does between two backups."""

_KIND = "bowerbird backup 1"
_MANIFEST = "backup.json"
_BLOB_LIST = "blobs.txt"
_SEALED = "private.sealed"
_PLAIN = ("packages", "agents", "repository", CONFIG_NAME)
_PRIVATE = ("keys", "identity", "broker", "devices", "web.json")
_GROUP_BLOBS, _GROUP_BYTES = 64, 32 * 1024**2


@dataclass(frozen=True)
class BackedUp:
    """`blobs` are in the backup, `copied` of them are new there; `damaged` ones at the source are neither in it nor in an earlier one.

    `lacks` says, in sentences, what the catalogue names and the backup does not hold.
    """

    made_at: str
    blobs: int
    copied: int
    bytes: int
    with_keys: bool
    damaged: tuple[str, ...]
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Restored:
    """`missing` names what the restored catalogue speaks of and the backup did not hold; `with_keys` whether keys came along;
    `erased` frames were in the backup and, as the log of deletions says, are no more."""

    made_at: str
    frames: int
    blobs: int
    with_keys: bool
    missing: tuple[str, ...]
    erased: int = 0


def back_up(
    site: Site,
    target: Path,
    *,
    with_keys: bool = False,
    passphrase: str | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> BackedUp:
    """Back a site up, also while its server runs: the catalogue as it is in one moment, and every blob that it names.

    What is damaged or missing in the site is left out and told: the rest of the site is not to go without a backup because of it, and
    a good copy that an earlier backup has brought here stays.

    Args:
        target: a new folder, or one that holds an earlier backup, which this one replaces when it is complete.
        with_keys: also signing keys, passwords and the web token; the folder then needs the care that they need, unless they are
            sealed.
        passphrase: seals what `with_keys` brings; None writes it as it is.

    Raises:
        BadInput: `target` holds other things, or lies in the data folder.
        EnvironmentFault: it cannot be written.
    """
    target = target.resolve()
    _check_target(target, site.folder)
    made = datetime.now(UTC)
    made_at = made.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    stamp = f"{made:%Y%m%dT%H%M%S}-{made.microsecond:06d}Z"
    fresh = target / stamp
    try:
        fresh.mkdir(parents=True, mode=0o700)
        keep_records(site.catalogue, site.blobs)
        _copy_catalogue(site.folder.catalogue, fresh / "catalogue.db")
        store = LocalBlobs(target / "blobs")
        copied, damaged = _copy_blobs(site.blobs, store, list(site.blobs.digests()), on_progress)
        blobs, size = _write_blob_list(store, fresh / _BLOB_LIST)
        sealed = with_keys and passphrase is not None
        names = (*_PLAIN, *(_PRIVATE if with_keys and not sealed else ()))
        for name in names:
            _copy_tree(site.folder.root / name, fresh / name)
        if with_keys and passphrase is not None:
            root = site.folder.root
            private = [
                path for name in _PRIVATE for path in ([root / name] if (root / name).is_file() else _files(root / name))
            ]
            write_durably(fresh / _SEALED, seal(root, sorted(private), passphrase))
        lacks = _lacking(fresh / "catalogue.db", store, damaged)
        manifest = {
            "kind": _KIND,
            "made_at": made_at,
            "site": site.config.site,
            "with_keys": with_keys,
            "sealed": sealed,
            "blobs": blobs,
            "lacks": list(lacks),
            "files": {str(path.relative_to(fresh)): _digest(path) for path in sorted(fresh.rglob("*")) if path.is_file()},
        }
        write_durably(fresh / _MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
        sync_folder(target)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise EnvironmentFault(
            f"cannot write the backup to {target}: {error.strerror}; free space or choose another folder"
        ) from error
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    # Apart from the backup itself: it only grows, and the newest of all copies counts whatever backup is restored.
    DeletionLog(target / LOG_NAME).add_missing(DeletionLog(site.folder.deletions))
    for old in target.iterdir():
        if old.is_dir() and old.name not in {stamp, "blobs"}:
            shutil.rmtree(old)
    for blob in frames.without_live_frame(site.catalogue, frames.blobs_of_deleted(site.catalogue)):
        store.delete(blob)  # what was deleted for good does not live on in a backup
    return BackedUp(made_at, blobs, copied, size, with_keys, tuple(damaged), lacks)


def restore(
    source: Path,
    data: Path,
    actor: str,
    on_progress: OnProgress = lambda *_: None,
    *,
    deletions: Sequence[Path] = (),
    passphrase: str | None = None,
) -> Restored:
    """Make a data folder from a backup: every file and blob is compared with its digest, and counters are raised.

    Args:
        source: a folder that `back_up` wrote.
        data: a new or empty folder.
        deletions: logs of deletions that are newer than the backup, of the lost data folder or beside other backups; the one beside
            this backup is read anyway. What they say is deleted does not come back.
        passphrase: that the backup's keys are sealed with.

    Raises:
        BadInput: a log of deletions is not there, or the keys are sealed and the passphrase is missing or wrong.
        NotFound: `source` holds no complete backup.
        Conflict: `data` holds something.
        EnvironmentFault: a file of the backup is damaged, or `data` cannot be written; `data` is left empty.
    """
    backup, manifest = _newest(source)
    absent = [path for path in deletions if not path.is_file()]
    if absent:
        raise BadInput(
            f"there is no log of deletions {absent[0]}; without it erased frames would come back, so nothing was restored"
        )
    if manifest.get("sealed") and passphrase is None:
        raise BadInput("the backup's keys are sealed; name the file with their passphrase: --passphrase-file FILE")
    folder = DataFolder(data.resolve())
    if folder.root.exists() and any(folder.root.iterdir()):
        raise Conflict(f"{folder.root} is not empty; restore into a new folder, then point --data at it")
    try:
        folder.make()
        for name, digest in manifest["files"].items():
            _restore_file(backup / name, folder.root / name, digest)
        digests = [line.split()[0] for line in (backup / _BLOB_LIST).read_text().splitlines() if line.strip()]
        (folder.root / _BLOB_LIST).unlink()
        if passphrase is not None and (folder.root / _SEALED).exists():
            unseal((folder.root / _SEALED).read_bytes(), passphrase, folder.root)
            (folder.root / _SEALED).unlink()
        store = LocalBlobs(folder.blobs)
        _, damaged = _copy_blobs(LocalBlobs(source / "blobs"), store, digests, on_progress)
        for name in _PRIVATE:
            _make_private(folder.root / name)
        with Catalogue(folder.catalogue) as cat:
            _apply_tombstones(cat, store, actor)
            erased = _replay_deletions(folder, [source / LOG_NAME, *deletions], cat, store, actor)
            fleet.raise_desired_versions(cat, RAISE_BY)
            forget_tokens(cat)
            accounts.forget_credentials(cat, actor)
            campaigns.after_restore(cat)
            device_config.after_restore(cat, RAISE_BY)
            cat.log(actor, "site restored", str(manifest["site"]), {"made_at": manifest["made_at"], "raised_by": RAISE_BY})
            broken = kept.faults(cat)
            missing = [fault.text for fault in verify_rows(cat, store, read=False).faults]
            count = len(frames.blobs_of(cat))
        if broken:
            raise EnvironmentFault(f"the backup's catalogue does not hold together ({broken[0]}); use another backup")
        raise_later(folder.repository, RAISE_BY)
    except (OSError, ServerError) as error:
        shutil.rmtree(folder.root, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise EnvironmentFault(
            f"cannot restore to {folder.root}: {error.strerror}; free space or choose another folder"
        ) from error
    missing += [f"blob {digest[:12]} is damaged in the backup" for digest in damaged]
    return Restored(manifest["made_at"], count, len(digests), bool(manifest["with_keys"]), tuple(missing), erased)


def _check_target(target: Path, folder: DataFolder) -> None:
    if target == folder.root or folder.root in target.parents:
        raise BadInput(f"{target} lies in the data folder, which it is to outlive; choose a folder on another disk")
    if target.exists() and any(target.iterdir()) and not (target / "blobs").is_dir():
        raise BadInput(f"{target} holds other things and no backup; choose a new folder")


def _copy_catalogue(source: Path, target: Path) -> None:
    """SQLite's online backup in one step, so that a writer cannot make it start again for ever."""
    with closing(sqlite3.connect(source, timeout=30.0)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode = DELETE")
    _sync(target)


def _copy_blobs(
    source: LocalBlobs, target: LocalBlobs, digests: Sequence[str], on_progress: OnProgress
) -> tuple[int, list[str]]:
    """Copy what is not there yet; returns how many and which are damaged at the source. A blob deleted meanwhile is left out."""
    copied, damaged = 0, []
    waiting: list[tuple[str, bytes]] = []
    for done, digest in enumerate(digests, start=1):
        on_progress("copying blobs", done, len(digests))
        if not target.exists(digest):
            try:
                data = source.read(digest)
            except NotFound:
                continue
            if hashlib.sha256(data).hexdigest() != digest:
                damaged.append(digest)
                continue
            waiting.append((digest, data))
            copied += 1
        if len(waiting) >= _GROUP_BLOBS or sum(len(data) for _, data in waiting) >= _GROUP_BYTES:
            _put(target, waiting)
    _put(target, waiting)
    return copied, damaged


def _put(target: LocalBlobs, waiting: list[tuple[str, bytes]]) -> None:
    target.put_many([data for _, data in waiting], [digest for digest, _ in waiting])
    waiting.clear()


def _write_blob_list(store: LocalBlobs, path: Path) -> tuple[int, int]:
    sizes = {digest: store.path(digest).stat().st_size for digest in sorted(store.digests())}
    path.write_text("".join(f"{digest} {size}\n" for digest, size in sizes.items()))
    return len(sizes), sum(sizes.values())


def _copy_tree(source: Path, target: Path) -> None:
    """A file or a folder, if it is there. The update repository's timestamp comes first: what it leads to is never rewritten."""
    if source.is_file():
        shutil.copy2(source, target)
    for path in sorted(_files(source), key=lambda path: path.name != "timestamp.json"):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        for path in folder.rglob("*"):
            if (
                path.is_file()
                and not path.is_symlink()
                and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            ):
                yield path


def _lacking(catalogue: Path, store: LocalBlobs, damaged: Sequence[str]) -> tuple[str, ...]:
    """Blobs that the copied catalogue names, that are not in the backup, and that were not deleted with a tombstone since.

    Args:
        damaged: blobs that could not be copied, since the site's own copy is not what its name says.
    """
    with Catalogue(catalogue) as cat:
        lost = list(verify_rows(cat, store, read=False).faults)
        cat.value("PRAGMA journal_mode = DELETE")
    if any(fault.what == "frame" for fault in lost):
        tombstones = read_records(store).tombstones
        lost = [fault for fault in lost if fault.what != "frame" or fault.key not in tombstones]
    _sync(catalogue)
    return tuple(
        f"{fault.what} {fault.key[:12]}: blob {fault.blob[:12]} is {'damaged' if fault.blob in damaged else fault.kind} in the site "
        f"itself, and not in this backup: {fault.what_to_do}"
        for fault in lost
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """What a backup says of itself.

    Raises:
        EnvironmentFault: it is damaged.
        BadInput: it names a file that would be written outside of the new data folder.
    """
    try:
        manifest: Any = json.loads(path.read_bytes())
        files = manifest["files"]
        whole = all(isinstance(manifest[name], str) for name in ("kind", "made_at", "site"))
        whole = whole and isinstance(manifest["with_keys"], bool) and isinstance(files, dict)
        whole = whole and all(isinstance(digest, str) for digest in files.values())
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise EnvironmentFault(f"{path} is damaged ({type(error).__name__}); use another backup") from error
    if not whole:
        raise EnvironmentFault(f"{path} is damaged; use another backup")
    for name in files:
        if not name or "\0" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BadInput(f"{path} names {name[:80]!r}, which is no file of a data folder; do not use this backup")
    return dict(manifest)


def _newest(source: Path) -> tuple[Path, dict[str, Any]]:
    for backup in sorted((path.parent for path in source.glob(f"*/{_MANIFEST}")), reverse=True):
        manifest = read_manifest(backup / _MANIFEST)
        if manifest.get("kind") == _KIND:
            return backup, manifest
    raise NotFound(f"there is no complete backup in {source}; name the folder that `bowerbird backup` wrote")


def _restore_file(source: Path, target: Path, digest: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copy2(source, target)
    except FileNotFoundError as error:
        raise EnvironmentFault(f"{source} is missing from the backup; use another one") from error
    if _digest(target) != digest:
        raise EnvironmentFault(f"{source} is damaged; use another backup")
    _sync(target)


def _make_private(path: Path) -> None:
    for private in (path, *path.rglob("*")) if path.is_dir() else (path,):
        if private.exists():
            private.chmod(0o700 if private.is_dir() else 0o600)


def _apply_tombstones(cat: Catalogue, store: LocalBlobs, actor: str) -> None:
    """What was deleted while the backup was made stays deleted."""
    states = frames.states_of(cat, sorted(read_records(store).tombstones))
    late = [frame for frame, state in states.items() if state != "deleted"]
    frames.change_state(cat, late, "deleted", actor)
    for blob in frames.without_live_frame(cat, frames.blobs_of_deleted(cat)):
        store.delete(blob)


def _replay_deletions(folder: DataFolder, logs: Sequence[Path], cat: Catalogue, store: LocalBlobs, actor: str) -> int:
    """Bring the logs together in the new folder and carry them out; returns how many frames are deleted by that."""
    log = DeletionLog(folder.deletions)
    for path in logs:
        log.add_missing(DeletionLog(path))
    return replay(log, cat, store, actor)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
