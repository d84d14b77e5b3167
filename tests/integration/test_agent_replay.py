"""A replay runs the device's own selection over a film: same choice, same budget, a report that needs nothing from elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bowerbird_agent.budget.budget import ByteLimits
from bowerbird_agent.capture.capture import Source, open_camera
from bowerbird_agent.errors import AgentError
from bowerbird_agent.replay.replay import Setting, Trial, replay
from bowerbird_agent.replay.report import report_page
from bowerbird_agent.selection.policy import Policy
from bowerbird_models.detections import Detections
from bowerbird_models.mot import MotBox
from bowerbird_models.scenes import SceneStream
from bowerbird_testing.agent_process import UNSURE_BOXES
from bowerbird_testing.tiny_yolo import write_tiny_yolo

FRAMES, WINDOW = 120, 40
SCENE = f"synthetic:?seed=3&frames={FRAMES}"


class HalfBlind:
    """A detector that shows the true objects of a scene in the left half only, and counts how often it is asked."""

    class_names: tuple[str, ...] = ("person",)
    file_digest = "a" * 64

    def __init__(self) -> None:
        self.stream = SceneStream(3)
        self.asked = 0

    def detect(self, image_bgr: object, *, confidence: float = 0.05, iou: float = 0.7) -> Detections:
        del image_bgr, confidence, iou
        boxes = [box for box in self.stream.truth(self.asked).boxes_xyxy if box[0] < 160]
        self.asked += 1
        count = len(boxes)
        return Detections(
            np.array(boxes, np.float32).reshape(-1, 4), np.full(count, 0.55, np.float32), np.zeros(count, np.int32)
        )


def truth() -> dict[int, list[MotBox]]:
    """Every true object; those of one scene are one track each."""
    stream = SceneStream(3)
    found: dict[int, list[MotBox]] = {}
    for i in range(FRAMES):
        boxes = stream.truth(i).boxes_xyxy.tolist()
        found[i] = [(100 * (i // 10) + j, (box[0], box[1], box[2], box[3])) for j, box in enumerate(boxes)]
    return found


def run(*settings: Setting, detector: HalfBlind | None = None) -> list[Trial]:
    camera = open_camera(Source("replay", SCENE))
    return replay(camera, detector or HalfBlind(), list(settings), truth=truth())


def balanced(name: str = "balanced", **more: object) -> Setting:
    policy = Policy.template("balanced", window_frames=WINDOW, frames_per_window=5, min_gap_s=0.2)
    return Setting(name, policy, **more)  # type: ignore[arg-type]


def test_each_window_gives_what_the_policy_allows_and_every_frame_is_accounted_for() -> None:
    trial = run(balanced())[0]
    assert trial.frames == FRAMES
    assert len(trial.picks) == 15
    assert len({pick.header.frame_id for pick in trial.picks}) == 15
    assert len(trial.picks) + sum(trial.refused.values()) + sum(trial.dropped.values()) == FRAMES
    assert trial.seconds == pytest.approx(12.0)


def test_a_replay_gives_the_same_picks_every_time_and_beside_another_policy() -> None:
    alone = run(balanced())[0].plain()
    chance = Setting("chance", Policy.template("random_audit", window_frames=WINDOW, frames_per_window=5))
    beside = run(balanced(), chance)
    assert beside[0].plain() == alone
    assert {pick.header.arm for pick in beside[1].picks} == {"explore"}


def test_two_policies_cost_one_look_of_the_model() -> None:
    detector = HalfBlind()
    run(balanced("one"), balanced("two"), detector=detector)
    assert detector.asked == FRAMES


def test_the_budget_holds_back_what_it_would_hold_back_on_the_device() -> None:
    free = run(balanced())[0]
    assert free.sent_bytes > 0
    day = free.picked_bytes // 3
    tight = run(balanced(limits=ByteLimits(bytes_per_day=day)))[0]
    assert 0 < tight.sent_bytes <= day
    assert tight.dropped["byte_budget"] > 0
    slow = run(balanced(limits=ByteLimits(bytes_per_s=500.0, burst_bytes=20_000)))[0]
    assert slow.sent_bytes <= 500.0 * slow.seconds + 20_000
    assert slow.sent_bytes < slow.picked_bytes


def test_the_wish_of_the_server_ends_the_picking() -> None:
    assert len(run(balanced(frames_total=7))[0].picks) == 7


def test_misses_are_what_the_truth_has_and_the_model_does_not_show() -> None:
    trial = run(balanced())[0]
    hidden = {track: 0 for boxes in truth().values() for track, box in boxes if box[0] >= 160}
    assert trial.missed_tracks is not None
    assert trial.missed_tracks >= len(hidden) > 0
    assert 0 < trial.found_tracks <= trial.missed_tracks
    for pick in trial.picks:
        expected = {track for track, box in truth()[pick.header.sequence] if box[0] >= 160}
        assert pick.missed is not None
        assert expected <= set(pick.missed) | {t for t, box in truth()[pick.header.sequence] if box[0] < 160}
    assert trial.truth_frames == FRAMES


def test_an_object_at_the_edge_is_compared_by_the_part_of_it_that_the_camera_sees() -> None:
    class AtTheEdge(HalfBlind):
        def detect(self, image_bgr: object, *, confidence: float = 0.05, iou: float = 0.7) -> Detections:
            del image_bgr, confidence, iou
            return Detections(np.array([[0, 50, 20, 90]], np.float32), np.full(1, 0.9, np.float32), np.zeros(1, np.int32))

    past_the_edge = {i: [(7, (-30.0, 50.0, 20.0, 90.0))] for i in range(FRAMES)}
    camera = open_camera(Source("replay", SCENE))
    trial = replay(camera, AtTheEdge(), [balanced()], truth=past_the_edge)[0]
    assert trial.missed_boxes == 0


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({5000 + i: [(1, (10.0, 10.0, 40.0, 40.0))] for i in range(50)}, "any of the 120 frames"),
        ({i: [(1, (1010.0, 10.0, 1040.0, 40.0))] for i in range(FRAMES)}, "no object inside the 320x240 pixels"),
    ],
)
def test_ground_truth_of_another_film_is_refused_instead_of_counting_nothing(other: dict[int, list[MotBox]], said: str) -> None:
    with pytest.raises(AgentError, match=said):
        replay(open_camera(Source("replay", SCENE)), HalfBlind(), [balanced()], truth=other)


def test_a_class_of_the_ground_truth_that_the_model_does_not_know_is_told() -> None:
    camera = open_camera(Source("replay", SCENE))
    trial = replay(camera, HalfBlind(), [balanced()], truth=truth(), truth_class="persn")[0]
    assert "no class 'persn'" in trial.note


def test_a_short_film_is_no_matter_to_a_policy_that_takes_nothing_at_random() -> None:
    assert run(Setting("off", Policy.template("off")))[0].note == ""


def test_the_report_is_one_file_with_pictures_and_without_scripts_or_addresses() -> None:
    trials = run(balanced("<b>"), balanced("two"))
    page = report_page(trials, source="a & b.mp4", model="m.onnx")
    assert page.count("data:image/jpeg;base64,") == sum(len(trial.picks) for trial in trials)
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "&lt;b&gt;" in page
    assert "a &amp; b.mp4" in page
    assert "<h2><b>" not in page


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_yolo(tmp_path / "m.onnx", boxes=UNSURE_BOXES)


def agent(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "bowerbird_agent", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def test_the_command_compares_two_policies_and_writes_a_report(tmp_path: Path, model: Path) -> None:
    gt = tmp_path / "gt.txt"
    gt.write_text("1,1,10,10,40,40,1\n60,1,10,10,40,40,1\n")
    out = tmp_path / "r" / "report.html"
    options = ("replay", "--source", SCENE, "--model", model, "--gt", gt, "--frames-total", "6")
    done = agent(*options, "--policy", "balanced", "--policy", "random_audit", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout)["trials"]
    assert [trial["policy"] for trial in trials] == ["balanced", "random_audit"]
    assert trials[0]["picked"] == 6
    assert trials[1]["picked_at_random"] == trials[1]["picked"] > 0
    assert trials[0]["misses"]["frames_with_ground_truth"] == 60
    assert out.read_text("utf-8").count("<figure") == sum(trial["picked"] for trial in trials)
    words = agent(*options)
    assert words.returncode == 0, words.stderr
    assert "balanced: 6 of 120 frames picked" in words.stdout
    assert "wish was fulfilled" in words.stdout
    free = agent("replay", "--source", SCENE, "--model", model)
    assert "shorter than one window of 600 frames" in free.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--source", "rtsp://127.0.0.1/x"), "live camera"),
        (("--source", "synthetic:?seed=1"), "--frames N"),
        (("--source", SCENE, "--policy", "best"), "neither a file nor a template"),
        (("--source", SCENE, "--gt", "missing.txt"), "cannot read ground truth"),
        (("--video", "missing.mp4"), "does not exist"),
        (("--source", SCENE, "--policy", "missing.toml"), "name a template or an agent.toml"),
        (("--source", SCENE, "--campaign", "class=persn,frames=3"), "the model's classes are person, car"),
        (("--source", SCENE, "--out", "/proc/nowhere/gt.txt"), "name a file that ends with .html"),
        (("--source", SCENE, "--out", "/proc/nowhere/report.html"), "cannot be written"),
    ],
)
def test_what_cannot_be_replayed_is_told(arguments: tuple[str, ...], said: str, model: Path) -> None:
    done = agent("replay", "--model", model, *arguments)
    assert done.returncode in {1, 2}
    assert said in done.stderr
