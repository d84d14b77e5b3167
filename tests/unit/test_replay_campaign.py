"""A campaign on the command line of `replay`."""

from __future__ import annotations

import pytest

from bowerbird_agent.cli.replay import _campaign
from bowerbird_agent.errors import ConfigError


def test_a_campaign_is_written_in_keys_and_values() -> None:
    campaign = _campaign(2, "class=person, below=0.5,frames=20,gap_s=3")
    assert (campaign.campaign, campaign.class_name, campaign.below) == ("replay-2", "person", 0.5)
    assert (campaign.frames, campaign.gap_s) == (20, 3.0)


@pytest.mark.parametrize("text", ["person", "weather=rain", "below=high", "below=0.1", "frames=-1", ""])
def test_what_is_no_campaign_is_refused_with_what_it_may_say(text: str) -> None:
    with pytest.raises(ConfigError, match="--campaign"):
        _campaign(1, text)
