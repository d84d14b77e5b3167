"""Campaigns in the inference thread, with a real spool: beside the policy, inside the budgets, and counted once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bowerbird_agent.capture.capture import Frame, Source, open_camera
from bowerbird_agent.capture.exchange import FrameExchange
from bowerbird_agent.health import counters as names
from bowerbird_agent.health.counters import Counters
from bowerbird_agent.inference.detecting import LoadedModel
from bowerbird_agent.inference.inference import Inference
from bowerbird_agent.replay.replay import Setting, replay
from bowerbird_agent.selection.campaign_book import CampaignBook, counter_names
from bowerbird_agent.selection.decision_log import DecisionLog
from bowerbird_agent.selection.explain import explain
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.select import Selector
from bowerbird_agent.spool.spool import FrameState, Spool
from bowerbird_agent.storing.encode import FrameEncoder
from bowerbird_agent.storing.storing import StoringThread
from bowerbird_agent.storing.storing_config import ImageConfig
from bowerbird_models.detections import Detections
from bowerbird_models.scenes import SceneStream
from bowerbird_wire.messages import Campaign

FAR_MS = 4_000_000_000_000
LOOKS = Campaign("c1", 5, 10_000_000, FAR_MS, "car", 0.25, 0.6, gap_s=0.0)


class OneBox:
    """A detector that sees one car at every frame."""

    class_names: tuple[str, ...] = ("car",)
    file_digest: str = "f" * 64

    def detect(self, image_bgr: NDArray[np.uint8], *, confidence: float = 0.05, iou: float = 0.7) -> Detections:
        return Detections(np.array([[1, 1, 20, 20]], np.float32), np.array([0.5], np.float32), np.array([0], np.int32))


class Bench:
    """The loop, stepped by hand; the spool's work is done in the same thread."""

    def __init__(self, folder: Path, policy: Policy, bytes_left: Callable[[], int | None] = lambda: None) -> None:
        self.folder = folder
        self.spool = Spool(folder / "spool", max_bytes=50_000_000)
        self.counters = Counters(self.spool.counters())
        self.counters.set_to(names.FRAMES_SELECTED, self.spool.promoted)
        self.book = CampaignBook(folder / "remote", self.spool.counters())
        self.log = DecisionLog(folder / "decisions", keep=1000)
        encoder = FrameEncoder(ImageConfig(), device="cam-01", boot_id="boot")
        self.exchange = FrameExchange(lambda _: None)
        self.storing = StoringThread(self.spool, self.counters, encoder, None, self.log, self.book)
        self.inference = Inference(
            self.exchange,
            self.storing,
            Selector(policy, device="cam-01"),
            encoder=encoder,
            counters=self.counters,
            seen={},
            decode_confidence=0.05,
            encode_everything=False,
            bytes_left=bytes_left,
            witness=self.log.note,
            campaigns=self.book,
        )
        loading = threading.Thread(target=self.inference.swap_model, args=(LoadedModel(OneBox(), "f" * 64),), daemon=True)
        loading.start()
        while not self.inference.model_digest:
            self.inference.step(timeout_s=0.001)
        loading.join()
        self.scenes = SceneStream(1)

    def show(self, first: int, count: int) -> None:
        for i in range(first, first + count):
            at_ms = 1_790_000_000_000 + i * 200
            self.exchange.put_newest(Frame(self.scenes.render(i)[0], "gate", i, at_ms, i * 200_000_000))
            self.inference.step(timeout_s=0.0)
            self.storing.drain()

    def sent(self) -> list[str]:
        return [frame.arm for frame in self.spool.frames(FrameState.NEW)]

    def close(self) -> None:
        self.storing.flush()
        self.spool.close()


QUIET = Policy(window_frames=10_000, epsilon=0.0, cold_epsilon=0.0)


