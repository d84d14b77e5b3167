"""What the fleet has enough of, in at most some three kilobytes: centres of embeddings that are labelled many times over.

In: centres, or the bytes of a sketch. Out: the other; and how far an embedding is from all that there is enough of. Server and device
project embeddings onto the same random signs, made from the model's digest, so that neither has to send them: squared distances keep
their size to within a fifth or so at 64 dimensions. A sketch belongs to one model; of another one it says nothing.

Source: Achlioptas, "Database-friendly random projections: Johnson-Lindenstrauss with binary coins" (2003).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import cbor2
import numpy as np
from numpy.typing import NDArray

from bowerbird_wire.errors import MessageError

DIMENSIONS = 64
MAX_CENTRES = 48
MAX_BYTES = 4096
MAX_EMBEDDING = 8192
MODEL_BYTES = 8
_VERSION = 1


@dataclass(frozen=True)
class FleetSketch:
    """A sketch.

    Args:
        model: the first 8 bytes of the digest of the model whose embeddings these are.
        embedding_size: length of its embeddings.
        centres: (k, 64) projected; k at most 48.
        radii: (k,) in [0, 1]: how far from its centre a group still is the same, as 1 - cosine.
    """

    model: bytes
    embedding_size: int
    centres: NDArray[np.float32] = field(compare=False)
    radii: NDArray[np.float32] = field(compare=False)


def model_key(digest: str) -> bytes:
    """What names a model in a sketch; b"" for no digest."""
    try:
        return bytes.fromhex(digest)[:MODEL_BYTES]
    except ValueError:
        return b""


def projection(model: bytes, size: int) -> NDArray[np.float32]:
    """(size, 64) random signs over 8, the same for the same model everywhere."""
    bits = size * DIMENSIONS
    stream = b"".join(
        hashlib.sha256(b"fleet-sketch" + model + block.to_bytes(4, "big")).digest() for block in range(-(-bits // 256))
    )
    signs = np.unpackbits(np.frombuffer(stream, np.uint8))[:bits].reshape(size, DIMENSIONS)
    return np.asarray((signs * 2.0 - 1.0) / math.sqrt(DIMENSIONS), np.float32)


def distance(projected: NDArray[np.float32], sketch: FleetSketch) -> float:
    """How far an embedding is from all that there is enough of: 0 inside a group, else about 1 - cosine; in [0, 1].

    Args:
        projected: (64,) an embedding of length 1 times `projection`.
    """
    apart = sketch.centres - projected
    halves = np.einsum("ij,ij->i", apart, apart) / 2.0  # half the squared distance of unit vectors is 1 - cosine
    return float(np.clip((halves - sketch.radii).min(initial=1.0), 0.0, 1.0))


def encode(sketch: FleetSketch) -> bytes:
    """Centres as signed bytes around their mean, at most `MAX_BYTES` in all.

    Raises:
        ValueError: too many centres, or not of this shape.
    """
    centres = np.asarray(sketch.centres, np.float32)
    if not 1 <= len(centres) <= MAX_CENTRES or centres.shape[1:] != (DIMENSIONS,) or len(sketch.radii) != len(centres):
        raise ValueError(
            f"a sketch has 1 to {MAX_CENTRES} centres of {DIMENSIONS} numbers with a radius each, not {centres.shape}"
        )
    middle = centres.mean(axis=0).astype("<f2")
    apart = centres - middle.astype(np.float32)
    scale = float(np.abs(apart).max()) or 1.0
    fields = {
        "v": _VERSION,
        "m": sketch.model,
        "d": sketch.embedding_size,
        "o": middle.tobytes(),
        "s": scale,
        "c": np.rint(apart / scale * 127).astype(np.int8).tobytes(),
        "r": np.rint(np.clip(sketch.radii, 0, 1) * 255).astype(np.uint8).tobytes(),
    }
    return bytes(cbor2.dumps(fields))


def decode(payload: bytes) -> FleetSketch:
    """The sketch in its bytes, which came over the network.

    Raises:
        MessageError: they are none that this release understands.
    """
    if len(payload) > MAX_BYTES:
        raise MessageError(f"a fleet sketch of {len(payload)} bytes; at most {MAX_BYTES} are read")
    try:
        fields = cbor2.loads(payload)
        version, model, size, scale = fields["v"], fields["m"], fields["d"], fields["s"]
        middle = np.frombuffer(fields["o"], "<f2").astype(np.float32)
        steps = np.frombuffer(fields["c"], np.int8).astype(np.float32).reshape(-1, DIMENSIONS)
        radii = np.frombuffer(fields["r"], np.uint8).astype(np.float32) / 255
    except Exception as error:  # whatever hostile bytes make a parser raise
        raise MessageError(f"a fleet sketch that cannot be read ({type(error).__name__})") from error
    sound = (
        version == _VERSION
        and isinstance(model, bytes)
        and len(model) == MODEL_BYTES
        and type(size) is int
        and 1 <= size <= MAX_EMBEDDING
        and type(scale) is float
        and 0 < scale < 1e3
        and middle.shape == (DIMENSIONS,)
        and bool(np.isfinite(middle).all())
        and 1 <= len(steps) <= MAX_CENTRES
        and len(radii) == len(steps)
    )
    if not sound:
        raise MessageError("a fleet sketch whose parts do not fit together; update the older side")
    centres = np.asarray(middle + steps / 127 * scale, np.float32)
    return FleetSketch(model, size, centres, np.asarray(radii, np.float32))
