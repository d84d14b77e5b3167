"""Source texts of live cameras, their pipelines, their rate, and which OpenCV is here; nothing is opened."""

from __future__ import annotations

import itertools
import random
import sys

import pytest

from bowerbird_agent.capture.camera_config import CameraConfig
from bowerbird_agent.capture.capture import DeviceFormat, Source, is_live, kind_of, open_camera, without_password
from bowerbird_agent.capture.frame_rate import FrameRate
from bowerbird_agent.capture.gstreamer import by_hand, pipeline_of, rtsp_pipeline
from bowerbird_agent.capture.opencv_build import find_opencv, has_gstreamer
from bowerbird_agent.errors import OpenCvMissing, SourceError


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("csi:0", "csi"),
        ("gst:a ! appsink", "gst"),
        ("0", "device"),
        ("/dev/video2?width=1280", "device"),
        ("rtsp://h/s", "url"),
        ("HTTP://h/s", "url"),
        ("file:///films/a.mp4", "path"),
        ("films/a.mp4", "path"),
        ("synthetic:?seed=1", "synthetic"),
    ],
)
def test_the_kind_of_a_source_is_seen_from_its_text(text: str, kind: str) -> None:
    assert kind_of(text) == kind
    assert is_live(text) == (kind in {"csi", "gst", "device", "url"})


def test_a_csi_camera_is_a_pipeline_of_the_jetsons_own_parts() -> None:
    assert pipeline_of("csi:1?width=1920&height=1080&fps=60&flip=2") == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM), width=(int)1920, height=(int)1080, framerate=(fraction)60/1 ! "
        "nvvidconv flip-method=2 ! video/x-raw, format=(string)BGRx ! videoconvert ! video/x-raw, format=(string)BGR ! "
        "appsink drop=true max-buffers=1 sync=false"
    )
    assert "width=(int)1280, height=(int)720, framerate=(fraction)30/1" in pipeline_of("csi:0")


def test_a_free_pipeline_keeps_what_it_says_and_gets_the_newest_frame_otherwise() -> None:
    assert pipeline_of("gst:a ! appsink") == "a ! appsink drop=true max-buffers=1 sync=false"
    assert pipeline_of("gst: a ! appsink max-buffers=4 name=x") == "a ! appsink max-buffers=4 name=x drop=true sync=false"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gst:v4l2src", "must end in an appsink"),
        ("gst:appsink", "must end in an appsink"),
        ("gst:v4l2src ! autovideosink", "must end in an appsink"),
        ("csi:", "names no sensor"),
        ("csi:x", "names no sensor"),
        ("csi:0?widht=3", "unknown key"),
        ("csi:0?fps=29.97", "whole number"),
        ("csi:0?fps=0", "above 0"),
        ("csi:0?flip=8", "0 to 7"),
        ("csi:0?width", "stand pairs"),
        ("/dev/video0?fourcc=MJPEG", "four letters"),
        ("/dev/video0?size=3", "unknown key"),
    ],
)
def test_a_wrong_source_is_refused_before_anything_starts(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CameraConfig("gate", text)
    with pytest.raises(SourceError, match=says):
        open_camera(Source("gate", text))


def test_a_device_may_be_asked_for_a_format() -> None:
    assert DeviceFormat.parse("/dev/video0?width=1280&height=720&fps=30&fourcc=MJPG") == DeviceFormat(
        "/dev/video0", 1280, 720, 30.0, "MJPG"
    )
    assert DeviceFormat.parse("0") == DeviceFormat("0")


@pytest.mark.parametrize("text", ["csi:0", "gst:videotestsrc ! appsink"])
def test_an_opencv_without_gstreamer_says_what_to_do(text: str) -> None:
    if has_gstreamer():
        pytest.skip("this OpenCV has GStreamer")
    with pytest.raises(SourceError, match=r"needs an OpenCV with GStreamer.*apt-get install python3-opencv"):
        open_camera(Source("gate", text))


def test_a_pipeline_can_be_tried_by_hand_without_telling_its_password() -> None:
    said = by_hand("gst:rtspsrc location=rtsp://me:s3cret@h/s user-pw=s3cret ! decodebin ! appsink")
    assert said == "try it by hand: gst-launch-1.0 rtspsrc location=rtsp://***@h/s user-pw=*** ! decodebin ! fakesink"


def test_an_address_in_a_pipeline_cannot_end_its_quotes() -> None:
    assert 'location="rtsp://h/a\\" ! filesink \\"" protocols=tcp' in rtsp_pipeline('rtsp://h/a" ! filesink "')


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://me:s3cret@10.0.0.1/s",
        "rtsp://me:s3cret@home@10.0.0.1/s",
        "rtsp://me:a/s3cret@10.0.0.1/s",
        "http://h/video.cgi?user=me&pwd=s3cret&x=1",
        "http://h/video?token=s3cret",
        "rtsp://h/user=me&password=s3cret&channel=1",
        "RTSPS://me:s3cret@h/s",
    ],
)
def test_no_password_is_shown(text: str) -> None:
    shown = without_password(text)
    assert "s3cret" not in shown
    assert shown.partition("://")[0] == text.partition("://")[0]


@pytest.mark.parametrize(
    ("camera_fps", "wanted", "expected"), [(30, 10, 10), (25, 10, 10), (30, 7, 7), (10, 10, 10), (5, 10, 5)]
)
def test_a_live_camera_is_thinned_evenly_although_frames_come_early_and_late(
    camera_fps: int, wanted: int, expected: int
) -> None:
    rng, rate = random.Random(1), FrameRate(wanted)
    times_s = [n / camera_fps + rng.uniform(-0.2, 0.2) / camera_fps for n in range(camera_fps * 60)]
    taken = [at_s for at_s in times_s if rate.takes(at_s)]
    assert abs(len(taken) / 60 - expected) < 0.05 * expected
    gaps = [later - earlier for earlier, later in itertools.pairwise(taken)]
    assert max(gaps) < 2.5 / expected


def test_after_an_outage_the_rate_does_not_hurry() -> None:
    rate = FrameRate(10)
    assert rate.takes(0.0)
    assert [rate.takes(100.0 + 0.01 * n) for n in range(10)] == [True] + [False] * 9


def test_this_opencv_is_a_wheel_that_reads_films() -> None:
    build = find_opencv()
    assert build.ffmpeg or build.gstreamer
    assert build.path.startswith("/")


def test_a_missing_opencv_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(OpenCvMissing, match=r"bowerbird\[opencv\]"):
        find_opencv()
