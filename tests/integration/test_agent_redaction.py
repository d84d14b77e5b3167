"""Redaction on a running inference thread with a real spool: nothing unredacted is ever on the disk, and what fails is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bowerbird_agent.capture.camera_config import RedactConfig
from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.capture.exchange import FrameExchange
from bowerbird_agent.health import counters as names
from bowerbird_agent.health.counters import Counters
from bowerbird_agent.inference.detecting import LoadedModel
from bowerbird_agent.inference.inference import Inference
from bowerbird_agent.selection.decision_log import DecisionLog
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.select import Selector
from bowerbird_agent.spool.spool import FrameState, Spool
from bowerbird_agent.storing.encode import FrameEncoder
from bowerbird_agent.storing.fetch_config import FetchConfig
from bowerbird_agent.storing.fetching import Fetching
from bowerbird_agent.storing.originals import Originals
from bowerbird_agent.storing.redaction import Redactor
from bowerbird_agent.storing.storing import StoringThread
from bowerbird_agent.storing.storing_config import ImageConfig
from bowerbird_agent.storing.surroundings import Surroundings
from bowerbird_agent.storing.thumbnail import thumbnail
from bowerbird_models.detections import Detections
from bowerbird_models.errors import ModelOutputError
from bowerbird_wire.linked import ORIGINAL

PERSON_XYXY = (100, 60, 140, 160)
MAGENTA = (255, 0, 255)


@dataclass
class SeesPeople:
    """Finds the magenta person at a low score, or fails while `broken`."""

    class_names: tuple[str, ...] = ("car", "person")
    file_digest: str = "f" * 64
    broken: bool = False

    def detect(self, image_bgr: NDArray[np.uint8], *, confidence: float = 0.05, iou: float = 0.7) -> Detections:
        if self.broken:
            raise ModelOutputError("the model emitted NaN")
        found = [] if confidence > 0.03 else [(*PERSON_XYXY, 0.03, 1)]
        table = np.array([(10, 10, 30, 30, 0.5, 0), *found], np.float32)
        return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int32))


def picture(n: int) -> NDArray[np.uint8]:
    """A busy scene with a magenta person."""
    image = np.random.default_rng(n).integers(0, 200, (240, 320, 1), dtype=np.uint8).repeat(3, axis=2)
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), 4), np.uint8)
    left, top, right, bottom = PERSON_XYXY
    image[top:bottom, left:right] = MAGENTA
    return image


class Bench:
    """The loop stepped by hand, with a spool, a log of decisions and their thread."""

    def __init__(self, folder: Path, *, method: str = "fill", long_side: int = 640) -> None:
        self.folder = folder
        self.spool = Spool(folder / "spool", max_bytes=50_000_000)
        self.counters = Counters()
        encoder = FrameEncoder(
            ImageConfig(long_side=long_side),
            device="cam-01",
            boot_id="boot",
            redactors={"gate": Redactor("gate", RedactConfig(("person",), method, confidence=0.02))},
        )
        self.exchange = FrameExchange(lambda _: None)
        decisions = DecisionLog(folder / "decisions", keep=1000)
        self.storing = StoringThread(self.spool, self.counters, encoder, decisions=decisions)
        self.originals = Originals(folder / "originals", max_bytes=10_000_000)
        self.rings = Surroundings(fps=10.0, max_bytes=10_000_000)
        fetch = FetchConfig(around_reasons=("margin", "explore"), around_s=2.0)
        self.storing.fetching = Fetching(fetch, self.originals, self.rings, encoder, self.spool, now_s=0.0)
        policy = Policy(window_frames=20, frames_per_window=6, min_gap_s=0.1, epsilon=0.5)
        self.inference = Inference(
            self.exchange,
            self.storing,
            Selector(policy, device="cam-01"),
            encoder=encoder,
            counters=self.counters,
            seen={},
            decode_confidence=0.05,
            encode_everything=True,
            witness=decisions.note,
        )
        self.thread = threading.Thread(target=self.storing.run)
        self.thread.start()

    def load(self, detector: SeesPeople) -> None:
        swap = threading.Thread(target=self.inference.swap_model, args=(LoadedModel(detector, "a" * 64),))
        swap.start()
        while swap.is_alive():
            self.inference.step(timeout_s=0.01)
        swap.join()

    def show(self, first: int, last: int) -> None:
        for n in range(first, last):
            self.exchange.put_newest(Frame(picture(n), "gate", n, n * 1000, n * 10**9))
            assert self.inference.step(timeout_s=5)
            while self.storing.backlog:  # no frame is to be left out because the machine is busy
                threading.Event().wait(0.001)

    def finish(self) -> dict[str, int]:
        self.inference.step(timeout_s=0)
        self.storing.stop()
        self.thread.join(30)
        return self.spool.counters()


@pytest.fixture(params=["fill", "blur"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(tmp_path / "state", method=request.param)
    yield bench
    bench.finish()
    bench.spool.close()


def pictures_in(folder: Path) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
    """Every JPEG anywhere in any file of the folder, also inside other files, decoded."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        at = data.find(b"\xff\xd8\xff")
        while at >= 0:
            shown = cv2.imdecode(np.frombuffer(data[at:], np.uint8), cv2.IMREAD_COLOR)
            if shown is not None:
                yield path, np.asarray(shown, np.uint8)
            at = data.find(b"\xff\xd8\xff", at + 3)


