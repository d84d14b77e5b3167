"""The inference thread with a real spool: what fails does not end it, and what is counted is counted once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bowerbird_agent.capture.camera_config import CameraConfig, RedactConfig
from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.capture.exchange import FrameExchange
from bowerbird_agent.config import read_config
from bowerbird_agent.device import Device
from bowerbird_agent.device_parts import DeviceParts
from bowerbird_agent.errors import StageDied
from bowerbird_agent.health import counters as names
from bowerbird_agent.health.counters import Counters, SeenFrames
from bowerbird_agent.inference.detecting import LoadedModel
from bowerbird_agent.inference.inference import Inference
from bowerbird_agent.selection.decisions import Decision
from bowerbird_agent.selection.explain import Explanation
from bowerbird_agent.selection.policy import Policy
from bowerbird_agent.selection.select import Selector
from bowerbird_agent.spool.index import FrameState
from bowerbird_agent.spool.spool import Spool
from bowerbird_agent.storing.encode import FrameEncoder
from bowerbird_agent.storing.redaction import redactors_of
from bowerbird_agent.storing.storing import MAX_WAITING, StoringThread
from bowerbird_agent.storing.storing_config import ImageConfig
from bowerbird_models.detections import Detections
from bowerbird_models.errors import ModelOutputError
from bowerbird_models.scenes import SceneStream
from bowerbird_server.fleet.fleet_sketch import make_sketch
from bowerbird_testing.agent_process import write_config
from bowerbird_testing.broker import free_port
from bowerbird_wire.calibration_table import BINS, CalibrationTable, ClassCalibration
from bowerbird_wire.calibration_table import encode as encode_table
from bowerbird_wire.fleet_sketch import model_key
from bowerbird_wire.messages import Boost, FrameHeader
from bowerbird_wire.telemetry import LATENCY_MS, SCORE_BINS


@dataclass
class OneBox:
    """A detector that sees one box of a given score, or fails while `broken`."""

    class_names: tuple[str, ...] = ("car",)
    file_digest: str = "f" * 64
    score: float = 0.5
    broken: bool = False
    embedding: NDArray[np.float32] | None = None

    def detect(self, image_bgr: NDArray[np.uint8], *, confidence: float = 0.05, iou: float = 0.7) -> Detections:
        if self.broken:
            raise ModelOutputError("the model emitted NaN")
        box, score, class_id = (
            np.array([[1, 1, 20, 20]], np.float32),
            np.array([self.score], np.float32),
            np.array([0], np.int32),
        )
        return Detections(box, score, class_id, embedding=self.embedding)


@dataclass
class Watcher:
    """Remembers what the updater would be told."""

    facts: list[bool] = field(default_factory=list)

    def observe(self, ok: bool, inference_ms: float, detections: int) -> None:
        self.facts.append(ok)


class Bench:
    """The thread's loop, stepped by hand, between a real exchange and a real spool with its thread."""

    def __init__(self, folder: Path, *, state: bytes | None = None, bytes_left: int | None = None) -> None:
        self.spool = Spool(folder, max_bytes=50_000_000)
        self.counters = Counters()
        encoder = self.encoder = FrameEncoder(ImageConfig(), device="cam-01", boot_id="boot")
        self.exchange = FrameExchange(lambda _: None)
        self.storing = StoringThread(self.spool, self.counters, encoder)
        self.watcher = Watcher()
        policy = self.policy = Policy(window_frames=20, frames_per_window=4, min_gap_s=0.1, epsilon=0.5)
        self.inference = Inference(
            self.exchange,
            self.storing,
            Selector(policy, device="cam-01", state=state),
            encoder=encoder,
            counters=self.counters,
            seen={"gate": SeenFrames(CameraConfig("gate", "film.avi", loop=True), self.counters)},
            decode_confidence=0.05,
            encode_everything=True,
            observer=self.watcher,
            bytes_left=lambda: bytes_left,
        )
        self.stream = SceneStream(2)
        self.thread = threading.Thread(target=self.storing.run)
        self.thread.start()

    def load(self, detector: OneBox, digest: str) -> None:
        swap = threading.Thread(target=self.inference.swap_model, args=(LoadedModel(detector, digest),))
        swap.start()
        while swap.is_alive():
            self.inference.step(timeout_s=0.01)
        swap.join()

    def show(self, first: int, last: int) -> None:
        for n in range(first, last):
            self.exchange.put_newest(Frame(self.stream.render(n)[0], "gate", n, n * 1000, n * 10**9))
            assert self.inference.step(timeout_s=5)

    def catch_up(self) -> None:
        """Wait for the disk, so that no frame is dropped because of a busy machine."""
        while self.storing.backlog:
            threading.Event().wait(0.01)

    def headers(self) -> list[FrameHeader]:
        """Of the frames that are to be sent."""
        return [header for header, _ in self.stored()]

    def stored(self) -> list[tuple[FrameHeader, bytes]]:
        """The same with their images."""
        return list(filter(None, [self.spool.read(frame.frame_id) for frame in self.spool.frames(FrameState.NEW)]))

    def finish(self) -> dict[str, int]:
        self.inference.step(timeout_s=0)
        self.storing.stop()
        self.thread.join(30)
        return self.spool.counters()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "spool")
    yield bench
    bench.finish()
    bench.spool.close()


