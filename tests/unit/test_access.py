"""Roles, sites, passwords, the throttle and the chain of the audit log, without a server."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_server.access import passwords
from bowerbird_server.access.event_chain import FIRST, Anchor, digest_of, faults
from bowerbird_server.access.roles import Principal, Role, Sites
from bowerbird_server.access.throttle import FORGET_S, FREE_TRIES, LONGEST_S, Throttle
from bowerbird_server.errors import BadInput
from bowerbird_server.web.auth import safe_next
from bowerbird_server.web.permissions import NEEDS, Need, needs_of

GOOD = "four random words stand"


def chain(count: int) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    before = FIRST
    for position in range(1, count + 1):
        event: dict[str, Any] = {
            "id": f"e{position}",
            "at": f"2026-01-01T00:00:{position:02d}",
            "actor": "ada",
            "kind": "label added",
            "subject": f"frame-{position}",
            "why": "{}",
            "origin": "192.0.2.7 user:ada",
        }
        before = digest_of(before, position, event)
        events.append({**event, "position": position, "digest": before})
    return events


# ---- the chain


def test_a_chain_that_nobody_touched_has_no_fault() -> None:
    events = chain(5)
    assert list(faults(events, [Anchor(3, events[2]["digest"]), Anchor(5, events[4]["digest"])])) == []
    assert list(faults([])) == []


@pytest.mark.parametrize("column", ["id", "at", "actor", "kind", "subject", "why", "origin", "digest"])
def test_an_edit_of_any_column_is_found_at_its_place(column: str) -> None:
    events = chain(5)
    events[2][column] += "x"
    found = list(faults(events))
    assert found
    assert found[0].startswith("event 3 ")


def test_an_edit_whose_own_digest_was_made_anew_is_found_at_the_next_event() -> None:
    events = chain(5)
    events[1]["actor"] = "eve"
    events[1]["digest"] = digest_of(events[0]["digest"], 2, events[1])
    assert [fault.split(" (")[0] for fault in faults(events)] == ["event 3"]


@given(st.integers(2, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 2))))
def test_a_row_that_is_taken_out_is_missed(shape: tuple[int, int]) -> None:
    count, gone = shape
    events = chain(count)
    del events[gone]
    assert f"events {gone + 1} to {gone + 1} are missing" in list(faults(events))


def test_rows_cut_from_the_end_are_missed_by_an_anchor_only() -> None:
    events = chain(5)
    anchor = Anchor(5, events[4]["digest"])
    assert list(faults(events[:3])) == []
    assert "its end was cut off" in next(faults(events[:3], [anchor]))


def test_a_chain_written_anew_does_not_fit_its_anchor() -> None:
    events = chain(5)
    anchor = Anchor(4, events[3]["digest"])
    before = FIRST
    for position, event in enumerate(events, start=1):
        event["actor"] = "eve"
        before = event["digest"] = digest_of(before, position, event)
    assert list(faults(events)) == []
    assert "written anew" in next(faults(events, [anchor]))


def test_two_events_that_changed_places_are_found() -> None:
    events = chain(4)
    events[1]["position"], events[2]["position"] = 3, 2
    assert list(faults(sorted(events, key=lambda event: int(event["position"]))))


# ---- roles and sites


def test_each_role_may_do_what_those_before_it_may() -> None:
    for least in Role:
        for role in Role:
            principal = Principal("x", role, Sites(), "token:1")
            assert bool(Need(least).refusal(principal)) == (role < least)


def test_what_all_sites_share_is_not_changed_by_somebody_of_one_site() -> None:
    need = Need(Role.OPERATOR, everywhere=True)
    assert need.refusal(Principal("x", Role.OPERATOR, Sites.of(["north"]), "user:x"))
    assert not need.refusal(Principal("x", Role.OPERATOR, Sites(), "user:x"))


@given(st.lists(st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True), max_size=4))
def test_sites_come_back_from_the_table_as_they_went_in(names: list[str]) -> None:
    sites = Sites.of(names)
    assert Sites.read(sites.text()) == sites
    assert sites.everywhere == (not names)


@pytest.mark.parametrize("text", ["[]", "{}", "null", '"north"', "3"])
def test_what_is_no_list_of_sites_lets_in_nowhere(text: str) -> None:
    assert Sites.read(text).names == frozenset()


def test_a_role_is_known_by_its_word() -> None:
    assert [Role.of(role.word) for role in Role] == list(Role)
    with pytest.raises(BadInput, match="release-manager"):
        Role.of("root")


def test_a_path_meets_one_line_of_the_table_a_method() -> None:
    """A line that another one hides would never be asked."""
    for (method, path), need in NEEDS.items():
        assert needs_of(re.sub(r"\{\w+\}", "x" * 64, path))[method] is need


@pytest.mark.parametrize("path", ["/api/v1/", "/api", "/frames/", "/frames/a/b", "/api/v1/frames//image", "/static", "/..", ""])
def test_an_address_that_nobody_declared_needs_nothing_and_gives_nothing(path: str) -> None:
    assert needs_of(path) == {}


@given(st.text(max_size=40))
def test_where_a_log_in_leads_stays_on_this_server(path: str) -> None:
    to = safe_next(path)
    assert to.startswith("/")
    assert not to.startswith(("//", "/\\"))


# ---- passwords and tokens


def test_a_password_is_kept_as_argon2id_and_only_it_matches() -> None:
    kept = passwords.hash_password(GOOD, "ada")
    assert kept.startswith("$argon2id$")
    assert GOOD not in kept
    assert passwords.password_matches(kept, GOOD)
    assert not passwords.password_matches(kept, GOOD + " ")
    assert not passwords.password_matches(None, GOOD)
    assert not passwords.password_matches("not a hash", GOOD)


@pytest.mark.parametrize(
    "password",
    ["", "short", "a" * 20, "changeme1234", "Bowerbird-2026!", "ada lovelace 1", "x" * 300, "abababababab", "administrator"],
)
def test_defaults_and_weak_passwords_are_refused(password: str) -> None:
    with pytest.raises(BadInput):
        passwords.hash_password(password, "ada")


def test_a_password_counts_the_same_however_its_accents_are_composed() -> None:
    kept = passwords.hash_password("se\u0301same ouvre-toi vite", "ada")
    assert passwords.password_matches(kept, "s\u00e9same ouvre-toi vite")


def test_a_new_token_is_long_and_never_the_same() -> None:
    made = {passwords.new_token() for _ in range(50)}
    assert len(made) == 50
    assert all(len(token) > 40 and token.startswith("bbt_") for token in made)


@pytest.mark.parametrize("token", ["", "secret", "a" * 40, "0123456789"])
def test_a_token_that_is_no_secret_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="at random"):
        passwords.check_token(token)


# ---- the throttle


def test_a_few_tries_are_free_and_then_each_costs_twice_as_long() -> None:
    throttle = Throttle()
    now_s, waits = 0.0, []
    for _ in range(FREE_TRIES + 12):
        waits.append(throttle.wait_s("a", now_s))
        now_s += waits[-1]
        throttle.failed("a", now_s)
    assert waits[:FREE_TRIES] == [0.0] * FREE_TRIES
    assert waits[FREE_TRIES : FREE_TRIES + 4] == [1.0, 2.0, 4.0, 8.0]
    assert max(waits) == LONGEST_S
    assert throttle.wait_s("b", now_s) == 0.0


def test_a_success_or_a_quarter_of_an_hour_is_forgiving() -> None:
    throttle = Throttle()
    for _ in range(FREE_TRIES + 3):
        throttle.failed("a", 0.0)
        throttle.failed("b", 0.0)
    assert throttle.wait_s("a", 1.0) > 0
    throttle.succeeded("a")
    assert throttle.wait_s("a", 1.0) == 0.0
    assert throttle.wait_s("b", 1.0) > 0
    assert throttle.wait_s("b", FORGET_S + 1) == 0.0


def test_a_crowd_of_addresses_takes_bounded_memory() -> None:
    throttle = Throttle()
    for number in range(30_000):
        throttle.failed(f"address {number}", 0.0)
    assert len(throttle._tries) <= 20_000
