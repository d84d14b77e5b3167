"""What a device's models run with: named, tuned, inherited, or the reference; and that tuning never costs a model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bowerbird_agent.errors import AgentError
from bowerbird_agent.tuning import autotune_runner
from bowerbird_agent.tuning.autotune import Candidate
from bowerbird_agent.tuning.autotune_runner import Effort
from bowerbird_agent.tuning.hardware import Hardware, this_machine
from bowerbird_agent.tuning.model_config import ModelConfig
from bowerbird_agent.tuning.model_runtime import DEFAULT, FALLBACK, PINNED, TUNED, ModelRuntimes, wants_huge_pages
from bowerbird_agent.tuning.model_tuning import ModelTuning
from bowerbird_agent.tuning.runtime_choice import ModelShape, RuntimeChoice
from bowerbird_agent.updates.model_store import ModelSlot
from bowerbird_agent.updates.selftest import SelfTestResult
from bowerbird_models.package import PackageOnDisk
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo
from bowerbird_testing.variant_packages import variant_package

QUICK = Effort(seconds=15, blocks=2, block_s=0.02)
HERE = replace(this_machine(), cores=1)
INT8 = "onnx-int8-ort"
# A config in which one candidate after the reference is left to try.
TWO_THREADS = Candidate(threads=2)

Make = Callable[..., PackageOnDisk]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Packages of one shape; another salt, another digest."""

    def build(
        salt: str, variants: dict[str, Path] | None = None, accuracy: dict[str, float] | None = None, **model: Any
    ) -> PackageOnDisk:
        reference = write_tiny_yolo(tmp_path / f"{salt}.onnx", salt=salt, **model)
        return variant_package(tmp_path / salt, reference, variants, accuracy)

    return build


def runtimes(tmp_path: Path, hardware: Hardware = HERE, **config: Any) -> ModelRuntimes:
    return ModelRuntimes(ModelConfig(**config), tmp_path / "state", hardware)


def slot(package: PackageOnDisk) -> ModelSlot:
    return ModelSlot(package.digest, package.dir, package.manifest)


def choice(package: PackageOnDisk, candidate: Candidate, hardware: Hardware = HERE, **changes: Any) -> RuntimeChoice:
    plain = RuntimeChoice(
        candidate, "measured", package.digest, ModelShape.of(package.manifest), hardware.key, "2026-01-01T00:00:00Z", 90.0
    )
    return replace(plain, **changes)


def install(ours: ModelRuntimes, package: PackageOnDisk) -> SelfTestResult:
    return ModelTuning(ours).install_test(package.dir, package.digest, timeout_s=60, memory_bytes=3 * 2**30, effort=QUICK)


# -- what runs --------------------------------------------------------------------------------------------------------------


def test_a_model_that_was_never_tuned_runs_on_the_reference_at_once(make: Make, tmp_path: Path) -> None:
    detector, runs = runtimes(tmp_path).open(slot(make("a")))
    assert (runs.candidate, runs.origin) == (Candidate(), DEFAULT)
    assert "bowerbird-agent tune" in runs.why
    assert runs.to_plain(detector)["file_digest"] == detector.file_digest
    assert not (tmp_path / "state").exists(), "looking leaves nothing behind"


def test_what_was_tuned_runs_after_a_restart(make: Make, tmp_path: Path) -> None:
    package = make("a")
    runtimes(tmp_path).choices.remember(choice(package, TWO_THREADS))
    _, runs = runtimes(tmp_path).open(slot(package))
    assert (runs.candidate, runs.origin, runs.why) == (TWO_THREADS, TUNED, "measured")


def test_a_changed_stack_makes_tuning_due(make: Make, tmp_path: Path) -> None:
    package = make("a")
    runtimes(tmp_path).choices.remember(choice(package, TWO_THREADS))
    newer = replace(HERE, stack={**HERE.stack, "onnxruntime": "99.0"})
    runs = runtimes(tmp_path, newer).for_model(package.manifest, package.digest)
    assert (runs.candidate, runs.origin) == (Candidate(), DEFAULT)
    assert "not what they were" in runs.why