def test_a_model_that_fails_is_reported_and_only_the_random_share_goes_on(bench: Bench) -> None:
    bench.load(OneBox(broken=True), "a" * 64)
    bench.show(0, 40)
    counted = bench.finish()
    assert bench.watcher.facts == [False] * 40
    assert counted[names.DETECTOR_FAILURES] == counted[names.FRAMES_SEEN] == 40
    assert names.FRAMES_SCORED not in counted
    assert counted[names.FRAMES_SELECTED] > 0


def test_frames_of_a_second_run_are_judged_and_not_counted_again(bench: Bench) -> None:
    bench.load(OneBox(), "a" * 64)
    bench.show(0, 20)
    bench.show(0, 20)
    counted = bench.finish()
    assert counted[names.FRAMES_SEEN] == counted[names.RULE_FRAMES] == 20
    assert counted[names.FRAMES_SCORED] == 40
    assert counted[names.RULE_BYTES] == counted[names.ALL_BYTES] > 0


def test_without_a_model_nothing_goes_before_a_server_asks_and_then_just_so_many(bench: Bench) -> None:
    """The first labels of a new site: novelty, typicality and chance choose, and the limit of a server that never spoke is none."""
    bench.show(0, 25)
    bench.catch_up()
    assert bench.inference.frames_left == 0
    assert not any(bench.spool.counts().values())
    assert bench.inference.set_desired(1, 3)
    bench.show(25, 50)
    bench.catch_up()
    bench.show(50, 75)
    counted = bench.finish()
    assert counted[names.FRAMES_SELECTED] == 3
    assert bench.inference.frames_left == 0
    assert counted[names.FRAMES_SEEN] == 75
    assert names.FRAMES_SCORED not in counted
    assert names.DETECTOR_FAILURES not in counted
    assert names.FRAMES_DROPPED not in counted
    headers = bench.headers()
    assert len(headers) == 3
    assert {header.model_digest for header in headers} == {""}
    assert all(header.detections == () and header.inclusion_probability > 0 for header in headers)
    assert bench.spool.ledger().balanced


def test_the_first_model_begins_a_new_round_and_gives_up_what_was_judged_without_one(bench: Bench) -> None:
    assert bench.inference.set_desired(1, 10)
    bench.show(0, 15)
    bench.load(OneBox(), "a" * 64)
    bench.show(15, 18)
    counted = bench.finish()
    assert counted[names.ROUND_FRAMES_SEEN] == 3
    assert counted[names.FRAMES_SCORED] == 3
    assert bench.spool.ledger().dropped_by_reason()["round_over"] > 0
    assert bench.spool.ledger().balanced
    assert bench.inference.frames_left == 10


def test_a_model_that_a_server_never_asked_frames_of_sends_what_its_policy_allows(bench: Bench) -> None:
    """As before: without a word from the server the byte budget is the limit, once there is a model."""
    bench.show(0, 5)
    bench.load(OneBox(), "a" * 64)
    assert bench.inference.frames_left is None
    bench.show(5, 45)
    assert bench.finish()[names.FRAMES_SELECTED] > 0


