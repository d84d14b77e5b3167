"""The engines that this device has built: a folder that gives back only what was put in here, for the stack that runs now.

In: keys and engines. Out: the bytes of an engine, or nothing. An engine is a network that a runtime compiled for one machine: code
for one GPU and one TensorRT, a compiled model of OpenVINO for one processor. It is never taken from anybody. The folder is the owner's
alone; an index of digests, written after the engine is safe on the disk, says which files count, so that a half-written, foreign or
changed file is as good as absent. It builds nothing.

A file is `MAGIC`, the length of a JSON text in four bytes, that text (the key, for people), then the engine.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bowerbird_models.durable import write_durably
from bowerbird_models.errors import RuntimeMissing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

MAGIC = b"BOWERBIRD-ENGINE\n"
RECIPE = 2  # of the builds; raised when they build otherwise from the same key
MAX_ENGINES = 8  # active, candidate, previous and factory, in two precisions while they are compared
MAX_ENGINE_BYTES = 2**31
_INDEX, _LOCK = "index.json", ".lock"
_HEADER_LENGTH_BYTES = 4


@dataclass(frozen=True)
class Stack:
    """What an engine is tied to. Another value of any of these, and every engine is built again.

    Args:
        device: the GPU's or the processor's name.
        capability: what it can compute: a GPU's compute capability, such as "8.7"; a digest of a processor's instruction sets.
        runtime: name and full version of what compiled it.
        recipe: how we build.
    """

    device: str
    capability: str
    runtime: str
    recipe: int = RECIPE


@dataclass(frozen=True)
class EngineKey:
    """What an engine was built from and for.

    Args:
        onnx_digest: SHA-256 of the ONNX file, 64 hex digits.
        stack: device, runtime and recipe.
        precision: "fp32", "fp16" or "bf16".
        form: whatever else it is tied to: the largest input and the stride of smaller ones for TensorRT, threads for OpenVINO.
    """

    onnx_digest: str
    stack: Stack
    precision: str
    form: str

    def digest(self) -> str:
        """SHA-256 over all of it, 64 hex digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class EngineCache:
    """Engines and timing caches in one folder.

    Args:
        folder: made if it is not there; must belong to this user and be writable for nobody else.

    Raises:
        RuntimeMissing: the folder cannot be made, or somebody else may write in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """One build at a time, over all processes; whoever waited looks for the engine again."""
        handle = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def part(self, name: str) -> Path:
        """Where a build may write before it is admitted; swept up by the next one if it dies."""
        return self._folder / f".{name}.part"

    def load(self, key: EngineKey) -> bytes | None:
        """The engine for a key; None if there is none that this device built and nobody changed."""
        content = self._checked(f"{key.digest()}.engine")
        if content is None:
            return None
        start = len(MAGIC) + _HEADER_LENGTH_BYTES
        size = int.from_bytes(content[len(MAGIC) : start], "big")
        return content[start + size :]

    def admit(self, key: EngineKey, engine: bytes) -> None:
        """Keep an engine that was just built here. Call it inside `building`."""
        header = json.dumps(asdict(key), sort_keys=True).encode()
        content = MAGIC + len(header).to_bytes(_HEADER_LENGTH_BYTES, "big") + header + engine
        self._keep(f"{key.digest()}.engine", content, key.stack)

    def timing_cache(self, stack: Stack) -> bytes:
        """What earlier builds on this stack measured; empty at first."""
        return self._checked(_timing_name(stack)) or b""

    def admit_timing_cache(self, stack: Stack, content: bytes) -> None:
        """Keep what a build measured. Call it inside `building`."""
        self._keep(_timing_name(stack), content, stack)

    def sweep(self, stack: Stack) -> None:
        """Remove what other stacks built, unfinished and unknown files, and all but the newest engines. Inside `building`."""
        index = self._index()
        here = [name for name, entry in index.items() if entry.get("stack") == asdict(stack)]
        engines = [name for name in here if name.endswith(".engine")]  # in the order in which they were admitted
        kept = {name: index[name] for name in here if name not in engines[:-MAX_ENGINES]}
        if kept.keys() != index.keys():
            self._write_index(kept)
        for path in self._folder.iterdir():
            if path.suffix in {".engine", ".timing", ".part"} and path.name not in kept:
                path.unlink(missing_ok=True)
                logger.info("removed %s from the engine folder: built by another stack, unfinished or superseded", path.name)

    def _keep(self, name: str, content: bytes, stack: Stack) -> None:
        # The engine first, then the index: a crash between the two leaves a file that does not count.
        write_durably(self._folder / name, content, 0o600)
        index = self._index()
        index.pop(name, None)
        self._write_index({**index, name: {"sha256": hashlib.sha256(content).hexdigest(), "stack": asdict(stack)}})

    def _checked(self, name: str) -> bytes | None:
        """A file's content if the index vouches for these very bytes."""
        entry = self._index().get(name)
        if entry is None:
            return None
        try:
            with (self._folder / name).open("rb") as file:
                content = file.read(MAX_ENGINE_BYTES + 1)
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
            logger.warning("%s in the engine folder is not what was built here; it is built again", name)
            return None
        return content

    def _index(self) -> dict[str, dict[str, Any]]:
        path = self._folder / _INDEX
        try:
            _check_private(path)
            found = json.loads(path.read_bytes())
        except (OSError, ValueError, RuntimeMissing) as error:
            if path.exists():
                logger.warning("the index of the engine folder does not count (%s); engines are built again", error)
            return {}
        if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
            return {}
        return found

    def _write_index(self, index: dict[str, dict[str, Any]]) -> None:
        write_durably(self._folder / _INDEX, json.dumps(index, indent=1).encode(), 0o600)


def provider_folder(engine_dir: Path, *facts: str) -> Path:
    """Where ONNX Runtime's TensorRT provider may keep its own engines: a folder for each combination of facts.

    The provider names an engine by the graph, not by the weights, and two trainings of one architecture have the same graph: in
    one folder the second model would run with the first one's weights.

    Args:
        engine_dir: the agent's folder of engines.
        facts: everything that such an engine depends on, the digest of the file first.

    Raises:
        RuntimeMissing: as `EngineCache`.
    """
    private_folder(engine_dir)
    root = private_folder(engine_dir / "onnxruntime")
    folder = private_folder(root / hashlib.sha256("\n".join(facts).encode()).hexdigest())
    os.utime(folder)  # used now; the longest unused go first
    folders = sorted((found for found in root.iterdir() if found.is_dir()), key=lambda found: found.stat().st_mtime_ns)
    for old in folders[:-MAX_ENGINES]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def private_folder(folder: Path) -> Path:
    """Make a folder, or check one: it must belong to this user and be writable for nobody else.

    Raises:
        RuntimeMissing: it cannot be made, or somebody else may write in it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(folder)
    except OSError as error:
        raise RuntimeMissing(f"engine_dir {folder} cannot be used ({error.strerror}); name another folder") from error
    return folder


def _timing_name(stack: Stack) -> str:
    return hashlib.sha256(json.dumps(asdict(stack), sort_keys=True).encode()).hexdigest()[:32] + ".timing"


def _check_private(path: Path) -> None:
    found = path.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise RuntimeMissing(
            f"{path} belongs to somebody else or others may write to it, and engines are code; "
            f"chown it to the agent's user and chmod go-w {path}, or name another engine_dir"
        )
