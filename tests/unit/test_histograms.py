"""Hours in numbers: packed small, counted right, kept over a restart, sent once."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.health.histogram_book import MOST_CLOSED, HistogramBook, HistogramSender
from bowerbird_agent.health.hour_counts import HourCounts, mean_level
from bowerbird_agent.link.outbox import Outbox
from bowerbird_models.detections import Detections
from bowerbird_wire import codec
from bowerbird_wire.errors import MessageError
from bowerbird_wire.histograms import (
    BINS,
    HOUR_MS,
    CameraHour,
    Histograms,
    pack,
    pack_classes,
    unpack,
    unpack_classes,
)
from bowerbird_wire.topics import HistogramsTopic

COUNTS = st.integers(0, 2**40 - 1)
AT_MS = 500_000 * HOUR_MS
MODEL = "ab" * 32
OTHER = "cd" * 32


def seen(*scores: float, side: float = 100.0, class_id: int = 2) -> Detections:
    n = len(scores)
    boxes = np.tile(np.array([[0.0, 0.0, side, side]], np.float32), (n, 1))
    return Detections(boxes, np.array(sorted(scores, reverse=True), np.float32), np.full(n, class_id, np.int32))


def frame(at_ms: int = AT_MS, camera: str = "gate", level: int = 100) -> Frame:
    image: NDArray[np.uint8] = np.full((480, 640, 3), level, np.uint8)
    return Frame(image, camera, at_ms // 100, at_ms, at_ms * 1_000_000)


def note(book: HistogramBook, at_ms: int = AT_MS, camera: str = "gate", model: str = MODEL, *scores: float) -> None:
    book.note(frame(at_ms, camera), seen(*scores), model_digest=model, decode_confidence=0.05)


@given(st.lists(COUNTS, max_size=40))
def test_a_histogram_comes_back_as_it_was_packed(counts: list[int]) -> None:
    assert unpack(pack(counts), len(counts)) == tuple(counts)


@given(st.dictionaries(st.integers(0, 65_535), st.integers(1, 2**40 - 1), max_size=20))
def test_classes_come_back_as_they_were_packed(counts: dict[int, int]) -> None:
    assert unpack_classes(pack_classes(counts)) == counts


@given(st.binary(max_size=60), st.integers(1, 20))
def test_foreign_bytes_are_a_histogram_of_that_many_bins_or_refused(packed: bytes, bins: int) -> None:
    with contextlib.suppress(MessageError):
        counts = unpack(packed, bins)
        assert len(counts) == bins
        assert min(counts) >= 0
    with contextlib.suppress(MessageError):
        assert all(count > 0 and class_id <= 65_535 for class_id, count in unpack_classes(packed).items())


@pytest.mark.parametrize("packed", [b"\x80", b"\x00", b"\x00\x00", b"\x00\x7f", b"\x01" * 30, b"\xff" * 7])
def test_damaged_histograms_are_refused(packed: bytes) -> None:
    with pytest.raises(MessageError):
        unpack(packed, 20)


def test_a_frame_is_counted_in_every_histogram() -> None:
    hour = HourCounts("gate", b"m", 5, AT_MS, clock_ok=True)
    hour.add(seen(0.95, 0.3, 0.1, side=96.0), level=100.0, size_wh=(640, 480), at_ms=AT_MS + 5)
    message = hour.message()
    scores = unpack(message.scores, BINS["scores"])
    assert [place for place, count in enumerate(scores) if count] == [2, 6, 19]
    assert unpack(message.counts, BINS["counts"])[2] == 1, "two of the three are visible"
    assert unpack(message.sizes, BINS["sizes"])[6] == 2, "96 pixels of 640 x 480 are 0.17 of a side"
    assert unpack(message.brightness, BINS["brightness"])[6] == 1
    assert unpack_classes(message.classes) == {2: 2}
    assert (message.frames, message.until_ms) == (1, AT_MS + 5)


@given(st.lists(st.lists(st.floats(0.0, 1.0), max_size=30), max_size=20))
def test_every_frame_and_every_box_is_counted_once(frames: list[list[float]]) -> None:
    hour = HourCounts("gate", b"m", 5, AT_MS, clock_ok=True)
    for scores in frames:
        hour.add(seen(*scores), level=255.0, size_wh=(640, 480), at_ms=AT_MS)
    message = HourCounts.of(codec.decode(Histograms, codec.encode(Histograms((hour.message(),)))).hours[0]).message()
    boxes = sum(len(scores) for scores in frames)
    visible = sum(np.float32(score) >= 0.25 for scores in frames for score in scores)
    assert sum(unpack(message.scores, BINS["scores"])) == boxes
    assert sum(unpack(message.counts, BINS["counts"])) == sum(unpack(message.brightness, BINS["brightness"])) == len(frames)
    assert sum(unpack(message.sizes, BINS["sizes"])) == sum(unpack_classes(message.classes).values()) == visible


def test_the_mean_level_is_that_of_the_picture() -> None:
    assert mean_level(frame(level=50).image_bgr) == 50.0
    assert mean_level(np.full((3, 3, 3), 7, np.uint8)) == 7.0, "smaller than the grid"


def test_an_hour_ends_with_the_hour_of_capture_and_with_the_model() -> None:
    book = HistogramBook()
    for at_ms, model in ((AT_MS, MODEL), (AT_MS + HOUR_MS - 1, MODEL), (AT_MS + HOUR_MS, MODEL), (AT_MS + HOUR_MS + 1, OTHER)):
        note(book, at_ms, "gate", model)
    first, second = book.waiting(0.0)
    assert (first.frames, first.from_ms, first.model) == (2, AT_MS, bytes.fromhex(MODEL)[:8])
    assert (second.frames, second.from_ms) == (1, AT_MS + HOUR_MS)
    book.close_all()
    assert [hour.model for hour in book.waiting(0.0)[2:]] == [bytes.fromhex(OTHER)[:8]]


def test_a_camera_that_is_not_well_fills_no_histogram() -> None:
    state = {"gate": "ok"}
    book = HistogramBook(state_of=lambda camera: state[camera])
    note(book)
    state["gate"] = "blurred; since noon"
    note(book, AT_MS + 100)
    book.close_all()
    (hour,) = book.waiting(0.0)
    assert (hour.frames, hour.unwell) == (2, {"blurred": 1})
    assert sum(unpack(hour.counts, BINS["counts"])) == 1


def test_a_camera_that_went_silent_has_its_hour_closed() -> None:
    book = HistogramBook()
    book.waiting(1000.0)
    note(book)
    assert book.waiting(1500.0) == ()
    assert len(book.waiting(1600.0)) == 1


def test_an_hour_goes_on_after_a_restart_and_what_waited_waits_on(tmp_path: Path) -> None:
    book = HistogramBook(tmp_path)
    note(book)
    note(book, AT_MS + HOUR_MS)
    book.keep()
    again = HistogramBook(tmp_path)
    note(again, AT_MS + HOUR_MS + 5)
    again.close_all()
    assert [hour.frames for hour in again.waiting(9_000.0)] == [1, 2]
    again.keep()
    assert [hour.frames for hour in HistogramBook(tmp_path).waiting(1.0)] == [1, 2]


def test_damaged_files_are_left_behind(tmp_path: Path) -> None:
    for name in ("open-hours.cbor", "closed-hours.cbor"):
        (tmp_path / name).write_bytes(b"\xa1\x00")
    book = HistogramBook(tmp_path)
    note(book)
    book.keep()
    assert len(HistogramBook(tmp_path)._open) == 1


def test_weeks_without_a_link_keep_the_newest_hours() -> None:
    book = HistogramBook()
    for hour in range(MOST_CLOSED + 10):
        note(book, AT_MS + hour * HOUR_MS)
    waiting = book.waiting(0.0)
    assert len(waiting) == MOST_CLOSED
    assert waiting[-1].from_ms == AT_MS + (MOST_CLOSED + 8) * HOUR_MS


def test_a_message_is_sent_again_until_the_broker_has_it_and_then_never(tmp_path: Path) -> None:
    sent: list[bytes] = []
    link = [0]
    outbox = Outbox(lambda _topic, payload, _retain: sent.append(payload) or link[0])  # type: ignore[func-returns-value]
    book = HistogramBook(tmp_path)
    sender = HistogramSender(book, outbox, HistogramsTopic("demo", "cam-01"), spread_s=0.0)
    note(book)
    note(book, AT_MS + HOUR_MS)
    for now_s in (0.0, 1.0, 2.0):
        sender.pump(now_s)
        outbox.pump()
    assert len(sent) == 3, "the link did not take it"
    link[0] = 7
    outbox.pump()
    outbox.link_down()
    outbox.pump()
    outbox.published(7, accepted=True)
    sender.pump(4.0)
    outbox.pump()
    assert book.waiting(4.0) == ()
    assert len(set(sent)) == 1
    assert [hour.frames for hour in codec.decode(Histograms, sent[0]).hours] == [1]
    assert HistogramBook(tmp_path).waiting(0.0) == ()


def test_a_device_waits_its_own_part_of_the_spread() -> None:
    def due_s(device: str) -> float:
        outbox = Outbox(lambda *_: 1)
        book = HistogramBook()
        sender = HistogramSender(book, outbox, HistogramsTopic("demo", device))
        note(book)
        book.close_all()
        return next(float(now) for now in range(400) if [sender.pump(float(now))] and len(outbox))

    found = {due_s(f"cam-{number}") for number in range(6)}
    assert len(found) > 3
    assert max(found) <= 300


def test_a_day_of_a_busy_and_of_an_idle_camera_costs_a_few_kilobytes() -> None:
    """What the design promises: an idle device has 100 KB a day for everything."""
    rng = np.random.default_rng(5)
    sizes = {}
    for name, mean in (("idle", 0.0), ("busy", 6.0)):
        hour = HourCounts("north-gate-camera", bytes(8), 5, AT_MS, clock_ok=True)
        for _ in range(300):
            n = int(rng.poisson(mean))
            boxes = np.concatenate([np.zeros((n, 2)), rng.uniform(4, 400, (n, 2))], axis=1).astype(np.float32)
            scores = np.sort(rng.uniform(0.05, 1, n))[::-1].astype(np.float32)
            hour.add(
                Detections(boxes, scores, rng.integers(0, 20, n).astype(np.int32)),
                level=float(rng.normal(110, 6)),
                size_wh=(640, 480),
                at_ms=AT_MS,
            )
        for histogram in hour._counts:
            hour._counts[histogram] *= 120  # as many frames as at 10 in a second
        hour.frames *= 120
        sizes[name] = len(codec.encode(Histograms((hour.message(),))))
    assert sizes["idle"] < 110
    assert sizes["busy"] < 260


def test_a_cameras_hour_is_the_message_that_topics_name() -> None:
    payload = codec.encode(Histograms((CameraHour("gate", AT_MS, AT_MS, 1),)))
    assert codec.decode(Histograms, payload).hours[0].camera == "gate"
