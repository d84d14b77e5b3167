"""Live cameras over real sockets: an RTSP server from Debian and an HTTP camera that can fail in every way that cameras do."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from bowerbird_agent.capture.camera_config import CameraConfig
from bowerbird_agent.capture.capture import Frame, Source, open_camera
from bowerbird_agent.capture.exchange import FrameExchange
from bowerbird_agent.capture.worker import CaptureWorker
from bowerbird_agent.errors import CameraError
from bowerbird_agent.link.reconnect import ReconnectDelay
from bowerbird_models.scenes import SceneStream
from bowerbird_testing.agent_process import AgentProcess, write_config
from bowerbird_testing.broker import Mosquitto, free_port
from bowerbird_testing.mjpeg_server import MjpegServer
from bowerbird_testing.rtsp_server import PYTHON, SIZE_WH, RtspServer, rtsp_server_missing
from bowerbird_testing.site_server import SiteServer

PATIENCE_S = 40.0


@pytest.fixture(autouse=True)
def rtsp_over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command line sets it."""
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
    monkeypatch.setenv("OPENCV_FFMPEG_LOGLEVEL", "-8")


@pytest.fixture
def rtsp(tmp_path: Path) -> Iterator[RtspServer]:
    if rtsp_server_missing():
        pytest.skip(rtsp_server_missing())
    with RtspServer(tmp_path / "rtsp") as server:
        yield server


@pytest.fixture
def http() -> Iterator[MjpegServer]:
    with MjpegServer(SceneStream(3).render(4)[0]) as server:
        yield server


def system_env() -> dict[str, str]:
    """Lets the system's Python import the agent."""
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(root / folder) for folder in ("agent", "wire", "models"))}


