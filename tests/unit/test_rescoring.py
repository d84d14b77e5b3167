"""What a second look says of a frame, and what labelling it costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.uncertainty import entropy
from bowerbird_models.detections import Detections
from bowerbird_models.frame_value import noisy_or
from bowerbird_models.score_calibration import ScoreCalibration
from bowerbird_server.batches.labelling_cost import ENOUGH_LABELS, Effort, cost_of, fit_effort
from bowerbird_server.batches.rescoring import Seen, combined, disagreement, doubt, ranks_within
from bowerbird_wire.calibration_table import BINS, CalibrationTable, ClassCalibration

BIRD = Seen((0.0, 0.0, 10.0, 10.0), 0.9, "bird")
UNIT = st.floats(0, 1)


def seeing(*scores: float) -> Detections:
    """Boxes side by side."""
    left = np.arange(len(scores), dtype=np.float32)[:, None] * 50
    boxes = np.hstack([left, left * 0, left + 40, left * 0 + 40])
    return Detections(boxes, np.array(scores, np.float32), np.zeros(len(scores), np.int32))


@given(st.lists(UNIT, max_size=20))
def test_doubt_lies_in_0_to_1_and_grows_with_every_box(scores: list[float]) -> None:
    value = doubt(seeing(*scores))
    assert 0 <= value <= 1
    assert doubt(seeing(*scores, 0.5)) >= value


def test_a_model_that_is_sure_has_no_doubt() -> None:
    assert doubt(seeing()) == 0
    assert doubt(seeing(1.0, 0.05, 0.0)) == 0
    assert doubt(seeing(0.5)) == pytest.approx(1 - np.exp(-0.5))


@given(
    st.lists(st.tuples(UNIT, st.integers(0, 2), st.integers(0, 30), st.integers(0, 30)), max_size=30),
    st.none() | st.tuples(st.lists(UNIT, min_size=BINS, max_size=BINS).map(sorted), st.floats(1, 1.2)),
)
def test_the_server_doubts_what_a_device_doubts(
    rows: list[tuple[float, int, int, int]], table: tuple[list[float], float] | None
) -> None:
    """Few boxes and many, overlapping or not, calibrated or not: the device's strategy and the server's second look are one number."""
    rows = sorted(rows, reverse=True)
    corners = np.array([[x, y] for _, _, x, y in rows], np.float32).reshape(-1, 2)
    found = Detections(
        np.hstack([corners, corners + 20]),
        np.array([score for score, *_ in rows], np.float32),
        np.array([class_id for _, class_id, *_ in rows], np.int32),
    )
    calibration = None
    if table is not None:
        one = ClassCalibration(tuple(table[0]), table[1])
        calibration = ScoreCalibration(CalibrationTable(bytes(8), {0: one, 2: one}))
    assert doubt(found, calibration) == pytest.approx(entropy(found, calibration=calibration), abs=1e-6)


@given(UNIT, UNIT, UNIT)
def test_the_server_puts_doubt_and_misses_together_as_devices_with_the_policy_balanced_do(
    fresh: float, missed: float, novelty: float
) -> None:
    """But for novelty, which the server judges against what is labelled and not against a device's bank."""
    of_device = {name: weight for name, weight in Policy().strategies.items() if name != "novelty"}
    said = {"entropy": 0.3, "missed_object": missed, "novelty": novelty}
    assert combined(fresh, said) == noisy_or({**said, "entropy": fresh}, of_device)


def test_what_was_missed_counts_whole_and_doubt_by_half() -> None:
    assert combined(0.0, {"missed_object": 0.8}) == pytest.approx(0.8)
    assert combined(0.8, {}) == pytest.approx(0.4)
    assert combined(0.8, {}, fresh_weight=1.0) == pytest.approx(0.8), "a teacher"
    assert combined(0.0, {"missed_object": 0.8}, {"missed_object": 0.5}) == pytest.approx(0.4)


def test_a_teacher_disagrees_about_what_one_of_the_two_misses() -> None:
    """Equal boxes agree, another class or place does not, and what neither is sure of does not count."""
    assert disagreement([BIRD], [BIRD]) == 0
    assert disagreement([], []) == 0
    assert disagreement([BIRD], []) == disagreement([], [BIRD]) == 1
    assert disagreement([BIRD], [Seen(BIRD.box_xyxy, 0.9, "fox")]) == 1
    assert disagreement([BIRD, Seen((50.0, 50.0, 60.0, 60.0), 0.8, "bird")], [BIRD]) == pytest.approx(1 / 3)
    assert disagreement([BIRD, Seen((50.0, 50.0, 60.0, 60.0), 0.1, "bird")], [BIRD]) == 0


@given(UNIT, UNIT, UNIT, st.none() | st.dictionaries(st.sampled_from(["flicker", "missed_object"]), st.floats(0.25, 2)))
def test_what_the_device_saw_over_time_only_adds(
    fresh: float, flicker: float, missed: float, weights: dict[str, float] | None
) -> None:
    value = combined(fresh, {"flicker": flicker, "missed_object": missed}, weights)
    assert fresh / 2 - 1e-12 <= value <= 1
    assert value >= combined(fresh, {}, weights) - 1e-12


@given(st.dictionaries(st.text(max_size=3), st.tuples(st.sampled_from(["a", "b"]), UNIT), max_size=30))
def test_ranks_keep_the_order_within_a_camera_and_know_no_other(values: dict[str, tuple[str, float]]) -> None:
    ranks = ranks_within(values)
    for one, (camera, value) in values.items():
        assert 0 < ranks[one] < 1
        for other, (other_camera, other_value) in values.items():
            if camera == other_camera:
                assert (ranks[one] < ranks[other]) == (value < other_value)


def test_effort_is_learnt_from_labels_that_were_timed() -> None:
    """Ten seconds a picture and three a box come out; somebody's lunch does not."""
    rng = np.random.default_rng(1)
    labels = [(n, 10 + 3 * n + rng.normal(0, 0.5)) for n in rng.integers(0, 12, 200).tolist()] + [(2, 3600.0)]
    found = fit_effort(labels)
    assert found.look_s == pytest.approx(10, abs=0.5)
    assert found.box_s == pytest.approx(3, abs=0.1)
    assert fit_effort(labels[: ENOUGH_LABELS - 1]) == Effort()


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.1, 500)), min_size=ENOUGH_LABELS, max_size=80))
def test_neither_looking_nor_drawing_gives_time_back(labels: list[tuple[int, float]]) -> None:
    found = fit_effort(labels)
    assert found.look_s >= -1e-6
    assert found.box_s >= 0


def test_a_cost_is_counted_in_what_was_asked_for() -> None:
    effort = Effort(5.0, 7.0)
    assert [cost_of(unit, 3, effort) for unit in ("frames", "boxes", "seconds")] == [1, 3, 26]
    with pytest.raises(ValueError, match="hours"):
        cost_of("hours", 3, effort)
