"""Hand-over between threads, counters that survive, and letters that must arrive; nothing here waits or sleeps."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from bowerbird_agent.capture.camera_config import CameraConfig
from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.capture.exchange import FrameExchange
from bowerbird_agent.capture.worker import CaptureWorker
from bowerbird_agent.errors import CameraError
from bowerbird_agent.health import counters as names
from bowerbird_agent.health.counters import Counters, SeenFrames
from bowerbird_agent.health.stages import Stages
from bowerbird_agent.link.outbox import Outbox
from bowerbird_agent.link.reconnect import ReconnectDelay
from bowerbird_agent.storing.encode import encode_image, wire_detections
from bowerbird_models.detections import Detections
from bowerbird_wire.topics import ReportTopic

TOPIC = ReportTopic("demo", "cam-01")


def frame(camera: str, sequence: int) -> Frame:
    return Frame(np.zeros((2, 2, 3), np.uint8), camera, sequence, sequence, 0)


def test_the_newest_frame_wins_and_the_older_one_is_counted() -> None:
    dropped: list[str] = []
    exchange = FrameExchange(dropped.append)
    for n in range(3):
        exchange.put_newest(frame("gate", n))
    taken = exchange.take(0)
    assert taken is not None
    assert taken.sequence == 2
    assert dropped == ["gate", "gate"]
    assert exchange.take(0) is None


def test_cameras_take_turns() -> None:
    exchange = FrameExchange(lambda _: None)
    for n in range(2):
        for camera in ("a", "b"):
            assert exchange.put_waiting(frame(camera, n))
    order = [(taken.camera, taken.sequence) for _ in range(4) if (taken := exchange.take(0)) is not None]
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_a_camera_that_waits_loses_nothing_and_ends_when_the_exchange_closes() -> None:
    exchange = FrameExchange(lambda _: None)
    refused: list[int] = []

    def fill() -> None:
        for n in range(50):
            if not exchange.put_waiting(frame("gate", n)):
                refused.append(n)
                return

    thread = threading.Thread(target=fill)
    thread.start()
    taken = [exchange.take(10) for _ in range(20)]
    assert [each.sequence for each in taken if each is not None] == list(range(20))
    exchange.close()
    thread.join(10)
    assert refused, "the camera learned that nobody takes its frames any more"


def test_changes_that_could_not_be_written_are_written_the_next_time() -> None:
    counters = Counters({"a": 5})
    counters.add("a", 2)
    changes = counters.take_changes()
    assert changes == {"a": 2}
    counters.give_back(changes)
    counters.add("b")
    assert counters.take_changes() == {"a": 2, "b": 1}
    assert (counters.value("a"), counters.take_changes()) == (7, {})


def test_a_film_that_loops_and_restarts_counts_each_frame_once_even_when_it_skipped_some() -> None:
    config = CameraConfig("gate", "film.avi", loop=True)
    counters = Counters()
    seen = SeenFrames(config, counters)
    assert [seen.is_new(n) for n in (0, 2, 70, 0, 1, 2, 70)] == [True, True, True, False, True, False, False]
    after_restart = SeenFrames(config, Counters(counters.take_changes()))
    assert [after_restart.is_new(n) for n in (0, 1, 2, 3, 70)] == [False, False, False, True, False]


def test_an_endless_source_keeps_only_its_highest_frame() -> None:
    counters = Counters()
    seen = SeenFrames(CameraConfig("gate", "synthetic:?seed=1"), counters)
    assert seen.resume_after == -1
    assert seen.is_new(7)
    assert not seen.is_new(7)
    assert seen.resume_after == 7
    assert len(counters.take_changes()) == 1


def test_another_source_under_the_same_name_is_counted_anew() -> None:
    counters = Counters()
    assert SeenFrames(CameraConfig("gate", "synthetic:?seed=1"), counters).is_new(5)
    assert SeenFrames(CameraConfig("gate", "synthetic:?seed=2"), counters).is_new(5)


class FlakyCamera:
    """Gives two frames, dies; the second opening gives two more and is asked to stop."""

    addressable, live, fps, trouble, name = False, True, 0.0, "", "gate"

    def __init__(self, first: int, dies: bool) -> None:
        self.next, self.left, self.dies = first, 2, dies

    def read(self) -> Frame | None:
        if self.left == 0:
            if self.dies:
                raise CameraError("camera gate: the cable is out")
            return None
        self.left -= 1
        self.next += 1
        return frame("gate", self.next - 1)

    def close(self) -> None:
        """Nothing is open."""


def test_a_live_camera_that_dies_is_opened_again_and_goes_on_counting() -> None:
    opened: list[int] = []
    states: list[str] = []
    exchange = FrameExchange(lambda _: None)

    def open_(source: object) -> FlakyCamera:
        states.append(worker.state)
        opened.append(getattr(source, "resume_after", -99))
        return FlakyCamera(opened[-1] + 1, dies=len(opened) == 1)

    worker = CaptureWorker(
        CameraConfig("gate", "rtsp://h/s"), exchange, open_=open_, delay=ReconnectDelay(lambda: 0.0, max_s=0.0)
    )
    worker.run()
    assert opened == [-1, 1], "the second opening continues behind frame 1"
    assert states == ["starting", "camera gate: the cable is out"]
    assert (worker.state, worker.is_done) == ("finished", True)


def fail_now() -> None:
    raise ValueError("our bug")


def test_a_thread_that_dies_is_noticed() -> None:
    wake = threading.Event()
    stages = Stages(wake)
    stages.start("broken", fail_now)
    assert wake.wait(10)
    assert stages.died is not None
    assert stages.died[0] == "broken"


def test_a_letter_stays_until_the_broker_has_taken_it() -> None:
    sent: list[bytes] = []
    tokens = iter([0, 1, 2, 3])

    def publish(topic: object, payload: bytes, retain: bool) -> int:
        token = next(tokens)
        if token:
            sent.append(payload)
        return token

    outbox = Outbox(publish)
    outbox.put("a", TOPIC, b"old")
    outbox.put("a", TOPIC, b"new")
    outbox.pump()
    assert sent == [], "the link was down"
    outbox.pump()
    outbox.pump()
    assert sent == [b"new"], "on its way: not sent twice"
    outbox.link_down()
    outbox.pump()
    outbox.published(2, accepted=False)
    outbox.pump()
    assert sent == [b"new"] * 3
    outbox.published(3, accepted=True)
    assert len(outbox) == 0


@pytest.mark.parametrize(("size", "sent"), [((480, 640), (320, 240)), ((100, 200), (200, 100)), ((1000, 100), (32, 320))])
def test_pictures_are_shrunk_to_the_long_side_and_never_enlarged(size: tuple[int, int], sent: tuple[int, int]) -> None:
    encoded = encode_image(np.zeros((*size, 3), np.uint8), long_side=320, quality=90)
    assert (encoded.width, encoded.height) == sent


def test_boxes_are_in_pixels_of_the_sent_image_and_the_weakest_stay_here() -> None:
    detections = Detections(
        np.array([[10, 20, 30, 40], [0, 0, 8, 8]], np.float32), np.array([0.9, 0.06], np.float32), np.array([1, 0], np.int32)
    )
    sent = wire_detections(detections, ("car", "fox"), source_wh=(100, 50), sent_wh=(50, 25))
    assert [(each.box_xyxy, each.class_name) for each in sent] == [((5.0, 10.0, 15.0, 20.0), "fox")]


def test_a_round_begins_with_its_counters_in_one_step() -> None:
    """A flush at any moment writes the new version with the new round's counters or neither: a kill must not mix them."""
    counters = Counters({names.DESIRED_VERSION: 1, names.ROUND_WINDOWS_CLOSED: 2, names.ROUND_FRAMES_SEEN: 50})
    counters.begin_round({names.DESIRED_VERSION: 2})
    assert counters.take_changes() == {names.DESIRED_VERSION: 1, names.ROUND_WINDOWS_CLOSED: -2, names.ROUND_FRAMES_SEEN: -50}


def test_a_window_of_an_older_round_closes_nothing_of_this_one() -> None:
    """The spool thread ends windows later than the inference thread; the server must not take an old one for the new round's."""
    counters = Counters()
    old = counters.round
    new = counters.begin_round()
    counters.add_in_round(names.ROUND_WINDOWS_CLOSED, old)
    assert counters.value(names.ROUND_WINDOWS_CLOSED) == 0
    counters.add_in_round(names.ROUND_WINDOWS_CLOSED, new)
    assert counters.value(names.ROUND_WINDOWS_CLOSED) == 1
