"""Tuning with real child processes and real model files: what is slow, wrong, broken, hungry or dead becomes a row with a reason."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bowerbird_agent.tuning.autotune import CHOSEN, DISCARDED, SLOWER, Candidate, Decision, Limits, Row
from bowerbird_agent.tuning.autotune_candidates import Space
from bowerbird_agent.tuning.autotune_process import CandidateProcess, ChildFailed
from bowerbird_agent.tuning.autotune_runner import Effort, Stopped, tune
from bowerbird_models.package import PackageOnDisk
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo
from bowerbird_testing.variant_packages import variant_package

QUICK = Effort(seconds=20, blocks=3, block_s=0.02, load_s=30, frame_s=5)
INT8 = "onnx-int8-ort"
ACCURACY = {"onnx-fp32": 0.6, INT8: 0.6}
SLOW = 60  # loops: tens of milliseconds a frame, against less than one

Make = Callable[..., PackageOnDisk]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A package whose float file takes `loops`, with an int8 file made of the other arguments."""

    def build(loops: int = 0, **variant: Any) -> PackageOnDisk:
        reference = write_tiny_yolo(tmp_path / "reference.onnx", sleep_loops=loops)
        variants = {INT8: write_tiny_yolo(tmp_path / "variant.onnx", **{"salt": "variant", **variant})} if variant else {}
        return variant_package(tmp_path / "package", reference, variants)

    return build


def space(**changes: Any) -> Space:
    fixed: dict[str, Any] = {"cores": 1, "huge_pages": False, "spinning": False, **changes}
    return Space(("onnx-fp32", INT8), {"onnxruntime-cpu": ("fp32",)}, **fixed)


NO_LIMITS = Limits()


def tuned(package: PackageOnDisk, limits: Limits = NO_LIMITS, **changes: Any) -> Decision:
    arguments: dict[str, Any] = {"effort": QUICK, "accuracy": ACCURACY, **changes}
    return tune(package, arguments.pop("space", space()), limits, **arguments)


def row_of(decision: Decision, role: str) -> Row:
    return next(row for row in decision.rows if row.candidate.role == role)


def test_the_faster_file_is_chosen_and_measured_in_every_respect(make: Make) -> None:
    decision = tuned(make(loops=SLOW, sleep_loops=0, boxes=(TinyBox((16.0, 16.0, 48.0, 48.0)),)))
    assert decision.chosen == Candidate(role=INT8)
    measured = decision.rows[0].measurement
    assert 0 < measured.p50_ms <= measured.p95_ms
    assert measured.cpu_ms > 0
    assert 30 < measured.peak_rss_mb < 2000
    assert (measured.golden_cases, measured.differing_cases) == (1, 0)
    assert measured.frames >= 3 * 2
    assert measured.runtime.startswith("onnxruntime-cpu 1.")


@pytest.mark.parametrize(
    ("variant", "verdict", "reason"),
    [
        ({"sleep_loops": SLOW}, SLOWER, "times the chosen"),
        ({"boxes": (TinyBox((0.0, 0.0, 20.0, 20.0)),)}, DISCARDED, "1 of 1 golden cases differs"),
        ({"boxes": (TinyBox((16.0, 16.0, 48.0, 48.0), score=0.7),)}, DISCARDED, "1 of 1 golden cases differs"),
        ({"emit_nan": True}, DISCARDED, "NaN"),
        ({"wrong_shape": True}, DISCARDED, "do not use this file|metadata|names"),
        ({"class_names": ("person", "boat")}, DISCARDED, "class names"),
        ({"image_size": 96, "boxes": (TinyBox((16.0, 16.0, 48.0, 48.0)),)}, DISCARDED, "input size"),
    ],
    ids=["slow", "wrong box", "wrong score", "NaN", "wrong shape", "other classes", "other size"],
)
def test_a_file_that_is_slow_or_wrong_is_never_chosen_and_says_why(
    make: Make, variant: dict[str, Any], verdict: str, reason: str
) -> None:
    decision = tuned(make(**variant))
    assert decision.chosen == Candidate()
    row = row_of(decision, INT8)
    assert row.verdict == verdict
    assert re.search(reason, row.reason), row.reason


def test_a_file_that_takes_too_long_for_one_frame_is_discarded_and_its_child_is_gone(make: Make) -> None:
    package = make(sleep_loops=100_000)
    started_s = time.monotonic()
    decision = tuned(package, effort=Effort(seconds=20, blocks=2, block_s=0.02, load_s=4))
    assert time.monotonic() - started_s < 60
    assert "did not answer within 4 s" in row_of(decision, INT8).reason
    assert decision.chosen == Candidate()


