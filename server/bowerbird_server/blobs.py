"""The blob store: bytes under their own SHA-256, written once, durable before the caller hears of it.

In: bytes or files. Out: 64 hex digits, and the bytes back. `BlobStore` is the seam; `LocalBlobs` keeps one file per blob in
`root/ab/abcd...`. It knows nothing of frames, never overwrites good content and never deletes unless told which blob.

A group costs one flush. Contents are flushed under temporary names that hold their digest, then renamed; a rename that a power cut
undoes is done again when the store is next opened, so the names need no flush of their own.
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
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

from bowerbird_server.errors import BadInput, EnvironmentFault, NotFound

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = re.compile(r"(?P<boot>[0-9a-f-]*)\.\d+\.\d+\.(?P<digest>[0-9a-f]{64})")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STALE_TEMPORARY_S = 24 * 3600.0
_SYNC_TOGETHER = 4  # from this many files on, flushing the file system once is cheaper than flushing each file


class BlobStore(Protocol):
    """Content-addressed bytes. A digest that a put has returned survives a power cut."""

    def put(self, data: bytes) -> str:
        """Store `data`; returns its SHA-256, 64 hex digits."""

    def put_many(
        self, items: Sequence[bytes | memoryview], digests: Sequence[str] | None = None, *, also_flush: Sequence[Path] = ()
    ) -> list[str]:
        """Store several blobs with one flush, and make files elsewhere durable with it; returns the digests in order."""

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

    def digests(self) -> Iterator[str]:
        """Every blob in the store, in no order."""

    def delete(self, digest: str) -> bool:
        """Remove a blob; whether it was there."""


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
        self._boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
        self._device = root.stat().st_dev
        self._prefix = f"{root}{os.sep}"
        self._sweep()

    def _sweep(self) -> None:
        """Bring home what was flushed and not renamed when the power went; drop what a killed writer left in part."""
        horizon = time.time() - _STALE_TEMPORARY_S
        for left in self._temporary.iterdir():
            name = _TEMPORARY.fullmatch(left.name)
            with suppress(OSError):
                # Other processes write here too: what is of this boot may be theirs, until it is old.
                if (name is None or name["boot"] == self._boot) and left.stat().st_mtime >= horizon:
                    continue
                if name is not None and _digest_of_file(left) == name["digest"]:
                    final = self.path(name["digest"])
                    final.parent.mkdir(exist_ok=True)
                    left.replace(final)
                else:
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

    def put_many(
        self, items: Sequence[bytes | memoryview], digests: Sequence[str] | None = None, *, also_flush: Sequence[Path] = ()
    ) -> list[str]:
        """Store a group with one flush.

        Args:
            digests: of the items, from a caller that has just computed them.
            also_flush: files elsewhere that are to be as durable on return; free of charge on the same file system.

        Returns:
            The digests in the order of `items`; on return all of it survives a power cut.

        Raises:
            EnvironmentFault: the disk is full or not writable; blobs of the group may or may not be stored, none in part.
        """
        if digests is None:
            digests = [hashlib.sha256(data).hexdigest() for data in items]
        wanted = dict(zip(digests, items, strict=True))
        written: list[tuple[str, str]] = []  # names: temporary and final
        try:
            for digest, data in wanted.items():
                final = self._name(digest)
                if self._is_stored(final, len(data)):
                    continue
                temporary = self._new_temporary(digest)
                written.append((temporary, final))
                _write_new(temporary, data)
            self._commit(written, also_flush)
        except OSError as error:
            for temporary, _ in written:
                Path(temporary).unlink(missing_ok=True)
            _environment_fault(error, self.root)
        return list(digests)

    def put_file(self, path: Path) -> str:
        """Store a file's content.

        Raises:
            BadInput: the file cannot be read.
            EnvironmentFault: the disk is full or not writable.
        """
        temporary = Path(self._new_temporary("part"))
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
            final = self._name(digest.hexdigest())
            if not self._is_stored(final, temporary.stat().st_size):
                temporary = temporary.rename(self._new_temporary(digest.hexdigest()))
                self._commit([(str(temporary), final)])
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
            return _digest_of_file(self.path(digest)) == digest
        except FileNotFoundError:
            return False

    def digests(self) -> Iterator[str]:
        """Every blob in the store, in no order."""
        for shard in self.root.iterdir():
            if len(shard.name) == 2 and shard.is_dir():
                yield from (file.name for file in shard.iterdir() if _DIGEST.fullmatch(file.name))

    def delete(self, digest: str) -> bool:
        """Remove a blob; whether it was there."""
        blob = self.path(digest)
        there = blob.is_file()
        if there:
            blob.unlink(missing_ok=True)
            sync_folder(blob.parent)
        for left in self._temporary.glob(f"*.{digest}"):  # a writer was killed, or writes it again right now
            left.unlink(missing_ok=True)
        if there:
            sync_folder(self._temporary)  # it must not come home from there after a power cut
        return there

    def free_bytes(self) -> int:
        """Free bytes on the store's disk."""
        return shutil.disk_usage(self.root).free

    def _new_temporary(self, digest: str) -> str:
        self._serial += 1
        return f"{self._temporary}{os.sep}{self._boot}.{os.getpid()}.{id(self)}{self._serial}.{digest}"

    def _name(self, digest: str) -> str:
        """As `path`, for the loop that stores frames: a tenth of the time of a `Path`."""
        return f"{self._prefix}{check_digest(digest)[:2]}{os.sep}{digest}"

    def _is_stored(self, name: str, size: int) -> bool:
        # Create-only: a name that is there has its content. A wrong size can only be damage, and then a fresh copy is a gift.
        try:
            stored = os.stat(name).st_size  # noqa: PTH116 - see `_name`
        except FileNotFoundError:
            return False
        if stored != size:
            blob = Path(name).name[:12]
            log.warning("blob %s is damaged on disk (%s bytes instead of %s); storing it again", blob, stored, size)
            return False
        return True

    def _commit(self, written: Sequence[tuple[str, str]], also_flush: Sequence[Path] = ()) -> None:
        """Contents durable under names that say what they are, then the renames: a blob's name never shows bytes not on disk."""
        together = self._syncfs is not None and len(written) + len(also_flush) >= _SYNC_TOGETHER
        if together:
            self._flush_all()
        else:
            for temporary, _ in written:
                _sync_file(temporary)
            if written:
                sync_folder(self._temporary)
        for path in also_flush:
            if not (together and path.stat().st_dev == self._device):
                _sync_file(path)
        for temporary, final in written:
            try:
                os.replace(temporary, final)  # noqa: PTH105 - see `_name`
            except FileNotFoundError:
                Path(final).parent.mkdir(exist_ok=True)
                os.replace(temporary, final)  # noqa: PTH105 - see `_name`
            if not self._boot:  # without a boot id an undone rename would not be found again
                sync_folder(Path(final).parent)
                sync_folder(self.root)

    def _flush_all(self) -> None:
        assert self._syncfs is not None  # noqa: S101 - the caller has asked; this is for the type checker
        handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if self._syncfs(handle) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(handle)


def _write_new(path: str, data: bytes | memoryview) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
    finally:
        os.close(handle)


def _sync_file(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest_of_file(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def _find_syncfs() -> ctypes._NamedFuncPointer | None:
    """Linux's syncfs(2), which flushes one file system; None where there is none and files are flushed one by one."""
    try:
        function = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int]
    function.restype = ctypes.c_int
    return function
