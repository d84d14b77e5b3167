"""The bank tells new from known, survives a restart in few bytes, and never compares embeddings of different models."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_agent.selection.novelty import Bank, Fingerprint, Ranks, distances


def _print(seed: int, *, dim: int | None = 16) -> Fingerprint:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 256, 32, dtype=np.uint8)
    return Fingerprint.of(bits, None if dim is None else rng.normal(size=dim).astype(np.float32))


@pytest.mark.parametrize("dim", [None, 16])
def test_a_kept_frame_is_at_distance_0_and_an_empty_bank_at_1(dim: int | None) -> None:
    bank = Bank(8)
    assert bank.distance(_print(1, dim=dim)) == 1.0
    bank.add(_print(1, dim=dim))
    assert bank.distance(_print(1, dim=dim)) == pytest.approx(0.0, abs=1e-6)
    assert bank.distance(_print(2, dim=dim)) > 0.3


@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from([None, 4, 16])), max_size=30), st.sampled_from([None, 4, 16]))
def test_distances_are_between_0_and_1_even_when_models_with_and_without_embedding_mix(
    kept: list[tuple[int, int | None]], dim: int | None
) -> None:
    bank = Bank(10)
    for seed, kept_dim in kept:
        bank.add(_print(seed, dim=kept_dim))
    assert len(bank) <= 10
    assert 0.0 <= bank.distance(_print(99, dim=dim)) <= 1.0
    others = distances(_print(99, dim=dim), [_print(seed, dim=kept_dim) for seed, kept_dim in kept])
    assert ((others >= 0) & (others <= 1)).all()


def test_the_oldest_is_forgotten_first() -> None:
    bank = Bank(2)
    for seed in (1, 2, 3):
        bank.add(_print(seed))
    assert bank.distance(_print(1)) > 0.1
    assert bank.distance(_print(3)) == pytest.approx(0.0, abs=1e-6)


def test_a_bank_survives_a_restart_in_about_a_kilobyte_per_frame() -> None:
    bank = Bank(100)
    for seed in range(100):
        bank.add(_print(seed, dim=448))
    state = bank.to_state()
    assert len(state) < 100 * 1000
    again = Bank.from_state(state, 100)
    probe = _print(500, dim=448)
    assert again.distance(probe) == pytest.approx(bank.distance(probe), abs=1e-3)
    assert len(Bank.from_state(state, 10)) == 10


def test_after_a_model_change_the_hashes_still_know_the_frame() -> None:
    bank = Bank(8)
    bank.add(_print(1))
    bank.forget_embeddings()
    new_model = Fingerprint.of(_print(1).hash_bits, np.ones(16, np.float32))
    assert bank.distance(new_model) == 0.0
    bank.add(_print(2, dim=16))
    assert bank.distance(new_model) == 0.0
    assert Bank.from_state(bank.to_state(), 8).distance(new_model) == 0.0


@pytest.mark.parametrize("state", [b"", b"\xff", b"\xa0", b"\xa2avahC\x01\x02\x03"])
def test_damaged_bytes_are_refused(state: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        Bank.from_state(state, 8)


@pytest.mark.parametrize("embedding", [np.zeros(4, np.float32), np.full(4, np.nan, np.float32)])
def test_an_embedding_that_says_nothing_counts_as_absent(embedding: np.ndarray) -> None:
    assert Fingerprint.of(np.zeros(32, np.uint8), embedding).embedding is None


@given(st.lists(st.floats(0, 1), max_size=50), st.floats(0, 1), st.integers(1, 20))
def test_a_rank_is_the_share_of_lower_values_among_the_last(values: list[float], value: float, history: int) -> None:
    ranks = Ranks(history)
    for one in values:
        ranks.add(one)
    last = values[-history:]
    expected = (sum(one < value for one in last) + sum(one == value for one in last) / 2) / len(last) if last else 0.5
    assert ranks.rank(value) == pytest.approx(expected)


def test_a_rank_taken_and_remembered_at_once_is_the_same() -> None:
    rng = np.random.default_rng(4)
    one, both = Ranks(50), Ranks(50)
    for value in (rng.integers(0, 30, 400) / 30).tolist():  # many ties
        expected = one.rank(value)
        one.add(value)
        assert both.rank_and_add(value) == expected
