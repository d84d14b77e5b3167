"""Which frames of the audit have a twin: nothing changed against the last that has none itself, and that one is on its way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.selection.decision_log import DecisionLog
from bowerbird_agent.selection.decisions import Decision
from bowerbird_agent.selection.explain import explain
from bowerbird_agent.selection.gate import changed_cells, thumbnail
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.select import Selector
from bowerbird_agent.selection.twins import SERVES_S, Twins
from bowerbird_agent.storing.encode import FrameEncoder
from bowerbird_agent.storing.storing_config import ImageConfig
from bowerbird_testing.judged_frames import PaperSpool, frame, seeing, textured

EVERYTHING = Policy.template("random_audit", epsilon=1.0, window_frames=20, frames_per_window=20)
STILL = textured(1)


def audited(policy: Policy = EVERYTHING, *, cameras: int = 1) -> PaperSpool:
    """A device on which chance takes every frame."""
    selector = Selector(policy, device="cam-01", cameras=cameras)
    selector.expect(None)
    return PaperSpool(selector)


def with_square(place: int) -> NDArray[np.uint8]:
    """The still scene with something in it."""
    picture = STILL.copy()
    picture[16:48, place : place + 32] = 255 - picture[16:48, place : place + 32]
    return picture


def twins_of(spool: PaperSpool) -> dict[str, str]:
    return {name: judgement.twin for name, judgement in spool.judged.items() if judgement.twin}


def test_of_a_still_scene_all_frames_but_the_first_have_it_as_their_twin() -> None:
    spool = audited()
    spool.show((frame(i, image_bgr=STILL), seeing(0.5)) for i in range(10))
    assert twins_of(spool) == {f"gate/{i}": "gate/0" for i in range(1, 10)}
    assert all(judgement.admit for judgement in spool.judged.values()), "none is dropped for it"


def test_what_is_different_has_no_twin_and_is_the_next_ones() -> None:
    spool = audited()
    pictures = [STILL, STILL, with_square(32), with_square(32), STILL]
    spool.show((frame(i, image_bgr=picture), seeing(0.5)) for i, picture in enumerate(pictures))
    assert twins_of(spool) == {"gate/1": "gate/0", "gate/3": "gate/2"}, "the last is not compared with what was before"


@given(st.lists(st.integers(0, 90), min_size=2, max_size=12))
@settings(max_examples=40, deadline=None)
def test_a_twin_is_never_told_apart_from_its_frame_however_slowly_the_scene_creeps(places: list[int]) -> None:
    spool = audited()
    shown = {f"gate/{i}": with_square(place) for i, place in enumerate(places)}
    spool.show((frame(i, image_bgr=picture), seeing(0.5)) for i, picture in enumerate(shown.values()))
    for name, twin in twins_of(spool).items():
        assert not spool.judged[twin].twin, "a twin has none itself"
        assert not changed_cells(thumbnail(shown[name]), thumbnail(shown[twin])).any()


def test_cameras_do_not_share_twins() -> None:
    spool = audited(Policy.template("random_audit", epsilon=1.0, window_frames=20, frames_per_window=40), cameras=2)
    spool.show((frame(i, camera=camera, image_bgr=STILL), seeing(0.5)) for i in range(3) for camera in ("gate", "yard"))
    assert twins_of(spool) == {f"{camera}/{i}": f"{camera}/0" for camera in ("gate", "yard") for i in (1, 2)}


def test_what_the_policy_chose_has_no_twin_and_is_none() -> None:
    spool = audited(Policy.template("uncertain_only", epsilon=0.0, near_duplicates=False, window_frames=20, min_gap_s=0.0))
    spool.show((frame(i, image_bgr=STILL), seeing(0.5)) for i in range(10))
    assert any(judgement.admit for judgement in spool.judged.values())
    assert not twins_of(spool)


@pytest.mark.parametrize("why", ["new_model", "new_desired"])
def test_a_restart_of_the_selection_begins_without_a_twin(why: str) -> None:
    spool = audited()
    spool.show((frame(i, image_bgr=STILL), seeing(0.5)) for i in range(3))
    spool.waiting -= set(spool.selector.restart(why, new_model=why == "new_model"))
    spool.show((frame(i, image_bgr=STILL), seeing(0.5)) for i in range(3, 6))
    assert twins_of(spool)["gate/5"] == "gate/3"
    assert not spool.judged["gate/3"].twin


def test_a_new_process_begins_without_a_twin() -> None:
    spool = audited()
    spool.show((frame(i, image_bgr=STILL), seeing(0.5)) for i in range(3))
    again = PaperSpool(Selector(EVERYTHING, device="cam-01", state=spool.selector.to_state()))
    again.selector.expect(None)
    again.show([(frame(30, image_bgr=STILL), seeing(0.5))])
    assert not twins_of(again)


def test_a_frame_that_was_dropped_at_the_windows_end_is_nobodys_twin_any_more() -> None:
    """Frames would refer to it for a day, and the server would ask for each of them whole."""
    spool = audited()
    spool.show((frame(i, image_bgr=STILL), seeing(0.5)) for i in range(20))
    result = spool.close(frames_left=1)
    first_was_sent = result.chosen == ("gate/0",)
    spool.selector.expect(None)
    spool.show([(frame(20, image_bgr=STILL), seeing(0.5))])
    assert spool.judged["gate/20"].twin == ("gate/0" if first_was_sent else "")
    assert not first_was_sent, "the draw of this test takes another one"


def test_a_frame_that_never_reached_the_disk_is_nobodys_twin() -> None:
    twins = Twins()
    thumb = thumbnail(STILL)
    assert twins.look(frame(0, image_bgr=STILL), thumb) == ""
    assert twins.look(frame(1, image_bgr=STILL), thumb) == ""
    twins.stored(frame(0).captured_at_ms, "too late")
    assert twins.look(frame(2, image_bgr=STILL), thumb) == ""
    twins.stored(frame(2).captured_at_ms, "stored")
    assert twins.look(frame(3, image_bgr=STILL), thumb) == "stored"


def test_a_twin_serves_for_a_day_and_for_pictures_of_its_size() -> None:
    twins, thumb = Twins(), thumbnail(STILL)

    def at(seconds: float, picture: NDArray[np.uint8] = STILL) -> Frame:
        return Frame(picture, "gate", round(seconds), round(seconds * 1000), round(seconds * 1e9))

    twins.look(at(0), thumb)
    twins.stored(0, "first")
    assert twins.look(at(SERVES_S), thumb) == "first"
    assert twins.look(at(SERVES_S + 1), thumb) == ""
    twins.stored(round((SERVES_S + 1) * 1000), "second")
    assert twins.look(at(SERVES_S + 2), thumb) == "second"
    assert twins.look(at(SERVES_S + 3, textured(1, width=256, height=192)), thumb) == ""


def test_the_header_names_the_twin_and_explain_says_it_in_words(tmp_path: Path) -> None:
    spool = audited()
    shown = frame(1, image_bgr=STILL)
    spool.show([(frame(0, image_bgr=STILL), seeing(0.5)), (shown, seeing(0.5))])
    judgement = spool.judged["gate/1"]
    encoder = FrameEncoder(ImageConfig(), device="cam-01", boot_id="b")
    header, _ = encoder.frame(shown, judgement, seeing(0.5), class_names=["bird"], model_digest="")
    assert header.twin == "gate/0"
    log = DecisionLog(tmp_path / "decisions", keep=10)
    log.note(Decision("gate", 1, shown.captured_at_ms, header.frame_id, "", judgement, {}, None, 2))
    log.write(0.0)
    (line,) = [line for line in explain(tmp_path / "decisions", "gate:1").lines() if line.startswith("twin")]
    assert "gate/0: nothing has changed since" in line
