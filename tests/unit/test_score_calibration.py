"""What a model's scores are worth, from held-out frames at the server to a device's doubt."""

from __future__ import annotations

import json
from itertools import pairwise

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bowerbird_agent.selection.calibration_book import CalibrationBook, doubted_boxes
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.select import Selector
from bowerbird_agent.selection.uncertainty import entropy, least_confidence
from bowerbird_models.detections import Detections
from bowerbird_models.score_calibration import ScoreCalibration
from bowerbird_server.training.average_precision import MatchTable
from bowerbird_server.training.score_calibration import (
    ENOUGH_DRAWN,
    calibration_of,
    class_probabilities,
    difficulty_weight,
    pool_adjacent_violators,
    table_bytes,
)
from bowerbird_wire.calibration_table import (
    BINS,
    MAX_BYTES,
    MAX_CLASSES,
    CalibrationTable,
    ClassCalibration,
    decode,
    encode,
    middles,
)
from bowerbird_wire.errors import MessageError
from bowerbird_wire.fleet_sketch import model_key

DIGEST, OTHER = "ab" * 32, "cd" * 32
MODEL = model_key(DIGEST)
UNIT = st.floats(0, 1)
CLASS = st.builds(ClassCalibration, st.lists(UNIT, min_size=BINS, max_size=BINS).map(sorted).map(tuple), st.floats(1, 1.2))
TABLES = st.dictionaries(st.integers(0, 65_535), CLASS, max_size=MAX_CLASSES).map(lambda x: CalibrationTable(MODEL, x))
AS_THEY_SAY = ClassCalibration(middles(), 1.0)


def seen(scores: list[float], classes: list[int] | None = None, *, apart: float = 50.0) -> Detections:
    """Boxes side by side, `apart` pixels from each other and 40 wide."""
    left = np.arange(len(scores), dtype=np.float32) * apart
    zero = np.zeros_like(left)
    return Detections(
        np.stack([left, zero, left + 40, zero + 40], axis=1),
        np.array(scores, np.float32),
        np.array(classes or [0] * len(scores), np.int32),
    )


def of(**classes: ClassCalibration) -> ScoreCalibration:
    """A table of classes `c0`, `c1`, ..."""
    return ScoreCalibration(CalibrationTable(MODEL, {int(name[1:]): one for name, one in classes.items()}))


def table(scores: NDArray[np.float64], right: NDArray[np.bool_], classes: NDArray[np.int64], drawn: list[int]) -> MatchTable:
    hits = np.repeat(right[:, None], 10, axis=1)
    return MatchTable(np.zeros(len(scores), np.int64), classes, scores, hits, np.array([drawn], np.int64))


# --- on the wire


@given(TABLES)
def test_a_table_comes_back_as_it_was_but_for_rounding(made: CalibrationTable) -> None:
    payload = encode(made)
    back = decode(payload)
    assert len(payload) <= MAX_BYTES
    assert back.model == MODEL
    assert back.classes.keys() == made.classes.keys()
    for class_id, one in made.classes.items():
        assert back.classes[class_id].probabilities == pytest.approx(one.probabilities, abs=0.5 / 255 + 1e-9)
        assert back.classes[class_id].weight == pytest.approx(one.weight, abs=0.001)
    assert encode(back) == payload, "read and written again it costs no new message"


def test_ten_classes_cost_less_than_two_hundred_bytes_and_all_others_are_bounded() -> None:
    hard = ClassCalibration((0.5,) * BINS, 1.2)
    assert len(encode(CalibrationTable(MODEL, dict.fromkeys(range(1000, 1010), hard)))) < 200
    assert len(encode(CalibrationTable(MODEL, dict.fromkeys(range(MAX_CLASSES), hard)))) <= MAX_BYTES
    with pytest.raises(ValueError, match="at most"):
        encode(CalibrationTable(MODEL, dict.fromkeys(range(MAX_CLASSES + 1), hard)))


@pytest.mark.parametrize(
    "wrong", [((0.5,) * 9, 1.0), ((0.5, 0.4, *(0.6,) * 8), 1.0), ((0.5,) * 10, 1.3), ((0.5,) * 9 + (1.5,), 1.0)]
)
def test_what_is_no_calibration_is_not_sent(wrong: tuple[tuple[float, ...], float]) -> None:
    with pytest.raises(ValueError, match="no calibration"):
        encode(CalibrationTable(MODEL, {0: ClassCalibration(*wrong)}))


