"""Whether this installation can work on this machine, before anything relies on it: `python -m bowerbird_agent.install_check STATE`.

In: the folder for the agent's state, perhaps agent.toml. Out: exit code 0, or 1 and what is wrong. Every version brings its own
check; deploy/install.sh, and an agent that updates itself, run that of the version which is to become `current`. It imports
what the agent imports, has the reference runtime look at a white and a black picture through a model of 5 kB that it writes
here (a real ONNX file; a device has neither the package `onnx` nor, yet, a model), looks whether it can read what is in the
state folder, and writes a file durably to it. With a configuration it reads that as well, and probes each camera as far as it
can while another version of the agent is using it: one frame of a film, a folder or a synthetic scene; of a live camera,
whether this OpenCV has what it is read through. It asks no broker: `bowerbird-agent doctor` does, and a camera or broker that
is away is no reason to go back to an older version.
"""

from __future__ import annotations

import argparse
import importlib
import struct
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bowerbird_agent.errors import AgentError
from bowerbird_models.durable import write_durably
from bowerbird_models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# What `bowerbird-agent run` needs before its first frame; runtimes and OpenCV follow with the inference.
MODULES = (
    "bowerbird_agent.device",
    "bowerbird_agent.link.mqtt_link",
    "bowerbird_agent.updates.runner",
    "bowerbird_agent.updates.agent_install",
    "bowerbird_agent.updates.selftest",
    "tuf.ngclient",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
)
# Kind of a live source -> what OpenCV must be able to read it through, one of them. The camera itself may be in use.
_NEEDS = {
    "device": ("v4l2", "gstreamer"),
    "url": ("ffmpeg", "gstreamer"),
    "csi": ("gstreamer",),
    "gst": ("gstreamer",),
}
_SIDE_PX = 32
_CELLS = 16
_PROBE_BYTES = 65536


class Unfit(Exception):
    """This installation does not work here; the message says what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run all checks, the cheapest first, and stop at the first that fails."""
    parser = argparse.ArgumentParser(
        prog="python -m bowerbird_agent.install_check", description="Can this installation work here?"
    )
    parser.add_argument("state", type=Path, help="folder for the agent's state; it must exist")
    parser.add_argument("--config", type=Path, help="agent.toml, which must be understood, and whose cameras are probed")
    arguments = parser.parse_args(argv)
    state: Path = arguments.state
    checks: list[tuple[str, Callable[[], None]]] = [
        ("imports", import_all),
        ("inference", look_at_two_pictures),
        ("state folder", lambda: write_and_read(state)),
    ]
    if arguments.config is not None:
        checks += [
            ("configuration", lambda: read_configuration(arguments.config)),
            ("cameras", lambda: probe_cameras(arguments.config)),
        ]
    for name, check in checks:
        try:
            check()
        except (Unfit, AgentError, ModelError, ImportError, OSError) as error:
            print(f"install check: {name}: {error}", file=sys.stderr)
            return 1
        print(f"install check: {name}: ok")
    return 0


def import_all() -> None:
    """Raises ImportError, with the module's name, for a package that is missing or was built for another machine."""
    for name in MODULES:
        importlib.import_module(name)


def look_at_two_pictures() -> None:
    """Raises Unfit when the reference runtime does not see what the model must see, and ModelError when it cannot run it."""
    import numpy as np

    from bowerbird_models.onnx_detector import OnnxDetector

    with tempfile.TemporaryDirectory(prefix="bowerbird-check-") as folder:
        path = Path(folder) / "check.onnx"
        path.write_bytes(check_model())
        with OnnxDetector(path) as detector:
            for brightness, wanted in ((255, [(0, 0.75)]), (0, [])):
                found = detector.detect(np.full((24, 40, 3), brightness, np.uint8), confidence=0.5)
                seen = [
                    (int(which), round(float(score), 2)) for which, score in zip(found.class_ids, found.scores, strict=True)
                ]
                if seen != wanted:
                    raise Unfit(
                        f"{detector.runtime} computes something else than it should ({seen} instead of {wanted}); the wheel does "
                        "not suit this processor: install another version of onnxruntime"
                    )


