"""A device's launcher with versions that are programs of a few lines, and the part of systemd that starts it again.

In: a folder. Out: a base version and versions below the state folder, each behaving as its name says, started by the real
deploy/launch.sh, by real processes. A version is a folder with `bin/python` (the interpreter of the tests) and
`bin/bowerbird-agent`, as the launcher expects it; what it writes to `log` in the state folder is the order in which versions
ran.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "deploy" / "launch.sh"
EXIT_RESTART = 75

_HEAD = """\
import os, pathlib, signal, sys, time
state = pathlib.Path(sys.argv[1])
home = state / "agent"
with (state / "log").open("a") as log:
    log.write("{name}\\n")
"""
PROGRAMS = {
    "good": "(home / 'trial').unlink(missing_ok=True)\ntime.sleep(60)",  # confirms itself at once
    "crashes_at_import": "import no_such_package_of_a_bad_release",
    "hangs": "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)",
    "runs_without_confirming": "time.sleep(60)",
    "ends": "",
}


@dataclass
class Launched:
    """One device."""

    state: Path
    base: Path
    boot_id: str = "boot-1"
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def make(cls, folder: Path, *, base: str = "good") -> Launched:
        """A device whose installed version behaves like `base`."""
        device = cls(folder / "state", folder / "base")
        device.state.mkdir(parents=True)
        device._write(device.base, "base", base)
        return device

    @property
    def home(self) -> Path:
        return self.state / "agent"

    def digest(self, name: str) -> str:
        """A digest that a person can read: the name in hexadecimal, filled up."""
        return name.encode().hex().ljust(64, "0")[:64]

    def install(self, name: str, behaves: str) -> str:
        """A complete version; its digest."""
        digest = self.digest(name)
        folder = self.home / "versions" / digest
        self._write(folder, name, behaves)
        (folder / ".complete").touch()
        return digest

    def point(self, link: str, digest: str) -> None:
        (self.home / link).unlink(missing_ok=True)
        (self.home / link).symlink_to(Path("versions", digest))

    def try_out(self, digest: str, *, seconds: int = 60) -> None:
        """As `AgentVersions.begin_trial` leaves it."""
        (self.home / "trial").write_text(f"digest {digest}\nstarts 0\nboot -\nboots 0\nseconds {seconds}\n")
        current = self.home / "current"
        if current.is_symlink():
            self.point("previous", current.readlink().name)
        self.point("current", digest)

    def start(self) -> subprocess.Popen[bytes]:
        """What systemd does: one start; the process is the agent itself."""
        child = subprocess.Popen(
            ["/bin/sh", str(LAUNCHER), str(self.base), str(self.state), str(self.state)],
            stdin=subprocess.DEVNULL,
            stderr=(self.state / "stderr").open("ab"),
            env={"PATH": os.environ["PATH"], "BOWERBIRD_BOOT_ID": self.boot_id},
            start_new_session=True,
        )
        self.children.append(child)
        return child

    def start_until_quiet(self, *, lives_s: float = 0.7, most: int = 12) -> None:
        """Start again and again, as `Restart=always` does, until a start lives for `lives_s`; then take that one down."""
        for _ in range(most):
            child = self.start()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(lives_s)
            if child.poll() is None:
                self.kill(child)
                return
        raise AssertionError(f"no version stays alive: {self.ran()}; {self.said()}")

    def kill(self, child: subprocess.Popen[bytes]) -> None:
        """kill -9 of one start and all that it began, as a power cut or a watchdog does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(10)

    def end(self) -> None:
        """Take down whatever is left."""
        for child in self.children:
            if child.poll() is None:
                self.kill(child)

    def ran(self) -> list[str]:
        """Which versions ran, in order."""
        return (self.state / "log").read_text().split() if (self.state / "log").exists() else []

    def said(self) -> str:
        """What the launcher and the versions said."""
        return (self.state / "stderr").read_text()

    def wait_for(self, count: int, *, timeout_s: float = 15.0) -> None:
        """Until so many versions have run."""
        deadline_s = time.monotonic() + timeout_s
        while len(self.ran()) < count:
            assert time.monotonic() < deadline_s, f"{self.ran()}; {self.said()}"
            time.sleep(0.02)

    def current(self) -> str:
        """Digest of what is current, "" for the base."""
        link = self.home / "current"
        return link.readlink().name if link.is_symlink() else ""

    def _write(self, folder: Path, name: str, behaves: str) -> None:
        bin_dir = folder / "bin"
        bin_dir.mkdir(parents=True, exist_ok=True)
        (bin_dir / "python").unlink(missing_ok=True)
        (bin_dir / "python").symlink_to(sys.executable)
        (bin_dir / "bowerbird-agent").write_text(_HEAD.format(name=name) + PROGRAMS[behaves] + "\n")
