"""Golden inputs and outputs: a few pictures, and what the model must see in them wherever it runs.

In: a detector and pictures, or the bytes of `golden.npz`. Out: those bytes, the cases in them, and a list of differences. The file
is an NPZ with, for case k, `image_k` (the bytes of a PNG, uint8), `boxes_k` (n, 4) float32, `scores_k` (n,) float32 and
`class_ids_k` (n,) int32: what the float file sees. A quantised file sees a little else, so it has outputs of its own, `boxes_k.ROLE`
and so on: compared with them, a device finds out whether *its* processor computes the file as the server did, and not how much was
lost by quantising (that is the manifest's `accuracy`). It is read without pickle and only after the declared sizes were checked.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from bowerbird_models.detections import Detections
from bowerbird_models.errors import NotAModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bowerbird_models.detector import Detector

CONFIDENCE = 0.25  # golden outputs are compared where the model is reasonably sure; below, rounding decides who is listed
LONG_SIDE_PX = 320  # pictures travel with every package
MAX_CASES = 16
MAX_UNPACKED_BYTES = 128 * 1024 * 1024
MAX_MEMBERS = 256


@dataclass(frozen=True)
class Tolerance:
    """How far golden outputs may be off: `score` in [0, 1], `box_px` in pixels of the golden picture, each edge."""

    score: float = 0.02
    box_px: float = 2.0


@dataclass(frozen=True)
class GoldenCase:
    """One picture, BGR uint8 (H, W, 3), and the detections that it must give."""

    image_bgr: NDArray[np.uint8]
    expected: Detections


INT8_TOLERANCE = Tolerance(score=0.05, box_px=4.0)
"""For quantised files: sums of bytes are exact everywhere, but one step of 256, rounded otherwise, moves a score by a hundredth."""


def encode_golden(
    detector: Detector,
    images: Sequence[Path | NDArray[np.uint8]],
    variants: Mapping[str, Detector] = MappingProxyType({}),
) -> bytes:
    """`golden.npz` with the detectors' own answers; without pictures a drawn test card stands in.

    Args:
        detector: of the float file.
        images: BGR arrays or picture files.
        variants: detectors of the quantised files, by role.

    Raises:
        NotAModel: a picture cannot be read.
        ModelOutputError: the model fails on one of them.
    """
    import cv2

    arrays: dict[str, NDArray[Any]] = {}
    for k, source in enumerate([*images][:MAX_CASES] or [None]):
        image = golden_picture(detector, source)
        # PNG, not JPEG: decoders of JPEG differ in the last bit.
        arrays[f"image_{k}"] = np.asarray(cv2.imencode(".png", image)[1], np.uint8).reshape(-1)
        for role, each in {"": detector, **variants}.items():
            seen = each.detect(image, confidence=CONFIDENCE)
            arrays[f"boxes_{k}{_suffix(role)}"] = seen.boxes_xyxy
            arrays[f"scores_{k}{_suffix(role)}"] = seen.scores
            arrays[f"class_ids_{k}{_suffix(role)}"] = seen.class_ids
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type, unused-ignore]  # numpy's stub takes a bool there
    return out.getvalue()


def golden_picture(detector: Detector, source: Path | NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """A picture as small as it travels, BGR uint8 (H, W, 3): `source`, or a drawn test card where there is none.

    Raises:
        NotAModel: the picture cannot be read.
    """
    import cv2

    image = _load(source) if isinstance(source, Path) else _test_card(*_size(detector)) if source is None else source
    scale = LONG_SIDE_PX / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return image


def decode_golden(content: bytes, role: str = "") -> Iterator[GoldenCase]:
    """The cases of a `golden.npz`. Decoding pictures is a job for a child process where the bytes are foreign.

    Args:
        content: the file.
        role: of the model file that is to be compared; one without outputs of its own is held to the float file's.

    Raises:
        ValueError: not such a file.
    """
    import cv2

    check_npz(content)
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        count = sum(1 for name in arrays.files if name.startswith("image_"))
        if not 1 <= count <= MAX_CASES:
            raise ValueError(f"{count} golden cases; 1 to {MAX_CASES} are expected")
        for k in range(count):
            suffix = _suffix(role) if f"boxes_{k}{_suffix(role)}" in arrays.files else ""
            try:
                image = cv2.imdecode(arrays[f"image_{k}"], cv2.IMREAD_COLOR)
                expected = Detections(
                    np.asarray(arrays[f"boxes_{k}{suffix}"], np.float32),
                    np.asarray(arrays[f"scores_{k}{suffix}"], np.float32),
                    np.asarray(arrays[f"class_ids_{k}{suffix}"], np.int32),
                )
            except (KeyError, cv2.error) as error:
                raise ValueError(f"golden case {k} is incomplete ({error})") from error
            if image is None:
                raise ValueError(f"the picture of golden case {k} cannot be decoded")
            yield GoldenCase(np.asarray(image, np.uint8), expected)


def check_npz(content: bytes) -> None:
    """Refuse what NumPy would need pickle for, and what unpacks to more than is allowed.

    The declared size of each member is checked before anything is unpacked, and the size that its array header declares
    before memory is taken for it.

    Raises:
        ValueError: not a NPZ, too large, or it holds Python objects.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if not members or len(members) > MAX_MEMBERS:
                raise ValueError(f"a NPZ of {len(members)} members; 1 to {MAX_MEMBERS} are allowed")
            if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
                raise ValueError(f"unpacks to more than {MAX_UNPACKED_BYTES} bytes")
            for member in members:
                if not member.filename.endswith(".npy") or "/" in member.filename or "\\" in member.filename:
                    raise ValueError(f"member {member.filename[:80]!r} is not a plain array")
                if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} or member.flag_bits & 1:
                    raise ValueError(f"member {member.filename[:80]!r} is encrypted or packed in another way than NumPy does")
                with archive.open(member) as file:
                    _check_header(file, member)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ValueError(f"not a NPZ file ({error})") from error


