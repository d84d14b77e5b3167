"""The selector: decides the audit before looking, waits, and chooses within every limit."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bowerbird_agent.selection.fleet_novelty import fleet_novelty
from bowerbird_agent.selection.gate import glance
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.select import Candidate, Selector, rule_would_send
from bowerbird_models.detections import Detections
from bowerbird_server.fleet.fleet_sketch import make_sketch
from bowerbird_testing.judged_frames import PaperSpool, frame, seeing, textured
from bowerbird_wire.fleet_sketch import model_key

TORN, DOUBTFUL, SURE = seeing(0.5, 0.5), seeing(0.8), seeing(0.99)


def _spool(policy: Policy, *, frames_left: int | None = None, device: str = "cam-01", cameras: int = 1) -> PaperSpool:
    selector = Selector(policy, device=device, cameras=cameras)
    selector.expect(frames_left)
    return PaperSpool(selector)


def _sequences(frame_ids: tuple[str, ...]) -> list[int]:
    return sorted(int(frame_id.split("/")[1]) for frame_id in frame_ids)


@given(
    st.lists(st.tuples(st.sampled_from(["gate", "yard"]), st.lists(st.floats(0.05, 0.99), max_size=4)), max_size=60),
    st.none() | st.integers(0, 12),
    st.none() | st.integers(0, 9000),
    st.sampled_from(["balanced", "uncertain_only", "missed_objects", "novel", "first_labels", "random_audit", "seed_rule"]),
    st.integers(0, 12),
)
@settings(max_examples=60, deadline=None)
def test_a_choice_respects_every_limit_whatever_was_seen(
    seen: list[tuple[str, list[float]]], frames_left: int | None, bytes_left: int | None, template: str, late: int
) -> None:
    spool = _spool(Policy.template(template, window_frames=30), frames_left=frames_left, cameras=2)
    spool.late = late
    spool.show((frame(i, camera=camera), seeing(*scores)) for i, (camera, scores) in enumerate(seen))
    result = spool.close(frames_left=frames_left, bytes_left=bytes_left)  # checks that none is lost and none is both
    assert frames_left is None or len(result.chosen) <= frames_left
    assert bytes_left is None or len(result.chosen) * spool.size_bytes <= bytes_left
    by_policy = [i for i in result.chosen if spool.judged[i].arm == "policy"]
    for camera in ("gate", "yard"):
        numbers = _sequences(tuple(i for i in by_policy if i.startswith(camera)))
        assert all(b - a >= 10 for a, b in itertools.pairwise(numbers)), "one second at ten frames a second"
    for judgement in spool.judged.values():
        assert 0 <= judgement.score <= 1
        assert 0 <= judgement.value <= 1
        assert 0 <= judgement.inclusion_probability <= 1
        assert judgement.admit != bool(judgement.refused)


def test_the_most_uncertain_frames_win_and_are_sent_best_first() -> None:
    policy = Policy.template("uncertain_only", epsilon=0.0, near_duplicates=False)
    spool = _spool(policy, frames_left=2)
    spool.show((frame(i), TORN if i in (40, 80) else DOUBTFUL) for i in range(120))
    result = spool.close(frames_left=2)
    assert _sequences(result.chosen) == [40, 80]
    assert set(spool.judged["gate/40"].reasons) == {"entropy"}


@pytest.mark.parametrize("late", [0, 3, 50])
def test_the_choice_does_not_hang_on_how_fast_the_disk_is(late: int) -> None:
    def chosen(late: int) -> tuple[str, ...]:
        spool = _spool(Policy(window_frames=100), frames_left=5)
        spool.late = late
        rng = np.random.default_rng(3)
        spool.show((frame(i), seeing(*rng.uniform(0.05, 1, 3))) for i in range(100))
        return spool.close(frames_left=5).chosen

    assert chosen(late) == chosen(0)


def test_the_audit_is_decided_before_looking() -> None:
    """Whatever the model sees, the same frames are taken at random, with the same logged probability."""
    draws = []
    for detections in (TORN, SURE, Detections.empty()):
        spool = _spool(Policy(window_frames=100, epsilon=0.5), frames_left=10)
        spool.show((frame(i), detections) for i in range(100))
        draws.append([(i, j.inclusion_probability) for i, j in spool.judged.items() if j.arm == "explore"])
    assert draws[0] == draws[1] == draws[2]
    assert len(draws[0]) == 5
    assert draws[0][0][1] == pytest.approx(0.5 * 10 / 100)


def test_no_score_and_no_gate_drops_an_audit_frame() -> None:
    """A still, empty scene is all near-duplicates: only the audit's frames are kept, and all of them."""
    spool = _spool(Policy(window_frames=200, epsilon=0.2), frames_left=20)
    spool.show((frame(i, image_bgr=textured(0)), Detections.empty()) for i in range(200))
    result = spool.close(frames_left=20)
    audit = [i for i, j in spool.judged.items() if j.arm == "explore"]
    assert len(audit) == 4
    assert set(audit) <= set(result.chosen)
    assert result.explore_share == 1.0
    assert all(spool.judged[i].reasons[0] == "random_audit" for i in audit)


