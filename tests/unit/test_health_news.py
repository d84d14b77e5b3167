"""When a health message is worth its bytes: what is news, and how often none is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bowerbird_agent.health.health import idle_interval_s, news_of
from bowerbird_wire.messages import Health

QUIET = Health("b", 1, "m", frames_seen=10, spool={"candidate": 3, "new": 0}, cameras={"gate": "ok"}, extra={"finished": False})


@pytest.mark.parametrize(
    "later",
    [
        replace(QUIET, at_ms=2, frames_seen=500, frames_scored=500, bytes_sent=900, fps=9.0, inference_ms=20.0),
        replace(QUIET, spool={"candidate": 9, "new": 0}),
        replace(QUIET, extra={**QUIET.extra, "spent": {"k": 9}, "camera_dropped": {"gate": 4}}),
    ],
)
def test_frames_that_pass_are_no_news(later: Health) -> None:
    assert news_of(later) == news_of(QUIET)


@pytest.mark.parametrize(
    "later",
    [
        replace(QUIET, frames_selected=1),
        replace(QUIET, frames_committed=1),
        replace(QUIET, spool={"candidate": 3, "new": 1}),
        replace(QUIET, evicted={"spool_full.policy.0.1": 1}),
        replace(QUIET, cameras={"gate": "dark"}),
        replace(QUIET, model_digest="n"),
        replace(QUIET, desired_version=2),
        replace(QUIET, extra={"finished": True}),
        replace(QUIET, extra={"finished": False, "trouble": ["the disk is full"]}),
        replace(QUIET, extra={"finished": False, "window": {"round_closed": 1}}),
    ],
)
def test_what_somebody_waits_for_is_news(later: Health) -> None:
    assert news_of(later) != news_of(QUIET)


def test_an_idle_device_speaks_at_its_idle_interval_and_sooner_with_a_short_interval() -> None:
    assert idle_interval_s(30.0, 3600.0) == 3600.0
    assert idle_interval_s(0.3, 3600.0) == pytest.approx(36.0)
    assert idle_interval_s(60.0, 10.0) == 60.0