class Watched:
    """A capture worker at work, and what became of its frames."""

    def __init__(self, config: CameraConfig) -> None:
        self.dropped = 0
        self.frames: list[Frame] = []
        self.exchange = FrameExchange(self._drop)
        self.worker = CaptureWorker(config, self.exchange, delay=ReconnectDelay(lambda: 0.0, max_s=0.4))
        self.states: list[str] = []

    def _drop(self, _camera: str) -> None:
        self.dropped += 1

    def take_until(self, holds: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            frame = self.exchange.take(0.05)
            if frame is not None:
                self.frames.append(frame)
            if not self.states or self.states[-1] != self.worker.state:
                self.states.append(self.worker.state)
            if holds():
                return
        pytest.fail(f"{what}: {self.states}, {len(self.frames)} frames")

    def take_frames(self, count: int) -> list[Frame]:
        before = len(self.frames)
        self.take_until(lambda: len(self.frames) >= before + count, f"{count} frames")
        return self.frames[before:]


@contextmanager
def watched(config: CameraConfig) -> Iterator[Watched]:
    running = Watched(config)
    thread = threading.Thread(target=running.worker.run, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.worker.stop()
        running.exchange.close()
        thread.join(10)
    assert not thread.is_alive(), "the camera's thread ends although a camera may hang"


def test_an_rtsp_camera_that_is_killed_and_comes_back_goes_on_counting(rtsp: RtspServer) -> None:
    with watched(CameraConfig("gate", rtsp.url, stall_s=5)) as running:
        first = running.take_frames(10)
        rtsp.kill()
        running.take_until(lambda: running.worker.state != "ok", "the trouble is told")
        assert "gate" in running.worker.state
        rtsp.start()
        later = running.take_frames(10)
    sequences = [frame.sequence for frame in first + later]
    assert sequences == sorted(set(sequences)), "no number twice, none backwards"
    assert all(frame.image_bgr.shape == (SIZE_WH[1], SIZE_WH[0], 3) for frame in first + later)
    assert first[-1].captured_at_ms < later[0].captured_at_ms


def test_of_an_rtsp_camera_the_newest_frame_wins_and_every_other_is_counted(rtsp: RtspServer) -> None:
    with watched(CameraConfig("gate", rtsp.url)) as running:
        running.take_frames(1)
        running.take_until(lambda: True, "once")
        seen = len(running.frames)
        time.sleep(2.0)  # nobody takes frames: they replace each other
        newest = running.take_frames(1)[0]
        running.take_frames(1)
    assert newest.sequence - running.frames[seen - 1].sequence > 5, "what waited is not what comes first"
    assert running.dropped > 5
    # Whatever was not dropped was taken; one may wait in the box.
    assert 0 <= running.frames[-1].sequence + 1 - (seen + 2) - running.dropped <= 1


def test_an_rtsp_camera_that_hangs_is_left_and_connected_to_again(rtsp: RtspServer) -> None:
    with watched(CameraConfig("gate", rtsp.url, stall_s=1.5)) as running:
        running.take_frames(5)
        rtsp.freeze()
        running.take_until(lambda: running.worker.state != "ok", "the trouble is told")
        assert "gave no picture for 1.5 s" in running.worker.state
        rtsp.kill()
        rtsp.start()
        running.take_frames(5)


def test_an_rtsp_camera_is_never_read_over_udp(tmp_path: Path) -> None:
    if rtsp_server_missing():
        pytest.skip(rtsp_server_missing())
    with RtspServer(tmp_path / "rtsp", transport="udp") as server, pytest.raises(CameraError, match="does not answer"):
        open_camera(Source("gate", server.url))


def test_an_rtsp_camera_with_a_password_tells_it_to_nobody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    if rtsp_server_missing():
        pytest.skip(rtsp_server_missing())
    with RtspServer(tmp_path / "rtsp", user="me", password="s3cret") as server:
        with watched(CameraConfig("gate", server.url)) as running:
            running.take_frames(3)
            server.kill()
            running.take_until(lambda: running.worker.state != "ok", "the trouble is told")
            server.start()
        with pytest.raises(CameraError) as refused:
            open_camera(Source("gate", server.url.replace("s3cret", "wr0ng")))
    told = capfd.readouterr()
    for text in (*running.states, str(refused.value), caplog.text, told.out, told.err):
        assert "s3cret" not in text
        assert "wr0ng" not in text


def test_an_http_camera_is_read_at_the_rate_that_is_wanted(http: MjpegServer) -> None:
    with watched(CameraConfig("gate", http.url, fps=5)) as running:
        running.take_frames(1)
        before = http.sent
        frames = running.take_frames(10)
        sent = http.sent - before
    assert sent > 15, "it sends twenty a second, and five are wanted"
    assert [frame.sequence for frame in frames] == list(range(1, 11)), "frames passed over have no number"


def test_an_http_camera_that_goes_silent_is_connected_to_again(http: MjpegServer) -> None:
    with watched(CameraConfig("gate", http.url, stall_s=1)) as running:
        running.take_frames(3)
        http.silent = True
        running.take_until(lambda: running.worker.state != "ok", "the trouble is told")
        http.silent = False
        running.take_frames(3)
    assert http.connections >= 2


def test_an_http_camera_that_cuts_the_connection_is_connected_to_again(http: MjpegServer) -> None:
    with watched(CameraConfig("gate", http.url)) as running:
        running.take_frames(3)
        http.cut()
        running.take_until(lambda: http.connections >= 2, "a second connection")
        running.take_frames(3)


def test_an_http_camera_that_sends_garbage_does_not_end_the_agent(http: MjpegServer) -> None:
    with watched(CameraConfig("gate", http.url, stall_s=1)) as running:
        running.take_frames(3)
        http.garbage = True
        running.take_until(lambda: running.worker.state != "ok", "the trouble is told")
        http.garbage = False
        running.take_frames(3)


def test_a_camera_that_is_not_there_is_told_once_and_found_when_it_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = CameraConfig("gate", f"http://127.0.0.1:{free_port()}/video?user=me&pwd=s3cret")
    with watched(config) as running, caplog.at_level("INFO"):
        running.take_until(lambda: "does not answer" in running.worker.state, "it does not answer")
        time.sleep(1.5)
        warnings = [record for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == 1
        assert "s3cret" not in caplog.text + running.worker.state


def test_a_mask_covers_the_picture_before_anybody_gets_it(http: MjpegServer) -> None:
    corner = ((0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (0.0, 0.5))
    with watched(CameraConfig("gate", http.url, masks=(corner,))) as running:
        frames = running.take_frames(3)
    for frame in frames:
        assert (frame.image_bgr[:120, :160] == 114).all()
        assert np.std(frame.image_bgr[130:, 170:]) > 5


def test_a_lens_that_is_covered_is_dark_and_no_longer_when_it_is_free(http: MjpegServer) -> None:
    shown = http.image
    with watched(CameraConfig("gate", http.url)) as running:
        running.take_frames(3)
        http.image = np.zeros_like(shown)
        running.take_until(lambda: running.worker.state == "dark", "dark")
        http.image = shown
        running.take_until(lambda: running.worker.state == "ok", "ok again")
    assert running.states[-3:] == ["ok", "dark", "ok"]


class HangingCamera:
    """Gives two frames; then `read` blocks until the test ends, as a driver may."""

    addressable, live, fps, trouble, name = False, True, 0.0, "", "gate"

    def __init__(self, first: int, release: threading.Event) -> None:
        self.next, self.first, self.release = first, first, release

    def read(self) -> Frame | None:
        if self.next >= self.first + 2:
            self.release.wait(60)
        self.next += 1
        return Frame(np.zeros((4, 4, 3), np.uint8), "gate", self.next - 1, self.next, 0)

    def close(self) -> None:
        """Nothing is open."""


def test_a_call_that_never_returns_is_left_and_what_it_still_brings_is_thrown_away() -> None:
    release = threading.Event()
    exchange = FrameExchange(lambda _: None)
    opened: list[int] = []

    def open_(source: Source) -> HangingCamera:
        opened.append(source.resume_after)
        return HangingCamera(source.resume_after + 1, release)

    worker = CaptureWorker(
        CameraConfig("gate", "0", stall_s=1), exchange, open_=open_, delay=ReconnectDelay(lambda: 0.0, max_s=0.0)
    )
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    deadline_s = time.monotonic() + PATIENCE_S
    while "hang in the driver" not in worker.state and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert "4 attempts" in worker.state, "threads left behind are few"
    worker.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert opened == [-1, 1, 3, 5], "each attempt goes on behind the last frame"
    newest = exchange.take(0)
    release.set()
    time.sleep(0.3)
    assert newest is not None
    assert newest.sequence == 7
    assert exchange.take(0) is None


@pytest.mark.broker
def test_one_agent_watches_two_live_cameras_with_one_model_and_tells_of_each(
    rtsp: RtspServer, http: MjpegServer, broker: Mosquitto, tmp_path: Path
) -> None:
    cameras = (
        f'[[cameras]]\nname = "gate"\nsource = "{rtsp.url}"\n'
        f'[[cameras]]\nname = "yard"\nsource = "{http.url}"\nfps = 10\nmasks = [[[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]]]\n'
        "region = { x = 0.0, y = 0.0, width = 1.0, height = 0.75 }\n"
    )
    http.image = np.zeros_like(http.image)
    config = write_config(tmp_path / "agent", port=broker.port, cameras=cameras)
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(
            lambda: bool(server.health) and server.health[-1].cameras == {"gate": "ok", "yard": "dark"}, "both states", 60
        )
        http.image = SceneStream(3).render(4)[0]
        server.wait(lambda: {frame.header.camera for frame in server.frames.values()} == {"gate", "yard"}, "frames of both", 60)
        server.wait(lambda: server.health[-1].cameras == {"gate": "ok", "yard": "ok"}, "light again", 60)
        rtsp.kill()
        server.wait(lambda: "gate" in server.health[-1].cameras["gate"], "the outage", 60)
        rtsp.start()
        server.wait(lambda: server.health[-1].cameras == {"gate": "ok", "yard": "ok"}, "the camera again", 60)
        health = server.health[-1]
        code, _ = agent.terminate()
    assert code == 0, agent.log
    assert "yard: dark; nothing can be seen" in agent.log
    assert "yard: no longer dark" in agent.log
    assert "Traceback" not in agent.log
    assert sum(health.extra.get("camera_dropped", {}).values()) == health.frames_dropped
    masked = [frame for frame in server.frames.values() if frame.header.camera == "yard"]
    for frame in masked:
        assert (frame.header.source_width, frame.header.source_height) == (320, 180)
        image = cv2.imdecode(np.frombuffer(frame.image, np.uint8), cv2.IMREAD_COLOR)
        assert abs(image[:100, :140].astype(int) - 114).max() < 12, "a masked pixel reached the server"


def test_a_system_opencv_without_ffmpeg_reads_rtsp_through_gstreamer(rtsp: RtspServer) -> None:
    code = f"""
import os
import gi
gi.require_version("Gst", "1.0")
from gi.repository import Gst
Gst.init(None)
assert Gst.ElementFactory.find("avdec_h264") or Gst.ElementFactory.find("openh264dec")
import bowerbird_agent.capture.stream
from bowerbird_agent.capture.capture import Source, open_camera
assert bowerbird_agent.capture.stream.has_gstreamer()
bowerbird_agent.capture.stream.has_ffmpeg = lambda: False
print("reads", flush=True)
camera = open_camera(Source("gate", {rtsp.url!r}))
print(camera.read().image_bgr.shape, flush=True)
camera.close()
os._exit(0)
"""
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False, timeout=60, env=system_env())
    if "reads" not in done.stdout:
        pytest.skip(
            f"{PYTHON} has no OpenCV with GStreamer and an H.264 decoder: apt-get install python3-opencv gstreamer1.0-libav"
        )
    assert "(240, 320, 3)" in done.stdout, done.stderr


@pytest.mark.broker
def test_an_agent_ends_in_order_while_a_camera_hangs(http: MjpegServer, broker: Mosquitto, tmp_path: Path) -> None:
    config = write_config(tmp_path / "agent", port=broker.port, cameras=f'[[cameras]]\nname = "gate"\nsource = "{http.url}"\n')
    with SiteServer(broker.host, broker.port) as server, AgentProcess(config) as agent:
        server.wait(lambda: bool(server.health) and server.health[-1].cameras == {"gate": "ok"}, "the camera", 60)
        http.silent = True
        time.sleep(0.5)
        code, took_s = agent.terminate()
        assert code == 0, agent.log
        assert took_s < 5, "two seconds are promised; the rest is for a loaded test machine"
        server.wait(lambda: server.status[-1].state == "offline", "status offline")


def test_a_system_opencv_with_gstreamer_reads_a_pipeline_and_leaves_one_that_hangs() -> None:
    """As on a Jetson: the system's Python sees the system's OpenCV, and no wheel hides it."""
    probe = "import cv2; assert cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER)"
    if subprocess.run([PYTHON, "-c", probe], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{PYTHON} has no OpenCV with GStreamer: apt-get install python3-opencv")
    code = """
import os, threading, time
from bowerbird_agent.capture.camera_config import CameraConfig
from bowerbird_agent.capture.worker import CaptureWorker
import bowerbird_agent.capture.worker
from bowerbird_agent.capture.exchange import FrameExchange
from bowerbird_agent.capture.opencv_build import find_opencv

bowerbird_agent.capture.worker._OPENING_S = 2.0
build = find_opencv()
assert build.gstreamer and not build.wheels, build
exchange = FrameExchange(lambda camera: None)
size = "video/x-raw,width=320,height=240,framerate=10/1"
test = f"gst:videotestsrc is-live=true ! {size} ! videoconvert ! video/x-raw,format=BGR ! appsink"
works, hangs = (CaptureWorker(CameraConfig(name, text, stall_s=2), exchange) for name, text in (("test", test), ("csi", "csi:0")))
for worker in (works, hangs):
    threading.Thread(target=worker.run, daemon=True).start()
deadline = time.monotonic() + 30
while time.monotonic() < deadline and not (works.state == "ok" and "gst-launch-1.0 nvarguscamerasrc" in hangs.state):
    frame = exchange.take(0.1)
    assert frame is None or frame.image_bgr.shape == (240, 320, 3)
print(works.state, "|", hangs.state, flush=True)
os._exit(0)  # as `bowerbird-agent run` ends when a camera hangs
"""
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False, timeout=60, env=system_env())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok | camera csi: "), done.stdout
    assert "gst-launch-1.0 nvarguscamerasrc sensor-id=0" in done.stdout