def test_when_the_limit_falls_audit_frames_are_dropped_by_chance_and_the_share_is_told() -> None:
    spool = _spool(Policy(window_frames=100, epsilon=0.5), frames_left=20)
    spool.show((frame(i), TORN) for i in range(100))
    result = spool.close(frames_left=4)
    assert result.explore_share == pytest.approx(2 / 10)
    assert sum(why == "explore_share" for why in result.dropped.values()) == 8


def test_without_frames_left_none_is_admitted_but_every_frame_is_judged() -> None:
    spool = _spool(Policy(window_frames=50, epsilon=0.5), frames_left=0)
    spool.show((frame(i), TORN) for i in range(50))
    assert not spool.waiting
    assert {j.refused for j in spool.judged.values()} == {"no_frames_left"}
    assert spool.judged["gate/10"].strategy_scores["entropy"] > 0.5


def test_of_a_camera_that_shows_nothing_only_the_audit_takes_frames() -> None:
    spool = _spool(Policy(window_frames=100, epsilon=0.5), frames_left=10, cameras=2)
    spool.selector.is_unwell = lambda camera: camera == "gate"
    spool.show((frame(i, camera=camera), TORN) for i in range(100) for camera in ("gate", "yard"))
    by_camera = {
        camera: {j.arm for n, j in spool.judged.items() if j.admit and n.startswith(camera)} for camera in ("gate", "yard")
    }
    assert by_camera == {"gate": {"explore"}, "yard": {"explore", "policy"}}
    assert {j.refused for n, j in spool.judged.items() if n.startswith("gate") and not j.admit} == {"camera_fault"}


def test_a_still_scene_gives_one_candidate_not_hundreds() -> None:
    spool = _spool(Policy(window_frames=300, epsilon=0.0))
    spool.show((frame(i, image_bgr=textured(0)), TORN) for i in range(300))
    assert len(spool.waiting) == 1


def test_candidates_are_capped_and_the_weakest_gives_way() -> None:
    spool = _spool(Policy.template("uncertain_only", epsilon=0.0, max_candidates=5))
    spool.show((frame(20 * i), seeing(*([0.5] * (1 + i % 10)))) for i in range(40))
    assert len(spool.waiting) == 5
    assert all(spool.judged[i].value > 0.99 * spool.judged["gate/180"].value for i in spool.waiting)


def test_a_film_that_runs_again_offers_its_chosen_frames_no_second_time() -> None:
    """Not within the same agent, and not after a restart from the saved state."""
    policy = Policy(window_frames=300)
    spool = _spool(policy, frames_left=5)
    film = [(frame(i), TORN) for i in range(300)]
    spool.show(film)
    first = spool.close(frames_left=5)
    reborn = Selector(policy, device="cam-01", state=spool.selector.to_state())
    for again in (spool, PaperSpool(reborn)):
        again.selector.restart("new_model", new_model=True)
        again.selector.expect(5)
        again.show(film)
        second = again.close(frames_left=5)
        assert len(second.chosen) == 5
        assert set(first.chosen).isdisjoint(second.chosen)
        policy_frames = [i for i in second.chosen if again.judged[i].arm == "policy"]
        assert all(abs(a - b) >= 10 for a in _sequences(first.chosen) for b in _sequences(tuple(policy_frames)))
        assert {again.judged[i].refused for i in first.chosen} == {"already_chosen"}


def test_equal_inputs_give_equal_choices_and_another_seed_another_audit() -> None:
    def explored(seed: int) -> list[str]:
        spool = _spool(Policy(window_frames=100, epsilon=0.5, seed=seed), frames_left=10)
        spool.show((frame(i), DOUBTFUL) for i in range(100))
        spool.close(frames_left=10)
        return [i for i, j in spool.judged.items() if j.arm == "explore"]

    assert explored(1) == explored(1)
    assert explored(1) != explored(2)


def test_two_cameras_fill_one_window_and_a_dead_one_does_not_hold_it_up() -> None:
    selector = Selector(Policy(window_frames=10), device="cam-01", cameras=2)
    for i in range(10):
        selector.judge(frame(i, camera="gate"), SURE)
        if i < 3:
            selector.judge(frame(i, camera="yard"), SURE)
    assert not selector.window_closed()
    for i in range(10, 17):
        selector.judge(frame(i, camera="gate"), SURE)
    assert selector.window_closed()


def test_a_window_in_seconds_ends_by_the_cameras_clock_even_without_frames() -> None:
    selector = Selector(Policy(window_s=5.0), device="cam-01", frame_rate=10.0)
    selector.judge(frame(0), SURE)
    assert not selector.window_closed(4_999_999_999)
    assert selector.window_closed(5_000_000_000)


