"""A real RTSP server (GStreamer's, from Debian): synthetic scenes as H.264 without end; it may be killed, stopped and started.

In: a folder, the transport, optionally user and password. Out: a camera at `url`; the port stays the same over restarts, so
an agent finds it again.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from functools import lru_cache
from pathlib import Path

import cv2

from bowerbird_models.scenes import SceneStream
from bowerbird_testing.broker import HOST, free_port

# The system's own: GStreamer's bindings are Debian packages and not in a virtual environment.
PYTHON = "/usr/bin/python3"
PACKAGES = "gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly"
_PROBE = (
    "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer; Gst.init(None); "
    "assert all(map(Gst.ElementFactory.find, ('x264enc', 'rtph264pay', 'jpegdec', 'multifilesrc')))"
)
FPS = 10
SIZE_WH = (320, 240)
_FRAMES = 40


@lru_cache(maxsize=1)
def rtsp_server_missing() -> str:
    """Why there is no RTSP server here, "" when there is one."""
    if not Path(PYTHON).exists():
        return f"{PYTHON} is not there"
    done = subprocess.run([PYTHON, "-c", _PROBE], capture_output=True, check=False, timeout=60)
    return "" if done.returncode == 0 else f"no RTSP server is installed: apt-get install {PACKAGES}"


class RtspServer:
    """One server process with one camera, over `transport` "tcp" or "udp" only. A context manager: leaving it kills the process."""

    def __init__(self, folder: Path, *, transport: str = "tcp", user: str = "", password: str = "") -> None:
        self.port = free_port()
        self._folder, self._transport, self._user, self._password = folder, transport, user, password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """With user and password when there are any."""
        who = f"{self._user}:{self._password}@" if self._user else ""
        return f"rtsp://{who}{HOST}:{self.port}/street"

    def __enter__(self) -> RtspServer:
        self._folder.mkdir(parents=True, exist_ok=True)
        stream = SceneStream(3, width=SIZE_WH[0], height=SIZE_WH[1])
        for n in range(_FRAMES):
            cv2.imwrite(str(self._folder / f"{n:03d}.jpg"), stream.render(n)[0])
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self, *, timeout_s: float = 30.0) -> RtspServer:
        """Start it and wait until it accepts connections."""
        launch = (
            f'( multifilesrc location="{self._folder}/%03d.jpg" loop=true caps="image/jpeg,framerate={FPS}/1" ! jpegdec ! '
            "videoconvert ! video/x-raw,format=I420 ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 "
            "! rtph264pay name=pay0 pt=96 config-interval=1 )"
        )
        child = str(Path(__file__).with_name("rtsp_child.py"))
        argv = [PYTHON, child, str(self.port), "/street", launch, self._transport]
        if self._user:
            argv += [self._user, self._password]
        setpriv = shutil.which("setpriv")
        if setpriv is not None:  # a server must not outlive a test run that was killed
            argv = [setpriv, "--pdeathsig", "KILL", *argv]
        log_path = self._folder / "rtsp.log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s and self._process.poll() is None:
            try:
                socket.create_connection((HOST, self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
                continue
            return self
        raise RuntimeError(f"the RTSP server did not start: {log_path.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        """kill -9; clients see the connection close."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing comes any more, as from a camera that hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on where `freeze` stopped it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
