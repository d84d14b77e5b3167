"""The rules of tuning on figures made up here: what is discarded, what is chosen, what is said, what is tried at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_agent.tuning.autotune import (
    CHOSEN,
    DISCARDED,
    NOT_MEASURED,
    SLOWER,
    TIE,
    Candidate,
    Limits,
    Measurement,
    decide,
    quiet_times,
)
from bowerbird_agent.tuning.autotune_candidates import Space, first_candidates, may_run, refinements, with_huge_pages

BASE = Candidate()
INT8 = Candidate(role="onnx-int8-ort")
OPENVINO = Candidate(runtime="openvino-cpu")
ORT = {"onnxruntime-cpu": ("fp32",)}
ACCURACY = {"onnx-fp32": 0.633, "onnx-int8-ort": 0.632}


def took(p50_ms: float, **changes: object) -> Measurement:
    plain = Measurement(p50_ms, p50_ms * 1.2, p50_ms, 150.0, golden_cases=4, frames=50, runtime="onnxruntime-cpu 1.32.0")
    return replace(plain, **changes)  # type: ignore[arg-type]  # names of fields, which the tests spell out


@pytest.mark.parametrize(
    ("other", "measurement", "accuracy", "verdict", "reason"),
    [
        (INT8, took(50), ACCURACY, CHOSEN, "50.00 ms a frame, the fastest of 2 usable; 2.00 times as fast as onnx-fp32 on"),
        (INT8, took(120), ACCURACY, SLOWER, "slower: 1.20 times the chosen"),
        (OPENVINO, took(98), {}, SLOWER, "within 3% of the chosen one, which is plainer"),
        (OPENVINO, took(96), {}, CHOSEN, "96.00 ms a frame, the fastest of 2 usable; 1.04 times as fast as"),
        (INT8, took(50, differing_cases=1), ACCURACY, DISCARDED, "discarded: 1 of 4 golden cases differs"),
        (INT8, took(50, differing_cases=3), ACCURACY, DISCARDED, "discarded: 3 of 4 golden cases differ"),
        (INT8, took(50), {**ACCURACY, "onnx-int8-ort": 0.62}, DISCARDED, "discarded: accuracy 0.620 is 1.3 points below"),
        (INT8, took(50), {"onnx-fp32": 0.6}, DISCARDED, "discarded: the package records no accuracy for it"),
        (INT8, took(50), {"onnx-int8-ort": 0.6}, DISCARDED, "discarded: the package records no accuracy for its float file"),
        (INT8, took(50, peak_rss_mb=201), ACCURACY, DISCARDED, "discarded: 201 MB is over the memory limit of 200 MB"),
        (INT8, Measurement(failure="it died (signal 11)"), ACCURACY, DISCARDED, "discarded: it died (signal 11)"),
        (INT8, Measurement(), ACCURACY, DISCARDED, f"discarded: {NOT_MEASURED}"),
    ],
)
def test_every_candidate_gets_a_verdict_and_a_reason(
    other: Candidate, measurement: Measurement, accuracy: dict[str, float], verdict: str, reason: str
) -> None:
    decision = decide({BASE: took(100), other: measurement}, Limits(memory_mb=200), accuracy)
    row = next(row for row in decision.rows if row.candidate == other)
    assert row.verdict == verdict
    assert row.reason.startswith(reason)
    assert decision.chosen == (other if verdict == CHOSEN else BASE)
    assert decision.rows[0].candidate == decision.chosen


def test_what_a_variant_may_lose_is_exactly_the_limit() -> None:
    accuracy = {"onnx-fp32": 0.60, "onnx-int8-ort": 0.59}
    assert decide({BASE: took(100), INT8: took(50)}, Limits(accuracy_loss_points=1.0), accuracy).chosen == INT8
    assert decide({BASE: took(100), INT8: took(50)}, Limits(accuracy_loss_points=0.9), accuracy).chosen == BASE


def test_a_variant_that_is_more_accurate_than_the_float_file_loses_nothing() -> None:
    accuracy = {"onnx-fp32": 0.60, "onnx-int8-ort": 0.61}
    assert decide({BASE: took(100), INT8: took(50)}, Limits(accuracy_loss_points=0.0), accuracy).chosen == INT8


def test_among_equals_the_plainest_wins_whatever_the_order() -> None:
    plain = {
        replace(BASE, huge_pages=True): took(98),
        replace(BASE, threads=2, spinning=True): took(98),
        OPENVINO: took(97.5),
        replace(BASE, threads=2): took(97.6),
        BASE: took(100),
    }
    for turn in range(len(plain)):
        items = list(plain.items())
        decision = decide(dict(items[turn:] + items[:turn]), Limits(), {})
        assert decision.chosen == BASE
        assert "within 3% of the fastest of 5 usable, and plainer" in decision.why


def test_without_a_usable_candidate_nothing_is_chosen_and_each_row_says_why() -> None:
    decision = decide({BASE: Measurement(failure="it is broken"), INT8: took(5)}, Limits(), {})
    assert decision.chosen is None
    assert "none of 2" in decision.why
    assert [row.verdict for row in decision.rows] == [DISCARDED, DISCARDED]


candidates = st.builds(
    Candidate,
    role=st.sampled_from(["onnx-fp32", "onnx-int8-ort", "onnx-int8-openvino"]),
    runtime=st.sampled_from(["onnxruntime-cpu", "openvino-cpu", "tensorrt"]),
    threads=st.integers(1, 4),
    spinning=st.booleans(),
    huge_pages=st.booleans(),
)
measurements = st.builds(
    Measurement,
    p50_ms=st.floats(0.5, 500),
    peak_rss_mb=st.floats(20, 600),
    golden_cases=st.just(4),
    differing_cases=st.sampled_from([0, 0, 0, 2]),
    frames=st.sampled_from([0, 10]),
    failure=st.sampled_from(["", "", "", "it died"]),
)
tables = st.dictionaries(candidates, measurements, min_size=1, max_size=8)
accuracies = st.fixed_dictionaries({"onnx-fp32": st.floats(0.3, 0.7)}, optional={"onnx-int8-ort": st.floats(0.2, 0.7)})


@given(tables, accuracies)
def test_the_choice_is_usable_within_the_limits_and_no_slower_than_the_tie(
    measured: dict[Candidate, Measurement], accuracy: dict[str, float]
) -> None:
    limits = Limits(memory_mb=300, accuracy_loss_points=1.0)
    decision = decide(measured, limits, accuracy)
    assert {row.candidate for row in decision.rows} == measured.keys()
    assert all(row.reason for row in decision.rows)
    usable = [row for row in decision.rows if row.verdict != DISCARDED]
    assert (decision.chosen is None) == (not usable)
    if decision.chosen is not None:
        m = measured[decision.chosen]
        assert not m.failure
        assert not m.differing_cases
        assert m.frames
        assert m.peak_rss_mb <= 300
        assert m.p50_ms <= min(row.measurement.p50_ms for row in usable) * (1 + TIE) + 1e-9
        if decision.chosen.is_quantised:
            assert accuracy["onnx-fp32"] - accuracy[decision.chosen.role] <= 0.01 + 1e-6


@given(tables, st.randoms())
def test_neither_order_nor_a_discarded_candidate_changes_the_choice(
    measured: dict[Candidate, Measurement], random: object
) -> None:
    expected = decide(measured, Limits(), {}).chosen
    items = list(measured.items())
    random.shuffle(items)  # type: ignore[attr-defined]  # hypothesis's Random
    assert decide(dict(items), Limits(), {}).chosen == expected
    broken = Candidate(runtime="onnxruntime-cuda")
    assert decide({**measured, broken: Measurement(failure="no such card")}, Limits(), {}).chosen == expected


@given(st.lists(st.floats(1, 10), min_size=1, max_size=20), st.integers(1, 4))
def test_turns_that_something_else_disturbed_do_not_count(times_ms: list[float], turns: int) -> None:
    disturbed = [[value * 50 for value in times_ms]] * turns
    assert quiet_times([times_ms] * (turns + 1) + disturbed) == quiet_times([times_ms])


def test_percentiles_of_turns() -> None:
    assert quiet_times([]) == (0.0, 0.0)
    assert quiet_times([[3.0], [1.0, 2.0, 9.0]]) == (2.0, 9.0)
    assert quiet_times([[float(value) for value in range(100)]]) == (49.5, 95.0)


# -- what is tried -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "runtime", "may"),
    [
        ("onnx-fp32", "tensorrt", True),
        ("onnx-fp16", "openvino-cpu", True),
        ("onnx-int8-ort", "onnxruntime-cpu", True),
        ("onnx-int8-ort", "openvino-cpu", False),
        ("onnx-int8-openvino", "openvino-cpu", True),
        ("onnx-int8-openvino", "onnxruntime-cpu", False),
        ("a-later-role", "onnxruntime-cpu", False),
    ],
)
def test_one_int8_file_does_not_serve_two_runtimes(role: str, runtime: str, may: bool) -> None:
    assert may_run(role, runtime) is may


def test_each_file_is_tried_on_each_runtime_that_it_is_made_for_the_base_first() -> None:
    space = Space(
        ("onnx-fp16", "onnx-fp32", "onnx-int8-openvino", "onnx-int8-ort"),
        {**ORT, "openvino-cpu": ("fp32", "fp16", "bf16")},
        cores=4,
    )
    found = first_candidates(space)
    assert found[0] == BASE
    assert {(c.role, c.runtime, c.precision) for c in found} == {
        ("onnx-fp32", "onnxruntime-cpu", "fp32"),
        ("onnx-fp32", "openvino-cpu", "fp32"),
        ("onnx-fp32", "openvino-cpu", "fp16"),
        ("onnx-fp32", "openvino-cpu", "bf16"),
        ("onnx-int8-openvino", "openvino-cpu", "fp32"),
        ("onnx-int8-openvino", "openvino-cpu", "fp16"),
        ("onnx-int8-openvino", "openvino-cpu", "bf16"),
        ("onnx-int8-ort", "onnxruntime-cpu", "fp32"),
    }
    assert len(set(found)) == len(found)


def test_a_package_of_half_precision_weights_only_has_them_as_its_base() -> None:
    assert first_candidates(Space(("onnx-fp16",), ORT))[0].role == "onnx-fp16"


def test_what_the_operator_fixed_is_not_varied() -> None:
    space = Space(
        ("onnx-fp32", "onnx-int8-ort"),
        ORT,
        cores=8,
        role="onnx-int8-ort",
        threads=3,
        spinning=True,
        huge_pages=False,
        can_huge_pages=True,
    )
    found = first_candidates(space)
    assert found == (Candidate(role="onnx-int8-ort", threads=3, spinning=True),)
    assert refinements(space, found) == ()
    assert with_huge_pages(space, found[0]) == ()


def test_threads_are_tried_on_the_two_best_and_never_on_an_accelerator() -> None:
    space = Space(("onnx-fp32",), ORT, cores=4)
    cuda = Candidate(runtime="onnxruntime-cuda")
    found = refinements(space, [OPENVINO, cuda, BASE])
    assert {(c.runtime, c.threads, c.spinning) for c in found} == {("openvino-cpu", 2, False), ("openvino-cpu", 4, False)}
    assert {(c.threads, c.spinning) for c in refinements(space, [BASE])} == {(2, False), (2, True), (4, False), (4, True)}


@pytest.mark.parametrize(("cores", "counts"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 4)), (6, (1, 3, 6)), (64, (1, 4, 8))])
def test_thread_counts_are_one_half_and_all_of_the_cores_up_to_eight(cores: int, counts: tuple[int, ...]) -> None:
    assert Space(("onnx-fp32",), ORT, cores=cores).thread_counts == counts


def test_a_candidate_says_in_words_what_it_is() -> None:
    assert str(Candidate("onnx-fp32", "openvino-cpu", "bf16", 2, False, True)) == (
        "onnx-fp32 on openvino-cpu, 2 threads, bf16, huge pages"
    )