@pytest.fixture
def benches(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(policy: Policy = QUIET, **how: Callable[[], int | None]) -> Bench:
        made.append(Bench(tmp_path, policy, **how))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


def test_exactly_the_share_is_sent_and_a_restart_sends_no_more(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.book.take_up(1, (LOOKS,))
    bench.show(0, 12)
    assert bench.sent() == ["campaign"] * 5
    assert bench.book.taken()["c1"][0] == 5
    frames, size = counter_names("c1")
    assert bench.spool.counter(frames) == 5
    assert bench.spool.counter(size) == bench.book.taken()["c1"][1] > 0
    header = bench.spool.read(bench.spool.frames(FrameState.NEW)[0].frame_id)
    assert header is not None
    assert (header[0].arm, header[0].reasons[0]) == ("campaign", "campaign:c1")
    bench.close()
    again = benches()
    again.show(12, 5)
    assert again.sent() == ["campaign"] * 5
    assert again.book.taken()["c1"][0] == 5


def test_a_share_of_bytes_is_never_exceeded(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.book.take_up(1, (LOOKS,))
    bench.show(0, 1)
    one = bench.book.taken()["c1"][1]
    bench.book.take_up(2, (Campaign("c1", 50, int(one * 3.5), FAR_MS, "car", gap_s=0.0),))
    bench.show(1, 20)
    frames, size = bench.book.taken()["c1"]
    assert 2 <= frames <= 4
    assert size <= one * 3.5


def test_a_campaign_takes_nothing_beyond_the_byte_budget(benches: Callable[..., Bench]) -> None:
    bench = benches(bytes_left=lambda: 100)
    bench.book.take_up(1, (LOOKS,))
    bench.show(0, 10)
    assert bench.sent() == []


def test_with_sending_switched_off_a_campaign_takes_nothing(benches: Callable[..., Bench]) -> None:
    bench = benches(Policy.template("off"))
    bench.book.take_up(1, (LOOKS,))
    bench.show(0, 10)
    assert bench.sent() == []


def test_what_chance_takes_stays_with_the_audit(benches: Callable[..., Bench]) -> None:
    bench = benches(Policy.template("random_audit", window_frames=4, frames_per_window=4))
    bench.book.take_up(1, (LOOKS,))
    bench.show(0, 8)
    assert bench.book.taken()["c1"] == (0, 0)


def test_a_campaign_is_on_top_of_what_a_round_asks_for(benches: Callable[..., Bench]) -> None:
    bench = benches(Policy(window_frames=10, frames_per_window=3, min_gap_s=0.0, epsilon=0.0, cold_epsilon=0.0, spread=0.0))
    bench.inference.set_desired(1, 3)
    bench.book.take_up(1, (LOOKS,))
    bench.show(0, 31)
    arms = bench.sent()
    assert arms.count("campaign") == 5
    assert arms.count("policy") == 3
    bench.inference.set_desired(2, 8 + 2)
    bench.show(40, 11)
    assert bench.sent().count("policy") == 5, "the new total counts what campaigns sent before"


def test_a_frame_that_the_disk_refuses_is_given_back(benches: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    bench = benches()
    bench.book.take_up(1, (LOOKS,))

    def full(*_: object, **__: object) -> bool:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bench.spool, "put", full)
        bench.show(0, 2)
    assert bench.book.taken()["c1"] == (0, 0)
    assert bench.spool.counter(counter_names("c1")[0]) == 0
    bench.show(2, 10)
    assert len(bench.sent()) == 5


def test_explain_names_the_campaign(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.book.take_up(1, (LOOKS,))
    bench.show(0, 8)
    bench.log.write(time.monotonic())
    text = "\n".join(explain(bench.folder / "decisions", "gate:0").lines())
    assert "taken for a campaign" in text
    assert "campaign c1" in text
    assert "campaign" not in "\n".join(explain(bench.folder / "decisions", "gate:7").lines())


def test_a_replay_shows_what_a_campaign_would_take() -> None:
    setting = Setting("quiet", QUIET, campaigns=(LOOKS,))
    (trial,) = replay(open_camera(Source("replay", "synthetic:?seed=3&frames=30")), OneBox(), [setting])
    reasons = [pick.header.reasons[0] for pick in trial.picks if pick.header.arm == "campaign"]
    assert reasons == ["campaign:c1"] * 5
