"""One ONNX file, read once: its bytes, their digest, what it says about itself.

In: a path. Out: `ModelFile`, whose bytes were checked before any runtime sees them. The metadata is read by our own scan, so that it
is the same whatever runs the network. It loads no runtime.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bowerbird_models.errors import NotAModel, UnsupportedModel
from bowerbird_models.metadata import ModelMetadata, parse_metadata
from bowerbird_models.onnx_file import MAX_FILE_BYTES, check_self_contained, metadata_entries

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class ModelFile:
    """The content of a model file and its SHA-256 in 64 hex digits."""

    content: bytes
    digest: str

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """Read and check a file.

        Raises:
            NotAModel: missing, empty, damaged.
            UnsupportedModel: weights outside the file, or a TensorRT engine.
        """
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise NotAModel(f"cannot read the model {path} ({error.strerror or error}); check the path") from error
        with naming(path):
            refuse_engine(path.name, content)
            check_self_contained(content)
        return cls(content, hashlib.sha256(content).hexdigest())

    def metadata(self) -> ModelMetadata:
        """What the file says about itself.

        Raises:
            NotAModel: no class names, or an entry that is not what Ultralytics writes.
            UnsupportedModel: a task that does not run here.
        """
        return parse_metadata(metadata_entries(self.content))


def refuse_engine(name: str, content: bytes) -> None:
    """Refuse a TensorRT engine: it is code for the GPU and TensorRT of whoever built it.

    Raises:
        UnsupportedModel: named like one, or begins like one: TensorRT's own mark, or the length and JSON that Ultralytics puts
            in front.
    """
    packed = content[4:5] == b"{" and 0 < int.from_bytes(content[:4], "little") < len(content)
    if name.endswith((".engine", ".plan", ".trt")) or content[:4] in {b"ftrt", b"ptrt"} or packed:
        raise UnsupportedModel(
            "this is a TensorRT engine, code for one GPU and one TensorRT; give the ONNX file instead "
            "(`yolo export format=onnx`), the device builds its own engine from it"
        )


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of what is said about it."""
    try:
        yield
    except (NotAModel, UnsupportedModel) as error:
        raise type(error)(f"{path}: {error}") from error
