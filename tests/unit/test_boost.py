"""More exploration of a camera for a while: inside the caps, for the time that was said, and never for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from bowerbird_agent.selection.boost import MAX_FACTOR, MAX_S, BoostWatch
from bowerbird_agent.selection.policy import TEMPLATES, Policy
from bowerbird_agent.selection.select import Candidate, Selector
from bowerbird_testing.judged_frames import frame, seeing
from bowerbird_wire.messages import Boost

WALL_MS = 1_790_000_000_000
DAY_MS = 86_400_000
CAMERAS = ("gate", "yard")


def watch(boost: Boost | None, *, allowed: bool = True, clock_ok: bool = True) -> BoostWatch:
    made = BoostWatch()
    made.take(boost)
    made.step(0.0, WALL_MS, clock_ok=clock_ok, allowed=allowed)
    return made


def test_it_holds_until_the_end_that_was_said_and_says_when_it_changes() -> None:
    made = BoostWatch()
    made.take(Boost(WALL_MS + DAY_MS))
    assert made.step(10.0, WALL_MS, clock_ok=True, allowed=True)
    assert made.factors(CAMERAS) == {"gate": 2.0, "yard": 2.0}, "a server that names no camera means all"
    assert made.facts() == {"factor": 2.0, "until_ms": WALL_MS + DAY_MS, "cameras": []}
    made.take(Boost(WALL_MS + DAY_MS))
    assert not made.step(20.0, WALL_MS + DAY_MS - 1, clock_ok=True, allowed=True), "the same again changes nothing"
    assert made.step(30.0, WALL_MS + DAY_MS, clock_ok=True, allowed=True)
    assert made.factors(CAMERAS) == {}
    assert made.facts() == {}


def test_each_camera_has_its_own_end_and_the_others_are_as_usual() -> None:
    made = watch(Boost(WALL_MS + DAY_MS, 3.0, {"gate": WALL_MS + DAY_MS, "yard": WALL_MS + DAY_MS // 2}))
    assert made.factors((*CAMERAS, "roof")) == {"gate": 3.0, "yard": 3.0}
    assert made.step(43_200.0, WALL_MS + DAY_MS // 2, clock_ok=True, allowed=True)
    assert made.factors((*CAMERAS, "roof")) == {"gate": 3.0}
    assert made.facts() == {"factor": 3.0, "until_ms": WALL_MS + DAY_MS, "cameras": ["gate"]}


def test_another_camera_does_not_make_a_boost_under_way_begin_again() -> None:
    """Without a clock that goes, a boost lasts for as long as was left when it began."""
    made = watch(Boost(WALL_MS + DAY_MS, 2.0, {"gate": WALL_MS + DAY_MS}))
    made.step(80_000.0, WALL_MS, clock_ok=True, allowed=True)
    made.take(Boost(WALL_MS + 2 * DAY_MS, 2.0, {"gate": WALL_MS + DAY_MS, "yard": WALL_MS + 2 * DAY_MS}))
    made.step(86_400.0, WALL_MS, clock_ok=True, allowed=True)
    assert made.factors(CAMERAS) == {"yard": 2.0}


def test_a_clock_that_stands_still_does_not_make_it_last() -> None:
    made = watch(Boost(WALL_MS + DAY_MS))
    assert made.factors(CAMERAS)
    assert made.step(DAY_MS / 1000, WALL_MS, clock_ok=True, allowed=True)
    assert not made.factors(CAMERAS)


@pytest.mark.parametrize(
    "made",
    [
        watch(None),
        watch(Boost(WALL_MS + DAY_MS), allowed=False),
        watch(Boost(WALL_MS + DAY_MS), clock_ok=False),
        watch(Boost(WALL_MS - 1)),
        watch(Boost(WALL_MS + DAY_MS, 0.1)),
        watch(Boost(WALL_MS + DAY_MS, float("nan"))),
        watch(Boost(WALL_MS + DAY_MS, 2.0, {"roof": WALL_MS + DAY_MS})),
    ],
)
def test_nothing_is_boosted_that_was_not_wished_is_not_allowed_or_is_over(made: BoostWatch) -> None:
    assert made.factors(CAMERAS) == {}


def test_a_server_cannot_boost_without_measure_or_end() -> None:
    made = watch(Boost(WALL_MS + 1000 * DAY_MS, 100.0))
    assert made.factors(["gate"]) == {"gate": MAX_FACTOR}
    assert made.step(MAX_S, WALL_MS + int(MAX_S * 1000), clock_ok=True, allowed=True)
    assert made.factors(["gate"]) == {}


def test_the_server_may_take_it_back() -> None:
    made = watch(Boost(WALL_MS + DAY_MS))
    made.take(None)
    assert made.facts() != {}, "until the clocks are looked at, what held holds"
    assert made.step(1.0, WALL_MS, clock_ok=True, allowed=True)
    assert made.factors(CAMERAS) == {}


class Restarted:
    """A device that restarts without a link, by its own clock."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now_s = folder, 0.0

    def start(self) -> BoostWatch:
        return BoostWatch(self.folder, lambda: self.now_s)

    def look(self, made: BoostWatch, *, at_s: float, clock_ok: bool = True) -> dict[str, float]:
        self.now_s = at_s
        made.step(at_s, WALL_MS + int(at_s * 1000), clock_ok=clock_ok, allowed=True)
        return made.factors(CAMERAS)