def magenta_detail(image: NDArray[np.uint8]) -> int:
    """Pixels that still look like the person: its colour next to the scene's, inside its very outline."""
    left, top, _, bottom = PERSON_XYXY
    edge = image[top:bottom, left - 1 : left + 2].astype(int)
    return int((np.abs(edge[:, 0] - edge[:, 2]).max(axis=1) > 100).sum())


def test_no_file_of_the_device_holds_a_person_that_was_not_redacted(bench: Bench) -> None:
    bench.load(SeesPeople())
    bench.show(0, 45)
    bench.finish()
    found = list(pictures_in(bench.folder))
    assert len(found) >= 12, "candidates and chosen frames are both on the disk"
    for path, image in found:
        assert magenta_detail(image) == 0, path
    raw = [row.tobytes() for row in picture(3)[PERSON_XYXY[1] :: 20, 90:150]]
    for path in bench.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(row in data for row in raw), f"{path} holds raw pixels"


def test_the_test_above_would_find_a_person() -> None:
    assert magenta_detail(picture(3)) > 90


def test_originals_and_surroundings_are_covered_and_say_where(tmp_path: Path) -> None:
    """Frames are sent at half their size, so their originals are kept; pictures pass into the ring beside them."""
    bench = Bench(tmp_path / "state", long_side=160)
    bench.load(SeesPeople())
    bench.show(0, 21)
    bench.finish()
    kept = [message for frame in bench.spool.frames(FrameState.NEW) for message in bench.originals.of(frame.frame_id, ORIGINAL)]
    assert len(kept) >= 3
    for message in kept:
        shown = cv2.imdecode(np.frombuffer(message.image, np.uint8), cv2.IMREAD_COLOR)
        assert shown is not None
        assert shown.shape == (240, 320, 3)
        assert magenta_detail(np.asarray(shown, np.uint8)) == 0
        (region,) = message.header.redacted
        left, top, right, bottom = region.box_xyxy
        assert (left, top) <= PERSON_XYXY[:2]
        assert (right, bottom) >= PERSON_XYXY[2:]
    moments = bench.rings.around("gate", 10_000, 9.0)
    assert len(moments) >= 5
    assert all(moment.redacted for moment in moments)
    bare = cv2.imencode(".jpg", cv2.resize(picture(3), (160, 120), interpolation=cv2.INTER_AREA))[1].tobytes()
    assert all(thumbnail(moment.jpeg) != thumbnail(bare) for moment in moments)
    bench.spool.close()


def test_a_picture_that_cannot_be_redacted_does_not_pass_into_the_surroundings(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "state", long_side=160)
    bench.load(SeesPeople(broken=True))
    bench.show(0, 5)
    bench.finish()
    assert bench.rings.bytes_used == 0
    assert bench.originals.bytes_used == 0
    bench.spool.close()


def test_what_the_device_offers_a_frame_with_is_made_of_the_redacted_picture(bench: Bench) -> None:
    bench.load(SeesPeople())
    bench.show(0, 21)
    bench.finish()
    frame = bench.spool.frames(FrameState.NEW)[0]
    stored = bench.spool.read(frame.frame_id)
    assert stored is not None
    header, jpeg = stored
    bare = cv2.imencode(".jpg", picture(header.sequence))[1].tobytes()
    assert thumbnail(jpeg) != thumbnail(bare)
    assert [redaction.class_name for redaction in header.redacted] == ["person"]
    assert [detection.class_name for detection in header.detections] == ["car"], "0.03 is below what is sent"


def test_selection_is_not_told_what_only_the_redaction_asked_for(bench: Bench) -> None:
    heard: list[int] = []

    class Audience:
        def offer(self, _frame: Frame, detections: Detections, *_: object) -> bool:
            heard.append(len(detections))
            return True

    bench.inference.detecting.audience = Audience()
    bench.load(SeesPeople())
    bench.show(0, 3)
    assert heard == [1, 1, 1]


def test_frames_of_a_model_that_fails_are_looked_at_and_not_kept(bench: Bench) -> None:
    bench.load(SeesPeople(broken=True))
    bench.show(0, 25)
    counted = bench.finish()
    assert not list(pictures_in(bench.folder))
    assert counted[names.REDACTION_FAILURES] > 0
    assert counted.get("spool.spooled", 0) == 0
    assert bench.inference.redaction_trouble == [
        "camera gate: the model failed, so nobody knows what to redact; the frame is not kept"
    ]


def test_a_model_that_knows_no_people_has_no_frame_kept_until_one_comes_that_does(bench: Bench) -> None:
    bench.load(SeesPeople(class_names=("car", "bus")))
    bench.show(0, 22)
    assert not list(pictures_in(bench.folder))
    assert "does not know person" in bench.inference.redaction_trouble[0]
    bench.load(SeesPeople())
    bench.show(22, 66)
    bench.finish()
    assert list(pictures_in(bench.folder))
    assert bench.inference.redaction_trouble == []