def test_after_a_restart_the_first_model_does_not_inherit_what_was_judged_without_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "spool")
    assert bench.inference.set_desired(1, 10)
    bench.show(0, 15)
    state = bench.inference.selector_state()
    bench.finish()
    bench.spool.close()
    waited = Selector(bench.policy, device="cam-01", state=state).candidates
    assert waited
    again = Bench(tmp_path / "spool", state=state)
    again.load(OneBox(), "a" * 64)
    again.finish()
    assert again.spool.ledger().dropped_by_reason()["round_over"] == len(waited)
    again.spool.close()


def test_a_film_waits_for_a_model_or_a_wish_and_is_not_used_up(bench: Bench) -> None:
    def offer(n: int) -> bool:
        """Whether a camera that can wait gets rid of its frame."""
        frame, late = Frame(bench.stream.render(n)[0], "gate", n, n * 1000, n * 10**9), threading.Event()
        waits = threading.Thread(target=bench.exchange.put_waiting, args=(frame, late))
        waits.start()
        taken = bench.inference.step(timeout_s=0.2)
        late.set()
        bench.exchange.hold(False)
        waits.join()
        while bench.inference.step(timeout_s=0):
            pass
        return taken

    bench.inference.step(timeout_s=0)
    assert not offer(0)
    assert bench.inference.set_desired(1, 5)
    bench.inference.step(timeout_s=0)
    assert offer(1)


def test_no_frame_of_a_redacted_camera_is_kept_without_a_model(bench: Bench) -> None:
    config = CameraConfig("gate", "film.avi", loop=True, redact=RedactConfig(classes=("person",)))
    bench.encoder.redactors = redactors_of([config])
    assert bench.inference.set_desired(1, 10)
    bench.show(0, 45)
    counted = bench.finish()
    assert counted[names.REDACTION_FAILURES] > 0
    assert names.FRAMES_SELECTED not in counted
    assert not any(bench.spool.counts().values())
    assert "there is no model yet" in bench.inference.redaction_trouble[0]


def test_without_a_model_the_byte_budget_holds(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "spool", bytes_left=100_000)
    assert bench.inference.set_desired(1, 100)
    bench.show(0, 25)
    bench.finish()
    sizes = [len(jpeg) for _, jpeg in bench.stored()]
    assert 0 < sum(sizes) <= 100_000
    assert bench.spool.ledger().dropped_by_reason()["byte_budget"] > 0
    bench.spool.close()


def test_explain_says_that_there_was_no_model(bench: Bench) -> None:
    told: list[Decision] = []
    bench.inference.witness = told.append
    bench.show(0, 1)
    plain = told[0].plain()
    assert (plain["model"], plain["refused"]) == ("", "no_frames_left")
    lines = Explanation(plain, "refused", plain["refused"], None, {}).lines()
    assert lines[0].endswith("no model")
    assert "without a model has not asked for any yet" in lines[1]


def test_the_rule_does_not_send_sure_frames(bench: Bench) -> None:
    bench.load(OneBox(score=0.9), "a" * 64)
    bench.show(0, 5)
    counted = bench.finish()
    assert names.RULE_FRAMES not in counted
    assert counted[names.ALL_BYTES] > 0


def test_a_new_model_begins_a_new_round_and_gives_up_its_candidates(bench: Bench) -> None:
    bench.load(OneBox(), "a" * 64)
    bench.show(0, 10)
    bench.load(OneBox(score=0.4), "b" * 64)
    assert bench.inference.model_digest == "b" * 64
    bench.show(10, 13)
    counted = bench.finish()
    assert counted[names.ROUND_FRAMES_SEEN] == 3
    assert bench.spool.ledger().dropped_by_reason()["round_over"] > 0
    assert bench.spool.ledger().balanced


def test_a_repeated_or_older_wish_changes_nothing(bench: Bench) -> None:
    assert bench.inference.set_desired(2, 5)
    assert not bench.inference.set_desired(2, 9)
    assert not bench.inference.set_desired(1, 9)


