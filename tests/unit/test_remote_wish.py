"""Trial, refusal and way back of a configuration from afar, and what a restart makes of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bowerbird_agent.errors import ConfigError
from bowerbird_agent.remote.runner import RemoteWishes
from bowerbird_agent.remote.wish import Standing, accepted, fallen_back, from_plain, proved, refused

A, B, C = {"log": {"level": "debug"}}, {"log": {"level": "warning"}}, {"health": {"interval_s": 50}}
BAD = {"log": {"level": "loud"}}
TEXT = """
[device]
id = "cam-01"
site = "demo"
[broker]
host = "127.0.0.1"
[model]
factory = "m.onnx"
[remote]
probation_s = 60
[[cameras]]
name = "gate"
source = "/dev/video0"
"""


@pytest.fixture
def agent_toml(tmp_path: Path) -> Path:
    (tmp_path / "m.onnx").write_bytes(b"x")
    path = tmp_path / "agent.toml"
    path.write_text(TEXT)
    return path


def wish(wishes: RemoteWishes, version: int, document: Any, now_s: float = 0.0) -> bool:
    wishes.offer(version, document)
    return wishes.step(now_s, camera_well=True, connected=True) is not None


def test_a_wish_is_on_trial_and_then_in_force(agent_toml: Path) -> None:
    wishes = RemoteWishes(agent_toml)
    assert wish(wishes, 1, A)
    assert (wishes.standing.state, wishes.config.log.level) == ("trial", "debug")
    assert wishes.step(59.0, camera_well=True, connected=True) is None
    assert wishes.standing.state == "trial"
    assert wishes.step(61.0, camera_well=True, connected=True) is None
    assert (wishes.standing.state, wishes.standing.version) == ("in_force", 1)


def test_a_wish_survives_a_restart_in_order_and_one_that_is_not(agent_toml: Path) -> None:
    wishes = RemoteWishes(agent_toml)
    wish(wishes, 1, A)
    again = RemoteWishes(agent_toml)
    assert (again.config.log.level, again.standing.state) == ("debug", "trial")
    again.step(0.0, camera_well=True, connected=True)
    again.step(61.0, camera_well=True, connected=True)
    for _ in range(5):
        assert RemoteWishes(agent_toml).config.log.level == "debug"


def test_older_and_repeated_versions_are_ignored(agent_toml: Path) -> None:
    wishes = RemoteWishes(agent_toml)
    wish(wishes, 5, A)
    assert not wishes.offer(5, B)
    assert not wishes.offer(4, B)
    assert not RemoteWishes(agent_toml).offer(5, B)
    assert wishes.standing.version == 5


def test_a_wish_with_faults_changes_nothing_and_is_not_judged_twice(agent_toml: Path) -> None:
    wishes = RemoteWishes(agent_toml)
    wish(wishes, 1, A)
    assert not wish(wishes, 2, BAD)
    assert (wishes.standing.state, wishes.standing.seen, wishes.standing.version) == ("refused", 2, 1)
    assert "level is 'loud'" in wishes.standing.faults[0]
    assert wishes.config.log.level == "debug"
    again = RemoteWishes(agent_toml)
    assert not again.offer(2, BAD)
    assert (again.standing.state, again.config.log.level) == ("refused", "debug")


def test_two_ends_without_order_in_the_time_of_trial_bring_the_one_before_back(agent_toml: Path) -> None:
    wishes = RemoteWishes(agent_toml)
    wish(wishes, 1, A)
    wishes.step(61.0, camera_well=True, connected=True)
    wish(wishes, 2, B, 70.0)
    assert RemoteWishes(agent_toml).config.log.level == "warning"
    third = RemoteWishes(agent_toml)
    assert third.config.log.level == "debug"
    assert (third.standing.state, third.standing.version) == ("fell_back", 1)
    assert "ended 2 times" in third.standing.faults[0]
    assert not third.offer(2, B)
    assert RemoteWishes(agent_toml).standing.state == "fell_back"


def test_ends_in_order_are_not_counted_against_a_wish(agent_toml: Path) -> None:
    wish(RemoteWishes(agent_toml), 1, A)
    for _ in range(4):
        wishes = RemoteWishes(agent_toml)
        wishes.close()
    assert wishes.standing.starts == 1
    assert wishes.config.log.level == "debug"


@pytest.mark.parametrize(
    ("camera_well", "connected", "why"), [(False, True, "no camera"), (True, False, "the server was not reached")]
)
def test_a_wish_without_camera_or_server_is_given_up_after_the_trial(
    agent_toml: Path, camera_well: bool, connected: bool, why: str
) -> None:
    wishes = RemoteWishes(agent_toml)
    wish(wishes, 1, A)
    wishes.step(1.0, camera_well=camera_well, connected=connected)
    config = wishes.step(61.0, camera_well=camera_well, connected=connected)
    assert config is not None
    assert config.log.level == "info"
    assert (wishes.standing.state, wishes.standing.version) == ("fell_back", 0)
    assert why in wishes.standing.faults[0]
    assert RemoteWishes(agent_toml).standing.state == "fell_back"


def test_a_camera_that_was_ill_before_is_not_held_against_a_wish(agent_toml: Path) -> None:
    wishes = RemoteWishes(agent_toml)
    wishes.offer(1, A)
    assert wishes.step(0.0, camera_well=False, connected=True) is not None
    assert wishes.step(61.0, camera_well=False, connected=True) is None
    assert wishes.standing.state == "in_force"


def test_of_two_changes_in_a_row_the_unproved_one_is_not_what_is_fallen_back_to(agent_toml: Path) -> None:
    wishes = RemoteWishes(agent_toml)
    wish(wishes, 1, A)
    wishes.step(61.0, camera_well=True, connected=True)
    wish(wishes, 2, B, 70.0)
    wish(wishes, 3, C, 80.0)
    assert wishes.config.health.interval_s == 50
    assert wishes.config.log.level == "info", "a wish is whole: what the one before said is over"
    assert wishes.step(141.0, camera_well=False, connected=True) is not None
    assert (wishes.standing.version, wishes.config.log.level) == (1, "debug")


def test_a_wish_that_no_longer_fits_the_file_is_given_up_and_the_file_counts(agent_toml: Path) -> None:
    wishes = RemoteWishes(agent_toml)
    wish(wishes, 1, A)
    wishes.step(61.0, camera_well=True, connected=True)
    agent_toml.write_text(TEXT.replace("probation_s = 60", 'allow = ["budget"]'))
    assert wishes.reread().log.level == "info"
    assert wishes.standing.state == "fell_back"
    assert "does not fit agent.toml" in wishes.standing.faults[0]


def test_a_file_with_faults_leaves_everything_as_it_is(agent_toml: Path) -> None:
    wishes = RemoteWishes(agent_toml)
    wish(wishes, 1, A)
    agent_toml.write_text("[device]\n")
    with pytest.raises(ConfigError):
        wishes.reread()
    assert wishes.config.log.level == "debug"


def test_a_document_that_is_too_large_is_refused(agent_toml: Path) -> None:
    wishes = RemoteWishes(agent_toml)
    assert not wish(wishes, 1, {"cameras": {"gate": {"masks": [[[0.123456, 0.1]] * 100] * 19}}})
    assert "at most 16384 are taken" in wishes.standing.faults[0]


def test_nothing_is_acted_on_that_could_not_be_written_down(agent_toml: Path) -> None:
    wishes = RemoteWishes(agent_toml)
    store = agent_toml.parent / "state" / "remote"
    store.parent.mkdir()
    store.write_text("in the way")
    assert not wish(wishes, 1, A)
    assert (wishes.standing.state, wishes.config.log.level) == ("none", "info")
    store.unlink()
    assert wishes.step(5.0, camera_well=True, connected=True) is None
    assert wishes.step(31.0, camera_well=True, connected=True) is not None
    assert wishes.config.log.level == "debug"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"seen": "x"}', b'{"seen": 1, "document": 5}', b"\xff"])
def test_a_damaged_store_leaves_the_file_alone_in_force(agent_toml: Path, content: bytes) -> None:
    store = agent_toml.parent / "state" / "remote" / "configuration.json"
    store.parent.mkdir(parents=True)
    store.write_bytes(content)
    wishes = RemoteWishes(agent_toml)
    assert wishes.standing.state == "none"
    assert wish(wishes, 1, A)


def test_every_standing_reads_back_as_itself() -> None:
    one = accepted(Standing(), 1, A, had_camera=True, differs=("x",))
    for standing in (one, proved(one), refused(one, 2, ("because",)), fallen_back(one, "why")):
        assert from_plain(json.loads(json.dumps(standing.plain()))) == standing


def test_a_newer_refusal_stays_told_when_the_wish_on_trial_falls_back() -> None:
    standing = fallen_back(refused(accepted(Standing(), 1, A, had_camera=True), 2, ("bad",)), "no camera")
    assert (standing.state, standing.seen, standing.version, standing.faults) == ("refused", 2, 0, ("bad",))
