"""Changes of configuration and campaigns in a real catalogue: waves, refusals, hostile reports, restored sites."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bowerbird_server.catalogue import Catalogue, campaigns, config_changes, device_config, device_groups, fleet, identity
from bowerbird_server.catalogue.campaigns import Condition
from bowerbird_server.cli.app import app
from bowerbird_server.errors import BadInput, Conflict, NotFound
from bowerbird_server.fleet.delivery import Delivery
from bowerbird_server.fleet.offers import BlockQueue
from bowerbird_server.fleet.rollout import Event
from bowerbird_server.fleet.wishes import DESIRED_AT_ONCE, wanted_of
from bowerbird_server.identity.states import Happening
from bowerbird_server.layout import DataFolder
from bowerbird_wire.codec import decode, encode
from bowerbird_wire.messages import Desired, Reported
from bowerbird_wire.topics import DesiredTopic, ReportedTopic

LOUD = {"set": {"log": {"level": "loud"}}}
DEBUG = {"set": {"log": {"level": "debug"}}}


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "data").make()


@pytest.fixture
def cat(folder: DataFolder) -> Iterator[Catalogue]:
    with Catalogue(folder.catalogue) as opened:
        yield opened


def add(cat: Catalogue, count: int, site: str = "demo") -> list[str]:
    names = [f"{site}-{number:03d}" for number in range(count)]
    for name in names:
        fleet.add_device(cat, name, site, "test")
    cat.execute("UPDATE device SET online = 1")
    return names


def answer(cat: Catalogue, device: str, state: str, version: int | None = None, *faults: str) -> None:
    row = device_config.standing(cat, device)
    judged = row["version"] if version is None else version
    in_force = judged if state in ("in_force", "trial") else 0
    config_changes.record(cat, device, Reported(judged, in_force, state, faults=faults))


def offered(cat: Catalogue, change: str) -> set[str]:
    return {m["device"] for m in config_changes.get_change(cat, change)["devices"] if m["state"] != "waiting"}


def test_a_change_for_many_goes_in_waves_and_the_next_waits_for_the_one_before(cat: Catalogue) -> None:
    names = add(cat, 100)
    change = config_changes.change(cat, names, DEBUG, "anna")
    config_changes.advance(cat)
    first = offered(cat, change)
    assert len(first) == 2
    config_changes.advance(cat)
    assert offered(cat, change) == first
    for device in first:
        answer(cat, device, "trial")
    config_changes.advance(cat)
    assert offered(cat, change) == first, "a wish on trial has not succeeded yet"
    for device in first:
        answer(cat, device, "in_force")
    config_changes.advance(cat)
    assert len(offered(cat, change)) == 20
    for device in offered(cat, change) - first:
        answer(cat, device, "in_force")
    config_changes.advance(cat)
    assert len(offered(cat, change)) == 100
    for device in names:
        answer(cat, device, "in_force")
    config_changes.advance(cat)
    assert config_changes.get_change(cat, change)["state"] == "completed"
    assert all(device_config.document(cat, device) == DEBUG["set"] for device in names)


def test_refusals_in_the_first_wave_pause_a_change_and_the_others_never_hear_of_it(cat: Catalogue) -> None:
    names = add(cat, 100)
    change = config_changes.change(cat, names, LOUD, "anna")
    config_changes.advance(cat)
    for device in offered(cat, change):
        answer(cat, device, "refused", None, "log: level is 'loud'")
    config_changes.advance(cat)
    config_changes.advance(cat)
    row = config_changes.get_change(cat, change)
    assert (row["state"], len(offered(cat, change))) == ("paused", 2)
    assert {m["detail"] for m in row["devices"] if m["state"] == "failed"} == {"log: level is 'loud'"}
    config_changes.move(cat, change, Event.ABORT, "anna")
    assert {m["state"] for m in config_changes.get_change(cat, change)["devices"]} == {"failed", "cancelled"}
    with pytest.raises(Conflict):
        config_changes.move(cat, change, Event.RESUME, "anna")


def test_of_two_changes_in_a_row_the_older_one_waits_for_no_answer_any_more(cat: Catalogue) -> None:
    (device,) = add(cat, 1)
    older = config_changes.change(cat, [device], DEBUG, "anna")
    config_changes.advance(cat)
    newer = config_changes.change(cat, [device], {"set": {"health": {"interval_s": 60}}}, "ben")
    config_changes.advance(cat)
    answer(cat, device, "in_force")
    config_changes.advance(cat)
    assert config_changes.get_change(cat, older)["devices"][0]["state"] == "cancelled"
    assert config_changes.get_change(cat, newer)["state"] == "completed"
    assert device_config.document(cat, device) == {"log": {"level": "debug"}, "health": {"interval_s": 60}}
    assert [(row["version"], row["actor"]) for row in device_config.history(cat, device)] == [(2, "ben"), (1, "anna")]


def test_groups_are_sites_tags_and_everybody(cat: Catalogue) -> None:
    north, south = add(cat, 2, "north"), add(cat, 2, "south")
    device_groups.tag(cat, north[0], ["gates", "new"], "anna")
    device_groups.tag(cat, south[1], ["gates"], "anna")
    assert device_groups.resolve(cat, site="north") == north
    assert device_groups.resolve(cat, tagged="gates") == [north[0], south[1]]
    assert device_groups.resolve(cat, site="south", tagged="gates") == [south[1]]
    assert device_groups.resolve(cat, everyone=True) == north + south
    identity.change_state(cat, south[1], Happening.RETIRED, "anna")
    assert device_groups.resolve(cat, tagged="gates") == [north[0]]
    assert device_groups.tag(cat, north[0], ["gates"], "anna", remove=True) == ["new"]
    for wrong in ({}, {"names": ["north-000"], "everyone": True}):
        with pytest.raises(BadInput):
            device_groups.resolve(cat, **wrong)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        device_groups.resolve(cat, ["nobody"])
    with pytest.raises(BadInput):
        device_groups.tag(cat, north[0], ["Not A Tag"], "anna")


class Postbox:
    """A publisher that keeps what it was given."""

    def __init__(self) -> None:
        self.sent: dict[str, bytes] = {}

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        del qos
        assert retain or "desired" not in topic
        self.sent[topic] = payload
        return True


def delivery_of(cat: Catalogue, folder: DataFolder) -> tuple[Delivery, Postbox]:
    postbox = Postbox()
    return Delivery(cat, BlockQueue(folder.repository), postbox, lambda job, _device: job), postbox


def test_wishes_for_a_large_fleet_go_out_a_hundred_at_a_time(cat: Catalogue, folder: DataFolder) -> None:
    names = add(cat, DESIRED_AT_ONCE + 20)
    config_changes.change(cat, names, DEBUG, "anna", at_once=True)
    delivery, postbox = delivery_of(cat, folder)
    delivery.wishes.publish()
    assert len(postbox.sent) == DESIRED_AT_ONCE
    delivery.wishes.publish()
    assert len(postbox.sent) == len(names)
    desired = decode(Desired, postbox.sent[str(DesiredTopic("demo", names[0]))])
    assert (desired.version, desired.config_version, desired.config) == (0, 1, DEBUG["set"])


def test_a_device_that_lies_in_its_report_harms_nobody(cat: Catalogue, folder: DataFolder) -> None:
    names = add(cat, 2)
    campaign = begin(cat, frames=10)
    campaigns.advance(cat)
    delivery, _ = delivery_of(cat, folder)
    topic = str(ReportedTopic("demo", names[0]))
    lies = [
        Reported(2**62, 2**62, "in_force"),
        Reported(1, 1, "x" * 10_000, faults=("y" * 10_000,) * 50, campaigns_version=1, campaigns={campaign: (10**9, 10**15)}),
        Reported(0, 0, "none", campaigns_version=1, campaigns={campaign: (-5, -5), "other": (1, 1)}),
    ]
    for lie in lies:
        delivery.received(topic, encode(lie))
    delivery.received(topic, b"\xff")
    row = device_config.standing(cat, names[0])
    assert row["version"] < 2**53
    assert len(row["reported"]) < 20_000
    share = next(s for s in campaigns.get(cat, campaign)["shares"] if s["device"] == names[0])
    assert 0 <= share["frames_taken"] <= share["frames_held"] <= 10
    campaigns.advance(cat)
    assert sum(s["frames_held"] for s in campaigns.get(cat, campaign)["shares"]) <= 10


def begin(cat: Catalogue, **changes: Any) -> str:
    values: dict[str, Any] = {
        "frames": 10,
        "size_bytes": 1_000_000,
        "until": datetime.now(UTC) + timedelta(hours=1),
        "condition": Condition("", 0.25, 0.5),
        "actor": "anna",
        "everyone": True,
    }
    return campaigns.start(cat, **{**values, **changes})


def test_a_campaign_is_part_of_what_a_device_should_hold_until_it_is_stopped(cat: Catalogue) -> None:
    names = add(cat, 2)
    identity = begin(cat)
    assert set(campaigns.advance(cat)) == set(names)
    wanted = wanted_of(cat, names)
    assert [w.campaigns[0].campaign for w in wanted.values()] == [identity, identity]
    assert sum(w.campaigns[0].frames for w in wanted.values()) <= 10
    assert sum(w.campaigns[0].bytes for w in wanted.values()) <= 1_000_000
    version = wanted[names[0]].campaigns_version
    campaigns.stop(cat, identity, "ben")
    after = wanted_of(cat, names)[names[0]]
    assert (after.campaigns, after.campaigns_version) == ((), version + 1)
    with pytest.raises(Conflict):
        campaigns.stop(cat, identity, "ben")
    kinds = [(row["actor"], row["kind"]) for row in cat.rows("SELECT * FROM event WHERE subject = ? ORDER BY id", identity)]
    assert kinds == [("anna", "campaign started"), ("ben", "campaign stopped")]


def test_a_campaign_that_is_over_is_said_to_be(cat: Catalogue) -> None:
    names = add(cat, 1)
    identity = begin(cat)
    campaigns.advance(cat)
    cat.execute("UPDATE campaign SET until = '2026-01-01T00:00:00.000Z'")
    assert campaigns.advance(cat) == names
    assert campaigns.get(cat, identity)["state"] == "expired"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"frames": 0}, "frames"),
        ({"size_bytes": 5}, "bytes"),
        ({"until": datetime(2020, 1, 1, tzinfo=UTC)}, "is over"),
        ({"condition": Condition("unicorn")}, "no class"),
        ({"condition": Condition(at_least=0.5, below=0.4)}, "below"),
        ({"condition": Condition(count_min=3, count_max=1)}, "counts"),
    ],
)
def test_a_campaign_that_makes_no_sense_does_not_begin(cat: Catalogue, changes: dict[str, Any], why: str) -> None:
    from bowerbird_server.catalogue import classes

    add(cat, 1)
    classes.add_classes(cat, ["person"], "test")
    with pytest.raises(BadInput, match=why):
        begin(cat, **changes)


def test_after_a_restore_wishes_count_as_new_and_campaigns_are_over(cat: Catalogue) -> None:
    names = add(cat, 2)
    config_changes.change(cat, names, DEBUG, "anna")
    config_changes.advance(cat)
    identity = begin(cat)
    campaigns.advance(cat)
    before = wanted_of(cat, names)[names[0]]
    campaigns.after_restore(cat)
    device_config.after_restore(cat, 1000)
    after = wanted_of(cat, names)[names[0]]
    assert campaigns.get(cat, identity)["state"] == "stopped"
    assert after.config_version == before.config_version + 1000
    assert after.campaigns_version > before.campaigns_version + 999
    # And one that holds something newer still is told again.
    config_changes.record(cat, names[0], Reported(5000, 5000, "in_force"))
    assert wanted_of(cat, names)[names[0]].config_version == 5001


def test_a_catalogue_that_was_built_again_takes_nothing_away_from_devices(cat: Catalogue) -> None:
    (device,) = add(cat, 1)
    config_changes.record(cat, device, Reported(5, 5, "in_force"))
    assert device_config.show(cat, device)["state"] == "unknown"
    assert wanted_of(cat, [device]) == {}
    config_changes.change(cat, [device], DEBUG, "anna")
    config_changes.advance(cat)
    assert wanted_of(cat, [device])[device].config_version == 6


def test_a_repeated_report_is_no_news(cat: Catalogue) -> None:
    (device,) = add(cat, 1)
    reported = Reported(0, 0, "none", campaigns_version=1, at_ms=5)
    assert config_changes.record(cat, device, reported)
    assert not config_changes.record(cat, device, replace(reported, at_ms=99))


def run(folder: DataFolder, *words: str) -> str:
    result = CliRunner().invoke(app, [*words, "--data", str(folder.root)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands_wish_show_compare_and_take_back(cat: Catalogue, folder: DataFolder) -> None:
    north = add(cat, 2, "north")
    run(folder, "devices", "tag", north[0], "gates")
    run(folder, "devices", "config", "set", "--tag", "gates", "log.level=debug", "cameras.gate.fps=5")
    config_changes.advance(cat)
    assert "waiting" in run(folder, "devices", "config", "show", north[0])
    shown = json.loads(run(folder, "devices", "config", "show", north[0], "--json"))
    assert shown["document"] == {"log": {"level": "debug"}, "cameras": {"gate": {"fps": 5}}}
    assert "cameras.gate.fps: agent.toml in force, 5 wished" in run(folder, "devices", "config", "diff", north[0])
    answer(cat, north[0], "in_force")
    assert "nothing differs" in run(folder, "devices", "config", "diff", north[0])
    run(folder, "devices", "config", "unset", north[0], "--key", "log.level")
    config_changes.advance(cat)
    assert device_config.document(cat, north[0]) == {"cameras": {"gate": {"fps": 5}}}
    assert len(json.loads(run(folder, "devices", "config", "history", north[0], "--json"))) == 2
    listed = json.loads(run(folder, "devices", "config", "changes", "--json"))
    assert len(listed) == 2
    run(folder, "devices", "config", "pause", listed[0]["id"])
    run(folder, "devices", "config", "resume", listed[0]["id"])
    assert "aborted" in run(folder, "devices", "config", "abort", listed[0]["id"])


def test_the_commands_begin_show_and_stop_a_campaign(cat: Catalogue, folder: DataFolder) -> None:
    add(cat, 2, "north")
    out = run(
        folder,
        "campaigns",
        "start",
        "--frames",
        "7",
        "--nothing",
        "--site",
        "north",
        "--until",
        "3d",
        "--bytes",
        "2MB",
        "--json",
    )
    row = json.loads(out)
    assert (row["frames"], row["bytes"], row["condition"]["count_max"]) == (7, 2_000_000, 0)
    assert "running" in run(folder, "campaigns", "list")
    assert json.loads(run(folder, "campaigns", "show", row["id"]))["frames_received"] == 0
    assert "is stopped" in run(folder, "campaigns", "stop", row["id"])
