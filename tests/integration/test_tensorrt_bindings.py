"""What our TensorRT backend calls exists in NVIDIA's own Python bindings, 10.3 (JetPack 6) and 11, under the same names.

The backend runs end to end against a stand-in (`test_tensorrt_detector.py`), so everything it uses is in the stand-in; here every
class, member, argument and constant of the stand-in is looked up in the real bindings. They load without NVIDIA's libraries when
libraries of the same names with empty functions are loaded first. `scripts/setup` puts the bindings into .venv/tensorrt-10 and -11.
"""

from __future__ import annotations

import enum
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bowerbird_models.tensorrt_build import precisions
from bowerbird_testing.fake_cuda import compiler
from bowerbird_testing.fake_tensorrt import make_tensorrt

VERSIONS = {"10": "10.3.0", "11": "11.4.0.106"}

# What the bindings ask their libraries for when they are loaded; none of it is called here.
STUB = """
#define EMPTY(name) void *name(void) { return 0; }
EMPTY(createInferBuilder_INTERNAL) EMPTY(createInferRefitter_INTERNAL) EMPTY(createInferRuntime_INTERNAL)
EMPTY(createNvOnnxParser_INTERNAL) EMPTY(createNvOnnxParserRefitter_INTERNAL) EMPTY(getBuilderPluginRegistry)
EMPTY(getPluginRegistry) EMPTY(getNvOnnxParserVersion) EMPTY(initLibNvInferPlugins)
"""
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")

# Asks the bindings about {class: [members]} on standard input; answers {class: {member: its documentation, or null}}.
ASK = """
import ctypes, json, sys
for library in sys.argv[2:]:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
sys.path.insert(0, sys.argv[1])
import tensorrt_bindings as trt
asked, found = json.load(sys.stdin), {"": {"version": trt.__version__}}
for name, members in asked.items():
    kind = getattr(trt, name, None)
    found[name] = {member: (getattr(kind, member).__doc__ or "") if hasattr(kind, member) else None for member in members}
class Says(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.last_error = ""
    def log(self, severity, msg):
        self.last_error = msg
found[""]["logger"] = isinstance(Says(), trt.ILogger) and hasattr(trt.ILogger, "Severity")
found[""]["severities"] = list(trt.ILogger.Severity.__members__)
print(json.dumps(found))
"""


def stand_in(version: str) -> dict[str, Any]:
    """Class -> member -> the stand-in's own."""
    found: dict[str, Any] = {}
    for name, kind in vars(make_tensorrt(version, None)).items():
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            found[name] = dict(kind.__members__)
        elif isinstance(kind, type):
            found[name] = {key: value for key, value in vars(kind).items() if not key.startswith("_") and key != "Severity"}
            if "__init__" in vars(kind) and name in {"Builder", "OnnxParser", "Runtime"}:
                found[name]["__init__"] = vars(kind)["__init__"]
    found["ITensor"] |= dict.fromkeys(("name", "shape", "dtype"))
    found["ILayer"] |= {"type": None}
    return found


def ask(major: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The real bindings' answers about everything that the stand-in has."""
    bindings = Path(sys.prefix) / f"tensorrt-{major}"
    if not (bindings / "tensorrt_bindings").is_dir():
        pytest.skip(
            f"NVIDIA's bindings {major} are not in {bindings}; scripts/setup installs them where PyPI has them (x86-64)"
        )
    if compiler() is None:
        pytest.skip("no C compiler for the empty libraries: apt-get install gcc")
    (folder / "stub.c").write_text(STUB)
    paths = []
    for library in LIBRARIES:
        paths.append(str(folder / f"lib{library}.so.{major}"))
        command = [str(compiler()), "-shared", "-fPIC", "-w", "-o", paths[-1], str(folder / "stub.c")]
        subprocess.run([*command, f"-Wl,-soname,lib{library}.so.{major}"], check=True, timeout=60)
    asked = json.dumps({name: list(members) for name, members in stand_in(VERSIONS[major]).items()})
    command = [sys.executable, "-c", ASK, str(bindings), *paths]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120, check=True)
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module", params=["10", "11"])
def major(request: pytest.FixtureRequest) -> str:
    """A major version of TensorRT."""
    return str(request.param)


@pytest.fixture(scope="module")
def real(major: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What its bindings answer."""
    return ask(major, tmp_path_factory.mktemp("stubs"))


def test_every_class_member_and_constant_exists(real: dict[str, dict[str, Any]], major: str) -> None:
    """And the version is of the kind that the stand-in claims."""
    assert real[""]["version"].split(".")[0] == major
    missing = [f"{name}.{member}" for name, members in real.items() for member, found in members.items() if found is None]
    assert not missing
    assert sum(map(len, real.values())) > 50, "or little was asked"


def test_every_argument_has_the_name_that_the_bindings_give_it(real: dict[str, dict[str, Any]], major: str) -> None:
    """pybind11 writes the signature into the documentation: ours must be the beginning of one of its overloads."""
    compared = 0
    for name, members in stand_in(VERSIONS[major]).items():
        for member, ours in members.items():
            if not inspect.isfunction(ours):
                continue
            expected = [word for word in inspect.signature(ours).parameters if word != "self"]
            signatures = [
                [word for word in re.findall(r"(\w+): ", arguments) if word != "self"]
                for arguments in re.findall(rf"{member}\((self: .*?)\) ->", real[name][member])
            ]
            assert any(signature[: len(expected)] == expected for signature in signatures), f"{name}.{member}: {signatures}"
            compared += 1
    assert compared > 30


def test_a_logger_of_ours_is_one_of_theirs(real: dict[str, dict[str, Any]]) -> None:
    """Made the way `make_logger` makes it."""
    assert real[""]["logger"] is True
    assert {"INTERNAL_ERROR", "ERROR"} <= set(real[""]["severities"])


def test_the_two_versions_differ_as_the_backend_assumes(real: dict[str, dict[str, Any]], major: str, tmp_path: Path) -> None:
    """10 has flags for half precision; 11 has none, so none may be offered."""
    offered = precisions(make_tensorrt(VERSIONS[major], None))
    assert offered == (("fp32", "fp16", "bf16") if major == "10" else ("fp32",))
    if major == "10":
        assert real["BuilderFlag"]["FP16"] is not None
    else:
        bindings = Path(sys.prefix) / "tensorrt-11"
        script = ASK.replace(
            "print(json.dumps(found))", "print(hasattr(trt.BuilderFlag, 'FP16'), hasattr(trt.BuilderFlag, 'BF16'))"
        )
        ask(major, tmp_path)  # makes the empty libraries
        libraries = [str(tmp_path / f"lib{library}.so.11") for library in LIBRARIES]
        command = [sys.executable, "-c", script, str(bindings), *libraries]
        done = subprocess.run(command, input="{}", capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.split() == ["False", "False"]
