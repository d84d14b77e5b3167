"""What the fleet has enough of, from the server's labels to a device's novelty."""

from __future__ import annotations

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bowerbird_agent.selection.fleet_novelty import FleetNovelty, fleet_novelty
from bowerbird_server.fleet.fleet_sketch import k_means, make_sketch
from bowerbird_wire.errors import MessageError
from bowerbird_wire.fleet_sketch import (
    DIMENSIONS,
    MAX_BYTES,
    MAX_CENTRES,
    FleetSketch,
    decode,
    distance,
    encode,
    model_key,
    projection,
)

DIGEST = "ab" * 32
FIRST_SIGNS = [False, True, False, True, True, False, False, True]
MODEL = model_key(DIGEST)


def unit(rng: np.random.Generator, count: int, size: int = 448) -> NDArray[np.float32]:
    rows = np.abs(rng.normal(size=(count, size)))  # pooled features are mostly positive, so that all cosines are high
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def near(rng: np.random.Generator, centre: NDArray[np.float32], count: int, apart: float) -> NDArray[np.float32]:
    rows = centre + apart * rng.normal(size=(count, len(centre))) / np.sqrt(len(centre))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@given(st.integers(0, 10**6), st.integers(1, MAX_CENTRES))
def test_a_sketch_comes_back_as_it_was_but_for_rounding(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    sketch = FleetSketch(
        MODEL, 448, rng.normal(size=(count, DIMENSIONS)).astype(np.float32), rng.random(count).astype(np.float32)
    )
    payload = encode(sketch)
    back = decode(payload)
    assert len(payload) <= MAX_BYTES
    assert (back.model, back.embedding_size) == (MODEL, 448)
    assert np.abs(back.centres - sketch.centres).max() < 0.06
    assert np.abs(back.radii - sketch.radii).max() < 0.003


@given(
    st.binary(max_size=400)
    | st.recursive(st.none() | st.integers() | st.binary(), lambda x: st.dictionaries(st.text(), x)).map(cbor2.dumps)
)
def test_foreign_bytes_are_a_sketch_or_refused(payload: bytes) -> None:
    try:
        decode(payload)
    except MessageError:
        assert fleet_novelty(payload, DIGEST) is None


@given(st.data())
def test_a_damaged_sketch_is_one_that_can_be_asked_or_is_refused(data: st.DataObject) -> None:
    """Each part replaced by something else: no distance is ever outside of 0 to 1."""
    rng = np.random.default_rng(1)
    fields = cbor2.loads(
        encode(FleetSketch(MODEL, 16, rng.normal(size=(3, DIMENSIONS)).astype(np.float32), np.zeros(3, np.float32)))
    )
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(st.none() | st.integers() | st.floats() | st.binary(max_size=300) | st.text(max_size=5))
    try:
        sketch = decode(cbor2.dumps(fields))
    except MessageError:
        return
    assert 0 <= FleetNovelty(sketch).distance(unit(rng, 1, 16)[0]) <= 1


def test_distances_in_the_sketch_are_those_of_the_embeddings() -> None:
    """Within a third of 1 - cosine nearly always, at 64 dimensions of 448."""
    rng = np.random.default_rng(7)
    signs = projection(MODEL, 448)
    off = []
    for _ in range(300):
        one, other = unit(rng, 2)
        true = 1 - float(one @ other)
        sketch = FleetSketch(MODEL, 448, (other @ signs)[None], np.zeros(1, np.float32))
        off.append(abs(distance(one @ signs, sketch) - true) / true)
    assert np.percentile(off, 95) < 0.4
    assert np.mean(off) < 0.2


def test_both_sides_make_the_same_signs_and_another_model_other_ones() -> None:
    assert (projection(MODEL, 100) == projection(MODEL, 100)).all()
    assert (projection(MODEL, 100) != projection(b"other123", 100)).mean() > 0.4
    # The first signs of a known model, for releases to come.
    assert (projection(MODEL, 1)[0, :8] > 0).tolist() == FIRST_SIGNS


def test_a_scene_that_was_labelled_often_is_not_new_and_one_that_was_not_is() -> None:
    """Two scenes with thirty labels each, one with five, and one that nobody has seen; 448 numbers, some three kilobytes at most."""
    rng = np.random.default_rng(3)
    centres = unit(rng, 4)
    labelled = np.concatenate([near(rng, centres[0], 30, 0.1), near(rng, centres[1], 30, 0.1), near(rng, centres[2], 5, 0.1)])
    payload = make_sketch(MODEL, labelled, enough=20)
    assert len(payload) < MAX_BYTES
    novelty = fleet_novelty(payload, DIGEST)
    assert novelty is not None
    means = [float(np.mean([novelty.distance(one) for one in near(rng, centre, 20, 0.1)])) for centre in centres]
    assert max(means[:2]) < 0.02
    assert min(means[2:]) > 0.15


def test_a_sketch_says_nothing_of_another_model_or_of_embeddings_of_another_length() -> None:
    rng = np.random.default_rng(3)
    payload = make_sketch(MODEL, near(rng, unit(rng, 1)[0], 40, 0.1), enough=20)
    assert fleet_novelty(payload, "cd" * 32) is None
    assert fleet_novelty(b"", DIGEST) is None
    assert fleet_novelty(payload, "") is None
    novelty = fleet_novelty(payload, DIGEST)
    assert novelty is not None
    assert novelty.distance(np.ones(3, np.float32)) == 1


def test_too_few_labels_make_no_sketch() -> None:
    rng = np.random.default_rng(3)
    assert make_sketch(MODEL, unit(rng, 19), enough=20) == b""
    assert make_sketch(MODEL, np.zeros((0, 448), np.float32), enough=20) == b""
    with pytest.raises(ValueError, match="centres"):
        encode(FleetSketch(MODEL, 448, np.zeros((0, DIMENSIONS), np.float32), np.zeros(0, np.float32)))


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 30), st.integers(0, 10**6))
def test_every_point_belongs_to_its_nearest_centre(k: int, more: int, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(k + more, 5)).astype(np.float32)
    centres, members = k_means(points, k)
    assert centres.shape == (k, 5)
    assert members.shape == (len(points),)
    again, _ = k_means(points, k)
    assert (again == centres).all()
    if k == 1:
        assert np.allclose(centres[0], points.mean(axis=0), atol=1e-5)


def test_groups_that_lie_apart_are_found() -> None:
    rng = np.random.default_rng(5)
    points = np.concatenate([rng.normal(10 * n, 0.1, size=(20, 4)) for n in range(5)]).astype(np.float32)
    centres, members = k_means(points, 5)
    assert sorted(np.rint(centres[:, 0] / 10).astype(int).tolist()) == [0, 1, 2, 3, 4]
    assert all(len(set(members[20 * n : 20 * n + 20].tolist())) == 1 for n in range(5))
