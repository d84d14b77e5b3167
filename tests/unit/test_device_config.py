"""Documents and patches of devices' configuration at the server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_agent.remote.config import MAX_DOCUMENT_BYTES as DEVICE_LIMIT
from bowerbird_agent.remote.config import SECTIONS as DEVICE_SECTIONS
from bowerbird_server.cli.campaigns import parse_end
from bowerbird_server.errors import BadInput
from bowerbird_server.fleet.device_config import (
    MAX_DOCUMENT_BYTES,
    SECTIONS,
    amount,
    check,
    difference,
    flat,
    merged,
    parse_assignments,
    settings_for,
)

NOW = datetime(2026, 11, 25, 15, 30, tzinfo=UTC)  # a Wednesday


def test_both_sides_know_the_same_sections_and_the_same_limit() -> None:
    assert {*SECTIONS, "campaigns"} == set(DEVICE_SECTIONS)
    assert MAX_DOCUMENT_BYTES == DEVICE_LIMIT


def test_settings_are_read_as_toml_and_else_as_text() -> None:
    words = ["selection.epsilon=0.3", "cameras.gate.enabled=false", "log.level=debug", 'budget.quiet_hours=["22:00-06:00"]']
    assert parse_assignments(words) == {
        "selection": {"epsilon": 0.3},
        "cameras": {"gate": {"enabled": False}},
        "log": {"level": "debug"},
        "budget": {"quiet_hours": ["22:00-06:00"]},
    }


@pytest.mark.parametrize("words", [["epsilon"], ["=5"], ["a..b=5"], ["log=debug", "log.level=debug"]])
def test_what_is_no_setting_is_refused(words: list[str]) -> None:
    with pytest.raises(BadInput):
        parse_assignments(words)


def test_a_patch_sets_and_takes_away_and_leaves_no_empty_tables() -> None:
    before = {"selection": {"epsilon": 0.1, "min_gap_s": 5}, "cameras": {"gate": {"fps": 3}}}
    patch = {"set": {"selection": {"epsilon": 0.2}}, "unset": ["cameras.gate.fps", "log.level", "nothing.of.this"]}
    assert merged(before, patch) == {"selection": {"epsilon": 0.2, "min_gap_s": 5}}
    assert merged(before, {"unset": [""]}) == {}
    assert before["selection"]["epsilon"] == 0.1


trees = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, min_size=1, max_size=3),
    max_leaves=8,
).filter(lambda tree: isinstance(tree, dict))


@given(trees, trees)
def test_after_a_patch_all_that_it_sets_is_there(before: dict[str, Any], patch: dict[str, Any]) -> None:
    after = flat(merged(before, {"set": patch}))
    assert flat(patch).items() <= after.items()


@given(trees, trees)
def test_no_difference_means_the_same_document(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (difference(one, other) == {}) == (flat(one) == flat(other))


@pytest.mark.parametrize(
    "document",
    [
        {"broker": {"host": "x"}},
        {"campaigns": {}},
        {"log": "debug"},
        {"log": {"level": None}},
        {"budget": {"bytes_per_s": float("inf")}},
        {"selection": {"a": {"b": {"c": {"d": {"e": {"f": {"g": 1}}}}}}}},
        {"cameras": {"gate": {"masks": ["x" * 1000] * 20}}},
        {"log": {"level": datetime(2026, 1, 1, tzinfo=UTC)}},
    ],
)
def test_a_document_that_no_device_would_look_at_is_refused_at_once(document: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        check(document)


def test_a_handful_of_devices_gets_a_change_at_once_and_many_in_waves() -> None:
    assert settings_for(3).wave_shares == (1.0,)
    assert settings_for(5000).wave_shares == (0.02, 0.2, 1.0)
    assert settings_for(5000, at_once=True).wave_shares == (1.0,)


@pytest.mark.parametrize(
    ("text", "size"), [("20MB", 20_000_000), ("500 kB", 500_000), ("1000", 1000), ("1.5mb", 1_500_000), ("2GB", 2 * 10**9)]
)
def test_amounts_are_read_with_their_unit(text: str, size: int) -> None:
    assert amount(text) == size


@pytest.mark.parametrize("text", ["", "MB", "20TB", "-5", "0", "1e400", "nan"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        amount(text)


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("3d", "2026-11-28T15:30:00+00:00"),
        ("12h", "2026-11-26T03:30:00+00:00"),
        ("friday", "2026-11-27T00:00:00+00:00"),
        ("wednesday", "2026-12-02T00:00:00+00:00"),
        ("2026-12-04", "2026-12-04T00:00:00+00:00"),
        ("2026-12-04T18:00", "2026-12-04T18:00:00+00:00"),
    ],
)
def test_an_end_is_a_span_a_weekday_or_a_date(text: str, iso: str) -> None:
    assert parse_end(text, NOW).isoformat() == iso


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(BadInput, match="friday"):
        parse_end("soon", NOW)
