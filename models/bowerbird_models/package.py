"""A model package: a folder with `manifest.json` and the files that it lists, and nothing that could run code.

In: an ONNX file and pictures, or a folder that came from anywhere. Out: `PackageOnDisk`. The *model digest* is the SHA-256 of the
manifest's bytes and the only thing that is compared, shown and rolled out; a *file digest* is that of one file in it. Only ONNX,
JSON and NPZ without pickle are allowed: never `.pt` (a pickle) and never an engine (executable code). It signs nothing
(`signing.py`) and runs no model while verifying; building runs the model once for its golden outputs.

Verification, numbered as in the code of `load_package`:

1. the manifest is a small regular file, canonical JSON of a schema that this release knows;
2. its digest is the one that was asked for;
3. every required role is there, every name is a plain file name with the ending that its role allows;
4. every file is regular and has the declared length, below the limits;
5. every file has the declared SHA-256;
6. every file is what its ending says: self-contained ONNX, JSON, NPZ without pickle;
7. the class list is the manifest's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from bowerbird_models.durable import sync_file, sync_folder
from bowerbird_models.errors import ModelError
from bowerbird_models.golden import INT8_TOLERANCE, Tolerance, check_npz, encode_golden
from bowerbird_models.manifest import (
    BYTE_LIMITS,
    CLASSES,
    GOLDEN,
    MANIFEST,
    MAX_JSON_BYTES,
    MAX_MANIFEST_BYTES,
    MODEL_ROLES,
    ONNX_FP16,
    ONNX_FP32,
    ONNX_INT8_OPENVINO,
    ONNX_INT8_ORT,
    ModelManifest,
    PackageError,
    PackageFile,
    Probation,
    canonical_json,
    parse_json,
)
from bowerbird_models.onnx_file import check_self_contained
from bowerbird_models.runtime_options import ONNXRUNTIME_CPU, OPENVINO_CPU, RuntimeOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bowerbird_models.yolo import YoloDetector

__all__ = [
    "CLASSES",
    "GOLDEN",
    "MANIFEST",
    "MODEL_ROLES",
    "ONNX_FP16",
    "ONNX_FP32",
    "ONNX_INT8_OPENVINO",
    "ONNX_INT8_ORT",
    "RUNTIME_OF_VARIANT",
    "ModelManifest",
    "PackageError",
    "PackageFile",
    "PackageOnDisk",
    "Probation",
    "Tolerance",
    "build_package",
    "load_package",
]


RUNTIME_OF_VARIANT = {ONNX_INT8_ORT: ONNXRUNTIME_CPU, ONNX_INT8_OPENVINO: OPENVINO_CPU}
"""Role of a quantised file -> the runtime that it is made for and measured with."""


@dataclass(frozen=True)
class PackageOnDisk:
    """A package whose files were verified: its folder, what it says, and its model digest (64 hex digits)."""

    dir: Path
    manifest: ModelManifest
    digest: str

    @property
    def onnx(self) -> Path:
        """The full-precision model file."""
        return self.dir / self.manifest.reference_file.name

    @property
    def file_digest(self) -> str:
        """SHA-256 of the reference file."""
        return self.manifest.reference_file.sha256

    def variants(self) -> Mapping[str, Path]:
        """Every model file by its role, the reference file among them; roles that this release does not know are left out."""
        return {role: self.dir / file.name for role, file in self.manifest.files.items() if role in MODEL_ROLES}


def build_package(
    out_dir: Path,
    onnx: Path,
    *,
    class_names: Sequence[str] | None = None,
    golden_images: Sequence[Path | NDArray[np.uint8]] = (),
    parent: str | None = None,
    created_at: str,
    notes: str = "",
    tolerance: Tolerance | None = None,
    probation: Probation | None = None,
    role: str = ONNX_FP32,
    variants: Mapping[str, Path] = MappingProxyType({}),
    accuracy: Mapping[str, float] = MappingProxyType({}),
    class_list: int = 0,
) -> PackageOnDisk:
    """Make a package folder from an exported model; the same arguments give the same digest.

    Args:
        out_dir: folder to make; an existing one is replaced.
        onnx: the exported model.
        class_names: must equal the file's own names; None takes those.
        golden_images: a few pictures (BGR arrays or image files) whose detections every device must reproduce; they are scaled
            to at most 320 pixels. Without any, a drawn test card is used, which proves less.
        parent: model digest that this one was trained from.
        created_at: UTC ISO text.
        tolerance: of the reference file's golden outputs.
        role: of the exported model, `onnx-fp32` or `onnx-fp16`: the reference.
        variants: quantised files by role; each is run on the golden pictures by the runtime that it is for.
        accuracy: by role, mAP50-95 in [0, 1].
        class_list: version of the site's class list that the class names are; 0 for none.

    Raises:
        ModelError: a file is no usable model, its class names are not the ones given, or a variant's runtime is not installed.
            `PackageError` is a kind of it.
    """
    from bowerbird_models.onnx_detector import OnnxDetector

    with OnnxDetector(onnx) as detector:
        if class_names is not None and tuple(class_names) != detector.class_names:
            raise PackageError(
                "bad_file",
                f"the model {onnx} names its classes {detector.class_names}, not {tuple(class_names)}; export it again",
            )
        names = detector.class_names
        size_hw, task = detector.image_size_hw, detector.task
        with ExitStack() as opened:
            others = {name: opened.enter_context(_open_variant(name, path)) for name, path in variants.items()}
            for name, other in others.items():
                if other.class_names != names or other.image_size_hw != size_hw:
                    raise PackageError("bad_file", f"the {name} file is of another model than {onnx.name}; make it again")
            golden = encode_golden(detector, golden_images, others)
    part = out_dir.with_name(out_dir.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / "classes.json").write_bytes(canonical_json(list(names)))
    (part / "golden.npz").write_bytes(golden)
    files = {CLASSES: _describe(part / "classes.json"), GOLDEN: _describe(part / "golden.npz")}
    for name, path in {role: onnx, **variants}.items():
        target = part / ("model.onnx" if name == role else f"{name}.onnx")
        shutil.copyfile(path, target)
        files[name] = _describe(target)
    manifest = ModelManifest(
        files=files,
        class_names=names,
        input_size_hw=size_hw,
        created_at=created_at,
        parent=parent,
        tolerance={role: tolerance or Tolerance(), **dict.fromkeys(variants, INT8_TOLERANCE)},
        probation=probation or Probation(),
        notes=notes,
        accuracy=accuracy,
        task=task,
        class_list=class_list,
    )
    content = manifest.to_bytes()
    (part / MANIFEST).write_bytes(content)
    for path in part.iterdir():
        sync_file(path)
    load_package(part)
    if out_dir.exists():
        shutil.rmtree(out_dir)
    part.rename(out_dir)
    sync_folder(out_dir.parent)
    return PackageOnDisk(out_dir, manifest, hashlib.sha256(content).hexdigest())


def _open_variant(role: str, path: Path) -> YoloDetector:
    from bowerbird_models.runtimes import open_model

    if role not in RUNTIME_OF_VARIANT:
        raise PackageError("bad_name", f"{role!r} is no role of a quantised file; there are {', '.join(RUNTIME_OF_VARIANT)}")
    return open_model(path, RuntimeOptions(RUNTIME_OF_VARIANT[role]))


def load_package(folder: Path, *, digest: str | None = None) -> PackageOnDisk:
    """A package that passed every numbered verification step of this module.

    Raises:
        PackageError: a step failed.
    """
    # 1. The manifest is a small regular file, canonical JSON of a known schema.
    content = _read_regular(folder / MANIFEST, MAX_MANIFEST_BYTES, "bad_manifest")
    manifest = ModelManifest.from_bytes(content)
    # 2. Its digest is the one that was asked for.
    found = hashlib.sha256(content).hexdigest()
    if digest is not None and found != digest:
        raise PackageError("wrong_digest", f"the package in {folder} is {found[:12]}, not {digest[:12]}; fetch it again")
    # 3. Roles, names and endings: ModelManifest.from_bytes has checked them; nothing outside the folder can be named.
    for file in manifest.files.values():
        path = folder / file.name
        # 4. Regular, of the declared length.
        body = _read_regular(path, BYTE_LIMITS[path.suffix], "bad_file")
        if len(body) != file.bytes:
            raise PackageError("wrong_digest", f"{file.name} has {len(body)} bytes instead of {file.bytes}; fetch it again")
        # 5. The declared digest.
        if hashlib.sha256(body).hexdigest() != file.sha256:
            raise PackageError(
                "wrong_digest", f"{file.name} does not have the digest that the manifest declares; fetch it again"
            )
        # 6. What its ending says.
        _check_content(path, body)
    # 7. The class list is the manifest's.
    classes = parse_json((folder / manifest.files[CLASSES].name).read_bytes(), MAX_JSON_BYTES, "classes")
    if classes != list(manifest.class_names):
        raise PackageError("bad_file", "the class list is not the manifest's; build the package again")
    return PackageOnDisk(folder, manifest, found)


def _check_content(path: Path, body: bytes) -> None:
    if path.suffix == ".onnx":
        try:
            check_self_contained(body)
        except ModelError as error:
            raise PackageError("bad_file", f"{path.name}: {error}") from error
    elif path.suffix == ".npz":
        try:
            check_npz(body)
        except ValueError as error:
            raise PackageError("bad_file", f"{path.name}: {error}") from error
    else:
        parse_json(body, MAX_JSON_BYTES, path.name)


def _read_regular(path: Path, limit: int, code: str) -> bytes:
    """The bytes of a regular file, never through a symbolic link, never more than `limit`."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise PackageError(
            "missing", f"cannot read {path} ({error.strerror}); the package is incomplete, fetch it again"
        ) from error
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise PackageError(code, f"{path} is not a regular file; packages hold nothing else")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise PackageError(code, f"{path.name} is larger than the {limit} bytes that are allowed")
    return content


def _describe(path: Path) -> PackageFile:
    content = path.read_bytes()
    return PackageFile(path.name, hashlib.sha256(content).hexdigest(), len(content))
