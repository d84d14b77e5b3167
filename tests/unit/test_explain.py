"""The newest decisions are kept within bounds, survive what disks do, and answer why a frame was or was not sent."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bowerbird_agent.errors import AgentError
from bowerbird_agent.selection.calibration_book import doubted_boxes
from bowerbird_agent.selection.decision_log import DecisionLog, read_newest_first
from bowerbird_agent.selection.decisions import DROPS, REFUSALS, Decision
from bowerbird_agent.selection.explain import explain
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.select import Selector
from bowerbird_models.score_calibration import ScoreCalibration
from bowerbird_testing.judged_frames import frame, seeing
from bowerbird_wire.calibration_table import BINS, CalibrationTable, ClassCalibration


def decide(selector: Selector, index: int, *scores: float) -> Decision:
    shown = frame(index)
    judgement = selector.judge(shown, seeing(*scores))
    frame_id = f"{index:064x}" if judgement.admit else ""
    return Decision(
        shown.camera,
        shown.sequence,
        shown.captured_at_ms,
        frame_id,
        "m" * 64,
        judgement,
        selector.policy.strategies,
        selector.frames_left,
        selector.waiting,
    )


@pytest.fixture
def selector() -> Selector:
    made = Selector(Policy(epsilon=0.0), device="cam-01")
    made.expect(5)
    return made


def test_a_frame_that_was_not_admitted_says_which_gate_spoke_and_what_it_had_to_exceed(
    tmp_path: Path, selector: Selector
) -> None:
    log = DecisionLog(tmp_path, keep=1000)
    log.note(decide(selector, 0, 0.5))
    log.note(decide(selector, 1, 0.5))
    log.write(1.0)
    found = explain(tmp_path, "gate:1")
    assert (found.outcome, found.why) == ("refused", "weaker_than_neighbour")
    assert found.decision["bar"] > found.decision["value"] > 0
    assert found.decision["weights"] == dict(Policy().strategies)
    text = "\n".join(found.lines())
    assert REFUSALS["weaker_than_neighbour"] in text
    assert "5 frames could still be sent" in text
    assert "entropy" in text


def test_boxes_are_told_with_what_their_scores_are_worth(tmp_path: Path, selector: Selector) -> None:
    half = ScoreCalibration(CalibrationTable(b"\xab" * 8, {0: ClassCalibration((0.5,) * BINS, 1.2)}))
    log = DecisionLog(tmp_path, keep=1000)
    log.note(replace(decide(selector, 0, 0.9), doubted=doubted_boxes(half, seeing(0.9), ("bird",))))
    log.note(decide(selector, 1, 0.9))
    log.write(1.0)
    assert "bird scored 0.9000, right with probability 0.5000, weight 1.2" in "\n".join(explain(tmp_path, "gate:0").lines())
    assert explain(tmp_path, "gate:0").plain()["doubted"] == [["bird", 0.9, 0.5, 1.2]]
    assert not any(line.startswith("box ") for line in explain(tmp_path, "gate:1").lines())


def test_what_became_of_a_candidate_is_told_as_soon_as_its_window_ended(tmp_path: Path, selector: Selector) -> None:
    log = DecisionLog(tmp_path, keep=1000)
    for index in (0, 20, 40):
        log.note(decide(selector, index, 0.5))
    log.write(1.0)
    assert explain(tmp_path, "gate:20").outcome == "waiting"
    log.window((f"{20:064x}",), {f"{40:064x}": "weaker"}, closed=True, frames_left=5, bytes_left=9000)
    log.write(2.0)
    chosen, dropped = explain(tmp_path, f"{20:064x}"), explain(tmp_path, "gate:40")
    assert (chosen.outcome, chosen.place, chosen.window["bytes_left"]) == ("chosen", 1, 9000)
    assert "9000 bytes before choosing" in "\n".join(chosen.lines())
    assert (dropped.outcome, dropped.why) == ("dropped", "weaker")
    assert explain(tmp_path, "gate:0").outcome == "waiting"


def test_the_random_arm_says_its_probability(tmp_path: Path) -> None:
    chance = Selector(Policy.template("random_audit", window_frames=4, frames_per_window=4), device="cam-01")
    log = DecisionLog(tmp_path, keep=1000)
    log.note(decide(chance, 0, 0.5))
    log.write(1.0)
    found = explain(tmp_path, "gate:0")
    assert found.decision["arm"] == "explore"
    assert "with probability 1.000000" in "\n".join(found.lines())


def test_the_ring_keeps_the_newest_and_no_more_than_it_may(tmp_path: Path, selector: Selector) -> None:
    log = DecisionLog(tmp_path, keep=1500)
    one = decide(selector, 0, 0.5)
    for _ in range(10):
        for _ in range(400):
            log.note(one)
        log.write(1.0)
    log.note(decide(selector, 99, 0.5))
    log.write(2.0)
    kept = list(read_newest_first(tmp_path))
    assert kept[0]["sequence"] == 99
    assert 1000 <= len(kept) <= 1500


def test_a_new_start_goes_on_behind_what_is_there(tmp_path: Path, selector: Selector) -> None:
    for index in (0, 20):
        log = DecisionLog(tmp_path, keep=2000)
        log.note(decide(selector, index, 0.5))
        log.write(1.0)
    assert [entry["sequence"] for entry in read_newest_first(tmp_path)] == [20, 0]


def test_no_decision_is_kept_when_none_is_wanted(tmp_path: Path, selector: Selector) -> None:
    log = DecisionLog(tmp_path, keep=1000)
    log.note(decide(selector, 0, 0.5))
    log.write(1.0)
    log.keep = 0
    log.note(decide(selector, 1, 0.5))
    log.write(2.0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AgentError, match="keep_decisions"):
        explain(tmp_path, "gate:0")


def test_it_is_written_every_ten_seconds_only(tmp_path: Path, selector: Selector) -> None:
    log = DecisionLog(tmp_path, keep=1000, now_s=100.0)
    log.note(decide(selector, 0, 0.5))
    log.write_if_due(109.9)
    assert list(read_newest_first(tmp_path)) == []
    log.write_if_due(110.0)
    assert len(list(read_newest_first(tmp_path))) == 1


def test_a_damaged_file_hides_its_own_decisions_only(tmp_path: Path, selector: Selector) -> None:
    for index in (0, 20, 40):
        log = DecisionLog(tmp_path, keep=5000)
        log.note(decide(selector, index, 0.5))
        log.write(1.0)
    files = sorted(tmp_path.iterdir())
    files[1].write_bytes(files[1].read_bytes()[:20])
    files[2].write_bytes(b"\x00garbage")
    assert [entry["sequence"] for entry in read_newest_first(tmp_path)] == [0]


def test_a_disk_that_refuses_costs_decisions_and_nothing_else(
    tmp_path: Path, selector: Selector, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "decisions"
    blocked.write_text("a file where the folder should be")
    log = DecisionLog(blocked, keep=1000)
    for _ in range(2):
        log.note(decide(selector, 0, 0.5))
        log.write(1.0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    blocked.unlink()
    log.note(decide(selector, 20, 0.5))
    log.write(2.0)
    assert [entry["sequence"] for entry in read_newest_first(blocked)] == [20]


def test_the_newest_of_two_that_fit_is_told(tmp_path: Path, selector: Selector) -> None:
    log = DecisionLog(tmp_path, keep=1000)
    log.note(decide(selector, 7, 0.5))
    log.note(decide(selector, 7, 0.5))
    log.write(1.0)
    assert explain(tmp_path, "gate:7").why == "already_chosen"


def test_a_frame_that_the_model_was_too_slow_for_is_told_as_that(tmp_path: Path, selector: Selector) -> None:
    log = DecisionLog(tmp_path, keep=1000)
    for number in (2, 5, 9, 12):
        log.note(decide(selector, number, 0.5))
    log.write(1.0)
    with pytest.raises(AgentError, match="nobody looked at frame gate:7: after 5 the device looked at 9"):
        explain(tmp_path, "gate:7")
    with pytest.raises(AgentError, match="is not among the 4 decisions"):
        explain(tmp_path, "gate:13")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gate", "names no frame"),
        ("gate:8", "is not among"),
        ("abcdef012345", "not among"),
        ("ABCDEF012345", "not among"),
        ("street:0", "no camera 'street' among .* gate"),
    ],
)
def test_a_frame_that_is_not_there_is_told_with_what_to_do(tmp_path: Path, selector: Selector, name: str, said: str) -> None:
    log = DecisionLog(tmp_path, keep=1000)
    log.note(decide(selector, 0, 0.5))
    log.write(1.0)
    with pytest.raises(AgentError, match=said):
        explain(tmp_path, name)


def test_every_reason_in_the_code_has_words_and_no_others() -> None:
    folder = Path(__file__).parents[2] / "agent" / "bowerbird_agent"
    selection = ("select.py", "choose.py", "pool.py", "window.py")
    named = (*(f"selection/{name}" for name in selection), "inference/inference.py", "spool/leftovers.py")
    code = "".join((folder / name).read_text("utf-8") for name in named)
    for reason in (*REFUSALS, *DROPS):
        assert f'"{reason}"' in code
    ways = (
        r'refused="(\w+)"',
        r'return "(\w+)", ',
        r'dropped\[[^]]+\] = "(\w+)"',
        r'dropped\[[^]]+\] = \("(\w+)"',
        r'else "(no_frames_left|too_close)"',
        r'_give_way\(\w+, "(\w+)"\)',
        r'dict\.fromkeys\(\w+, "(\w+)"\)',
        r'_STALE_\w+ = "(\w+)"',
        r'\.drop\(\w+, "(\w+)"\)',
    )
    said = {reason for way in ways for reason in re.findall(way, code)}
    assert said - {*REFUSALS, *DROPS} == set()
    assert len(said) > 15
