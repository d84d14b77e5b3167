"""The manifest of a model package: which files it has and what a device must know before it loads one.

In: fields, or bytes from anywhere. Out: `ModelManifest`, whose bytes are canonical so that equal content has one digest. It opens
no file; `package.py` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from bowerbird_models.errors import ModelError
from bowerbird_models.golden import Tolerance

# Still 1: packages of before (one `onnx-fp32`, no `accuracy`) are read as they were, and readers of before pass over `accuracy` and
# over roles they do not know. What they cannot do is run a package without `onnx-fp32`: they refuse it and stay on their model.
SCHEMA = 1
MANIFEST = "manifest.json"
DETECT = "detect"
ONNX_FP32, ONNX_FP16, CLASSES, GOLDEN = "onnx-fp32", "onnx-fp16", "classes", "golden"
ONNX_INT8_ORT, ONNX_INT8_OPENVINO = "onnx-int8-ort", "onnx-int8-openvino"
REFERENCE_ROLES = (ONNX_FP32, ONNX_FP16)
"""The float model, at least one; the first that is there is the reference for all others."""
MODEL_ROLES = (*REFERENCE_ROLES, ONNX_INT8_ORT, ONNX_INT8_OPENVINO)
REQUIRED_ROLES = (CLASSES, GOLDEN)

MAX_MANIFEST_BYTES = 256 * 1024
MAX_JSON_BYTES = 4 * 1024 * 1024
MAX_NPZ_BYTES = 64 * 1024 * 1024
MAX_ONNX_BYTES = 1024 * 1024 * 1024
MAX_FILES = 32
BYTE_LIMITS = {".onnx": MAX_ONNX_BYTES, ".json": MAX_JSON_BYTES, ".npz": MAX_NPZ_BYTES}
_ROLE_ENDINGS = {**dict.fromkeys(MODEL_ROLES, ".onnx"), CLASSES: ".json", GOLDEN: ".npz"}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\.(onnx|json|npz)")
_ROLE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class PackageError(ModelError):
    """A package that must not be used. `code` is what a device reports:

    `bad_manifest`, `bad_name`, `bad_file`, `missing`, `wrong_digest`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class PackageFile:
    """One file of a package: a plain name, its SHA-256 in 64 hex digits, its length."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Probation:
    """What a device asks of the model in its trial before it commits.

    Args:
        good_frames: frames answered without a fault.
        deadline_s: time in which they must have come.
        server_deadline_s: time in which the server must have been reached.
    """

    good_frames: int = 20
    deadline_s: float = 300.0
    server_deadline_s: float = 600.0


@dataclass(frozen=True)
class ModelManifest:
    """What a package says about itself. Its release counter is not in it: the same content may be released again.

    Args:
        files: by role; `classes`, `golden` and one of `onnx-fp32` and `onnx-fp16` are required. `onnx-fp16` stores the weights in half
            precision and computes in single; `onnx-int8-ort` is for ONNX Runtime only, `onnx-int8-openvino` for OpenVINO only.
        class_names: by class id.
        input_size_hw: height and width of the network input in pixels.
        created_at: UTC ISO text.
        parent: model digest that this one was trained from, or None.
        tolerance: by role of the model file, how far its golden outputs may be off.
        accuracy: by role of the model file, mAP50-95 in [0, 1] of that very file on the site's evaluation set, measured at the
            server with the runtime the file is for; may be empty.
        probation: limits of the trial on a device.
        task: what the model was trained for, as Ultralytics calls it; only another one than detection is written down.
        min_onnxruntime: oldest ONNX Runtime that may load it, e.g. "1.17".
        notes: free text for people.
        class_list: version of the site's class list that `class_names` are: the list only grows, and version n is its first n names.
            0, which is not written down, says nothing: a model from elsewhere.
    """

    files: Mapping[str, PackageFile]
    class_names: tuple[str, ...]
    input_size_hw: tuple[int, int]
    created_at: str
    parent: str | None = None
    tolerance: Mapping[str, Tolerance] = field(default_factory=lambda: {ONNX_FP32: Tolerance()})
    probation: Probation = Probation()
    min_onnxruntime: str = "1.17"
    notes: str = ""
    accuracy: Mapping[str, float] = field(default_factory=dict)
    task: str = DETECT
    class_list: int = 0

    @property
    def reference_role(self) -> str:
        """Role of the float file that all others are measured against: fp32 if there is one, else fp16."""
        return next(role for role in REFERENCE_ROLES if role in self.files)

    @property
    def reference_file(self) -> PackageFile:
        """That file: what runs unless something else was chosen."""
        return self.files[self.reference_role]

    @property
    def total_bytes(self) -> int:
        """Length of all files together, the manifest apart."""
        return sum(file.bytes for file in self.files.values())

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, ASCII; equal manifests have equal bytes."""
        return canonical_json(
            {
                "schema": SCHEMA,
                "files": {r: {"name": f.name, "sha256": f.sha256, "bytes": f.bytes} for r, f in self.files.items()},
                "class_names": list(self.class_names),
                "input_size_hw": list(self.input_size_hw),
                "created_at": self.created_at,
                "parent": self.parent,
                "tolerance": {role: {"score": t.score, "box_px": t.box_px} for role, t in self.tolerance.items()},
                "probation": {
                    "good_frames": self.probation.good_frames,
                    "deadline_s": self.probation.deadline_s,
                    "server_deadline_s": self.probation.server_deadline_s,
                },
                "min_onnxruntime": self.min_onnxruntime,
                "notes": self.notes,
                # Only where something was measured: the bytes, hence the digest, of a package without it are as they always were.
                **({"accuracy": dict(self.accuracy)} if self.accuracy else {}),
                **({"task": self.task} if self.task != DETECT else {}),
                **({"class_list": self.class_list} if self.class_list else {}),
            }
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> ModelManifest:
        """Read and check a manifest; keys that a later release added are passed over.

        Raises:
            PackageError: not canonical JSON, another schema, a value of the wrong type, or a name that is not allowed.
        """
        plain = parse_json(content, MAX_MANIFEST_BYTES, MANIFEST)
        if not isinstance(plain, dict) or canonical_json(plain) != content:
            raise PackageError("bad_manifest", "manifest.json is not canonical JSON; build the package again")
        if plain.get("schema") != SCHEMA:
            raise PackageError(
                "bad_manifest", f"package schema {plain.get('schema')!r}; this release knows {SCHEMA}. Update the older side"
            )
        try:
            return _manifest(plain)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PackageError("bad_manifest", f"manifest.json: {type(error).__name__}: {error}; build it again") from error


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no spaces, ASCII only, no NaN: equal values have equal bytes.

    Raises:
        PackageError: a value that JSON readers take and this does not write: NaN, or deeper than it goes.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise PackageError("bad_manifest", f"a value has no canonical JSON ({error}); build the package again") from error
    return text.encode("ascii")


def _manifest(plain: dict[str, Any]) -> ModelManifest:
    files: dict[str, PackageFile] = {}
    if len(plain["files"]) > MAX_FILES:
        raise ValueError(f"{len(plain['files'])} files; at most {MAX_FILES}")
    for role, entry in plain["files"].items():
        file = PackageFile(_text(entry["name"]), _text(entry["sha256"]), _whole(entry["bytes"]))
        ending = PurePosixPath(file.name).suffix
        if _ROLE.fullmatch(role) is None or _NAME.fullmatch(file.name) is None or file.name == MANIFEST:
            raise PackageError(
                "bad_name", f"file {file.name[:80]!r} of role {role[:80]!r}: only plain names of .onnx, .json, .npz"
            )
        if role in _ROLE_ENDINGS and ending != _ROLE_ENDINGS[role]:
            raise PackageError("bad_name", f"role {role} must be a {_ROLE_ENDINGS[role]} file, not {file.name[:80]!r}")
        if _DIGEST.fullmatch(file.sha256) is None or not 0 < file.bytes <= BYTE_LIMITS[ending]:
            raise ValueError(f"{file.name}: digest or length of {file.bytes} bytes is out of range")
        files[role] = file
    if len({file.name for file in files.values()}) != len(files):
        raise ValueError("two roles share one file name")
    missing = [role for role in REQUIRED_ROLES if role not in files]
    if not any(role in files for role in REFERENCE_ROLES):
        missing.append(" or ".join(REFERENCE_ROLES))
    if missing:
        raise ValueError(f"required roles are missing: {', '.join(missing)}")
    height, width = (_whole(side) for side in plain["input_size_hw"])
    names = tuple(_text(name) for name in plain["class_names"])
    parent = plain["parent"]
    if not names or not 1 <= min(height, width) <= max(height, width) <= 8192:
        raise ValueError("no class names, or an input size out of range")
    if parent is not None and _DIGEST.fullmatch(_text(parent)) is None:
        raise ValueError("parent is not a digest")
    class_list = _whole(plain.get("class_list", 0))
    if class_list not in (0, len(names)):
        raise ValueError(f"{len(names)} class names cannot be version {class_list} of a class list")
    probation = plain["probation"]
    return ModelManifest(
        files=files,
        class_names=names,
        input_size_hw=(height, width),
        created_at=_text(plain["created_at"]),
        parent=parent,
        tolerance={
            _text(role): Tolerance(_number(t["score"], 1.0), _number(t["box_px"], 1e4))
            for role, t in plain["tolerance"].items()
        },
        probation=Probation(
            _whole(probation["good_frames"]),
            _number(probation["deadline_s"], 86_400.0),
            _number(probation["server_deadline_s"], 86_400.0),
        ),
        min_onnxruntime=_text(plain["min_onnxruntime"]),
        notes=_text(plain["notes"]),
        accuracy={_text(role): _number(value, 1.0) for role, value in plain.get("accuracy", {}).items()},
        task=_text(plain.get("task", DETECT)),
        class_list=class_list,
    )


def class_list_fault(before: ModelManifest, after: ModelManifest) -> str:
    """Why a model's classes cannot follow another's, "" where they can: both were made for one class list, which only grows.

    Appended classes are no fault, nor is an older version of the list as it was. Where a package says no version nothing is known.
    """
    if not (before.class_list and after.class_list):
        return ""
    common = min(before.class_list, after.class_list)
    ours, theirs = before.class_names[:common], after.class_names[:common]
    if ours == theirs:
        return ""
    what = f"version {after.class_list} of the class list after version {before.class_list}"
    lost = [name for name in before.class_names if name not in after.class_names]
    if lost and after.class_list >= before.class_list:
        return f"{what}: the model lost {', '.join(lost)[:200]}; a class list only grows, train on all of it"
    at = next(i for i in range(common) if ours[i] != theirs[i])
    return f"{what}: class {at} was {ours[at]} and would be {theirs[at]}; the list is never re-ordered, train on it as it is"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} must be text")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} must be a whole number")
    return value


def _number(value: Any, highest: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= highest:
        raise TypeError(f"{value!r} must be a number from 0 to {highest}")
    return float(value)


def parse_json(content: bytes, limit: int, name: str) -> Any:
    """`content` as JSON, or PackageError `bad_manifest`; `name` is for the message."""
    if len(content) > limit:
        raise PackageError("bad_manifest", f"{name} has {len(content)} bytes; at most {limit} are allowed")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PackageError("bad_manifest", f"{name} is not JSON ({type(error).__name__}); build the package again") from error
