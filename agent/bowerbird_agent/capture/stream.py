"""Cameras on the network: `rtsp://` and `http(s)://` (MJPEG or anything else that FFmpeg knows), through OpenCV's FFmpeg.

In: an address. Out: a `LiveCamera`. Both opening and reading have a time limit. Where this OpenCV has no FFmpeg but GStreamer, as
on some boards, rtsp goes through a pipeline instead. It does not reconnect (`capture/worker.py`).

RTSP runs over TCP: over UDP a busy network loses packets, and a lost packet is a smeared picture until the next key frame, which a
detector takes for a picture. OpenCV hands FFmpeg's options on from one environment variable only, for the whole process;
`cli/app.py` sets it before the first camera is opened, because to change it while other threads may read it is not safe.
"""

from __future__ import annotations

import cv2

from bowerbird_agent.capture.capture import Source, without_password
from bowerbird_agent.capture.live import LiveCamera
from bowerbird_agent.capture.opencv_build import has_ffmpeg, has_gstreamer
from bowerbird_agent.errors import CameraError, SourceError

OPEN_TIMEOUT_S = 8.0


def open_stream(source: Source) -> LiveCamera:
    """The camera at an address.

    Raises:
        SourceError: this OpenCV cannot read addresses; trying again is useless.
        CameraError: it does not answer.
    """
    shown = without_password(source.text)
    if has_ffmpeg():
        capture = _through_ffmpeg(source)
    elif has_gstreamer() and source.text.lower().startswith(("rtsp://", "rtsps://")):
        from bowerbird_agent.capture.gstreamer import rtsp_pipeline

        capture = cv2.VideoCapture(rtsp_pipeline(source.text), cv2.CAP_GSTREAMER)
    else:
        raise SourceError(
            f"camera {source.name}: this OpenCV has neither FFmpeg nor a way through GStreamer to read {shown}; "
            "pip install 'bowerbird[opencv]', or write a pipeline: source = \"gst:... ! appsink\""
        )
    if not capture.isOpened():
        capture.release()
        raise CameraError(
            f"camera {source.name}: {shown} does not answer; check the address, the password and that the camera is reachable from "
            "this device"
        )
    return LiveCamera(source, capture)


def _through_ffmpeg(source: Source) -> cv2.VideoCapture:
    limits = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        int(OPEN_TIMEOUT_S * 1000),
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        int(source.stall_s * 1000),
    ]
    try:
        return cv2.VideoCapture(source.text, cv2.CAP_FFMPEG, limits)
    except cv2.error as error:
        shown = without_password(source.text)
        raise CameraError(f"camera {source.name}: OpenCV cannot open {shown} ({without_password(error.err)})") from error