def test_what_is_left_of_it_goes_on_after_a_restart_without_a_link(tmp_path: Path) -> None:
    device = Restarted(tmp_path / "state")
    made = device.start()
    boost = Boost(WALL_MS + DAY_MS, 3.0, {"gate": WALL_MS + DAY_MS})
    made.take(boost)
    assert device.look(made, at_s=3600) == {"gate": 3.0}
    again = device.start()
    assert device.look(again, at_s=7200) == {"gate": 3.0}
    again.take(boost)
    assert not again.step(7200, WALL_MS, clock_ok=True, allowed=True), "the server's same word changes nothing"
    assert device.look(again, at_s=86_401) == {}


def test_without_a_clock_restarts_do_not_make_it_last(tmp_path: Path) -> None:
    """Each start may have lost what passed since it was written; it is taken off, also by a device that starts again and again."""
    device = Restarted(tmp_path)
    made = device.start()
    made.take(Boost(WALL_MS + DAY_MS))
    assert device.look(made, at_s=0)
    starts = 0
    while device.look(device.start(), at_s=10.0, clock_ok=False):
        starts += 1
        assert starts < 1000
    assert starts > 100


def test_without_a_clock_a_restart_leaves_what_was_left(tmp_path: Path) -> None:
    device = Restarted(tmp_path)
    made = device.start()
    made.take(Boost(WALL_MS + DAY_MS))
    device.look(made, at_s=0)
    device.look(made, at_s=43_200)
    device.now_s = 0.0  # the machine was off as well: monotonic time begins again
    again = device.start()
    assert device.look(again, at_s=42_000, clock_ok=False)
    assert not device.look(again, at_s=43_200, clock_ok=False)


def test_what_was_taken_back_or_is_not_allowed_any_more_does_not_come_back(tmp_path: Path) -> None:
    device = Restarted(tmp_path)
    made = device.start()
    made.take(Boost(WALL_MS + DAY_MS))
    device.look(made, at_s=0)
    again = device.start()
    again.step(1.0, WALL_MS, clock_ok=True, allowed=False)
    assert again.factors(CAMERAS) == {}
    made.take(None)
    assert device.look(device.start(), at_s=2) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"boost": "zz", "lives": {}}', '{"boost": "a0", "lives": {"gate": [1]}}'])
def test_a_damaged_note_is_told_and_waits_for_the_server(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "boost.json").write_text(text)
    made = BoostWatch(tmp_path)
    assert "waits for the server" in caplog.text
    made.take(Boost(WALL_MS + DAY_MS))
    made.step(0.0, WALL_MS, clock_ok=True, allowed=True)
    assert made.factors(CAMERAS)


