"""What the ready-made policies promise by their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bowerbird_agent.selection.policy import TEMPLATES, Policy
from bowerbird_agent.selection.select import Selector
from bowerbird_agent.selection.uncertainty import rare_class
from bowerbird_models.detections import Detections
from bowerbird_testing.judged_frames import PaperSpool, frame, seeing

_CONFIGURATION = Path(__file__).parents[2] / "docs" / "configuration.md"


def _of_class(class_id: int, score: float = 0.9) -> Detections:
    return Detections(np.array([[5, 5, 30, 40]], np.float32), np.array([score], np.float32), np.array([class_id], np.int32))


def test_collect_everything_sends_every_frame_in_which_anything_may_be() -> None:
    spool = PaperSpool(Selector(Policy.template("collect_everything"), device="cam-01"))
    same = frame(0).image_bgr
    spool.show((frame(i, image_bgr=same), seeing()) for i in range(60))
    assert spool.selector.window_closed()
    assert len(spool.close().chosen) == 60


def test_collect_everything_keeps_to_the_bytes_that_are_left() -> None:
    spool = PaperSpool(Selector(Policy.template("collect_everything"), device="cam-01"), size_bytes=1000)
    spool.show((frame(i), seeing()) for i in range(60))
    assert len(spool.close(bytes_left=12_500).chosen) == 12


def test_off_admits_no_frame_by_choice_or_by_chance() -> None:
    spool = PaperSpool(Selector(Policy.template("off"), device="cam-01"))
    spool.show((frame(i), seeing(0.4) if i % 2 else None) for i in range(100))
    assert {judged.refused for judged in spool.judged.values()} == {"switched_off"}
    assert spool.close().chosen == ()


def test_rare_class_prefers_the_class_that_is_seldom_seen() -> None:
    spool = PaperSpool(Selector(Policy.template("rare_class", min_gap_s=0.0, epsilon=0.0), device="cam-01"))
    spool.show((frame(i), _of_class(2)) for i in range(30))
    spool.close(frames_left=1)
    spool.selector.expect(1)
    spool.show((frame(i), _of_class(7 if i == 70 else 2)) for i in range(40, 140))
    assert spool.close(frames_left=1).chosen == ("gate/70",)
    assert spool.judged["gate/70"].reasons[0] == "rare_class"


def test_a_class_is_rare_as_far_as_others_are_more_frequent() -> None:
    seen = {0: 100.0, 1: 25.0}
    assert rare_class(_of_class(0), seen) == 0.0
    assert rare_class(_of_class(1), seen) == 0.75
    assert rare_class(_of_class(2), seen) == 1.0
    assert rare_class(_of_class(2), {}) == 1.0
    assert 0.0 < rare_class(_of_class(2, 0.2), seen) < 1.0
    assert rare_class(_of_class(2, 0.1), seen) == 0.0
    assert rare_class(seeing(), seen) == 0.0


def test_another_model_may_number_its_classes_otherwise() -> None:
    policy = Policy(strategies={"rare_class": 1.0}, epsilon=0.0)
    selector = Selector(policy, device="cam-01")
    selector.judge(frame(0), _of_class(0))
    assert selector.judge(frame(1), _of_class(0)).strategy_scores["rare_class"] == 0.0
    selector.restart("new model", new_model=True)
    assert selector.judge(frame(2), _of_class(0)).strategy_scores["rare_class"] == 1.0


def test_every_template_says_when_to_use_it() -> None:
    text = _CONFIGURATION.read_text("utf-8")
    missing = [name for name in TEMPLATES if f"\n| `{name}` | " not in text]
    assert not missing
