"""Detections for the site: how often, how large, at whose cost; and the JSON that is promised."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_agent.budget.budget import ByteLimits, TokenBucket
from bowerbird_agent.budget.uplink_budget import UplinkBudget
from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.health import counters as names
from bowerbird_agent.health.counters import Counters
from bowerbird_agent.link.link_events import packet_bytes
from bowerbird_agent.link.publish import LocalPublisher, PublishConfig
from bowerbird_agent.link.upload_runner import UploadRunner
from bowerbird_agent.link.uploader import FrameReady
from bowerbird_agent.spool.spool import Spool
from bowerbird_models.detections import Detections
from bowerbird_wire.errors import MessageError, VersionError, WireError
from bowerbird_wire.local_detections import DetectionsMessage, LocalDetection, from_json, to_json
from bowerbird_wire.topics import DetectionsTopic, DeviceTopic

SEEN = Detections(
    np.array([[1.04, 2, 30, 40], [5, 5, 9, 9]], np.float32), np.array([0.9, 0.1], np.float32), np.array([1, 0], np.int32)
)
NAMES = ("person", "car")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Line:
    """A link and a sender that take everything, or nothing."""

    def __init__(self) -> None:
        self.up = True
        self.bytes_sent = self.bytes_received = 0
        self.sent: list[tuple[str, bytes]] = []

    def publish_beside(self, topic: DeviceTopic, payload: bytes, now_s: float) -> bool:
        self.sent.append((str(topic), payload))
        return True

    def publish(
        self, topic: DeviceTopic, payload: bytes, *, qos: int = 1, retain: bool = False, kind: str | None = None
    ) -> int:
        if not self.up:
            return 0
        assert qos == 0
        self.sent.append((str(topic), payload))
        return len(self.sent)


def frame(camera: str, sequence: int) -> Frame:
    return Frame(np.zeros((48, 64, 3), np.uint8), camera, sequence, 1_767_225_600_123, 0)


def make(line: Line, clock: Clock, config: PublishConfig) -> tuple[LocalPublisher, Counters]:
    counters = Counters()
    return LocalPublisher(config, "demo", "cam-01", counters, connected=lambda: line.up, monotonic_s=clock), counters


def test_a_message_says_what_was_seen_where_and_by_which_model() -> None:
    line, clock = Line(), Clock()
    publisher, _ = make(line, clock, PublishConfig(detections=True))
    assert publisher.offer(frame("gate", 7), SEEN, NAMES, "d" * 64)
    publisher.pump(line, 0.0)
    ((topic, payload),) = line.sent
    assert topic == "bowerbird/v1/demo/local/cam-01/gate/detections"
    assert json.loads(payload) == {
        "schema": "bowerbird.detections/1",
        "camera": "gate",
        "sequence": 7,
        "captured_at": "2026-01-01T00:00:00.123Z",
        "captured_at_ms": 1_767_225_600_123,
        "clock_ok": True,
        "model": "d" * 64,
        "width": 64,
        "height": 48,
        "detections": [{"class": "car", "score": 0.9, "box_xyxy": [1.0, 2.0, 30.0, 40.0]}],
    }


def test_an_empty_picture_is_news_too() -> None:
    line, clock = Line(), Clock()
    publisher, _ = make(line, clock, PublishConfig(detections=True))
    publisher.offer(frame("gate", 0), Detections.empty(), NAMES, "")
    publisher.pump(line, 0.0)
    assert from_json(line.sent[0][1]).detections == ()


@pytest.mark.parametrize(("fps", "max_per_s", "messages"), [(25, 5.0, 50), (4, 5.0, 40), (30, 0.5, 5)])
def test_each_camera_has_its_own_rate(fps: int, max_per_s: float, messages: int) -> None:
    line, clock = Line(), Clock()
    publisher, _ = make(line, clock, PublishConfig(detections=True, max_per_s=max_per_s))
    for n in range(10 * fps):
        clock.now_s = n / fps
        for camera in ("gate", "yard"):
            publisher.offer(frame(camera, n), SEEN, NAMES, "")
        publisher.pump(line, clock.now_s)
    for camera in ("gate", "yard"):
        assert sum(f"/{camera}/" in topic for topic, _ in line.sent) == pytest.approx(messages, abs=1)


def test_after_a_silence_the_rate_is_not_caught_up() -> None:
    line, clock = Line(), Clock()
    publisher, _ = make(line, clock, PublishConfig(detections=True, max_per_s=2.0))
    sent_at_s = []
    for moment_s in [0.0, *(60.0 + n / 50 for n in range(200))]:
        clock.now_s = moment_s
        if publisher.offer(frame("gate", 0), SEEN, NAMES, ""):
            sent_at_s.append(moment_s)
    gaps_s = [later - earlier for earlier, later in pairwise(sent_at_s)]
    assert min(gaps_s) > 0.24
    assert len(sent_at_s) <= 2 + 2 * 4 + 1


def test_nothing_is_queued_while_the_link_is_down_or_publishing_is_off() -> None:
    line, clock = Line(), Clock()
    publisher, counters = make(line, clock, PublishConfig(detections=True))
    line.up = False
    assert not publisher.offer(frame("gate", 0), SEEN, NAMES, "")
    line.up = True
    publisher.config = PublishConfig()
    assert not publisher.offer(frame("gate", 1), SEEN, NAMES, "")
    publisher.config = PublishConfig(detections=True)
    assert publisher.offer(frame("gate", 2), SEEN, NAMES, "")
    line.up = False  # between the two threads
    publisher.pump(line, 0.0)
    assert line.sent == []
    assert counters.value(names.DETECTIONS_UNPUBLISHED) == 1


def test_what_waits_is_bounded_when_nobody_sends() -> None:
    line, clock = Line(), Clock()
    publisher, counters = make(line, clock, PublishConfig(detections=True, max_per_s=100.0))
    for n in range(500):
        clock.now_s += 0.01
        publisher.offer(frame("gate", n), SEEN, NAMES, "")
    publisher.pump(line, 0.0)
    assert len(line.sent) == 32
    assert counters.value(names.DETECTIONS_PUBLISHED) == 32
    assert counters.value(names.DETECTIONS_UNPUBLISHED) > 400


def runner(folder: Path, line: Line, limits: ByteLimits) -> tuple[UploadRunner, TokenBucket]:
    budget = TokenBucket(limits, 0.0)
    spool = Spool(folder, max_bytes=50_000_000)
    return UploadRunner(spool, line, "demo", "cam-01", UplinkBudget(budget), now_s=0.0), budget


TOPIC = DetectionsTopic("demo", "cam-01", "gate")


def test_their_bytes_come_out_of_the_same_budget_and_stop_at_half_of_it(tmp_path: Path) -> None:
    line = Line()
    uploads, budget = runner(tmp_path, line, ByteLimits(1.0, 20_000))
    while uploads.publish_beside(TOPIC, b"x" * 1000, 0.0):
        assert len(line.sent) < 100
    assert len(line.sent) == 9, "each is a little more than 1000 bytes on the wire"
    assert budget.left_bytes(0.0) == 20_000 - 9 * packet_bytes(TOPIC, 1000, qos=0)


def test_half_of_the_day_is_left_to_frames(tmp_path: Path) -> None:
    line = Line()
    uploads, _ = runner(tmp_path, line, ByteLimits(1e9, 1_000_000, 10_000))
    while uploads.publish_beside(TOPIC, b"x" * 500, 0.0):
        assert len(line.sent) < 100
    assert len(line.sent) == 5_000 // packet_bytes(TOPIC, 500, qos=0)


def test_no_byte_is_taken_that_a_waiting_frame_needs(tmp_path: Path) -> None:
    line = Line()
    uploads, budget = runner(tmp_path, line, ByteLimits(1000.0, 20_000))
    budget.charge(0.0, 5_000)
    assert uploads.publish_beside(TOPIC, b"x", 0.0)
    uploads.uploader.handle(FrameReady("f" * 64, 18_000), 0.0)
    assert not uploads.publish_beside(TOPIC, b"x", 0.0)


def test_a_link_that_does_not_take_it_costs_nothing(tmp_path: Path) -> None:
    line = Line()
    uploads, budget = runner(tmp_path, line, ByteLimits(1000.0, 20_000))
    line.up = False
    assert not uploads.publish_beside(TOPIC, b"x", 0.0)
    assert budget.left_bytes(0.0) == 20_000


def test_other_limits_neither_mint_bytes_nor_forget_what_was_spent(tmp_path: Path) -> None:
    line = Line()
    uploads, budget = runner(tmp_path, line, ByteLimits(10.0, 20_000, 100_000))
    budget.charge(0.0, 15_000)
    uploads.change_limits(ByteLimits(10.0, 1_000_000, 50_000), 0.0)
    assert budget.left_bytes(0.0) == 5_000
    assert budget.left_today_bytes(0.0) == 35_000
    uploads.change_limits(ByteLimits(10.0, 2_000, 10_000), 0.0)
    assert budget.left_today_bytes(0.0) == 0
    assert budget.left_bytes(0.0) == 0


# -- JSON

texts = st.text(max_size=20)
numbers = st.floats(-1e6, 1e6)
messages = st.builds(
    DetectionsMessage,
    texts,
    st.integers(0, 2**53),
    st.integers(0, 4_102_444_800_000),
    st.booleans(),
    texts,
    st.integers(0, 9999),
    st.integers(0, 9999),
    st.lists(st.builds(LocalDetection, texts, st.floats(0, 1), st.tuples(numbers, numbers, numbers, numbers)), max_size=3).map(
        tuple
    ),
)


@given(messages)
def test_every_message_reads_back_as_itself(message: DetectionsMessage) -> None:
    assert from_json(to_json(message)) == message


@given(st.binary(max_size=100) | st.recursive(st.none() | texts | numbers, st.lists).map(lambda v: json.dumps(v).encode()))
def test_anything_else_is_a_wire_error(payload: bytes) -> None:
    with pytest.raises(WireError):
        from_json(payload)


def test_another_schema_version_is_refused_as_such() -> None:
    with pytest.raises(VersionError, match="detections/2"):
        from_json(b'{"schema":"bowerbird.detections/2"}')
    with pytest.raises(MessageError):
        from_json(b'{"schema":"bowerbird.detections/1"}')