@given(
    st.binary(max_size=400)
    | st.recursive(st.none() | st.integers() | st.binary(), lambda x: st.dictionaries(st.text(), x)).map(cbor2.dumps)
    | st.fixed_dictionaries(
        {"v": st.sampled_from([1, 2, True]), "m": st.binary(max_size=9)} | {key: st.binary(max_size=30) for key in "cwp"}
    ).map(cbor2.dumps)
)
def test_hostile_bytes_are_refused_or_make_a_table_that_keeps_its_bounds(payload: bytes) -> None:
    try:
        found = decode(payload)
    except MessageError:
        book = CalibrationBook()
        book.take(payload, DIGEST)
        assert book.of(DIGEST) is None
        return
    for class_id in found.classes:
        scores = [0.0, 0.05, 0.5, 0.951, 1.0]
        p = ScoreCalibration(found).probabilities(scores, [class_id] * len(scores))
        assert p == sorted(p)
        assert 0 <= p[0] <= p[-1] <= 1
        assert 1 <= found.classes[class_id].weight <= 1.2 + 1e-9


def test_parts_that_do_not_fit_together_are_refused() -> None:
    good = cbor2.loads(encode(CalibrationTable(MODEL, {0: AS_THEY_SAY, 3: AS_THEY_SAY})))
    assert decode(cbor2.dumps(good)).classes.keys() == {0, 3}
    for change in (
        {"m": b"short"},
        {"c": b"\0\0\0\0"},  # one class twice
        {"c": good["c"] + b"\0"},
        {"p": good["p"][:-1]},
        {"p": good["p"][::-1]},  # falling
        {"w": b""},
        {"w": 5},
        {"v": 2},
    ):
        with pytest.raises(MessageError):
            decode(cbor2.dumps({**good, **change}))
    with pytest.raises(MessageError, match="at most"):
        decode(bytes(MAX_BYTES + 1))


# --- at the server


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0.1, 50)), min_size=1, max_size=12))
def test_pooled_values_never_fall_and_no_rising_numbers_are_nearer(rows: list[tuple[float, float]]) -> None:
    """The mean is kept, and no step up or down of one threshold brings the fit nearer (the optimality of isotonic regression)."""
    values, weights = np.array(rows).T
    fit = pool_adjacent_violators(values, weights)
    assert (np.diff(fit) >= -1e-12).all()
    assert np.average(fit, weights=weights) == pytest.approx(np.average(values, weights=weights), abs=1e-9)
    rest = weights * (values - fit)
    assert all(rest[cut:].sum() <= 1e-9 for cut in range(len(values))), "raising all from here on would be nearer"
    assert (rest * fit).sum() == pytest.approx(0, abs=1e-8)


def test_rising_values_stay_and_falling_ones_become_their_mean() -> None:
    weights = np.array([1.0, 1.0, 2.0])
    assert pool_adjacent_violators(np.array([0.1, 0.2, 0.3]), weights).tolist() == [0.1, 0.2, 0.3]
    assert pool_adjacent_violators(np.array([0.8, 0.4, 0.3]), weights).tolist() == pytest.approx([0.45] * 3)
    assert pool_adjacent_violators(np.array([0.0, 0.6, 0.3]), weights).tolist() == pytest.approx([0.0, 0.4, 0.4])


@given(st.lists(st.tuples(UNIT, st.booleans()), max_size=60))
def test_probabilities_never_fall_with_the_score_nor_leave_the_unit(rows: list[tuple[float, bool]]) -> None:
    p = class_probabilities(np.array([s for s, _ in rows], np.float64), np.array([r for _, r in rows], np.bool_))
    assert (np.diff(p) >= 0).all()
    assert 0 <= p[0] <= p[-1] <= 1


def test_few_boxes_move_little_and_many_move_all_the_way() -> None:
    """Boxes of 0.55 that are right seven times in ten: twenty go half the way, two thousand nearly all of it, other bins stay."""
    none = class_probabilities(np.zeros(0), np.zeros(0, np.bool_))
    assert none.tolist() == pytest.approx(middles())
    half, whole = (class_probabilities(np.full(count, 0.55), np.arange(count) % 10 < 7) for count in (20, 2000))
    assert half[5] == pytest.approx(0.625)
    assert whole[5] == pytest.approx(0.7, abs=0.002)
    assert half[:5].tolist() == pytest.approx(middles()[:5])


