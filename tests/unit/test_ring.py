"""What waits for bytes goes on waiting over a restart of the agent, as far as it can still be compared."""

from __future__ import annotations

import cbor2
import numpy as np
import pytest

from bowerbird_agent.selection.choose import Candidate, Judgement
from bowerbird_agent.selection.novelty import Fingerprint
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.ring import of_plain, to_plain
from bowerbird_agent.selection.select import Selector
from bowerbird_testing.judged_frames import frame, seeing

POLICY = Policy(epsilon=0.3, window_frames=40, frames_per_window=6, spread=0.0, near_duplicates=False)


def _shown(selector: Selector, numbers: range) -> list[Candidate]:
    found = []
    for number in numbers:
        judgement = selector.judge(frame(number * 20), seeing(0.5 + 0.004 * number))
        if judgement.admit:
            found.append(Candidate(f"{number:064x}", "gate", frame(number * 20).captured_at_ms, judgement, 1000 + number))
            selector.add(found[-1])
    return found


def _waiting(policy: Policy = POLICY) -> Selector:
    """A selector whose window had bytes for nothing, and whose next one is open."""
    selector = Selector(policy, device="cam-01")
    selector.model = "ab" * 32
    _shown(selector, range(40))
    selector.close_window(frames_left=None, bytes_left=1_000_000, saved_bytes=0.0, carried_bytes=1_000_000)
    return selector


def _restarted(selector: Selector, policy: Policy = POLICY) -> Selector:
    return Selector(policy, device="cam-01", state=selector.to_state())


def test_what_waits_for_bytes_is_chosen_after_a_restart_as_it_would_have_been_without() -> None:
    before = _waiting()
    assert len(before.candidates) > 6
    after = _restarted(before)
    assert set(after.candidates) == set(before.candidates)
    kept = after.close_window(frames_left=None, bytes_left=6_000, saved_bytes=6_000, carried_bytes=1_000_000)
    plain = before.close_window(frames_left=None, bytes_left=6_000, saved_bytes=6_000, carried_bytes=1_000_000)
    assert len(kept.chosen) == len(plain.chosen) > 0
    assert set(kept.chosen) & set(plain.chosen), "chance draws anew, and what is worth most is the same"
    assert after.model == "ab" * 32


def test_an_open_windows_stored_candidates_wait_over_an_orderly_restart() -> None:
    selector = _waiting()
    stored = _shown(selector, range(40, 60))
    assert stored
    waits = set(selector.candidates)
    assert waits & {candidate.frame_id for candidate in stored}
    assert set(_restarted(selector).candidates) == waits


def test_only_what_the_spool_still_has_goes_on_waiting() -> None:
    after = _restarted(_waiting())
    here = set(after.candidates[:3]) | {"of a window that was cut short"}
    after.keep_waiting(here)
    assert set(after.candidates) == here - {"of a window that was cut short"}


def test_a_film_that_runs_again_offers_no_frame_that_waits_a_second_time() -> None:
    before = _waiting()
    number = int(before.candidates[0], 16)
    assert _restarted(before).judge(frame(number * 20), seeing(0.5)).refused == "already_chosen"


def test_under_other_strategies_only_what_chance_took_goes_on_waiting() -> None:
    before = _waiting()
    other = Policy(epsilon=0.3, window_frames=40, frames_per_window=6, strategies={"novelty": 1.0})
    after = _restarted(before, other)
    audit = {c.frame_id for c in before._ring.candidates if c.judgement.arm == "explore"}
    assert set(after.candidates) == audit
    assert audit


def test_a_smaller_ring_takes_the_first_of_what_waited() -> None:
    before = _waiting()
    after = _restarted(before, Policy(epsilon=0.3, window_frames=40, max_candidates=3))
    assert after.candidates == before.candidates[:3]


@pytest.mark.parametrize("embedding", [None, np.array([0.6, 0.8], np.float32)])
def test_a_candidate_survives_as_plain_values(embedding: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None) -> None:
    print_ = Fingerprint.of(np.arange(32, dtype=np.uint8), embedding)
    judgement = Judgement(True, "policy", 0.9, 0.8, ("entropy",), {"entropy": 0.5, "novelty": 1.0}, 0.001, print_)
    candidate = Candidate("ab" * 32, "gate", 1_790_000_000_000, judgement, 4_321)
    back = of_plain(cbor2.loads(cbor2.dumps(to_plain(candidate))))
    assert (back.frame_id, back.camera, back.captured_at_ms, back.size_bytes) == ("ab" * 32, "gate", 1_790_000_000_000, 4_321)
    ours, theirs = back.judgement, judgement
    assert (ours.admit, ours.arm, ours.score, ours.value, ours.reasons) == (True, "policy", 0.9, 0.8, ("entropy",))
    assert (ours.strategy_scores, ours.inclusion_probability) == (theirs.strategy_scores, 0.001)
    assert ours.fingerprint.hash_bits.tolist() == list(range(32))
    if embedding is None:
        assert ours.fingerprint.embedding is None
    else:
        assert ours.fingerprint.embedding == pytest.approx(embedding, abs=1e-3)


@pytest.mark.parametrize(
    "fault", [{"waiting": [{}]}, {"waiting": [{"hash": b"x"}]}, {"waiting": 3}, {"weights": {}, "waiting": [1]}]
)
def test_damaged_candidates_are_refused_with_what_to_do(fault: dict[str, object]) -> None:
    state = {**cbor2.loads(Selector(POLICY, device="d").to_state()), **fault}
    with pytest.raises(ValueError, match="delete it to start with an empty one"):
        Selector(POLICY, device="d", state=cbor2.dumps(state))


def test_the_state_of_an_earlier_release_is_taken_up() -> None:
    state = cbor2.loads(_waiting().to_state())
    for later in ("waiting", "weights", "model"):
        del state[later]
    after = Selector(POLICY, device="cam-01", state=cbor2.dumps(state))
    assert after.candidates == ()
    assert after.model == ""