def test_health_may_ask_at_any_time_while_other_cameras_are_wished() -> None:
    made = watch(Boost(WALL_MS + DAY_MS, 2.0, {"gate": WALL_MS + DAY_MS}))
    made.take(Boost(WALL_MS + DAY_MS, 2.0, {"yard": WALL_MS + DAY_MS}))
    assert made.facts() == {"factor": 2.0, "until_ms": WALL_MS + DAY_MS, "cameras": ["gate"]}


def _taken(selector: Selector, windows: int, **limits: int | None) -> dict[str, list[str]]:
    """Show two cameras so many windows of 100 frames each; camera -> the arms of its chosen frames."""
    found: dict[str, list[str]] = {"gate": [], "yard": []}
    judged = {}
    for number in range(windows * 100):
        for camera in CAMERAS:
            judgement = selector.judge(frame(number * 20, camera=camera), seeing(0.5))
            if judgement.admit:
                frame_id = f"{camera}/{number}"
                judged[frame_id] = (camera, judgement.arm)
                selector.add(Candidate(frame_id, camera, frame(number * 20).captured_at_ms, judgement, 1000))
        if selector.window_closed():
            selector.boost(selector._allowance.boosts)
            for frame_id in selector.close_window(frames_left=limits.get("frames_left"), bytes_left=None).chosen:
                camera, arm = judged[frame_id]
                found[camera].append(arm)
    return found


POLICY = Policy(epsilon=0.2, window_frames=100, frames_per_window=20, spread=0.0, near_duplicates=False)


def test_a_boosted_camera_explores_more_within_more_frames_and_the_one_beside_it_as_before() -> None:
    usual = Selector(POLICY, device="d", cameras=2)
    boosted = Selector(POLICY, device="d", cameras=2)
    boosted.boost({"gate": 2.0})
    before, after = _taken(usual, 5), _taken(boosted, 5)
    assert len(before["gate"]) + len(before["yard"]) == 100
    assert len(after["gate"]) + len(after["yard"]) == 150, "ten more of each window, for one of two cameras"
    assert len(after["yard"]) <= 100, "the others have no part of what is more"
    assert before["gate"].count("explore") == before["yard"].count("explore") == 10
    assert after["yard"].count("explore") == 10
    assert after["gate"].count("explore") == 40, "twice the share of twice the frames"


def test_the_chance_of_a_boosted_cameras_frame_is_recorded_as_it_is() -> None:
    selector = Selector(POLICY, device="d", cameras=2)
    selector.boost({"gate": 2.0})
    chances = [selector.judge(frame(1, camera=camera), seeing(0.5)).inclusion_probability for camera in CAMERAS]
    assert chances == [pytest.approx(0.4 * 40 / 200), pytest.approx(0.2 * 20 / 200)]


def test_what_the_server_wants_in_all_and_what_the_bytes_allow_is_not_raised() -> None:
    selector = Selector(POLICY, device="d", cameras=2)
    selector.boost({"gate": 2.0})
    selector.expect(8)
    found = _taken(selector, 1, frames_left=8)
    assert len(found["gate"]) + len(found["yard"]) == 8


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_every_template_can_be_boosted_and_what_is_off_stays_off(template: str) -> None:
    selector = Selector(Policy.template(template, window_frames=100), device="d", cameras=2)
    selector.boost({"gate": 2.0, "yard": 4.0})
    found = _taken(selector, 1)
    if template == "off":
        assert found == {"gate": [], "yard": []}
    if template in {"seed_rule", "collect_everything"}:
        assert "explore" not in found["gate"], "what is 0 stays 0"


def test_a_boost_that_is_over_leaves_the_selection_as_it_was() -> None:
    selector = Selector(POLICY, device="d", cameras=2)
    selector.boost({"gate": 2.0})
    selector.boost({})
    assert _taken(selector, 2) == _taken(Selector(POLICY, device="d", cameras=2), 2)
