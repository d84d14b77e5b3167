"""The words on a frame's page know every strategy of the devices, and do without those of newer ones."""

from __future__ import annotations

from typing import Any

from bowerbird_agent.selection.policy import STRATEGIES
from bowerbird_server.web.why import MEANINGS, sentence, strategy_rows


def a_frame(**changed: Any) -> dict[str, Any]:
    return {
        "camera": "cam-01/gate",
        "arm": "policy",
        "score": 0.5,
        "inclusion_probability": 0.1,
        "reasons": ["novelty"],
        "strategy_scores": {"entropy": 0.2, "novelty": 0.6, "of_tomorrow": 0.4},
        **changed,
    }


def test_every_strategy_of_the_devices_has_a_meaning_here() -> None:
    assert set(MEANINGS) == set(STRATEGIES)


def test_strategies_that_spoke_come_first_and_unknown_ones_are_shown_too() -> None:
    rows = strategy_rows(a_frame())
    assert [(row["name"], row["spoke"]) for row in rows] == [("novelty", True), ("of_tomorrow", False), ("entropy", False)]
    assert rows[1]["meaning"] == ""


def test_a_policy_without_a_random_share_has_no_probability_to_tell() -> None:
    assert sentence(a_frame(inclusion_probability=0.0)).endswith("No random audit was on.")


def test_a_campaigns_frame_names_its_campaign() -> None:
    assert "campaign c1:" in sentence(a_frame(arm="campaign", reasons=["campaign:c1", "novelty"]))


def test_an_imported_frame_was_chosen_by_no_device() -> None:
    assert "imported" in sentence(a_frame(camera=None))
