"""More of a frame than was sent: what is kept in memory and on disk, under which caps, and how a wish is answered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.selection.select import Judgement
from bowerbird_agent.spool.index import FrameState
from bowerbird_agent.spool.spool import Spool
from bowerbird_agent.storing.encode import CoveredFrame, FrameEncoder
from bowerbird_agent.storing.fetch_config import FetchConfig
from bowerbird_agent.storing.fetching import Fetching
from bowerbird_agent.storing.originals import Originals
from bowerbird_agent.storing.storing_config import ImageConfig
from bowerbird_agent.storing.surroundings import Moment, Surroundings
from bowerbird_testing.frame_messages import frame_message
from bowerbird_wire.linked import AROUND, FETCHED, ORIGINAL, Link, link_of
from bowerbird_wire.messages import EraseWish, Fetch, FrameHeader

START_MS = 1_790_000_000_000


def frame(number: int, at_ms: int = START_MS) -> Frame:
    dice = np.random.default_rng(number)
    return Frame(dice.integers(0, 255, (96, 128, 3), dtype=np.uint8), "gate", number, at_ms, number)


class Device:
    """Everything of a device that a wish passes."""

    def __init__(self, root: Path, config: FetchConfig | None = None) -> None:
        self.config = config or FetchConfig()
        self.encoder = FrameEncoder(ImageConfig(long_side=64), device="cam-01", boot_id="b")
        self.spool = Spool(root / "spool", max_bytes=100_000_000)
        self.originals = Originals(root / "originals", max_bytes=self.config.originals_max_bytes)
        self.rings = Surroundings(fps=self.config.around_fps, max_bytes=int(self.config.around_memory_mb * 1e6))
        self.fetching = Fetching(self.config, self.originals, self.rings, self.encoder, self.spool, now_s=0.0)

    def keep(self, picture: Frame, **fields: object) -> FrameHeader:
        judgement = Judgement(True, "policy", 0.5, 0.5, ("margin",), {}, 0.0, None)  # type: ignore[arg-type]  # no fingerprint
        header, jpeg = self.encoder.frame(picture, judgement, None, class_names=(), model_digest="")
        header = replace(header, **fields)  # type: ignore[arg-type]  # named by the caller
        self.spool.put(header, jpeg)
        self.fetching.kept(header, picture, 0.0)
        return header

    def ask(self, header: FrameHeader, kind: str, seconds: float = 0.0, now_s: float = 1.0) -> tuple[str, str, int]:
        where = {"cam": header.camera, "t": header.captured_at_ms}
        answer = self.fetching.answer(Fetch(b"r" * 16, bytes.fromhex(header.frame_id), kind, seconds, where), now_s)
        return answer.state, answer.code, len(answer.frames)

    def fetched(self) -> list[tuple[Link | None, int, str]]:
        return [
            (link_of(read[0]), read[0].width, read[0].arm)
            for one in self.spool.frames(FrameState.NEW)
            if (read := self.spool.read(one.frame_id)) is not None
        ]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_the_original_of_a_kept_frame_goes_into_the_spool_with_its_link(device: Device) -> None:
    header = device.keep(frame(1))
    assert device.ask(header, ORIGINAL) == ("sent", "", 1)
    assert device.fetched() == [(Link(header.frame_id, ORIGINAL), 128, FETCHED)]
    assert device.spool.promoted == 0


def test_the_same_wish_again_changes_nothing(device: Device) -> None:
    header = device.keep(frame(1))
    assert [device.ask(header, ORIGINAL) for _ in range(3)] == [("sent", "", 1)] * 3
    assert len(device.fetched()) == 1


def test_the_original_of_a_candidate_that_is_not_chosen_goes_with_it(device: Device) -> None:
    header = device.keep(frame(1))
    device.fetching.not_chosen([header.frame_id])
    assert device.originals.bytes_used == 0
    assert device.ask(header, ORIGINAL) == ("gone", "", 0)


def test_surroundings_that_are_gone_say_how_to_keep_those_of_later_frames(device: Device) -> None:
    """Memory holds seconds; who looks at a frame an hour later needs them on disk, which a setting does."""
    header = device.keep(frame(1))
    where = {"cam": header.camera, "t": header.captured_at_ms}
    answer = device.fetching.answer(Fetch(b"r" * 16, bytes.fromhex(header.frame_id), AROUND, 3.0, where), 1.0)
    assert answer.state == "gone"
    assert "fetch.around_reasons" in answer.detail


def test_a_device_that_keeps_no_originals_says_so(tmp_path: Path) -> None:
    device = Device(tmp_path, FetchConfig(originals_max_bytes=0, around_memory_mb=0))
    header = device.keep(frame(1))
    assert device.ask(header, ORIGINAL)[:2] == ("refused", "off")
    assert device.ask(header, AROUND, 3.0)[:2] == ("refused", "off")


@pytest.mark.parametrize(
    ("kind", "seconds"), [("film", 3.0), (AROUND, 0.0), (AROUND, -1.0), (AROUND, 1e9), (AROUND, float("nan"))]
)
def test_a_wish_that_makes_no_sense_is_refused(device: Device, kind: str, seconds: float) -> None:
    assert device.ask(device.keep(frame(1)), kind, seconds)[:2] == ("refused", "unknown_kind")


def test_the_day_s_bytes_hold_over_a_restart_and_a_wish_above_them_is_refused(tmp_path: Path) -> None:
    config = FetchConfig(bytes_per_day=30_000)
    device = Device(tmp_path, config)
    headers = [device.keep(frame(number)) for number in range(4)]
    answers = [device.ask(header, ORIGINAL) for header in headers[:3]]
    assert ("refused", "budget", 0) in answers
    assert answers[0] == ("sent", "", 1)
    device.spool.close()
    again = Device(tmp_path, config)
    assert again.ask(headers[3], ORIGINAL)[:2] == ("refused", "budget")
    again.spool.close()


def test_the_frames_around_come_from_memory_within_the_seconds_and_without_the_frame_itself(device: Device) -> None:
    pictures = [frame(number, START_MS + number * 1000) for number in range(10)]
    for picture in pictures:
        if device.fetching.wants(picture):
            device.fetching.passed(CoveredFrame(picture, ()))
    header = device.keep(pictures[5])
    assert device.ask(header, AROUND, 2.0) == ("sent", "", 4)
    assert {link for link, _, _ in device.fetched()} == {Link(header.frame_id, AROUND)}
    sequences = sorted(one.sequence for one in device.spool.frames(FrameState.NEW))
    assert sequences == [3, 4, 6, 7]


def test_a_picture_around_is_not_the_frame_that_was_made_of_the_same_picture(device: Device) -> None:
    """Else the random audit would lose a frame to a wish, or a candidate that is given up would take what was asked for along."""
    pictures = [frame(number, START_MS + number * 1000) for number in range(2)]
    device.fetching.passed(CoveredFrame(pictures[1], ()))
    first, second = (device.keep(picture) for picture in pictures)
    assert device.ask(first, AROUND, 2.0) == ("sent", "", 1)
    (sent,) = device.spool.frames(FrameState.NEW)
    assert sent.frame_id != second.frame_id
    read = device.spool.read(sent.frame_id)
    assert read is not None
    picture = cv2.imdecode(np.frombuffer(read[1], np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (48, 64, 3)


def test_a_rule_writes_the_surroundings_of_a_frame_once_they_are_complete(tmp_path: Path) -> None:
    device = Device(tmp_path, FetchConfig(around_reasons=("margin",), around_s=2.0))
    pictures = [frame(number, START_MS + number * 1000) for number in range(5)]
    for picture in pictures:
        device.fetching.passed(CoveredFrame(picture, ()))
    header = device.keep(pictures[2])
    device.fetching.tick(1.9)
    assert device.originals.of(header.frame_id, AROUND) == []
    device.fetching.tick(2.0)
    device.rings.forget("gate")
    assert device.ask(header, AROUND, 1.0) == ("sent", "", 2), "of those written, the ones within the second"


def test_the_ring_of_a_camera_holds_its_cap_and_its_rate() -> None:
    rings = Surroundings(fps=2.0, max_bytes=1000)
    taken = [at_ms for at_ms in range(0, 5000, 100) if rings.wants("gate", START_MS + at_ms)]
    assert taken == list(range(0, 5000, 500))
    for at_ms in taken:
        rings.add("gate", Moment(START_MS + at_ms, at_ms, 0, b"x" * 300, 1, 1, 1, 1))
        rings.add("yard", Moment(START_MS + at_ms, at_ms, 0, b"x" * 300, 1, 1, 1, 1))
        assert rings.bytes_used <= 2 * 1000
    assert [moment.sequence for moment in rings.around("gate", START_MS + 4500, 10.0)] == [3500, 4000]
    assert rings.wants("gate", START_MS - 60_000), "a clock that was set back does not end it"


def test_originals_keep_what_is_worth_most_under_their_cap_and_over_a_restart(tmp_path: Path) -> None:
    kept = Originals(tmp_path, max_bytes=4 * 8192)
    for number in range(8):
        message = frame_message(sequence=number, image=bytes([number]) * 7000, score=number / 10)
        kept.put(message, of=message.header.frame_id, kind=ORIGINAL)
        assert kept.bytes_used <= 4 * 8192
    weak = frame_message(sequence=9, image=b"w" * 7000, score=0.0)
    assert not kept.put(weak, of=weak.header.frame_id, kind=ORIGINAL)
    (tmp_path / "half.part").write_bytes(b"half")
    again = Originals(tmp_path, max_bytes=4 * 8192)
    assert again.bytes_used == kept.bytes_used == sum(-(-p.stat().st_size // 4096) * 4096 for p in tmp_path.iterdir())
    scores = sorted(message.header.score for number in range(8) for message in again.of(_id(number), ORIGINAL))
    assert scores == [0.4, 0.5, 0.6, 0.7]
    assert Originals(tmp_path, max_bytes=0).bytes_used == 0
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_original_is_gone_and_not_sent(device: Device) -> None:
    header = device.keep(frame(1))
    (path,) = list((device.spool.root.parent / "originals").iterdir())
    path.write_bytes(path.read_bytes()[:-10])
    assert device.ask(header, ORIGINAL) == ("gone", "", 0)
    assert device.originals.bytes_used == 0


def _id(number: int) -> str:
    return frame_message(sequence=number, image=bytes([number]) * 7000, score=number / 10).header.frame_id


def test_what_is_to_be_forgotten_goes_from_disk_memory_and_from_what_waits(tmp_path: Path) -> None:
    """By name and by time; what is not covered stays, and doing it again takes nothing more."""
    device = Device(tmp_path, FetchConfig(around_reasons=("margin",), around_s=5.0))
    gone, stays = device.keep(frame(1)), device.keep(frame(2, START_MS + 60_000))
    device.fetching.passed(CoveredFrame(frame(3, START_MS + 1_000), ()))
    device.fetching.passed(CoveredFrame(frame(4, START_MS + 61_000), ()))
    wish = EraseWish("w", "gate", START_MS, START_MS + 2_000)
    assert device.fetching.erase(wish) == 2
    assert device.fetching.erase(wish) == 0
    device.fetching.tick(100.0)
    assert [device.ask(header, ORIGINAL)[0] for header in (gone, stays)] == ["gone", "sent"]
    assert [device.ask(header, AROUND, 3.0)[0] for header in (gone, stays)] == ["gone", "sent"]
    assert device.fetching.erase(EraseWish("x", frames=(stays.frame_id,))) == 2, "its original, and what was written around it"


def test_what_was_kept_before_a_restart_is_forgotten_as_well(tmp_path: Path) -> None:
    header = Device(tmp_path).keep(frame(1))
    again = Originals(tmp_path / "originals", max_bytes=10_000_000)
    assert again.erase(EraseWish("w", "gate", START_MS, START_MS)) == 1
    assert not list((tmp_path / "originals").iterdir())
    assert again.of(header.frame_id, ORIGINAL) == []