def test_what_holds_more_memory_than_a_child_may_is_discarded(make: Make) -> None:
    decision = tuned(make(salt="x"), effort=Effort(seconds=20, blocks=1, block_s=0.02, memory_bytes=20 * 2**20))
    assert decision.chosen is None
    assert all(row.verdict == DISCARDED for row in decision.rows)


def test_the_memory_limit_rules_out_a_file_that_fits_the_machine(tmp_path: Path) -> None:
    """Two float files cannot be told apart by the golden picture, but one of them loads constants of many megabytes."""
    boxes = (TinyBox((16.0, 16.0, 48.0, 48.0)),)
    small = write_tiny_yolo(tmp_path / "small.onnx", boxes=boxes, sleep_loops=SLOW)
    large = write_tiny_yolo(tmp_path / "large.onnx", boxes=boxes, metadata={"notes": "x" * 120_000_000})
    package = variant_package(tmp_path / "package", small, {INT8: large})
    free = tuned(package)
    assert free.chosen == Candidate(role=INT8)
    needs_mb = {row.candidate.role: row.measurement.peak_rss_mb for row in free.rows}
    assert needs_mb[INT8] > needs_mb["onnx-fp32"] + 60
    limit_mb = (needs_mb[INT8] + needs_mb["onnx-fp32"]) / 2
    bound = tuned(package, Limits(memory_mb=limit_mb))
    assert bound.chosen == Candidate()
    assert f"over the memory limit of {limit_mb:.0f} MB" in row_of(bound, INT8).reason


def test_accuracy_in_the_package_rules_a_file_out_before_it_is_run(make: Make) -> None:
    loaded: list[str] = []
    decision = tuned(make(salt="fast"), accuracy={"onnx-fp32": 0.60, INT8: 0.58}, progress=loaded.append)
    assert decision.chosen == Candidate()
    assert "2.0 points below onnx-fp32's" in row_of(decision, INT8).reason
    assert not any(INT8 in text for text in loaded)


def test_a_runtime_that_is_not_here_is_a_row_like_any_other(make: Make) -> None:
    everywhere = Space(("onnx-fp32",), {"onnxruntime-cpu": ("fp32",), "onnxruntime-cuda": ("fp32",)}, huge_pages=False)
    decision = tuned(make(), space=everywhere)
    assert decision.chosen == Candidate()
    row = next(row for row in decision.rows if row.candidate.runtime == "onnxruntime-cuda")
    assert row.verdict == DISCARDED
    assert "CUDA" in row.reason


def test_threads_spinning_and_huge_pages_are_measured_on_the_best(make: Make) -> None:
    decision = tuned(make(), space=space(cores=2, huge_pages=None, can_huge_pages=True, spinning=None))
    tried = {(row.candidate.threads, row.candidate.spinning) for row in decision.rows}
    assert {(1, False), (2, False), (2, True)} <= tried
    assert any(row.candidate.huge_pages and row.measurement.frames for row in decision.rows)
    assert decision.rows[0].verdict == CHOSEN


def test_a_tuning_that_is_stopped_leaves_no_child(make: Make) -> None:
    stop = threading.Event()
    with pytest.raises(Stopped):
        tuned(make(), should_stop=stop.is_set, progress=lambda text: stop.set() if "turn 1" in text else None)
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    named = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children if Path(f"/proc/{child}").exists()]
    assert not [name for name in named if b"autotune_child" in name]


def test_a_child_that_is_killed_while_it_works_is_told_as_dead(make: Make) -> None:
    package = make()
    with CandidateProcess(package.dir, package.digest, Candidate()) as process:
        assert process.answer(timeout_s=30)["differing_cases"] == 0
        os.kill(process._child.pid, signal.SIGSEGV)
        with pytest.raises(ChildFailed, match=r"died \(signal 11\)"):
            process.ask({"do": "block", "seconds": 0.1}, timeout_s=10)


def test_a_child_runs_with_huge_pages_only_when_its_candidate_does(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make()
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1")
    for wanted in (False, True):
        with CandidateProcess(package.dir, package.digest, Candidate(huge_pages=wanted)) as process:
            process.answer(timeout_s=30)
            # The C library cuts the text into pieces in place.
            environment = Path(f"/proc/{process._child.pid}/environ").read_bytes().replace(b":", b"\0").split(b"\0")
            assert (b"glibc.malloc.hugetlb=1" in environment) is wanted
            assert b"GLIBC_TUNABLES=glibc.malloc.arena_max=2" in environment


def test_a_package_that_was_changed_on_the_disk_is_not_measured(make: Make) -> None:
    package = make()
    package.onnx.write_bytes(b"something else")
    decision = tuned(package)
    assert decision.chosen is None
    assert "fetch it again" in decision.rows[0].reason