def write_and_read(state: Path) -> None:
    """Raises OSError or Unfit when the state folder does not keep a file, StateTooNew when a later version has written it."""
    from bowerbird_agent.state_format import check_state

    check_state(state)
    content = bytes(range(256)) * (_PROBE_BYTES // 256)
    probe = state / ".install-check"
    try:
        write_durably(probe, content, 0o600)
        if probe.read_bytes() != content:
            raise Unfit(f"{state} gives back something else than was written; check the disk")
    finally:
        probe.unlink(missing_ok=True)


def read_configuration(config: Path) -> None:
    """Raises ConfigError with every fault."""
    from bowerbird_agent.config import read_config

    read_config(config)


def probe_cameras(config: Path) -> None:
    """Raises Unfit or AgentError for a camera that this installation could not read, whatever state the camera is in."""
    from bowerbird_agent.capture.capture import kind_of, open_camera
    from bowerbird_agent.capture.opencv_build import find_opencv
    from bowerbird_agent.config import read_config

    for camera in read_config(config).cameras:
        kind = kind_of(camera.source)
        if kind in _NEEDS:
            build = find_opencv()
            if not any(getattr(build, way) for way in _NEEDS[kind]):
                raise Unfit(
                    f"camera {camera.name}: this OpenCV ({build.version}) reads through none of {', '.join(_NEEDS[kind])}"
                )
            continue
        opened = open_camera(camera.to_source())
        try:
            opened.read()
        finally:
            opened.close()


def check_model() -> bytes:
    """An ONNX file with one convolution in YOLO's form: one box of class 0 in a bright picture, nothing in a dark one.

    images (1, 3, 32, 32) -> Conv of 8 x 8 at stride 8 -> (1, 6, 4, 4) -> Reshape -> (1, 6, 16): centre and size of a box that all
    cells agree on, and the scores of two classes, of which the first is three quarters of the mean brightness.
    Source: the messages ModelProto, GraphProto, NodeProto and TensorProto of onnx/onnx.proto.
    """
    taps = 3 * 8 * 8
    weights = [0.0] * (4 * taps) + [0.75 / taps] * taps + [0.0] * taps
    graph = b"".join(
        (
            _bytes(1, _node("Conv", ("images", "weights", "bias"), "cells", _ints("strides", (8, 8)))),
            _bytes(1, _node("Reshape", ("cells", "shape"), "output0")),
            _bytes(2, b"check"),
            _bytes(5, _tensor("weights", (6, 3, 8, 8), 1, struct.pack(f"<{len(weights)}f", *weights))),
            _bytes(5, _tensor("bias", (6,), 1, struct.pack("<6f", 16.0, 16.0, 8.0, 8.0, 0.0, 0.0))),
            _bytes(5, _tensor("shape", (3,), 7, struct.pack("<3q", 1, 6, _CELLS))),
            _bytes(11, _value("images", (1, 3, _SIDE_PX, _SIDE_PX))),
            _bytes(12, _value("output0", (1, 6, _CELLS))),
        )
    )
    about = {"task": "detect", "names": "{0: 'bright', 1: 'nothing'}", "stride": "32", "imgsz": f"[{_SIDE_PX}, {_SIDE_PX}]"}
    entries = b"".join(_bytes(14, _bytes(1, key.encode()) + _bytes(2, value.encode())) for key, value in about.items())
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _number(2, 13)) + entries


def _node(operator: str, inputs: Sequence[str], output: str, attribute: bytes = b"") -> bytes:
    body = b"".join(_bytes(1, name.encode()) for name in inputs) + _bytes(2, output.encode()) + _bytes(4, operator.encode())
    return body + (_bytes(5, attribute) if attribute else b"")


def _ints(name: str, values: Sequence[int]) -> bytes:
    return _bytes(1, name.encode()) + b"".join(_number(8, value) for value in values) + _number(20, 7)


def _tensor(name: str, shape: Sequence[int], element: int, raw: bytes) -> bytes:
    return b"".join(_number(1, side) for side in shape) + _number(2, element) + _bytes(8, name.encode()) + _bytes(9, raw)


def _value(name: str, shape: Sequence[int]) -> bytes:
    sides = b"".join(_bytes(1, _number(1, side)) for side in shape)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _number(1, 1) + _bytes(2, sides)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


if __name__ == "__main__":
    sys.exit(main())