def _check_header(file: Any, member: zipfile.ZipInfo) -> None:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"member {member.filename!r} has array format {version}, which is not used here")
    if dtype.hasobject or dtype.kind not in "buif":
        raise ValueError(f"member {member.filename!r} holds {dtype}, not numbers; pickled objects are refused")
    count = 1
    for side in shape:
        count *= side
    if min(shape, default=0) < 0 or count * dtype.itemsize > member.file_size:
        raise ValueError(f"member {member.filename!r} declares more values than it holds")


def differences(expected: Detections, actual: Detections, tolerance: Tolerance) -> list[str]:
    """What the model sees differently, in words; empty when every sure detection has its partner.

    Detections within the tolerance of the confidence threshold may come and go. Pairs are made one to one, best first.
    """
    sure = CONFIDENCE + tolerance.score
    out = []
    for name, ours, theirs in (("missing", expected, actual), ("unexpected", actual, expected)):
        free = list(range(len(theirs)))
        for row in range(len(ours)):
            if ours.scores[row] < sure:
                continue
            partner = next((other for other in free if _match(ours, row, theirs, other, tolerance)), None)
            if partner is None:
                box = ", ".join(f"{edge:.1f}" for edge in ours.boxes_xyxy[row])
                out.append(f"{name}: class {ours.class_ids[row]}, score {ours.scores[row]:.3f}, box ({box})")
            else:
                free.remove(partner)
    return out


def _match(ours: Detections, row: int, theirs: Detections, other: int, tolerance: Tolerance) -> bool:
    return bool(
        ours.class_ids[row] == theirs.class_ids[other]
        and abs(float(ours.scores[row]) - float(theirs.scores[other])) <= tolerance.score
        and float(np.abs(ours.boxes_xyxy[row] - theirs.boxes_xyxy[other]).max()) <= tolerance.box_px
    )


def _suffix(role: str) -> str:
    return f".{role}" if role else ""


def _size(detector: Detector) -> tuple[int, int]:
    height, width = getattr(detector, "image_size_hw", (240, 320))
    return int(height), int(width)


def _test_card(height: int, width: int) -> NDArray[np.uint8]:
    """Ramps, a chequer and a bright block: something of every brightness, the same everywhere."""
    rows, columns = np.mgrid[0:height, 0:width]
    card = np.stack([columns * 255 // width, rows * 255 // height, ((rows // 16 + columns // 16) % 2) * 255], axis=-1)
    card[height // 4 : height // 2, width // 4 : width // 2] = 255
    return card.astype(np.uint8)


def _load(path: Path) -> NDArray[np.uint8]:
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise NotAModel(f"the golden picture {path} cannot be read; give a PNG or JPEG")
    return np.asarray(image, np.uint8)
