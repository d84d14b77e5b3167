"""Installs a verified release of the agent beside the one that runs, without a network, in child processes with limits.

In: a release folder that `load_release` has passed. Out: an environment around it, or an `InstallResult` that says why not. pip
gets no index, only files of that folder, exact versions with hashes, and no source package, so that nothing foreign is built or
run here. Whether the new version can work here is its own word: `install_check` runs in the new environment. It switches
nothing (`agent_versions.py`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bowerbird_models.agent_release import LOCK

INSTALL_S = 1800.0  # a Raspberry Pi compiles the byte code of OpenCV and NumPy for minutes
CHECK_S = 300.0
_POLL_S = 0.2
_TAIL_BYTES = 4096


@dataclass(frozen=True)
class InstallResult:
    """`code` is "" when all went well."""

    code: str = ""
    detail: str = ""


def base_python() -> Path:
    """The interpreter that this environment was made from."""
    named = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    return named if named.exists() else Path(os.path.realpath(sys.executable))


def install_release(
    release: Path,
    target: Path,
    *,
    python: Path,
    scratch: Path,
    system_site_packages: bool = False,
    timeout_s: float = INSTALL_S,
    should_stop: Callable[[], bool] = lambda: False,
) -> InstallResult:
    """Make the environment `target` of a release's files.

    Args:
        release: folder with wheels and lock file; it may lie in `target`.
        python: interpreter to make it from.
        scratch: for temporary files; /tmp may be small.
        system_site_packages: let it see the system's packages.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    options = ["--system-site-packages"] if system_site_packages else []
    own = str(target / "bin" / "python")
    pip = [own, "-I", "-m", "pip", "--isolated", "--disable-pip-version-check", "--no-input", "--no-cache-dir", "--quiet"]
    steps: tuple[tuple[str, list[str]], ...] = (
        ("venv", [str(python), "-I", "-m", "venv", *options, str(target)]),
        (
            "pip",
            [
                *pip, "install", "--no-index", "--require-hashes", "--only-binary", ":all:",
                "--find-links", str(release), "-r", str(release / LOCK),
            ],
        ),
    )  # fmt: skip
    deadline_s = time.monotonic() + timeout_s
    for name, command in steps:
        code, said = run_child(
            command, timeout_s=deadline_s - time.monotonic(), environment=_environment(scratch), should_stop=should_stop
        )
        if code is None:
            return InstallResult("install_timeout", f"{name} did not end within {timeout_s:.0f} s, or was stopped")
        if code != 0:
            return InstallResult("install", f"{name} ended with {code}: {said}")
    return InstallResult()


def check_installation(
    target: Path,
    state: Path,
    *,
    config: Path | None,
    scratch: Path,
    timeout_s: float = CHECK_S,
    should_stop: Callable[[], bool] = lambda: False,
) -> InstallResult:
    """Run the new version's own check in the new environment.

    Args:
        state: the agent's state folder.
        config: agent.toml, which the new version must understand; None leaves configuration and cameras out.
    """
    command = [str(target / "bin" / "python"), "-I", "-m", "bowerbird_agent.install_check", str(state)]
    command += [] if config is None else ["--config", str(config)]
    code, said = run_child(command, timeout_s=timeout_s, environment=_environment(scratch), should_stop=should_stop)
    if code is None:
        return InstallResult("install_timeout", f"the install check did not end within {timeout_s:.0f} s, or was stopped")
    return InstallResult() if code == 0 else InstallResult("install_check", said or f"the install check ended with {code}")


def run_child(
    command: Sequence[str], *, timeout_s: float, environment: dict[str, str], should_stop: Callable[[], bool]
) -> tuple[int | None, str]:
    """Exit code and the end of what a child said; None where it was ended for its time or because `should_stop` said so."""
    log = Path(environment["TMPDIR"]) / f"child-{os.getpid()}.log"
    deadline_s = time.monotonic() + timeout_s
    try:
        with log.open("wb") as out:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, cwd="/", start_new_session=True
            )
        try:
            while child.poll() is None:
                if time.monotonic() > deadline_s or should_stop():
                    return None, ""
                time.sleep(_POLL_S)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        with log.open("rb") as said:
            said.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return child.returncode, said.read().decode("utf-8", "replace").strip()[-400:]
    except OSError as error:
        return 127, f"{command[0]} could not be run ({error.strerror})"
    finally:
        log.unlink(missing_ok=True)


def _environment(scratch: Path) -> dict[str, str]:
    """Nothing of ours: no PIP_*, no PYTHON*, no proxy, no socket of systemd's."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(scratch), "LC_ALL": "C.UTF-8", "TMPDIR": str(scratch)}