def test_what_the_fleet_has_enough_of_is_no_news_until_the_model_changes(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The frames' embedding lies in the sketch: nothing is new. A policy keeps that, a new model and an empty wish do not."""
    same = np.eye(1, 8, dtype=np.float32)[0]
    sketch = make_sketch(model_key("a" * 64), np.tile(same, (20, 1)), 20)
    bench.inference.set_enough(sketch)

    def raw_novelty() -> float:
        """How far the last frame was from all that counts."""
        fleet = bench.inference._selector.fleet
        return 1.0 if fleet is None else fleet.distance(same)

    caplog.set_level("INFO")
    bench.load(OneBox(embedding=same), "a" * 64)
    bench.show(0, 3)
    assert raw_novelty() == 0
    assert "the fleet has enough of 1 kinds of frames" in caplog.text
    bench.inference.set_policy(Policy(window_frames=50), device="cam-01", cameras=1)
    bench.show(3, 5)
    assert raw_novelty() == 0
    bench.inference.set_enough(b"nonsense")
    bench.show(5, 6)
    assert raw_novelty() == 1
    bench.inference.set_enough(sketch)
    bench.show(6, 7)
    assert raw_novelty() == 0
    bench.load(OneBox(embedding=same), "b" * 64)
    bench.show(7, 8)
    assert raw_novelty() == 1
    bench.inference.set_enough(make_sketch(model_key("b" * 64), np.tile(same, (20, 1)), 20))
    bench.show(8, 9)
    assert raw_novelty() == 0
    bench.inference.set_enough(b"")
    bench.show(9, 10)
    assert raw_novelty() == 1


def test_doubt_goes_by_the_running_model_s_table_through_policies_models_and_restarts(bench: Bench) -> None:
    """A box of 0.95 that is right half the time is in doubt; another model's is not; back at the first model it is again."""

    decided: list[Decision] = []
    bench.inference.witness = decided.append

    def entropy_of(frame: int) -> float:
        bench.show(frame, frame + 1)
        return decided[-1].judgement.strategy_scores["entropy"]

    half = ClassCalibration((0.5,) * BINS, 1.0)
    table = encode_table(CalibrationTable(model_key("a" * 64), {0: half}))
    bench.inference.set_calibration(table)
    bench.load(OneBox(score=0.95), "a" * 64)
    assert entropy_of(0) == pytest.approx(0.3935, abs=1e-3)
    assert decided[-1].plain()["doubted"] == [["car", 0.95, pytest.approx(0.5, abs=0.01), 1.0]]
    bench.inference.set_policy(Policy(window_frames=50), device="cam-01", cameras=1)
    assert entropy_of(1) == pytest.approx(0.3935, abs=1e-3)
    bench.load(OneBox(score=0.95), "b" * 64)
    as_it_says = entropy_of(2)
    assert as_it_says < 0.01
    assert "doubted" not in decided[-1].plain()
    bench.inference.set_calibration(b"")  # of a model that was never evaluated
    assert entropy_of(3) == as_it_says
    bench.load(OneBox(score=0.95), "a" * 64)  # rolled back, and the server has not been heard since
    assert entropy_of(4) == pytest.approx(0.3935, abs=1e-3)
    bench.inference.set_calibration(b"nonsense")
    assert entropy_of(5) == as_it_says
    bench.inference.set_calibration(table)
    assert entropy_of(6) == pytest.approx(0.3935, abs=1e-3)
    again = Selector(Policy(), device="cam-01", state=bench.inference._selector.to_state())
    assert again.calibrations.of("a" * 64) is not None
    bench.inference.set_calibration(b"")
    assert entropy_of(7) == as_it_says


def test_a_guard_slows_a_film_down_and_drops_none_of_its_frames(bench: Bench) -> None:
    bench.load(OneBox(), "a" * 64)
    bench.inference.rate.share = 0.2
    film = threading.Thread(
        target=lambda: [
            bench.exchange.put_waiting(Frame(bench.stream.render(n)[0], "gate", n, n * 1000, n * 10**9)) for n in range(20)
        ]
    )
    film.start()
    rested = 0
    for _ in range(20_000):
        bench.inference.step(timeout_s=0.01)
        rested += bench.inference.rate.is_resting
        if bench.inference.window_frames == 0 and not film.is_alive() and bench.exchange.is_empty:
            break
    film.join(10)
    counted = bench.finish()
    assert counted[names.FRAMES_SEEN] == 20
    assert rested > 0
    assert names.FRAMES_SKIPPED not in counted


def test_what_a_live_camera_shows_while_the_guard_rests_is_skipped_and_the_newest_is_judged_next(bench: Bench) -> None:
    bench.load(OneBox(), "a" * 64)
    bench.inference.rate.share = 0.05
    replaced: list[bool] = []
    bench.exchange._on_drop = lambda _camera: replaced.append(bench.inference.rate.is_resting)
    for n in range(10):  # ten frames a second
        bench.exchange.put_newest(Frame(bench.stream.render(n)[0], "gate", n, n * 100, n * 10**8))
        bench.inference.step(timeout_s=0)
    assert bench.inference.window_frames < 10
    assert replaced
    assert all(replaced), "every frame that was replaced was replaced during a rest"
    bench.inference.rate.share = 1.0
    bench.show(10, 12)
    assert bench.inference.rate.is_resting is False, "the guard has let go: each frame is judged at once"


def test_nothing_that_is_remembered_grows_with_the_number_of_frames(bench: Bench) -> None:
    bench.load(OneBox(), "a" * 64)
    bench.inference._seen["gate"]._has_bits = False  # as a live camera: only the highest number
    bench.show(0, 900)
    known = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    of_the_camera = {names.dropped_of("gate"), bench.inference._seen["gate"]._high_water}
    counted = {name for name in bench.counters._totals if not name.startswith(("latency.", "top_score."))}
    assert counted <= known | of_the_camera
    assert len(bench.counters._totals) - len(counted) <= len(LATENCY_MS) + 1 + SCORE_BINS
    assert bench.storing.backlog <= 2 * MAX_WAITING
    assert len(bench.inference.rate._times_s) <= 256


def test_another_policy_closes_the_open_window_under_the_old_one(bench: Bench) -> None:
    bench.load(OneBox(), "a" * 64)
    bench.show(0, 12)
    policy = Policy(window_frames=6, frames_per_window=1, min_gap_s=0.1, epsilon=0.5, decode_confidence=0.1)
    bench.inference.set_policy(policy, device="cam-01", cameras=2)
    bench.show(12, 14)
    bench.inference.step(timeout_s=0)
    counted = bench.finish()
    ledger = bench.spool.ledger()
    assert counted[names.WINDOWS_CLOSED] == 1
    assert counted[names.FRAMES_SELECTED] == 4, "the old policy's share of its window"
    assert "round_over" not in ledger.dropped
    assert ledger.balanced


def test_a_device_without_a_link_goes_on_with_the_boost_that_it_had(tmp_path: Path) -> None:
    camera = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1"'
    config = read_config(write_config(tmp_path, port=free_port(), cameras=camera))
    before = DeviceParts(config, version="test", wake=threading.Event(), restart=lambda: None)
    now_ms = int(time.time() * 1000)
    before.boost.take(Boost(now_ms + 3_600_000, 2.0))
    before.boost.step(time.monotonic(), now_ms, clock_ok=True, allowed=True)
    before.spool.close()
    after = DeviceParts(config, version="test", wake=threading.Event(), restart=lambda: None)
    after.boost.step(time.monotonic(), now_ms, clock_ok=True, allowed=True)
    assert after.boost.factors(["gate"]) == {"gate": 2.0}
    after.spool.close()


def test_a_thread_that_dies_ends_the_device_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1"'
    device = Device(read_config(write_config(tmp_path, port=free_port(), cameras=camera)), version="test")
    monkeypatch.setattr("bowerbird_agent.capture.frame_rate.Pacer.wait", lambda self, stop: 1 / 0)
    with pytest.raises(StageDied, match="camera-gate"):
        device.run()