def test_a_choice_that_no_longer_loads_gives_way_to_the_reference_and_says_so(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = make("a")
    runtimes(tmp_path).choices.remember(choice(package, Candidate(runtime="onnxruntime-cuda")))
    with caplog.at_level(logging.WARNING):
        detector, runs = runtimes(tmp_path).open(slot(package))
    assert (runs.candidate, runs.origin) == (Candidate(), FALLBACK)
    assert detector.runtime.startswith("onnxruntime-cpu")
    assert "does not load" in caplog.text


@pytest.mark.parametrize(
    "config",
    [
        {"threads": 1},
        {"spinning": True},
        {"huge_pages": True},
        {"memory_limit_mb": 80},
        {"accuracy_loss_points": 0.0, "variant": INT8},
    ],
)
def test_a_choice_that_the_configuration_rules_out_today_is_not_used(
    make: Make, tmp_path: Path, config: dict[str, Any]
) -> None:
    package = make("a", {INT8: write_tiny_yolo(tmp_path / "int8.onnx", salt="int8")})
    runtimes(tmp_path).choices.remember(choice(package, TWO_THREADS))
    runs = runtimes(tmp_path, **config).for_model(package.manifest, package.digest)
    assert runs.origin == DEFAULT
    assert "tune" in runs.why


def test_a_named_runtime_is_used_whatever_was_tuned(make: Make, tmp_path: Path) -> None:
    package = make("a", {INT8: write_tiny_yolo(tmp_path / "int8.onnx", salt="int8")})
    runtimes(tmp_path).choices.remember(choice(package, TWO_THREADS))
    ours = runtimes(tmp_path, runtime="onnxruntime-cpu", variant=INT8, spinning=True)
    detector, runs = ours.open(slot(package))
    assert (runs.candidate, runs.origin) == (Candidate(role=INT8, spinning=True), PINNED)
    assert detector.file_digest == package.manifest.files[INT8].sha256


def test_a_named_runtime_that_is_not_here_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r'model.runtime = "onnxruntime-cuda" cannot be used here: .*"auto"'):
        runtimes(tmp_path, runtime="onnxruntime-cuda").check()
    runtimes(tmp_path, runtime="onnxruntime-cpu").check()
    runtimes(tmp_path).check()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"runtime": "onnxruntime-cpu", "variant": "onnx-int8-ort"}, "the package has only onnx-fp32"),
        ({"variant": "onnx-int8-ort"}, "the package has only onnx-fp32"),
    ],
)
def test_a_variant_that_the_package_does_not_have_is_an_error(
    make: Make, tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    package = make("a")
    with pytest.raises(AgentError, match=says):
        runtimes(tmp_path, **config).open(slot(package))
    result = install(runtimes(tmp_path, **config), package)
    assert (result.code, says in result.detail) == ("no_variant", True)


def test_a_variant_is_not_put_on_a_runtime_that_it_was_not_made_for(make: Make, tmp_path: Path) -> None:
    package = make("a", {INT8: write_tiny_yolo(tmp_path / "int8.onnx", salt="int8")})
    with pytest.raises(AgentError, match="is not made for openvino-cpu"):
        runtimes(tmp_path, runtime="openvino-cpu", variant=INT8).for_model(package.manifest, package.digest)


# -- an update --------------------------------------------------------------------------------------------------------------


def test_an_update_is_tested_tuned_and_remembered(make: Make, tmp_path: Path) -> None:
    package = make("a")
    ours = runtimes(tmp_path, replace(HERE, cores=2), huge_pages=False, spinning=False)
    assert install(ours, package).code == ""
    kept = ours.choices.exact(ours.hardware.key, package.digest)
    assert kept is not None
    assert {row["threads"] for row in kept.rows} == {1, 2}
    assert kept.why
    assert ours.for_model(package.manifest, package.digest).origin == TUNED


def test_a_retrained_model_of_the_same_shape_inherits_without_measuring(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make("a"), make("b", boxes=(TinyBox((8.0, 8.0, 40.0, 40.0)),))
    ours = runtimes(tmp_path)
    ours.choices.remember(choice(first, TWO_THREADS))
    monkeypatch.setattr(autotune_runner, "tune", None)
    assert install(ours, second).code == ""
    runs = ours.for_model(second.manifest, second.digest)
    assert (runs.candidate, runs.origin) == (TWO_THREADS, TUNED)
    assert first.digest[:12] in runs.why


def test_an_inherited_choice_that_fails_parity_is_not_used(make: Make, tmp_path: Path) -> None:
    first = make("a", {INT8: write_tiny_yolo(tmp_path / "good.onnx", salt="good")})
    wrong = write_tiny_yolo(tmp_path / "wrong.onnx", salt="evil", boxes=(TinyBox((0.0, 0.0, 9.0, 9.0)),))
    second = make("b", {INT8: wrong})
    named = runtimes(tmp_path, variant=INT8)
    named.choices.remember(choice(first, Candidate(role=INT8)))
    assert install(named, second).code == "golden", "the operator named the variant, and it is wrong"
    free = runtimes(tmp_path, huge_pages=False)
    assert install(free, second).code == ""
    assert free.for_model(second.manifest, second.digest).candidate.role == "onnx-fp32"


def test_an_update_with_a_faster_file_of_the_same_accuracy_runs_that(make: Make, tmp_path: Path) -> None:
    fast = write_tiny_yolo(tmp_path / "fast.onnx", salt="fast")
    package = make("slow", {INT8: fast}, accuracy={"onnx-fp32": 0.6, INT8: 0.595}, sleep_loops=60)
    ours = runtimes(tmp_path, huge_pages=False)
    assert install(ours, package).code == ""
    detector, runs = ours.open(slot(package))
    assert (runs.candidate.role, runs.origin) == (INT8, TUNED)
    assert detector.file_digest == package.manifest.files[INT8].sha256
    strict = runtimes(tmp_path, accuracy_loss_points=0.4).for_model(package.manifest, package.digest)
    assert strict.origin == DEFAULT
    assert "model.accuracy_loss_points" in strict.why


def test_an_inherited_file_that_fails_parity_is_forgotten_and_the_model_is_taken_on_another(make: Make, tmp_path: Path) -> None:
    accuracy = {"onnx-fp32": 0.6, INT8: 0.6}
    good = write_tiny_yolo(tmp_path / "good.onnx", salt="good")
    wrong = write_tiny_yolo(tmp_path / "wrong.onnx", salt="evil", boxes=(TinyBox((0.0, 0.0, 9.0, 9.0)),))
    first, second = make("a", {INT8: good}, accuracy=accuracy), make("b", {INT8: wrong}, accuracy=accuracy)
    ours = runtimes(tmp_path, huge_pages=False)
    ours.choices.remember(choice(first, Candidate(role=INT8)))
    assert install(ours, second).code == ""
    assert ours.for_model(second.manifest, second.digest).candidate.role == "onnx-fp32"


def test_an_inherited_choice_that_does_not_load_is_forgotten_and_the_model_is_tuned(make: Make, tmp_path: Path) -> None:
    first, second = make("a"), make("b")
    ours = runtimes(tmp_path)
    ours.choices.remember(choice(first, Candidate(runtime="onnxruntime-cuda")))
    assert install(ours, second).code == ""
    runs = ours.for_model(second.manifest, second.digest)
    assert runs.origin == TUNED
    assert runs.candidate.runtime != "onnxruntime-cuda"


def test_a_model_that_fails_on_the_reference_is_refused_before_anything_is_measured(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = make("a", {"onnx-fp32": write_tiny_yolo(tmp_path / "nan.onnx", emit_nan=True)})
    monkeypatch.setattr(ModelTuning, "tune", None)
    assert install(runtimes(tmp_path), bad).code == "bad_model"


def test_a_package_that_the_disk_damaged_since_it_was_verified_is_refused_with_the_code(make: Make, tmp_path: Path) -> None:
    package = make("a")
    package.onnx.write_bytes(b"zeros")
    assert install(runtimes(tmp_path), package).code == "wrong_digest"
    (package.dir / "golden.npz").unlink()
    package.onnx.unlink()
    assert install(runtimes(tmp_path), package).code == "missing"


@pytest.mark.parametrize("fault", [OSError(28, "no space left"), RuntimeError("a bug"), autotune_runner.Stopped()])
def test_whatever_goes_wrong_with_tuning_the_model_is_taken(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(autotune_runner, "tune", fail)
    package = make("a")
    ours = runtimes(tmp_path, replace(HERE, cores=2))
    assert install(ours, package).code == ""
    assert ours.for_model(package.manifest, package.digest).origin == DEFAULT


def test_where_there_is_one_way_only_nothing_is_measured(make: Make, tmp_path: Path) -> None:
    package = make("a")
    ours = runtimes(tmp_path, huge_pages=False, variant="onnx-fp32")
    only = replace(ModelTuning(ours).space(package), runtimes={"onnxruntime-cpu": ("fp32",)})
    assert ModelTuning(ours).space(package).thread_counts == (1,)
    if ModelTuning(ours).space(package) == only:  # no further runtime is installed
        assert not ModelTuning(ours).is_worth_tuning(package)
    assert ModelTuning(runtimes(tmp_path, replace(HERE, cores=2))).is_worth_tuning(package)


# -- huge pages -------------------------------------------------------------------------------------------------------------


def test_huge_pages_are_known_before_any_model_is_read(make: Make, tmp_path: Path) -> None:
    package, state = make("a"), tmp_path / "state"
    assert not wants_huge_pages(ModelConfig(), state)
    assert wants_huge_pages(ModelConfig(huge_pages=True), state)
    assert wants_huge_pages(ModelConfig(runtime="onnxruntime-cpu", huge_pages=True), state)
    (state / "models").mkdir(parents=True)
    (state / "models" / "slots.json").write_text(f'{{"active": "{package.digest}"}}')
    here = this_machine()
    runtimes(tmp_path, here).choices.remember(choice(package, Candidate(huge_pages=True), here))
    assert wants_huge_pages(ModelConfig(), state)
    assert not wants_huge_pages(ModelConfig(huge_pages=False), state)
    assert not wants_huge_pages(ModelConfig(runtime="onnxruntime-cpu"), state)
    (state / "models" / "slots.json").write_text("{")
    assert not wants_huge_pages(ModelConfig(), state)
