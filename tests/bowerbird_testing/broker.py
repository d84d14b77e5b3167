"""A real mosquitto on a free loopback port, in a folder of its own, that a test may stop, kill -9 and start again.

In: a folder, optionally users with passwords, an access list and further configuration lines. Out: a running broker with `host` and
`port`; the port stays the same over restarts, so clients find it again. Works as root and as any other user. It is not the
server's own embedded broker: that one has its own code and tests.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HOST = "127.0.0.1"
# Debian keeps mosquitto in /usr/sbin, which is not on the PATH of every user.
_PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])


class BrokerNotStarted(RuntimeError):
    """mosquitto ended or did not listen in time; the text ends with its log."""


def mosquitto_path() -> str | None:
    """Where mosquitto is, None when it is not installed."""
    return shutil.which("mosquitto", path=_PLACES)


def free_port() -> int:
    """A loopback port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class Mosquitto:
    """One broker process. A context manager: leaving it stops the process.

    Args:
        folder: taken for configuration, passwords and log; made when missing.
        users: name -> password; None lets everybody in without one.
        acl: text of the access list file; None allows everything.
        settings: further lines of mosquitto.conf, e.g. `max_packet_size 2000`.
        port: to listen on; None finds a free one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        users: Mapping[str, str] | None = None,
        acl: str | None = None,
        settings: Sequence[str] = (),
        port: int | None = None,
    ) -> None:
        self.host = HOST
        self.port = port or free_port()
        self.users = None if users is None else dict(users)
        self.acl = acl
        self.settings = list(settings)
        self._folder = folder
        self._fixed_port = port is not None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        """What mosquitto wrote, over all its starts."""
        return self._folder / "mosquitto.log"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def __enter__(self) -> Mosquitto:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *, timeout_s: float = 15.0) -> Mosquitto:
        """Start it and wait until it accepts connections; does nothing when it runs.

        Raises:
            BrokerNotStarted: it is not installed, or ended at once.
        """
        if self.pid is not None:
            return self
        for _ in range(5):
            self._write_config()
            if self._launch(timeout_s):
                self._fixed_port = True
                return self
            if self._fixed_port:
                break
            self.port = free_port()  # somebody took it between probe and start
        raise BrokerNotStarted(f"mosquitto on port {self.port}: {self.log_path.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        """End it in order (SIGTERM); clients see the connection close."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9: nothing that it holds in memory survives."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """kill -9 and start again on the same port."""
        self.kill()
        self.start()

    def reload(self, *, users: Mapping[str, str] | None = None, acl: str | None = None) -> None:
        """Write new users or access rules and have the running broker read them."""
        self.users = self.users if users is None else dict(users)
        self.acl = self.acl if acl is None else acl
        self._write_config()
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        self._process = None

    def _write_config(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f"listener {self.port} {HOST}",
            "persistence false",
            f"log_dest file {self.log_path}",
            "log_type error",
            "log_type warning",
            "log_type notice",
            "log_type information",  # holds the line that says it runs
            f"allow_anonymous {'true' if self.users is None else 'false'}",
        ]
        if os.geteuid() == 0:
            lines.append("user root")  # otherwise it becomes `mosquitto`, which may not read this folder
        if self.users is not None:
            passwords = self._folder / "passwords"
            passwords.write_text("".join(f"{name}:{password}\n" for name, password in self.users.items()))
            passwords.chmod(0o600)
            if self.users:
                tool = shutil.which("mosquitto_passwd", path=_PLACES) or "mosquitto_passwd"
                subprocess.run([tool, "-U", str(passwords)], check=True, capture_output=True)
            lines.append(f"password_file {passwords}")
        if self.acl is not None:
            acl = self._folder / "acl"
            acl.write_text(self.acl)
            acl.chmod(0o600)
            lines.append(f"acl_file {acl}")
        (self._folder / "mosquitto.conf").write_text("\n".join([*lines, *self.settings]) + "\n")

    def _launch(self, timeout_s: float) -> bool:
        program = mosquitto_path()
        if program is None:
            raise BrokerNotStarted("mosquitto is not installed: apt-get install mosquitto")
        argv = [program, "-c", str(self._folder / "mosquitto.conf")]
        setpriv = shutil.which("setpriv", path=_PLACES)
        if setpriv is not None:  # a broker must not outlive a test run that was killed
            argv = [setpriv, "--pdeathsig", "KILL", *argv]
        self.log_path.touch()
        said_before = self.log_path.stat().st_size
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
                continue
            # Another program may answer on the port while ours is about to give up: it must say so itself.
            if b" running" in self.log_path.read_bytes()[said_before:]:
                return True
            time.sleep(0.02)
        self._end(signal.SIGKILL)
        return False
