"""Which OpenCV this is: a wheel from PyPI, or the system's, as on a Jetson; and what it can read.

In: what is installed. Out: `OpenCvBuild`, or an `OpenCvMissing` that says what to install. PyPI's wheels have FFmpeg and no
GStreamer; a CSI camera on a Jetson needs the OpenCV of the system, which a virtual environment made with `--system-site-packages`
sees as long as no wheel hides it. It opens no camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from bowerbird_agent.errors import OpenCvMissing

# Every distribution on PyPI that brings a package `cv2`.
_WHEELS = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)
INSTALL = (
    "pip install 'bowerbird[opencv]'; on a Jetson use the system's instead: apt-get install python3-opencv and a virtual environment "
    "made with `python3 -m venv --system-site-packages`"
)


@dataclass(frozen=True)
class OpenCvBuild:
    """What `import cv2` gives.

    Args:
        version: e.g. "4.10.0".
        path: of the module's file.
        wheels: installed distributions that bring a `cv2`; empty when it is the system's or built by hand.
        ffmpeg, gstreamer, v4l2: what it can read through.
    """

    version: str
    path: str
    wheels: tuple[str, ...]
    ffmpeg: bool
    gstreamer: bool
    v4l2: bool


def find_opencv() -> OpenCvBuild:
    """The OpenCV of this interpreter.

    Raises:
        OpenCvMissing: there is none, or it does not load.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise OpenCvMissing(f"OpenCV does not load ({error}); {INSTALL}") from error
        raise OpenCvMissing(f"OpenCV is not installed: {INSTALL}") from error
    except ImportError as error:
        raise OpenCvMissing(f"OpenCV is installed but does not load ({_first_line(error)}); {_repair(error)}") from error
    cameras = cv2.videoio_registry.getCameraBackends()
    path = str(cv2.__file__)
    return OpenCvBuild(cv2.__version__, path, _wheels_of(path), has_ffmpeg(), has_gstreamer(), cv2.CAP_V4L2 in cameras)


@lru_cache(maxsize=1)
def has_ffmpeg() -> bool:
    """Whether this OpenCV reads through FFmpeg."""
    import cv2

    return bool(cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG))


@lru_cache(maxsize=1)
def has_gstreamer() -> bool:
    """Whether this OpenCV reads through GStreamer. Its list of backends also names those that would need a plug-in not there."""
    import cv2

    return bool(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER))


def _wheels_of(path: str) -> tuple[str, ...]:
    """Distributions whose `cv2` folder holds the module at `path`."""
    found = []
    for name in _WHEELS:
        try:
            folder = Path(str(metadata.distribution(name).locate_file("cv2")))
        except metadata.PackageNotFoundError:
            continue
        if folder.resolve() in Path(path).resolve().parents:
            found.append(name)
    return tuple(found)


def _repair(error: ImportError) -> str:
    text = str(error)
    if "numpy" in text.lower() or "_ARRAY_API" in text:
        return "the system's OpenCV was built for numpy 1: pip install 'numpy<2' in this environment"
    if "libGL" in text:
        return "install the headless twin: pip uninstall opencv-python; pip install 'bowerbird[opencv]'"
    return INSTALL


def _first_line(error: ImportError) -> str:
    return str(error).partition("\n")[0]
