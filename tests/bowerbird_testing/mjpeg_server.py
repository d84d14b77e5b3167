"""An HTTP camera that sends MJPEG as web cameras do, and can go silent, cut the connection, send garbage or another picture.

In: pictures and faults, at any time. Out: a camera at `url` on loopback; counts its connections and what it sent.
"""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bowerbird_testing.broker import HOST

_BOUNDARY = b"frame"


class MjpegServer:
    """The camera; a context manager. Attributes may be set while it runs.

    Args:
        fps: pictures a second.

    Attributes:
        image: what it shows, BGR; a little noise is added to each picture, as a sensor does.
        noisy: whether it does.
        silent: connections stay open, and nothing comes.
        garbage: bytes that are no JPEG come instead of pictures.
    """

    def __init__(self, image: NDArray[np.uint8], *, fps: float = 20.0) -> None:
        self.image, self.fps = image, fps
        self.noisy, self.silent, self.garbage = True, False, False
        self.connections = self.sent = 0
        self._cut = threading.Event()
        self._closed = False
        self._rng = np.random.default_rng(1)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._serve(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class calls it so
                """Quiet."""

        self._http = ThreadingHTTPServer((HOST, 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://{HOST}:{self._http.server_address[1]}/video"

    def __enter__(self) -> MjpegServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._cut.set()
        self._http.shutdown()
        self._http.server_close()

    def cut(self) -> None:
        """Close the connections that are open now; new ones are served."""
        before, self._cut = self._cut, threading.Event()
        before.set()

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        self.connections += 1
        cut = self._cut
        request.send_response(200)
        request.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY.decode()}")
        request.end_headers()
        try:
            while not cut.is_set() and not self._closed:
                if not self.silent:
                    body = self._picture()
                    head = b"--%s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % (_BOUNDARY, len(body))
                    request.wfile.write(head + body + b"\r\n")
                    self.sent += 1
                time.sleep(1 / self.fps)
        except OSError:
            return  # the client went away
        request.close_connection = True

    def _picture(self) -> bytes:
        if self.garbage:
            return bytes(self._rng.integers(0, 256, 4000, np.uint8))
        image = self.image
        if self.noisy:
            image = np.clip(image.astype(np.int16) + self._rng.integers(-3, 4, image.shape), 0, 255).astype(np.uint8)
        return bytes(cv2.imencode(".jpg", image)[1])