def test_a_model_learns_that_its_scores_are_too_high() -> None:
    """Scores twice as high as the share that is right: the table finds the halves."""
    rng = np.random.default_rng(1)
    scores = rng.uniform(0.05, 1.0, 20_000)
    p = class_probabilities(scores, rng.random(20_000) < scores / 2)
    assert p == pytest.approx(np.array(middles()) / 2, abs=0.04)


def test_a_class_that_is_never_found_weighs_a_fifth_more_and_one_of_which_little_is_known_does_not() -> None:
    assert difficulty_weight(1.0, ENOUGH_DRAWN) == 1.0
    assert difficulty_weight(0.0, ENOUGH_DRAWN) == pytest.approx(1.2)
    assert difficulty_weight(0.5, ENOUGH_DRAWN) == pytest.approx(1.1)
    assert difficulty_weight(0.0, ENOUGH_DRAWN - 1) == 1.0
    assert difficulty_weight(None, 0) == 1.0


def test_a_table_speaks_of_classes_by_the_numbers_that_the_model_gives_them() -> None:
    """The data set has another order and a class that the model lacks; boxes that no device keeps teach nothing."""
    scores = np.array([0.9] * 40 + [0.5] * 40 + [0.01] * 40)
    right = np.array([True] * 40 + [False] * 80)
    classes = np.array([0] * 40 + [1] * 40 + [2] * 40)
    found = calibration_of(
        table(scores, right, classes, [50, 50, 0]), {"bird": 0.8, "fox": 0.1, "owl": None}, ["bird", "fox", "owl"]
    )
    assert found.keys() == {"bird", "fox"}
    assert json.loads(json.dumps(found)) == found
    told = decode(table_bytes(MODEL, ["cat", "fox", "bird"], found))
    assert told.classes.keys() == {1, 2}
    assert told.classes[1].weight == pytest.approx(1.18, abs=0.001)
    assert told.classes[1].probabilities[5] < 0.3
    assert told.classes[2].probabilities[9] > 0.95
    assert table_bytes(MODEL, ["cat"], found) == b""
    assert table_bytes(MODEL, ["fox"], {}) == b""


def test_of_more_classes_than_fit_those_with_most_boxes_are_told() -> None:
    names = [f"kind {number}" for number in range(MAX_CLASSES + 5)]
    found = {name: {"p": list(middles()), "weight": 1.0, "boxes": number} for number, name in enumerate(names)}
    assert decode(table_bytes(MODEL, names, found)).classes.keys() == set(range(5, MAX_CLASSES + 5))


# --- on the device


@given(st.lists(st.tuples(UNIT, st.integers(0, 2)), max_size=30), st.floats(5, 60))
def test_a_table_that_says_what_the_scores_say_changes_no_score(rows: list[tuple[float, int]], apart: float) -> None:
    boxes = seen(sorted((s for s, _ in rows), reverse=True), [c for _, c in rows], apart=apart)
    for calibration in (of(c0=AS_THEY_SAY, c1=AS_THEY_SAY), of()):
        assert entropy(boxes, calibration=calibration) == pytest.approx(entropy(boxes), abs=1e-6)
        assert least_confidence(boxes, calibration=calibration) == pytest.approx(least_confidence(boxes), abs=1e-6)


@given(CLASS, st.lists(UNIT, min_size=2, max_size=20))
def test_a_higher_score_is_never_worth_less(one: ClassCalibration, scores: list[float]) -> None:
    p = of(c0=one).probabilities(sorted(scores), [0] * len(scores))
    assert all(low <= high + 1e-9 for low, high in pairwise(p))
    assert all(0 <= each <= 1 for each in p)


def test_at_the_middle_of_a_bin_the_table_is_taken_at_its_word() -> None:
    p = tuple(number / 12 for number in range(BINS))
    assert of(c0=ClassCalibration(p, 1.0)).probabilities(middles(), [0] * BINS) == pytest.approx(p)
    assert of(c0=ClassCalibration(p, 1.0)).probabilities([0.3, 0.7], [0, 1]) == [pytest.approx(2.5 / 12), 0.7]


