"""Parts of frames that come in chunks, kept until they are whole: files whose names are the index.

In: chunks that were checked, questions what is there. Out: bitmaps; whole messages. A part is one file
`<root>/<device>/<transfer>-<size of the message>/<first block>-<bytes>`, written, flushed and renamed before anybody hears of it, so
that any number of processes may put parts of one transfer, each may die at any time, and whoever finds the set complete takes it. Room
is bounded by age, by bytes and transfers of a device; what is given up is asked for again by the device. It verifies that a whole
message has the name of its transfer; whether it is a good frame `arrival.py` says.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bowerbird_models.durable import sync_folder
from bowerbird_server.errors import EnvironmentFault
from bowerbird_wire.codec import decode_frame_header
from bowerbird_wire.errors import WireError
from bowerbird_wire.messages import Chunk, FrameHeader
from bowerbird_wire.transfer import BLOCK_BYTES, Receiving, block_count, from_bitmap, run_bytes, transfer_id

log = logging.getLogger(__name__)

MAX_DEVICE_BYTES = 64 * 1024**2
MAX_DEVICE_TRANSFERS = 64
MAX_AGE_S = 7 * 24 * 3600.0
_SWEEP_EVERY_S = 3600.0
_TRANSFER = re.compile(r"([0-9a-f]{32})-([1-9][0-9]{0,8})")
_PART = re.compile(r"([0-9]{1,5})-([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class TransferKey:
    """Which transfer: its name counts together with the device's only, so that no device can spoil another's."""

    device: str
    transfer: bytes
    total_bytes: int

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.transfer.hex()}-{self.total_bytes}"


class ChunkStore:
    """The parts of all transfers.

    Args:
        root: the folder; made when missing.
        max_device_bytes, max_device_transfers: above these a device's oldest other transfers are given up.
        max_age_s: a transfer that nothing was added to for so long is given up.

    Raises:
        EnvironmentFault: the folder cannot be made.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_device_bytes: int = MAX_DEVICE_BYTES,
        max_device_transfers: int = MAX_DEVICE_TRANSFERS,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        self.root = root
        self._max_device_bytes = max_device_bytes
        self._max_device_transfers = max_device_transfers
        self._max_age_s = max_age_s
        self._serial = 0
        self._swept_s = 0.0
        try:
            self._temporary = root / ".tmp"
            self._temporary.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._fault(error) from error

    def put(self, chunks: Sequence[tuple[str, Chunk]]) -> list[TransferKey]:
        """Store (device, chunk) pairs; on return all of them survive a power cut.

        Args:
            chunks: of `transfer.check_chunk`'s approval, from devices whose names were checked.

        Returns:
            The transfers that they belong to, each once.

        Raises:
            EnvironmentFault: the disk is full or not writable; some may be stored, none in part.
        """
        keys: dict[TransferKey, None] = {}
        folders: set[Path] = set()
        try:
            for device, chunk in chunks:
                key = TransferKey(device, chunk.transfer, chunk.total_bytes)
                if key not in keys:
                    keys[key] = None
                    self._make_room(key)
                folders |= self._put(key, chunk)
            for folder in folders:
                sync_folder(folder)
        except OSError as error:
            raise self._fault(error) from error
        self._sweep()
        return list(keys)

    def bitmap(self, key: TransferKey) -> bytes:
        """Which blocks of a transfer are here."""
        return self._receiving(key).bitmap()

    def whole(self, key: TransferKey) -> bytes | None:
        """The message once all of it is here, else None.

        A set of parts that is complete and does not have the transfer's name is given up: the disk was at fault, or the device.

        Raises:
            NotTheMessage: that.
        """
        if not self._receiving(key).complete:
            return None
        message = bytearray(key.total_bytes)
        for first, size, path in self._parts(key):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                return None  # another process has found it complete as well, and was faster
            if len(data) != size:
                path.unlink(missing_ok=True)
                log.warning("part %s is damaged on the disk; the device is asked for it again", path)
                return None
            message[first * BLOCK_BYTES : first * BLOCK_BYTES + size] = data
        if transfer_id(bytes(message)) != key.transfer:
            self.drop(key)
            raise NotTheMessage(f"{key.total_bytes} bytes in parts are not the message that they were sent as")
        return bytes(message)

    def drop(self, key: TransferKey) -> None:
        """Remove a transfer's parts; what is not there is fine."""
        shutil.rmtree(self._folder(key), ignore_errors=True)

    def erase(self, device: str, covers: Callable[[FrameHeader], bool]) -> int:
        """Drop the unfinished transfers of a device's frames that somebody wants forgotten; returns how many.

        One whose header is not here yet cannot be told from those: it is dropped as well, and the device sends it again if it
        still has it.
        """
        dropped = 0
        for _, _, folder in self._transfers(device):
            match = _TRANSFER.fullmatch(folder.name)
            if match is None:
                continue
            header = self._header(TransferKey(device, bytes.fromhex(match[1]), int(match[2])))
            if header is None or covers(header):
                shutil.rmtree(folder, ignore_errors=True)
                dropped += 1
        return dropped

    def devices(self) -> list[str]:
        """The devices of which parts are here."""
        return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir() and entry.name != self._temporary.name)

    # -- inside

    def _header(self, key: TransferKey) -> FrameHeader | None:
        """The header of the message that a transfer's first parts begin with, None while it is not whole or is none."""
        begun = bytearray()
        for first, size, path in sorted(self._parts(key)):
            if first * BLOCK_BYTES > len(begun):
                break
            with suppress(FileNotFoundError):
                begun[first * BLOCK_BYTES :] = path.read_bytes()[:size]
        try:
            return decode_frame_header(bytes(begun))[0]
        except WireError:
            return None

    def _folder(self, key: TransferKey) -> Path:
        return self.root / key.device / key.folder

    def _parts(self, key: TransferKey) -> Iterator[tuple[int, int, Path]]:
        """(first block, bytes, file) of what is here; a file that is no part is left alone."""
        try:
            found = sorted(os.scandir(self._folder(key)), key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        for entry in found:
            match = _PART.fullmatch(entry.name)
            if match is None:
                continue
            first, size = int(match[1]), int(match[2])
            if first * BLOCK_BYTES + size <= key.total_bytes:
                yield first, size, Path(entry.path)

    def _receiving(self, key: TransferKey) -> Receiving:
        return Receiving(key.total_bytes, ((first, block_count(size)) for first, size, _ in self._parts(key)))

    def _put(self, key: TransferKey, chunk: Chunk) -> set[Path]:
        """Write the blocks of a chunk that are not here yet; returns the folders whose names must be flushed."""
        count = block_count(key.total_bytes)
        have = from_bitmap(self._receiving(key).bitmap(), count)
        blocks = range(chunk.first_block, chunk.first_block + block_count(len(chunk.data)))
        folder = self._folder(key)
        changed: set[Path] = set()
        # Only what is missing: overlapping chunks could otherwise take many times the room of their message.
        for first, length in _runs([block for block in blocks if block not in have]):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                changed |= {folder.parent, self.root}
            at = (first - chunk.first_block) * BLOCK_BYTES
            size = run_bytes(key.total_bytes, first, length)
            self._write(folder / f"{first}-{size}", chunk.data[at : at + size])
            changed.add(folder)
        return changed

    def _write(self, path: Path, data: bytes) -> None:
        self._serial += 1
        temporary = self._temporary / f"{os.getpid()}-{id(self):x}-{self._serial}"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _make_room(self, key: TransferKey) -> None:
        """Before a transfer grows: give up the device's oldest others, so that with all of this one the device has not too much."""
        others = [found for found in self._transfers(key.device) if found[2].name != key.folder]
        others.sort(reverse=True)  # newest first
        room, number = self._max_device_bytes - key.total_bytes, 1
        for _, size, folder in others:
            room -= size
            number += 1
            if room < 0 or number > self._max_device_transfers:
                log.warning(
                    "device %s: gave up parts of a frame for want of room (%s); it sends them again", key.device, folder.name
                )
                shutil.rmtree(folder, ignore_errors=True)

    def _transfers(self, device: str) -> list[tuple[float, int, Path]]:
        """(time of the last change, bytes here, folder) of a device's transfers."""
        found = []
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.root / device):
                match = _TRANSFER.fullmatch(entry.name)
                if match is None:
                    continue
                with suppress(FileNotFoundError):
                    key = TransferKey(device, bytes.fromhex(match[1]), int(match[2]))
                    size = sum(part for _, part, _ in self._parts(key))
                    found.append((entry.stat().st_mtime, size, Path(entry.path)))
        return found

    def _sweep(self) -> None:
        """Now and then: what nobody has added to for long, and what a killed writer left."""
        now_s = time.time()
        if 0 <= now_s - self._swept_s < _SWEEP_EVERY_S:
            return
        self._swept_s = now_s
        for device in [entry.name for entry in os.scandir(self.root) if entry.is_dir() and entry.name != self._temporary.name]:
            for changed_s, _, folder in self._transfers(device):
                if now_s - changed_s > self._max_age_s:
                    log.info("device %s: gave up parts of a frame that never became whole (%s)", device, folder.name)
                    shutil.rmtree(folder, ignore_errors=True)
        for left in os.scandir(self._temporary):
            with suppress(FileNotFoundError):
                if now_s - left.stat().st_mtime > _SWEEP_EVERY_S:
                    Path(left.path).unlink()

    def _fault(self, error: OSError) -> EnvironmentFault:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return EnvironmentFault(f"the disk of {self.root} is full: free space; devices keep their frames")
        return EnvironmentFault(
            f"cannot write below {self.root}: {error.strerror}. Check that the folder is there and writable."
        )


class NotTheMessage(ValueError):
    """Parts that are complete and not what they were sent as."""


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending block numbers as (first, count) of what lies together."""
    first = None
    for position, block in enumerate(blocks):
        if first is None:
            first = block
        if position + 1 == len(blocks) or blocks[position + 1] != block + 1:
            yield first, block - first + 1
            first = None
