"""Both budgets hold, over changes of the uplink, quiet hours, downloads, crashes and restarts."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bowerbird_agent.budget.budget import DAY_S, BudgetExceeded, ByteLimits, TokenBucket
from bowerbird_agent.budget.budget_note import restore_budget
from bowerbird_agent.budget.tariff import QuietHours, Tariff
from bowerbird_agent.budget.uplink_budget import UplinkBudget
from bowerbird_agent.link.link_events import LinkDown, LinkUp, packet_bytes
from bowerbird_agent.link.upload_runner import UploadRunner
from bowerbird_agent.spool.spool import Spool
from bowerbird_testing.frames import make_frame
from bowerbird_wire.topics import DetectionsTopic, DeviceTopic, FrameTopic

TOTAL = ByteLimits(1000.0, 50_000, 1_000_000, 20_000_000, 0, 10_000)
METERED = ByteLimits(bytes_per_day=200_000, bytes_per_month=1_000_000, control_bytes=10_000)


def _most_within(spent: list[tuple[float, int]], window_s: float) -> int:
    sums = [0, *accumulate(size for _, size in spent)]
    most, begin = 0, 0
    for end, (at_s, _) in enumerate(spent):
        while at_s - spent[begin][0] >= window_s:
            begin += 1
        most = max(most, sums[end + 1] - sums[begin])
    return most


@given(st.integers(0, 10**9))
@settings(max_examples=15, deadline=None)
def test_a_month_between_two_uplinks_overshoots_neither_budget(seed: int) -> None:
    rng = random.Random(seed)
    budget, now_s = UplinkBudget(TokenBucket(TOTAL, 0.0), TokenBucket(METERED, 0.0)), 0.0
    saved = json.dumps(budget.to_state(ahead_bytes=5_000))
    total: list[tuple[float, int]] = []
    metered: list[tuple[float, int]] = []
    while now_s < 33 * DAY_S:
        now_s += rng.choice((10.0, 900.0, 9000.0)) * rng.random()
        if rng.random() < 0.1:
            budget.is_metered = not budget.is_metered
        if rng.random() < 0.03:  # power cut
            was = budget.is_metered
            budget = UplinkBudget.from_state(TOTAL, METERED, json.loads(saved), now_s)
            budget.is_metered = was
            saved = json.dumps(budget.to_state(ahead_bytes=5_000))
        for _ in range(8):
            size, down = rng.randrange(1, 40_000), rng.random() < 0.2
            if (budget.cap_wait_s(now_s, size) if down else budget.wait_s(now_s, size)) > 0.0:
                continue
            if down:
                budget.charge(now_s, size, is_download=True)
            else:
                budget.spend(now_s, size)
            if budget.needs_save:
                saved = json.dumps(budget.to_state(ahead_bytes=5_000))
            total.append((now_s, size))
            if budget.is_metered:
                metered.append((now_s, size))
    assert _most_within(total, DAY_S) <= 1_000_000
    assert _most_within(total, 31 * DAY_S) <= 20_000_000
    assert _most_within(metered, DAY_S) <= 200_000
    assert _most_within(metered, 31 * DAY_S) <= 1_000_000
    assert sum(size for _, size in metered) > 500_000, "and something has been sent"


def test_what_never_fits_the_metered_budget_waits_for_another_uplink() -> None:
    budget = UplinkBudget(TokenBucket(ByteLimits(), 0.0), TokenBucket(ByteLimits(bytes_per_day=100), 0.0))
    assert budget.wait_s(0.0, 500) == 0.0
    budget.is_metered = True
    assert 0.0 < budget.wait_s(0.0, 500) < math.inf
    with pytest.raises(BudgetExceeded):
        budget.spend(0.0, 500)
    budget.is_metered = False
    budget.spend(0.0, 500)
    budget.is_metered = True
    assert budget.left_today_bytes(0.0) == 100, "what went another way costs nothing here"


# -- the runner


@dataclass
class Wire:
    """A link that takes everything."""

    bytes_sent: int = 0
    bytes_received: int = 0
    topics: list[DeviceTopic] = field(default_factory=list)

    def publish(
        self, topic: DeviceTopic, payload: bytes, *, qos: int = 1, retain: bool = False, kind: str | None = None
    ) -> int:
        self.topics.append(topic)
        self.bytes_sent += packet_bytes(topic, len(payload), qos=qos)
        return len(self.topics)


class Wall:
    """A wall clock to be set."""

    def __init__(self) -> None:
        self.at_s = 12 * 3600.0

    def __call__(self) -> float:
        return self.at_s


def runner(
    folder: Path,
    wire: Wire,
    tariff: Tariff | None = None,
    *,
    total: ByteLimits | None = None,
    metered: ByteLimits | None = None,
) -> tuple[UploadRunner, UplinkBudget, Spool]:
    spool = Spool(folder / "spool", max_bytes=50_000_000)
    budget = restore_budget(spool, total or ByteLimits(), 0.0, metered=metered)
    return UploadRunner(spool, wire, "demo", "cam-01", budget, now_s=0.0, tariff=tariff), budget, spool


def test_in_quiet_hours_nothing_goes_beside_and_nothing_large_is_asked_for(tmp_path: Path) -> None:
    wire, wall = Wire(), Wall()
    tariff = Tariff([QuietHours.parse("22:00-06:00 UTC")], wall_s=wall)
    uploads, _, _ = runner(tmp_path, wire, tariff)
    topic = DetectionsTopic("demo", "cam-01", "gate")
    assert uploads.publish_beside(topic, b"x", 0.0)
    assert uploads.may_ask_for(1000, 0.0)
    wall.at_s = 23 * 3600.0
    assert uploads.is_quiet
    assert not uploads.publish_beside(topic, b"x", 0.0)
    assert not uploads.may_ask_for(1000, 0.0)
    wall.at_s = 30 * 3600.0
    assert uploads.may_ask_for(1000, 0.0)


def test_in_quiet_hours_frames_wait_and_go_when_they_end(tmp_path: Path) -> None:
    wire, wall = Wire(), Wall()
    wall.at_s = 5 * 3600.0
    uploads, _, spool = runner(tmp_path, wire, Tariff([QuietHours.parse("22:00-06:00 UTC")], wall_s=wall))
    header, image = make_frame(1)
    spool.put(header, image)
    spool.promote([header.frame_id])
    uploads.handle(LinkUp(None, 64), 0.0)
    assert 0.0 < uploads.pump(0.0) <= 60.0, "and looks again soon: the clock may be set"
    assert wire.topics == []
    wall.at_s = 6 * 3600.0
    uploads.pump(60.0)
    assert [type(topic) for topic in wire.topics] == [FrameTopic]


def test_downloads_are_charged_and_what_was_asked_for_has_its_room_kept(tmp_path: Path) -> None:
    wire = Wire()
    uploads, budget, _ = runner(tmp_path, wire, total=ByteLimits(bytes_per_day=100_000))
    assert uploads.may_ask_for(60_000, 0.0)
    uploads.asked_for(60_000, 0.0)
    assert budget.left_today_bytes(0.0) == 40_000
    assert not uploads.may_ask_for(60_000, 0.0)
    wire.bytes_received = 35_000
    uploads.pump(1.0)
    assert budget.total.spent_today_bytes(1.0) == 35_000
    assert budget.left_today_bytes(1.0) == 40_000
    uploads.pump(200.0)
    assert budget.left_today_bytes(200.0) == 65_000, "what has not come in two minutes does not come"
    uploads.asked_for(60_000, 200.0)
    uploads.handle(LinkDown("gone"), 201.0)
    assert budget.left_today_bytes(201.0) == 65_000, "nor over a link that is gone"


def test_only_bytes_over_the_metered_interface_count_as_metered(tmp_path: Path) -> None:
    routes = tmp_path / "net"
    routes.mkdir()
    row = "{}\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    (routes / "route").write_text("header\n" + row.format("eth0"))
    wire = Wire()
    tariff = Tariff((), ["wwan*"], proc_net=routes)
    uploads, budget, _ = runner(tmp_path, wire, tariff, metered=ByteLimits(bytes_per_day=10_000))
    wire.bytes_received = 700
    uploads.pump(0.0)
    uploads.pump(1.0)
    (routes / "route").write_text("header\n" + row.format("wwan0"))
    uploads.handle(LinkUp(None, 64), 2.0)
    uploads.pump(2.0)
    wire.bytes_received += 300
    uploads.pump(3.0)
    assert budget.is_metered
    assert (budget.total.spent_today_bytes(3.0), budget.metered.spent_today_bytes(3.0)) == (1000, 300)


def test_both_budgets_survive_a_restart_and_damage_buys_nothing(tmp_path: Path) -> None:
    wire, limits = Wire(), ByteLimits(bytes_per_day=1_000_000)
    uploads, budget, spool = runner(tmp_path, wire, total=limits, metered=limits)
    budget.is_metered = True
    budget.charge(0.0, 300_000)
    uploads.close()
    again = restore_budget(spool, limits, 50.0, metered=limits)
    assert (again.total.left_today_bytes(50.0), again.metered.left_today_bytes(50.0)) == (700_000, 700_000)
    spool.set_note("budget", json.dumps({"version": 3, "total": 5, "metered": {}}))
    damaged = restore_budget(spool, limits, 50.0, metered=limits)
    assert (damaged.total.left_today_bytes(50.0), damaged.metered.left_today_bytes(50.0)) == (0, 0)


def test_the_account_of_an_older_agent_is_taken_up(tmp_path: Path) -> None:
    old = TokenBucket(TOTAL, 0.0)
    old.spend(0.0, 40_000)
    budget = UplinkBudget.from_state(TOTAL, METERED, old.to_state(), 5.0)
    assert budget.total.spent_today_bytes(5.0) == 40_000
    assert budget.metered.spent_today_bytes(5.0) == 0
