"""GStreamer pipelines: CSI cameras of a Jetson (`csi:0?width=1280&height=720&fps=30`), and free ones (`gst:... ! appsink`).

In: a source text. Out: the pipeline as text, which is pure and tested; and a `LiveCamera` where the OpenCV of this machine has
GStreamer (PyPI's wheels have not). Raspberry Pi's cameras go through a free pipeline: `gst:libcamerasrc ! ... ! appsink`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bowerbird_agent.capture.capture import Source, kind_of, positive_number, split_options, without_password
from bowerbird_agent.errors import CameraError, SourceError

if TYPE_CHECKING:
    from bowerbird_agent.capture.live import LiveCamera

# One frame waits at most, and the newest wins; without a clock, frames come as they are made.
_APPSINK = "appsink drop=true max-buffers=1 sync=false"
_TO_BGR = "videoconvert ! video/x-raw, format=(string)BGR"
_MOST_FLIPS = 7


@dataclass(frozen=True)
class CsiSensor:
    """A CSI camera of a Jetson.

    Args:
        sensor: its number, from 0.
        width, height: pixels; a mode that the sensor has.
        fps: frames per second of that mode.
        flip: `flip-method` of nvvidconv, 0 to 7 (2 turns the picture upside down).
    """

    sensor: int
    width: int = 1280
    height: int = 720
    fps: int = 30
    flip: int = 0

    @classmethod
    def parse(cls, text: str) -> CsiSensor:
        """From `csi:NUMBER?width=...&height=...&fps=...&flip=...`.

        Raises:
            ValueError: no such text.
        """
        head, options = split_options(text, known=("width", "height", "fps", "flip"))
        number = head.removeprefix("csi:")
        if not number.isdecimal():
            raise ValueError(f"{text!r} names no sensor; write csi:0, or csi:0?width=1280&height=720&fps=30")
        flip = options.pop("flip", "0")
        if not flip.isdecimal() or int(flip) > _MOST_FLIPS:
            raise ValueError(f"flip is {flip!r}; it must be 0 to {_MOST_FLIPS}")
        numbers = {key: positive_number(key, value) for key, value in options.items()}
        for key, value in numbers.items():
            if value != int(value):
                raise ValueError(f"{key} is {value:g}; it must be a whole number")
        return cls(int(number), flip=int(flip), **{key: int(value) for key, value in numbers.items()})

    def pipeline(self) -> str:
        """The pipeline: the sensor's pictures stay in the memory of the video unit until they are small and turned."""
        return (
            f"nvarguscamerasrc sensor-id={self.sensor} ! video/x-raw(memory:NVMM), width=(int){self.width}, "
            f"height=(int){self.height}, framerate=(fraction){self.fps}/1 ! nvvidconv flip-method={self.flip} ! "
            f"video/x-raw, format=(string)BGRx ! {_TO_BGR} ! {_APPSINK}"
        )


def pipeline_of(text: str) -> str:
    """The pipeline of a `csi:` or `gst:` source.

    Raises:
        ValueError: the text is none; a free pipeline must end in an appsink.
    """
    if kind_of(text) == "csi":
        return CsiSensor.parse(text).pipeline()
    pipeline = text.removeprefix("gst:").strip()
    head, _, sink = pipeline.rpartition("!")
    properties = sink.split()
    if not head.strip() or not properties or properties[0] != "appsink":
        raise ValueError(
            f"the pipeline {without_password(pipeline)!r} must end in an appsink: "
            f"gst:v4l2src device=/dev/video0 ! {_TO_BGR} ! appsink"
        )
    given = {word.partition("=")[0] for word in properties[1:]}
    wanted = [word for word in _APPSINK.split()[1:] if word.partition("=")[0] not in given]
    return " ".join([pipeline, *wanted])


def rtsp_pipeline(url: str) -> str:
    """RTSP over TCP through GStreamer, for an OpenCV without FFmpeg."""
    quoted = url.replace("\\", "\\\\").replace('"', '\\"')
    return f'rtspsrc location="{quoted}" protocols=tcp latency=200 ! decodebin ! {_TO_BGR} ! {_APPSINK}'


def open_pipeline(source: Source) -> LiveCamera:
    """The camera of a `csi:` or `gst:` source.

    Raises:
        SourceError: the text is wrong, or this OpenCV has no GStreamer.
        CameraError: the pipeline does not start.
    """
    import cv2

    from bowerbird_agent.capture.live import LiveCamera
    from bowerbird_agent.capture.opencv_build import find_opencv

    try:
        pipeline = pipeline_of(source.text)
    except ValueError as error:
        raise SourceError(f"camera {source.name}: {error}") from error
    build = find_opencv()
    if not build.gstreamer:
        remove = f"pip uninstall {' '.join(build.wheels)}, then " if build.wheels else ""
        raise SourceError(
            f"camera {source.name}: a {kind_of(source.text)}: source needs an OpenCV with GStreamer, and {build.path} "
            f"({build.version}) has none; {remove}use the system's OpenCV: apt-get install python3-opencv, in a virtual environment "
            "made with `python3 -m venv --system-site-packages`"
        )
    capture = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        capture.release()
        raise CameraError(f"camera {source.name}: the pipeline does not start; {by_hand(source.text)}")
    return LiveCamera(source, capture)


def by_hand(text: str) -> str:
    """How to try a `csi:` or `gst:` source without this program, for messages: a sink that needs no program behind it."""
    head = without_password(pipeline_of(text)).rpartition("!")[0]
    return f"try it by hand: gst-launch-1.0 {head}! fakesink"