def test_doubt_is_that_of_the_probability_and_of_the_class() -> None:
    """A box of 0.9 that is right half the time is as doubtful as can be; a hard class counts a fifth more; one of another class not."""
    half = ClassCalibration((0.5,) * BINS, 1.0)
    hard = ClassCalibration((0.5,) * BINS, 1.2)
    sure = seen([0.95])
    assert entropy(sure, calibration=of(c0=half)) == pytest.approx(1 - np.exp(-0.5))
    assert entropy(sure, calibration=of(c0=hard)) == pytest.approx(1 - np.exp(-0.6))
    assert entropy(sure, calibration=of(c1=hard)) == entropy(sure)
    assert least_confidence(sure, calibration=of(c0=half)) == pytest.approx(0.5)
    assert least_confidence(seen([0.2]), calibration=of(c0=half)) == 0, "what is shown is decided by the score"


@given(st.lists(st.tuples(UNIT, st.integers(0, 2)), max_size=24), CLASS, CLASS, st.floats(5, 60))
def test_few_boxes_and_many_are_doubted_alike(
    rows: list[tuple[float, int]], one: ClassCalibration, two: ClassCalibration, apart: float
) -> None:
    """Plain numbers and arrays agree, overlaps of one class included: boxes that say nothing make a frame one of many."""
    calibration = of(c0=one, c1=two)
    scores = sorted((s for s, _ in rows), reverse=True)
    few = seen(scores, [c for _, c in rows], apart=apart)
    beside = seen(scores + [0.0] * 25, [c for _, c in rows] + [2] * 25, apart=apart)
    assert entropy(beside, calibration=calibration) == pytest.approx(entropy(few, calibration=calibration), abs=1e-9)


def test_a_score_that_is_no_number_is_not_made_one() -> None:
    assert np.isnan(entropy(seen([float("nan")]), calibration=of(c0=AS_THEY_SAY)))


def test_a_table_is_kept_for_its_model_alone_and_over_a_restart() -> None:
    """Another model's table says nothing; going back finds the earlier one; a wish without takes back that of the running model."""
    first, second = (encode(CalibrationTable(model_key(digest), {0: AS_THEY_SAY})) for digest in (DIGEST, OTHER))
    book = CalibrationBook()
    book.take(first, "")
    assert book.of(OTHER) is None
    assert book.of("") is None
    book.take(second, DIGEST)
    again = CalibrationBook(cbor2.loads(cbor2.dumps(book.to_state())))
    assert again.of(DIGEST) is not None
    again.take(b"", OTHER)
    assert again.of(OTHER) is None
    assert again.of(DIGEST) is not None
    again.take(b"nonsense", DIGEST)
    assert again.of(DIGEST) is None


def test_only_the_newest_tables_are_kept() -> None:
    book = CalibrationBook()
    for number in range(9):
        book.take(encode(CalibrationTable(bytes([number]) * 8, {})), "")
    assert len(book.to_state()) == 4
    assert book.of("08" * 32) is not None


def test_a_selector_remembers_tables_and_reads_states_from_before_there_were_any() -> None:
    selector = Selector(Policy(), device="cam-01")
    selector.calibrations.take(encode(CalibrationTable(MODEL, {0: AS_THEY_SAY})), "")
    state = selector.to_state()
    assert Selector(Policy(), device="cam-01", state=state).calibrations.of(DIGEST) is not None
    fields = cbor2.loads(state)
    del fields["calibrations"]
    assert Selector(Policy(), device="cam-01", state=cbor2.dumps(fields)).calibrations.of(DIGEST) is None
    with pytest.raises(ValueError, match="damaged"):
        Selector(Policy(), device="cam-01", state=cbor2.dumps({**fields, "calibrations": 5}))


def test_explain_is_told_of_the_boxes_nearest_to_a_coin_s_toss() -> None:
    calibration = of(c0=ClassCalibration((0.5,) * BINS, 1.1))
    found = doubted_boxes(calibration, seen([0.95, 0.9, 0.75, 0.3, 0.05], [1, 0, 0, 9, 1]), ("bird", "fox"))
    assert found is not None
    assert found.plain() == [["bird", 0.9, 0.5, 1.1], ["bird", 0.75, 0.5, 1.1], ["9", 0.3, 0.3, 1.0]]
    assert doubted_boxes(None, seen([0.5]), ("bird",)) is None
    assert doubted_boxes(calibration, None, ("bird",)) is None
