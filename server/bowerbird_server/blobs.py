"""The blob store: bytes under their own SHA-256, written once, durable before the caller hears of it.

In: bytes or files. Out: 64 hex digits, and the bytes back. `BlobStore` is the seam; `LocalBlobs` keeps one file per blob in
`root/ab/cd...`. A sidecar is a small named file beside a blob (a frame's header), so that the catalogue can be built again from
here. It knows nothing of frames, never overwrites good content and never deletes unless told which blob.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

from bowerbird_server.errors import BadInput, EnvironmentFault, NotFound

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SIDECAR = re.compile(r"[a-z0-9][a-z0-9._-]{0,120}")
_STALE_TEMPORARY_S = 24 * 3600.0
_SYNC_TOGETHER = 4  # from this many files on, flushing the file system once is cheaper than flushing each file


@dataclass(frozen=True)
class Sidecar:
    """A small file `<blob>.<name>` beside a blob; unlike a blob it may be written again."""

    blob: str
    name: str
    data: bytes


class BlobStore(Protocol):
    """Content-addressed bytes. A digest that a put has returned survives a power cut."""

    def put(self, data: bytes) -> str:
        """Store `data`; returns its SHA-256, 64 hex digits."""

    def put_many(self, items: Sequence[bytes], sidecars: Sequence[Sidecar] = ()) -> list[str]:
        """Store several blobs and sidecars with one flush; returns the digests in order."""

    def put_file(self, path: Path) -> str:
        """Store a file's content without holding it in memory."""

    def read(self, digest: str) -> bytes:
        """The blob's bytes; NotFound when there is no such blob."""

    def open(self, digest: str) -> BinaryIO:
        """The blob as a stream; NotFound when there is no such blob."""

    def path(self, digest: str) -> Path:
        """A local file with the blob's bytes, for programs that need a path; it must not be written to."""

    def exists(self, digest: str) -> bool:
        """Whether the blob is here."""

    def verify(self, digest: str) -> bool:
        """Whether the blob is here and its bytes still have this digest."""

    def sidecars(self, digest: str) -> dict[str, bytes]:
        """The sidecars of a blob by name."""

    def digests(self) -> Iterator[str]:
        """Every blob in the store, in no order."""

    def delete(self, digest: str) -> bool:
        """Remove a blob and its sidecars; whether it was there."""


def check_digest(digest: str) -> str:
    """`digest`, if it is 64 lower-case hex digits.

    Raises:
        BadInput: it is not; nothing else may become part of a path.
    """
    if _DIGEST.fullmatch(digest) is None:
        raise BadInput(f"{digest[:80]!r} is not a SHA-256 digest of 64 hex digits")
    return digest


