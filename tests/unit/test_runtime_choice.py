"""What a device remembers of its tunings: for which machine and model, and what a damaged file costs."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from bowerbird_agent.tuning.autotune import Candidate
from bowerbird_agent.tuning.runtime_choice import MAX_CHOICES, ModelShape, RuntimeChoice, RuntimeChoices

SHAPE = ModelShape((640, 640), 3, {"onnx-fp32": 10_000_000, "onnx-int8-ort": 3_000_000})
CHOICE = RuntimeChoice(
    Candidate("onnx-int8-ort", threads=2, spinning=True, huge_pages=True),
    "41.20 ms a frame, the fastest of 5 usable",
    "a" * 64,
    SHAPE,
    "hardware-1",
    "2026-01-01T00:00:00Z",
    158.0,
    ({"role": "onnx-int8-ort", "verdict": "chosen"},),
)


@pytest.fixture
def choices(tmp_path: Path) -> RuntimeChoices:
    return RuntimeChoices(tmp_path / "state" / "runtime-choices.json")


def test_a_choice_is_the_same_after_a_restart(choices: RuntimeChoices, tmp_path: Path) -> None:
    choices.remember(CHOICE)
    again = RuntimeChoices(tmp_path / "state" / "runtime-choices.json").exact("hardware-1", "a" * 64)
    assert again == CHOICE
    assert again is not None
    assert again.rows == CHOICE.rows


def test_a_choice_holds_for_its_own_model_and_machine_only(choices: RuntimeChoices) -> None:
    choices.remember(CHOICE)
    assert choices.exact("hardware-1", "b" * 64) is None
    assert choices.exact("hardware-2", "a" * 64) is None
    assert choices.stale("hardware-2", "a" * 64) == CHOICE
    assert choices.stale("hardware-1", "a" * 64) is None


def test_a_new_choice_replaces_the_old_one_and_a_forgotten_one_is_gone(choices: RuntimeChoices) -> None:
    choices.remember(CHOICE)
    newer = replace(CHOICE, candidate=Candidate(), why="the only one there is")
    choices.remember(newer)
    assert choices.exact("hardware-1", "a" * 64) == newer
    choices.forget("hardware-1", "a" * 64)
    choices.forget("hardware-1", "a" * 64)
    assert choices.exact("hardware-1", "a" * 64) is None


@pytest.mark.parametrize(
    ("other", "is_like"),
    [
        (ModelShape((640, 640), 3, {"onnx-fp32": 10_000_900, "onnx-int8-ort": 2_999_500}), True),
        (ModelShape((640, 640), 3, {"onnx-fp32": 10_080_000, "onnx-int8-ort": 3_000_000}), False),
        (ModelShape((640, 640), 3, {"onnx-fp32": 10_000_000}), False),
        (ModelShape((320, 640), 3, dict(SHAPE.file_bytes)), False),
        (ModelShape((640, 640), 4, dict(SHAPE.file_bytes)), False),
    ],
)
def test_only_a_model_of_the_same_shape_inherits(choices: RuntimeChoices, other: ModelShape, is_like: bool) -> None:
    choices.remember(CHOICE)
    assert (choices.inherited("hardware-1", other) == CHOICE) is is_like
    assert choices.inherited("hardware-2", other) is None


def test_the_newest_choice_is_inherited_and_the_oldest_go(choices: RuntimeChoices) -> None:
    for number in range(MAX_CHOICES + 3):
        choices.remember(replace(CHOICE, model_digest=f"{number:064d}"))
    found = choices.inherited("hardware-1", SHAPE)
    assert found is not None
    assert found.model_digest == f"{MAX_CHOICES + 2:064d}"
    assert choices.exact("hardware-1", f"{2:064d}") is None
    assert choices.exact("hardware-1", f"{3:064d}") is not None


def damaged(plain: object) -> bytes:
    return json.dumps({"schema": 1, "choices": [plain]}).encode()


GOOD = {
    "candidate": {
        "role": "onnx-fp32", "runtime": "onnxruntime-cpu", "precision": "fp32", "threads": 1, "spinning": False, "huge_pages": False,
    },
    "why": "w", "model_digest": "a" * 64, "shape": {"input_size_hw": [64, 64], "classes": 1, "file_bytes": {"onnx-fp32": 1}},
    "hardware": "hardware-1", "made_at": "2026-01-01T00:00:00Z", "peak_rss_mb": 1.0, "rows": [],
}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 100,
        b"[]",
        b'{"schema": 2, "choices": []}',
        b'{"schema": 1, "choices": 5}',
        damaged({}),
        damaged({**GOOD, "candidate": {**GOOD["candidate"], "runtime": "a-later-one"}}),  # type: ignore[dict-item]
        damaged({**GOOD, "candidate": {**GOOD["candidate"], "threads": "2"}}),  # type: ignore[dict-item]
        damaged({**GOOD, "candidate": {**GOOD["candidate"], "threads": True}}),  # type: ignore[dict-item]
        damaged({**GOOD, "candidate": {**GOOD["candidate"], "spinning": "no"}}),  # type: ignore[dict-item]
        damaged({**GOOD, "candidate": {**GOOD["candidate"], "extra": 1}}),  # type: ignore[dict-item]
        damaged({**GOOD, "shape": {"input_size_hw": [64], "classes": 1, "file_bytes": {}}}),
        damaged({**GOOD, "why": None}),
    ],
)
def test_a_damaged_file_is_passed_over_with_a_warning_and_written_anew(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "runtime-choices.json"
    path.write_bytes(content)
    choices = RuntimeChoices(path)
    with caplog.at_level(logging.WARNING):
        assert choices.exact("hardware-1", "a" * 64) is None
    assert "bowerbird-agent tune" in caplog.text
    choices.remember(CHOICE)
    assert choices.exact("hardware-1", "a" * 64) == CHOICE


def test_the_damaged_files_above_are_damaged_in_one_place_only(tmp_path: Path) -> None:
    path = tmp_path / "runtime-choices.json"
    path.write_bytes(damaged(GOOD))
    assert RuntimeChoices(path).exact("hardware-1", "a" * 64) is not None
