"""The check that every version runs on a machine before it becomes the current one."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from bowerbird_agent import install_check
from bowerbird_agent.install_check import Unfit, check_model, look_at_two_pictures, main
from bowerbird_models.onnx_file import check_self_contained, metadata_entries


def test_the_model_of_the_check_is_a_valid_onnx_file() -> None:
    content = check_model()
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    check_self_contained(content)
    assert metadata_entries(content)["names"] == "{0: 'bright', 1: 'nothing'}"


def test_a_working_installation_passes_as_a_program_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bowerbird_agent.install_check", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"install check: {part}: ok" for part in ("imports", "inference", "state folder")]
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install_check, "MODULES", ("json", "no_such_package.client"))
    assert main([str(tmp_path)]) == 1
    assert "imports: No module named 'no_such_package'" in capsys.readouterr().err


def test_a_processor_that_computes_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, half = (struct.pack("<f", share / (3 * 8 * 8)) for share in (0.75, 0.375))
    wrong = check_model().replace(weight, half)
    assert wrong != check_model()
    monkeypatch.setattr(install_check, "check_model", lambda: wrong)
    with pytest.raises(Unfit, match="computes something else"):
        look_at_two_pictures()


def test_a_state_folder_that_is_not_there_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "missing")]) == 1
    assert "state folder" in capsys.readouterr().err
