"""Every template works, and a policy that cannot work is refused with all its faults at once."""

from __future__ import annotations

import math

import pytest

from bowerbird_agent.selection import explore, novelty, temporal, uncertainty
from bowerbird_agent.selection.policy import STRATEGIES, TEMPLATES, Policy
from bowerbird_agent.selection.uncertainty import SCORERS


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_template_is_a_policy(name: str) -> None:
    assert Policy.template(name, window_frames=7).window_frames == 7


def test_the_default_policy_is_the_balanced_template() -> None:
    assert Policy() == Policy.template("balanced")


def test_every_strategy_that_can_be_named_has_code() -> None:
    assert set(STRATEGIES) == set(SCORERS) | {
        *("entropy", "missed_object", "rare_class", "novelty", "flicker", "periodic", "random"),
    }


def test_every_strategy_that_can_be_named_cites_its_source() -> None:
    where: dict[str, object] = {
        "missed_object": uncertainty.hidden_objects,
        "rule_max": uncertainty.rule_max_below,
        "rule_min": uncertainty.rule_min_below,
        "flicker": temporal.Tracks.flicker,
        "periodic": temporal.periodic,
        "novelty": novelty.Bank.distance,
        "random": explore.AuditDraw,
    }
    silent = [name for name in STRATEGIES if "Source: " not in str((where.get(name) or getattr(uncertainty, name)).__doc__)]
    assert silent == []


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(ValueError, match=r"window_frames.*epsilon.*min_gap_s.*unknown strategy 'luck'"):
        Policy(window_frames=0, epsilon=1.5, min_gap_s=-1, strategies={"luck": 1.0})


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": math.nan},
        {"decode_confidence": 0.5},
        {"strategies": {}},
        {"strategies": {"entropy": 0}},
        {"strategies": {"entropy": True}},
        {"window_s": 0.0},
        {"frames_per_window": -1},
        {"max_candidates": 2.5},
        {"seed": "x"},
    ],
)
def test_a_value_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not usable"):
        Policy(**wrong)  # type: ignore[arg-type]


def test_unknown_templates_and_fields_are_refused_with_what_exists() -> None:
    with pytest.raises(ValueError, match=r"balanced.*random_audit"):
        Policy.template("best")
    with pytest.raises(ValueError, match=r"unknown selection field epsilo; .*epsilon"):
        Policy.template("balanced", epsilo=0.1)


def test_a_policy_cannot_be_changed_behind_its_back() -> None:
    strategies = {"entropy": 1.0}
    policy = Policy(strategies=strategies)
    strategies["count"] = 5.0
    assert dict(policy.strategies) == {"entropy": 1.0}
