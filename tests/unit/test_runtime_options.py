"""What may be asked of a runtime is checked where it is written down, before anything is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bowerbird_models.onnx_providers import PROVIDERS
from bowerbird_models.runtime_options import PRECISIONS, RUNTIMES, RuntimeOptions


def test_every_runtime_has_precisions_and_computes_in_fp32() -> None:
    assert tuple(PRECISIONS) == RUNTIMES
    assert all("fp32" in precisions for precisions in PRECISIONS.values())


def test_every_name_of_onnx_runtime_has_a_provider() -> None:
    assert set(PROVIDERS) == {name for name in RUNTIMES if name.startswith("onnxruntime-")}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"runtime": "cuda"}, "must be one of onnxruntime-cpu"),
        ({"runtime": "openvino-cpu", "precision": "int8"}, "openvino-cpu computes in fp32, fp16, bf16"),
        ({"precision": "fp16"}, "onnxruntime-cpu computes in fp32"),
        ({"threads": 0}, "1 or more"),
    ],
)
def test_what_no_runtime_can_do_is_refused_with_what_it_can(options: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RuntimeOptions(**options)  # type: ignore[arg-type]


def test_names_and_options_load_no_runtime() -> None:
    """A configuration is checked in milliseconds, on machines that have none of them."""
    script = (
        "import sys; from bowerbird_models.runtime_options import RuntimeOptions; RuntimeOptions('tensorrt')\n"
        "print([name for name in ('onnxruntime', 'openvino', 'tensorrt', 'numpy', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
