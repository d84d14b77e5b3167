"""Which thread has hung, as a table; and the clock of a process that stood still."""

from __future__ import annotations

import pytest

from bowerbird_agent.capture.camera_config import CameraConfig
from bowerbird_agent.capture.capture import Frame, Source
from bowerbird_agent.capture.exchange import FrameExchange
from bowerbird_agent.capture.worker import CaptureWorker
from bowerbird_agent.errors import CameraError
from bowerbird_agent.health.heartbeat import Beat, Doing, Heartbeats, Kind, Pulse, WatchdogConfig, late
from bowerbird_agent.health.shutdown import BUDGET_S, STAGE_S
from bowerbird_agent.link.reconnect import ReconnectDelay

LIMITS_S = WatchdogConfig().limits_s()


class Clock:
    """Monotonic seconds that a test turns."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_every_kind_of_thread_has_a_limit() -> None:
    assert set(LIMITS_S) == set(Kind)


@pytest.mark.parametrize("kind", list(Kind))
def test_work_is_late_behind_the_limit_of_its_kind_and_not_before(kind: Kind) -> None:
    beat = Beat("t", kind, Doing.WORKING, 0.0)
    assert late([beat], LIMITS_S, LIMITS_S[kind]) == ()
    (found,) = late([beat], LIMITS_S, LIMITS_S[kind] + 1)
    assert (found.thread, found.limit_s) == ("t", LIMITS_S[kind])
    assert "thread t has hung" in str(found)


@pytest.mark.parametrize("doing", [Doing.WAITING, Doing.ENDED])
def test_who_waits_or_has_ended_is_never_late(doing: Doing) -> None:
    assert late([Beat("t", Kind.CAMERA, doing, 0.0)], LIMITS_S, 1e9) == ()


def test_the_latest_thread_is_named_first() -> None:
    beats = [Beat("camera-gate", Kind.CAMERA, Doing.WORKING, 0.0), Beat("inference", Kind.INFERENCE, Doing.WORKING, -50.0)]
    assert [each.thread for each in late(beats, LIMITS_S, 70.0)] == ["inference", "camera-gate"]


def test_a_beat_ends_the_silence_and_a_wait_ends_the_limit() -> None:
    clock = Clock()
    hearts = Heartbeats(LIMITS_S, asleep_s=1e9, clock_s=clock)
    pulse = hearts.add("camera-gate", Kind.CAMERA)
    clock.now_s += 1000
    assert hearts.late() == (), "it has not begun"
    pulse.beat()
    clock.now_s += 59
    pulse.beat()
    clock.now_s += 59
    assert hearts.late() == ()
    clock.now_s += 2
    assert [each.thread for each in hearts.late()] == ["camera-gate"]
    pulse.wait()
    assert hearts.late() == ()


def test_a_process_that_stood_still_as_a_whole_blames_no_thread() -> None:
    clock = Clock()
    hearts = Heartbeats(LIMITS_S, asleep_s=5.0, clock_s=clock)
    hearts.add("inference", Kind.INFERENCE).beat()
    clock.now_s += 3600  # the machine slept
    assert hearts.late() == ()
    for _ in range(20):
        clock.now_s += 4
        found = hearts.late()
    assert [each.thread for each in found] == ["inference"], "and yet one that does not wake up with the others is found"


def test_pulses_of_ended_threads_do_not_pile_up() -> None:
    hearts = Heartbeats(LIMITS_S)
    for number in range(50):
        hearts.add(f"camera-{number}", Kind.CAMERA).end()
    assert len(hearts._pulses) <= 2


@pytest.mark.parametrize("value", [0.0, -1.0, 1e6, float("nan")])
def test_a_limit_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="camera_s"):
        WatchdogConfig(camera_s=value)


def test_a_camera_works_while_it_opens_and_waits_while_it_backs_off() -> None:
    clock = Clock()
    pulse = Pulse("camera-gate", Kind.CAMERA, clock)
    seen: list[Doing] = []
    worker: CaptureWorker

    def open_(source: Source) -> Frame:
        seen.append(pulse.last.doing)
        if len(seen) == 3:
            worker.stop()
        raise CameraError("does not answer")

    worker = CaptureWorker(
        CameraConfig("gate", "rtsp://h/s"),
        FrameExchange(lambda _: None),
        open_=open_,  # type: ignore[arg-type]  # it never returns
        delay=ReconnectDelay(lambda: 0.0, max_s=0.0),
        pulse=pulse,
    )
    worker.run()
    assert seen == [Doing.WORKING] * 3
    assert pulse.last.doing is Doing.WAITING


def test_the_parts_of_an_orderly_end_fit_into_its_budget() -> None:
    assert BUDGET_S == 2.0
    assert sum(STAGE_S.values()) < BUDGET_S