def test_a_restart_gives_up_the_candidates_and_begins_anew() -> None:
    spool = _spool(Policy(window_frames=50), frames_left=5)
    spool.show((frame(i), TORN) for i in range(50))
    assert spool.selector.window_closed()
    assert set(spool.selector.restart("new_desired")) == spool.waiting
    assert not spool.selector.window_closed()
    assert spool.selector.candidates == ()


def test_a_candidate_that_reaches_the_disk_after_its_window_closed_joins_the_next() -> None:
    spool = _spool(Policy(window_frames=50, epsilon=0.0), frames_left=5)
    shown = frame(7)
    judgement = spool.selector.judge(shown, TORN)
    spool.close(frames_left=5)
    assert spool.selector.add(Candidate("late", shown.camera, shown.captured_at_ms, judgement, 10)) == {}
    assert spool.selector.close_window(frames_left=5, bytes_left=None).chosen == ("late",)


def test_when_scoring_fails_the_audit_goes_on_and_nothing_is_raised() -> None:
    broken = Detections(np.full((1, 4), 1.0, np.float32), np.array([np.nan], np.float32), np.zeros(1, np.int32))
    spool = _spool(Policy(window_frames=100), frames_left=20)
    spool.show((frame(i), broken) for i in range(100))
    result = spool.close(frames_left=20)
    assert len(result.chosen) == 4
    assert all(spool.judged[i].arm == "explore" for i in result.chosen)


def test_without_a_model_half_of_the_budget_is_audit_and_the_rest_is_new_and_typical() -> None:
    spool = _spool(Policy.template("first_labels", window_frames=100), frames_left=8)
    spool.show((frame(i), None) for i in range(100))
    result = spool.close(frames_left=8)
    arms = [spool.judged[i].arm for i in result.chosen]
    assert (arms.count("explore"), arms.count("policy")) == (4, 4)


def test_without_a_model_every_policy_prefers_what_is_typical_until_a_model_sees_the_window() -> None:
    """Half of the frames show one scene, the others each another one; nothing was sent before, so all are equally new."""
    policy = Policy(window_frames=100, near_duplicates=False, shortlist=1, min_gap_s=0.0, spread=0.0, quiet_discount=0.0)
    typical = {f"gate/{i}" for i in range(0, 100, 2)}

    def chosen(detections: Detections | None) -> set[str]:
        spool = _spool(policy, frames_left=10)
        pictures = (textured(1) if i % 2 == 0 else textured(100 + i) for i in range(100))
        spool.show((frame(i, image_bgr=picture), detections) for i, picture in enumerate(pictures))
        return {i for i in spool.close(frames_left=10).chosen if spool.judged[i].arm == "policy"}

    assert len(chosen(None)) == 5
    assert chosen(None) <= typical
    assert not chosen(DOUBTFUL) <= typical


def test_damaged_state_is_refused_with_what_to_do() -> None:
    for state in (b"", b"\xff\xff", b"\xa0", b"\x01"):
        with pytest.raises(ValueError, match="delete it"):
            Selector(Policy(), device="cam-01", state=state)


def test_the_printed_rule_skips_frames_without_a_shown_box() -> None:
    assert rule_would_send(seeing(0.5))
    assert not rule_would_send(seeing(0.5, 0.9))
    assert not rule_would_send(Detections.empty())


def test_what_the_fleet_has_enough_of_is_less_new_than_what_it_has_not() -> None:
    """Two kinds of frames come in turn, both new to this device; the fleet has labelled one of them often."""
    known, unknown = np.eye(2, 16, dtype=np.float32)
    spool = _spool(Policy(window_frames=200, epsilon=0.0))

    def shown(i: int) -> Detections:
        return dataclasses.replace(seeing(0.5), embedding=known if i % 2 else unknown)

    payload = make_sketch(model_key("ab" * 32), np.tile(known, (20, 1)), 20)
    spool.selector.fleet = fleet_novelty(payload, "ab" * 32)
    spool.show((frame(i), shown(i)) for i in range(60))
    novelty = [spool.judged[f"gate/{i}"].strategy_scores["novelty"] for i in range(20, 60)]
    assert max(novelty[1::2]) < min(novelty[0::2])
    spool.selector.fleet = None
    spool.show((frame(i), shown(i)) for i in range(60, 200))
    novelty = [spool.judged[f"gate/{i}"].strategy_scores["novelty"] for i in range(190, 200)]
    assert max(novelty[1::2]) >= min(novelty[0::2]), "without the fleet's word both are as new"


def test_a_glance_beforehand_changes_no_judgement() -> None:
    looking, glancing = Selector(Policy(), device="cam-01"), Selector(Policy(), device="cam-01")
    for i in range(150):
        shown = frame(i, image_bgr=textured(1 + (i % 50 == 7), width=640, height=480))
        seen, beforehand = looking.judge(shown, DOUBTFUL), glancing.judge(shown, DOUBTFUL, glance(shown.image_bgr))
        assert dataclasses.replace(seen, fingerprint=beforehand.fingerprint) == beforehand
        assert (seen.fingerprint.hash_bits == beforehand.fingerprint.hash_bits).all()