def _environment_fault(error: OSError, root: Path) -> NoReturn:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise EnvironmentFault(
            f"the disk of {root} is full: free space or move the data folder to a larger disk; nothing accepted was lost"
        ) from error
    raise EnvironmentFault(
        f"cannot write below {root}: {error.strerror}. Check that the folder is there and writable."
    ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class LocalBlobs:
    """Blobs as files below one folder: temporary file, flush, rename, flush of the folder.

    Args:
        root: the store's folder; made when missing.

    Raises:
        EnvironmentFault: the folder cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._temporary = root / "tmp"
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _environment_fault(error, root)
        self._serial = 0
        self._syncfs = _find_syncfs()
        self._sweep()

    def _sweep(self) -> None:
        # What a killed writer left behind. Other processes write here too, so only what is old goes.
        horizon = time.time() - _STALE_TEMPORARY_S
        for left in self._temporary.iterdir():
            with suppress(OSError):
                if left.stat().st_mtime < horizon:
                    left.unlink()

    def path(self, digest: str) -> Path:
        """Where the blob's file is or would be; the caller must not write to it."""
        return self.root / check_digest(digest)[:2] / digest

    def exists(self, digest: str) -> bool:
        """Whether the blob is here."""
        return self.path(digest).is_file()

    def put(self, data: bytes) -> str:
        """Store `data`; returns its SHA-256.

        Raises:
            EnvironmentFault: the disk is full or not writable.
        """
        return self.put_many([data])[0]

    def put_many(self, items: Sequence[bytes], sidecars: Sequence[Sidecar] = ()) -> list[str]:
        """Store a group with one flush for all contents and one for all names.

        Returns:
            The digests in the order of `items`; on return all of it survives a power cut.

        Raises:
            EnvironmentFault: the disk is full or not writable; blobs of the group may or may not be stored, none in part.
        """
        digests = [hashlib.sha256(data).hexdigest() for data in items]
        wanted: dict[Path, bytes] = {}
        for digest, data in zip(digests, items, strict=True):
            final = self.path(digest)
            if not self._is_stored(final, len(data)):
                wanted[final] = data
        for sidecar in sidecars:
            if _SIDECAR.fullmatch(sidecar.name) is None:
                raise BadInput(f"sidecar name {sidecar.name[:80]!r} must be lower-case letters, digits, '.', '_' and '-'")
            final = self.path(sidecar.blob)
            final = final.with_name(f"{final.name}.{sidecar.name}")
            if not final.is_file() or final.read_bytes() != sidecar.data:
                wanted[final] = sidecar.data
        written: list[tuple[Path, Path]] = []
        try:
            for final, data in wanted.items():
                temporary = self._new_temporary()
                written.append((temporary, final))
                temporary.write_bytes(data)
            self._commit(written)
        except OSError as error:
            _environment_fault(error, self.root)
        finally:
            for temporary, _ in written:
                temporary.unlink(missing_ok=True)
        return digests

    def put_file(self, path: Path) -> str:
        """Store a file's content.

        Raises:
            BadInput: the file cannot be read.
            EnvironmentFault: the disk is full or not writable.
        """
        temporary = self._new_temporary()
        digest = hashlib.sha256()
        try:
            source = path.open("rb")
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from error
        try:
            with source, temporary.open("wb") as target:
                while piece := source.read(1 << 20):
                    digest.update(piece)
                    target.write(piece)
            final = self.path(digest.hexdigest())
            if not self._is_stored(final, temporary.stat().st_size):
                self._commit([(temporary, final)])
        except OSError as error:
            _environment_fault(error, self.root)
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest()

    def read(self, digest: str) -> bytes:
        """The blob's bytes.

        Raises:
            NotFound: there is no such blob.
        """
        with self.open(digest) as stream:
            return stream.read()

    def open(self, digest: str) -> BinaryIO:
        """The blob as a stream.

        Raises:
            NotFound: there is no such blob.
        """
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError as error:
            raise NotFound(f"no blob {digest[:12]} in {self.root}; restore it from a backup of the data folder") from error

    def verify(self, digest: str) -> bool:
        """Whether the blob is here and its bytes still have this digest."""
        try:
            with self.open(digest) as stream:
                found = hashlib.sha256()
                while piece := stream.read(1 << 20):
                    found.update(piece)
        except NotFound:
            return False
        return found.hexdigest() == digest

    def sidecars(self, digest: str) -> dict[str, bytes]:
        """The sidecars of a blob by name."""
        blob = self.path(digest)
        return {file.name[len(digest) + 1 :]: file.read_bytes() for file in sorted(blob.parent.glob(f"{digest}.*"))}

    def digests(self) -> Iterator[str]:
        """Every blob in the store, in no order."""
        for shard in self.root.iterdir():
            if len(shard.name) == 2 and shard.is_dir():
                yield from (file.name for file in shard.iterdir() if _DIGEST.fullmatch(file.name))

    def delete(self, digest: str) -> bool:
        """Remove a blob and its sidecars; whether it was there."""
        blob = self.path(digest)
        there = blob.is_file()
        if blob.parent.is_dir():
            for file in (*blob.parent.glob(f"{digest}.*"), blob):
                file.unlink(missing_ok=True)
            sync_folder(blob.parent)
        return there

    def free_share(self) -> float:
        """Free share of the store's disk in [0, 1]."""
        usage = shutil.disk_usage(self.root)
        return usage.free / usage.total

    def free_bytes(self) -> int:
        """Free bytes on the store's disk."""
        return shutil.disk_usage(self.root).free

    def _new_temporary(self) -> Path:
        self._serial += 1
        return self._temporary / f"{os.getpid()}-{id(self):x}-{self._serial}"

    def _is_stored(self, final: Path, size: int) -> bool:
        # Create-only: a name that is there has its content. A wrong size can only be damage, and then a fresh copy is a gift.
        try:
            stored = final.stat().st_size
        except FileNotFoundError:
            return False
        if stored != size:
            log.warning("blob %s is damaged on disk (%s bytes instead of %s); storing it again", final.name[:12], stored, size)
            return False
        return True

    def _commit(self, written: Sequence[tuple[Path, Path]]) -> None:
        """Contents durable, then names, then the names durable: a name never shows bytes that are not on disk."""
        if not written:
            return
        folders = {final.parent for _, final in written}
        for folder in folders:
            if not folder.is_dir():
                folder.mkdir(exist_ok=True)
                sync_folder(self.root)
        if self._syncfs is not None and len(written) >= _SYNC_TOGETHER:
            self._flush_all()
            for temporary, final in written:
                temporary.replace(final)
            self._flush_all()
            return
        for temporary, _ in written:
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        for temporary, final in written:
            temporary.replace(final)
        for folder in folders:
            sync_folder(folder)

    def _flush_all(self) -> None:
        assert self._syncfs is not None  # noqa: S101 - the caller has asked; this is for the type checker
        handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if self._syncfs(handle) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(handle)


def _find_syncfs() -> ctypes._NamedFuncPointer | None:
    """Linux's syncfs(2), which flushes one file system; None where there is none and files are flushed one by one."""
    try:
        function = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int]
    function.restype = ctypes.c_int
    return function
