"""A policy on trial sees what the policy in force sees, is counted and logged, and changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.config import parse_config, parse_wished
from bowerbird_agent.errors import ConfigError
from bowerbird_agent.selection.choose import Candidate
from bowerbird_agent.selection.decision_log import DecisionLog, read_newest_first
from bowerbird_agent.selection.dry_run import DryRun, keep_trial, read_trial
from bowerbird_agent.selection.explain import explain
from bowerbird_agent.selection.fleet_novelty import FleetNovelty
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.select import Selector
from bowerbird_models.detections import Detections

POLICY = Policy(window_frames=40, frames_per_window=6, min_gap_s=0.2, near_duplicates=False)
TOML = """
[device]
id = "cam-01"
site = "demo"
[broker]
host = "localhost"
[[cameras]]
name = "gate"
source = "0"
"""


def frame(number: int) -> Frame:
    image: NDArray[np.uint8] = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return Frame(image, "gate", number, 1_790_000_000_000 + number * 200, number * 200_000_000)


def seen(number: int) -> Detections:
    score = np.random.default_rng([7, number]).uniform(0.1, 0.95)
    return Detections(np.array([[1, 1, 20, 20]], np.float32), np.array([score], np.float32), np.array([0], np.int32))


class InForce:
    """The policy in force as the inference thread runs it, with a trial beside it."""

    def __init__(self, dry: DryRun | None) -> None:
        self.selector, self.dry, self.sent = Selector(POLICY, device="cam-01"), dry, 0
        self.chosen: list[str] = []

    def show(self, count: int) -> None:
        for number in range(count):
            if self.selector.window_closed():
                result = self.selector.close_window(frames_left=None, bytes_left=None)
                self.chosen += result.chosen
                if self.dry is not None:
                    self.dry.sent(result.chosen)
            judgement = self.selector.judge(frame(number), seen(number))
            if self.dry is not None:
                self.dry.look(frame(number), seen(number), model_digest="ab" * 32)
            if judgement.admit:
                frame_id = f"{number:064x}"
                if self.dry is not None:
                    self.dry.encoded(frame_id, "gate", frame(number).captured_at_ms, 1000)
                self.selector.add(Candidate(frame_id, "gate", frame(number).captured_at_ms, judgement, 1000))


def test_a_trial_that_began_without_a_model_judges_once_there_is_one() -> None:
    """Before a server asks, a device without a model may send nothing; the trial must not keep that for its first window."""
    left: list[int | None] = [0]
    dry = DryRun(POLICY, device="cam-01", cameras=1, now_ms=lambda: 5, frames_left=lambda: left[0])
    dry.look(frame(0), None, model_digest="")
    left[0] = None
    dry.expect()
    for number in range(1, 45):
        dry.look(frame(number), seen(number), model_digest="ab" * 32)
    facts = dry.facts()
    assert facts["chosen"] == 6
    refused = facts["refused"]
    assert isinstance(refused, dict)
    assert refused["no_frames_left"] == 1


def test_the_same_policy_on_trial_chooses_the_same_frames() -> None:
    dry = DryRun(POLICY, device="cam-01", cameras=1, now_ms=lambda: 5)
    InForce(dry).show(130)
    facts = dry.facts()
    assert facts["frames"] == 130
    assert facts["chosen"] == facts["in_force"] == facts["both"] == 18
    assert 0 < int(str(facts["explore"])) < 18
    assert facts["since_ms"] == 5
    assert int(str(facts["bytes"])) > 0


def test_a_camera_that_is_explored_more_for_a_while_is_so_in_the_trial_too() -> None:
    def chosen(boosts: dict[str, float]) -> object:
        dry = DryRun(POLICY, device="cam-01", cameras=1)
        for number in range(130):
            dry.look(frame(number), seen(number), model_digest="ab" * 32, boosts=boosts)
        return dry.facts()["chosen"]

    assert (chosen({}), chosen({"gate": 2.0})) == (18, 36)


def test_what_the_fleet_has_enough_of_is_not_new_to_the_trial_either(tmp_path: Path) -> None:
    class HasEverything:
        def distance(self, embedding: NDArray[np.float32]) -> float:
            del embedding
            return 0.0

    def novelties(folder: Path, fleet: FleetNovelty | None) -> set[float]:
        log = DecisionLog(folder, keep=1000)
        dry = DryRun(POLICY, device="cam-01", cameras=1, log=log)
        for number in range(100):
            embedded = replace(seen(number), embedding=np.random.default_rng(number).random(8, np.float32))
            dry.look(frame(number), embedded, model_digest="ab" * 32, fleet=fleet)
        log.write(0.0)
        return {entry["strategies"]["novelty"] for entry in read_newest_first(folder) if "sequence" in entry}

    assert novelties(tmp_path / "told", cast("FleetNovelty", HasEverything())) == {0.5}
    assert len(novelties(tmp_path / "not-told", None)) > 10


def test_a_trial_changes_nothing_of_what_is_in_force() -> None:
    alone, beside = InForce(None), InForce(DryRun(Policy.template("random_audit"), device="cam-01", cameras=1))
    alone.show(130)
    beside.show(130)
    assert alone.chosen == beside.chosen != []


def test_another_policy_chooses_otherwise_within_the_same_allowance(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, keep=1000)
    policy = Policy.template("uncertain_only", window_frames=40, frames_per_window=6, min_gap_s=0.2, near_duplicates=False)
    dry = DryRun(policy, device="cam-01", cameras=1, log=log, frames_left=lambda: 4)
    InForce(dry).show(130)
    facts = dry.facts()
    assert facts["chosen"] == 12, "three windows, four each"
    assert int(str(facts["both"])) < 12
    log.write(0.0)
    assert "gate" in "\n".join(explain(tmp_path, "gate:129").lines())


def test_a_trial_that_fails_is_given_up_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    dry = DryRun(POLICY, device="cam-01", cameras=1)

    def broken(*_: object) -> bool:
        raise RuntimeError("no")

    monkeypatch.setattr(dry._selector, "window_closed", broken)
    there = InForce(dry)
    there.show(60)
    assert len(there.chosen) == 6
    assert dry.facts()["failed"] is True


def test_a_new_model_begins_the_trials_window_again() -> None:
    dry = DryRun(POLICY, device="cam-01", cameras=1)
    there = InForce(dry)
    there.show(30)
    dry.restart("new model", new_model=True)
    assert dry.facts()["chosen"] == 0
    there.show(30)
    assert dry.facts()["frames"] == 60


def test_a_trial_goes_on_counting_after_a_restart_and_one_of_another_policy_begins_anew() -> None:
    kept: list[bytes] = []
    dry = DryRun(POLICY, device="cam-01", cameras=1, now_ms=lambda: 5, keep=kept.append)
    InForce(dry).show(130)
    assert len(kept) == 3, "at the end of each window"
    at_last_window = DryRun(POLICY, device="cam-01", cameras=1, now_ms=lambda: 9, state=kept[-1]).facts()
    assert (at_last_window["frames"], at_last_window["chosen"], at_last_window["since_ms"]) == (120, 18, 5)
    again = DryRun(POLICY, device="cam-01", cameras=1, now_ms=lambda: 9, state=dry.to_state())
    assert again.facts() == dry.facts()
    again.look(frame(7), seen(7), model_digest="ab" * 32)
    assert again.facts()["frames"] == 131
    judged = again.facts()["refused"]
    assert isinstance(judged, dict)
    assert sum(judged.values()) >= sum(dict(dry.facts()["refused"]).values())  # type: ignore[call-overload]
    other = DryRun(Policy.template("rare_class"), device="cam-01", cameras=1, now_ms=lambda: 9, state=dry.to_state())
    assert (other.facts()["frames"], other.facts()["since_ms"]) == (0, 9)


def test_a_trial_remembers_over_a_restart_which_frames_it_has_chosen() -> None:
    dry = DryRun(POLICY, device="cam-01", cameras=1)
    InForce(dry).show(130)
    again = DryRun(POLICY, device="cam-01", cameras=1, state=dry.to_state())
    InForce(again).show(130)  # a film that runs again
    assert again.facts()["chosen"] == 36
    assert dict(again.facts()["refused"])["already_chosen"] >= 18  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "state",
    [b"", b"\xa0", b"\xff", DryRun(POLICY, device="d", cameras=1).to_state()[:-40]],
    ids=["empty", "no-fields", "no-cbor", "cut"],
)
def test_a_damaged_trial_is_counted_anew(state: bytes) -> None:
    dry = DryRun(POLICY, device="cam-01", cameras=1, now_ms=lambda: 9, state=state)
    assert (dry.facts()["frames"], dry.facts()["since_ms"]) == (0, 9)


def test_what_is_kept_of_a_trial_is_gone_when_it_is_over(tmp_path: Path) -> None:
    keep_trial(tmp_path / "dry", b"state")
    assert read_trial(tmp_path / "dry") == b"state"
    keep_trial(tmp_path / "dry", None)
    assert read_trial(tmp_path / "dry") is None


def test_a_section_of_its_own_says_what_is_tried_and_none_is_usual() -> None:
    assert parse_config(TOML, Path("/x")).dry_run is None
    tried = parse_config(TOML + '[dry_run]\ntemplate = "rare_class"\nepsilon = 0.3\n', Path("/x")).dry_run
    assert tried == Policy.template("rare_class", epsilon=0.3)
    with pytest.raises(ConfigError, match=r"dry_run\.template"):
        parse_config(TOML + '[dry_run]\ntemplate = "best"\n', Path("/x"))


def test_a_trial_can_be_wished_for_from_afar_and_leaves_the_selection_alone() -> None:
    config, _ = parse_wished(TOML + "[selection]\nepsilon = 0.1\n", Path("/x"), {"dry_run": {"template": "rare_class"}})
    assert config.dry_run == Policy.template("rare_class")
    assert config.selection.epsilon == 0.1
    with pytest.raises(ConfigError, match=r"remote\.allow"):
        parse_wished(TOML + '[remote]\nallow = ["log"]\n', Path("/x"), {"dry_run": {"epsilon": 0.5}})
