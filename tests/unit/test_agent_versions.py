"""Which version of the agent is started next: links and small files that hold after a crash between any two of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bowerbird_agent.state_format import StateTooNew, check_state, claim_state
from bowerbird_agent.updates.agent_versions import BASE, AgentVersions
from bowerbird_agent.updates.launch import Launch

OLD, NEW = "0" * 63 + "1", "0" * 63 + "2"


def made(home: Path, digest: str) -> None:
    (home / "versions" / digest).mkdir(parents=True)
    (home / "versions" / digest / ".complete").touch()


def versions(home: Path, running: str = BASE) -> AgentVersions:
    return AgentVersions(home, prefix=home / "versions" / running if running else home.parent / "base")


def test_which_version_runs_is_told_by_its_place(tmp_path: Path) -> None:
    home = tmp_path / "agent"
    made(home, NEW)
    assert versions(home, NEW).running == NEW
    assert versions(home).running == BASE
    assert AgentVersions(home, prefix=tmp_path / "elsewhere" / NEW).running == BASE
    assert AgentVersions(home, prefix=home / "versions" / "not-a-digest").running == BASE


def test_a_trial_and_its_confirmation(tmp_path: Path) -> None:
    home = tmp_path / "agent"
    made(home, NEW)
    old = versions(home)
    for _ in range(2):  # doing it again changes nothing
        old.begin_trial(NEW, seconds=7)
        assert (old.current, old.previous) == (NEW, BASE)
        assert (home / "trial").read_text() == f"digest {NEW}\nstarts 0\nboot -\nboots 0\nseconds 7\n"
    new = versions(home, NEW)
    new.confirm()
    assert not (home / "trial").exists()
    assert new.current == NEW


def test_a_version_falls_back_to_the_one_before_it_and_where_that_is_not_whole_to_the_base(tmp_path: Path) -> None:
    home = tmp_path / "agent"
    made(home, OLD)
    made(home, NEW)
    versions(home, OLD).begin_trial(NEW, seconds=7)
    new = versions(home, NEW)
    assert new.previous == OLD
    new.fall_back(OLD)
    assert (new.current, new.previous) == (OLD, BASE)
    assert not (home / "trial").exists()
    new.begin_trial(NEW, seconds=7)
    (home / "versions" / OLD / ".complete").unlink()
    new.fall_back(OLD)
    assert new.current == BASE


def test_an_orderly_end_in_the_trial_takes_one_start_back_and_never_below_none(tmp_path: Path) -> None:
    home = tmp_path / "agent"
    made(home, NEW)
    versions(home).begin_trial(NEW, seconds=7)
    trial = home / "trial"
    trial.write_text(trial.read_text().replace("starts 0", "starts 2"))
    new = versions(home, NEW)
    for left in (1, 0, 0):
        new.forgive_start()
        assert f"starts {left}\n" in trial.read_text()
    versions(home).forgive_start()  # of another version: nothing
    trial.write_text("nonsense")
    new.forgive_start()
    assert trial.read_text() == "nonsense"


def test_garbage_is_what_neither_runs_nor_is_named(tmp_path: Path) -> None:
    home = tmp_path / "agent"
    for digest in (OLD, NEW, "0" * 63 + "3"):
        made(home, digest)
    versions(home, OLD).begin_trial(NEW, seconds=7)
    assert versions(home, OLD).collect_garbage() == ["0" * 63 + "3"]
    assert versions(tmp_path / "none").collect_garbage() == []


def test_links_that_lead_elsewhere_name_no_version(tmp_path: Path) -> None:
    home = tmp_path / "agent"
    home.mkdir()
    (home / "current").symlink_to("/etc/passwd")
    assert versions(home).current == BASE


@pytest.mark.parametrize(("text", "reason"), [(f"{NEW} crash_loop\n", "crash_loop"), (f"{NEW}\n", ""), (f"{OLD} x\n", "")])
def test_a_failure_is_of_the_version_that_it_names(tmp_path: Path, text: str, reason: str) -> None:
    home = tmp_path / "agent"
    home.mkdir()
    (home / "failed").write_text(text)
    assert versions(home).failure(NEW) == reason


def test_only_the_launchers_own_word_counts_and_no_child_inherits_it(tmp_path: Path) -> None:
    for value, is_launched in (("1", True), ("0", False), ("yes", False)):
        environment = {"BOWERBIRD_LAUNCHER": value, "PATH": "/bin"}
        found = Launch.from_environment(environment, prefix=tmp_path, config=Path("agent.toml"))
        assert (found is not None) is is_launched
        assert environment == {"PATH": "/bin"}


def test_a_state_folder_says_its_format_and_a_later_one_is_refused_unchanged(tmp_path: Path) -> None:
    assert check_state(tmp_path) == 1
    claim_state(tmp_path, version="0.2.0")
    written = (tmp_path / "format.json").read_bytes()
    claim_state(tmp_path, version="0.2.1")
    assert (tmp_path / "format.json").read_bytes() == written  # the same format: not written at every start
    (tmp_path / "format.json").write_text('{"format": 2, "version": "0.9.0"}')
    with pytest.raises(StateTooNew, match=r"Install 0\.9\.0"):
        claim_state(tmp_path, version="0.2.0")
    assert (tmp_path / "format.json").read_text() == '{"format": 2, "version": "0.9.0"}'
