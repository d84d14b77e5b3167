"""What an update of the agent itself does in each of its steps: an environment beside the running one, the switch, the new process.

In: the runner's calls. Out: versions on the disk, the link that the launcher follows, and the wish to be started again. The
steps before the trial belong to the version that runs, the trial to the new one, a roll-back to whichever still can: the new
version by itself when the server is out of reach, the launcher (deploy/launch.sh) when the new version cannot start, hangs or
never confirms itself. It decides nothing about the order of things (`updater.py`) and trusts nothing by itself
(`updates/source.py`).
"""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from bowerbird_agent.errors import UpdateRefused
from bowerbird_agent.updates.agent_install import base_python, check_installation, install_release
from bowerbird_agent.updates.agent_versions import WHEELS, AgentVersions
from bowerbird_agent.updates.updated import Contents, TrialTerms
from bowerbird_agent.updates.updater import Event, Record, Refusal, State, Subject
from bowerbird_models.agent_release import AgentManifest
from bowerbird_models.manifest import MANIFEST, Probation
from bowerbird_models.release_roles import AGENTS_ROLE
from bowerbird_models.wheels import WheelName

logger = logging.getLogger(__name__)

MARGIN_S = 300  # beside the trial's own limits, for loading a model, before the launcher ends a version that has said nothing


@dataclass(frozen=True)
class Machine:
    """What a release must be made for."""

    machine: str = field(default_factory=platform.machine)
    python: tuple[int, int] = sys.version_info[:2]
    glibc: tuple[int, int] | None = field(default_factory=lambda: _glibc())  # noqa: PLW0108  # it stands further down
    system_site_packages: bool = field(default_factory=lambda: _sees_the_systems_packages(Path(sys.prefix)))

    def unfit(self, manifest: AgentManifest) -> Refusal | None:
        """Why a release cannot run here, None where nothing speaks against it."""
        if manifest.machine != self.machine:
            return Refusal("platform", f"the release is for {manifest.machine}, this device is {self.machine}")
        if manifest.python_version != self.python:
            ours = ".".join(map(str, self.python))
            return Refusal("python", f"the release is for Python {manifest.python}, this device has {ours}; publish one for it")
        if manifest.system_site_packages != self.system_site_packages:
            seen, wanted = (
                "sees" if flag else "does not see" for flag in (self.system_site_packages, manifest.system_site_packages)
            )
            return Refusal(
                "platform", f"the release is for an environment that {wanted} the system's packages; this one {seen} them"
            )
        for file in manifest.wheels:
            if not WheelName.parse(file.name).fits(python=self.python, machine=self.machine, glibc=self.glibc):
                return Refusal("wrong_abi", f"{file.name} does not suit this device's Python or C library")
        return None


class AgentUpdate:
    """An `Updated`: the agent.

    Args:
        versions: where versions lie.
        state_dir: the agent's state folder, for the install check.
        config: agent.toml, which a new version must understand; None leaves that out.
        restart: asks for this process to end, so that the launcher starts what is current then.
        probation: limits of the trial; its frames are asked for only where the version before answered some.
        launched: whether the launcher started this process; without it nobody would take a bad version back.
        machine: what this device is.
    """

    subject = Subject.AGENT
    role = AGENTS_ROLE

    def __init__(
        self,
        versions: AgentVersions,
        state_dir: Path,
        *,
        config: Path | None,
        restart: Callable[[], None],
        launched: bool,
        probation: Probation | None = None,
        machine: Machine | None = None,
        python: Path | None = None,
    ) -> None:
        self._versions, self._state_dir, self._config = versions, state_dir, config
        self._restart, self._launched = restart, launched
        self._probation = probation or Probation()
        self._machine, self._python = machine or Machine(), python or base_python()
        self._scratch = versions.home / "tmp"

    @property
    def running_digest(self) -> str:
        """The release that this process is of, "" for the base."""
        return self._versions.running

    @property
    def running_file_digest(self) -> str:
        """A release is many files."""
        return ""

    def contents(self, manifest: bytes) -> Contents:
        """All files; twice for fetching, and once unpacked with its byte code."""
        if not self._launched:
            raise UpdateRefused(
                "no_launcher",
                "this agent was not started by deploy/launch.sh, which takes a bad version back: run deploy/install.sh once",
            )
        read = AgentManifest.from_bytes(manifest)
        unfit = self._machine.unfit(read)
        if unfit is not None:
            raise UpdateRefused(unfit.code, unfit.detail)
        return Contents(read.files, 2 * read.total_bytes + 2 * read.installed_bytes)

    def has(self, digest: str) -> bool:
        """Whether the release is here whole."""
        return self._versions.is_intact(digest)

    def twin(self, name: str) -> Path | None:
        """The wheel that this very environment was made of: most packages stay the same from version to version."""
        wheels = self._versions.prefix / WHEELS
        return wheels / name if name != MANIFEST and wheels.is_dir() else None

    def put(self, incoming: Path, digest: str) -> Event:
        """Beside the others."""
        self._versions.put(incoming, digest)
        return Event.TO_BUILD

    def build(self, digest: str, should_stop: Callable[[], bool]) -> Refusal | None:
        """An environment of its own, from the release's files only."""
        if self._versions.is_complete(digest):
            return None
        self._versions.clear_environment(digest)
        result = install_release(
            self._versions.wheels(digest),
            self._versions.folder(digest),
            python=self._python,
            scratch=self._scratch,
            system_site_packages=self._machine.system_site_packages,
            should_stop=should_stop,
        )
        if result.code:
            return Refusal(result.code, result.detail)
        self._versions.mark_complete(digest)
        return None

    def test(self, digest: str, should_stop: Callable[[], bool]) -> Refusal | None:
        """The new version's own check, in its own environment."""
        result = check_installation(
            self._versions.folder(digest),
            self._state_dir,
            config=self._config,
            scratch=self._scratch,
            should_stop=should_stop,
        )
        return Refusal(result.code, result.detail) if result.code else None

    def lost(self, record: Record) -> Refusal | None:
        """The launcher's word, where this is not the version on trial any more."""
        wanted = record.expected_digest
        if self._versions.running == wanted:
            return None
        reason = self._versions.failure(wanted)
        if reason:
            return Refusal(reason, _WHY.get(reason, f"the launcher took it back ({reason})"))
        if self._versions.current == wanted:
            return Refusal("put_aside", "the launcher did not start it (it could not count the start); it may be offered again")
        return None

    def enter_trial(self, record: Record) -> TrialTerms | Refusal | None:
        """The version that runs switches and asks to be started again; the new version begins its trial."""
        wanted = record.expected_digest
        if self._versions.running == wanted:
            return TrialTerms(self._probation if record.saw_frames else replace(self._probation, good_frames=0))
        if not self._launched:
            return Refusal("no_launcher", "this agent was not started by deploy/launch.sh")
        if not self._versions.is_complete(wanted):
            return Refusal("incomplete", "its environment is not there any more")
        seconds = round(max(self._probation.deadline_s, self._probation.server_deadline_s)) + MARGIN_S
        self._versions.begin_trial(wanted, seconds=seconds)
        logger.info("agent release %s is on trial; this process ends so that it is started", wanted[:12])
        self._restart()
        return None

    def pause_trial(self) -> None:
        """Not counted."""
        self._versions.forgive_start()

    def align(self, record: Record) -> None:
        """Confirm what was committed; give up what was rolled back."""
        if record.subject is not Subject.AGENT or record.job is None:
            return
        wanted = record.job.model_digest
        if record.state is State.COMMITTED and self._versions.running == wanted:
            self._versions.confirm()
        elif record.state in {State.ROLLED_BACK, State.REFUSED} and self._versions.current == wanted != record.base_digest:
            self._versions.fall_back(record.base_digest)

    def ended(self, record: Record, *, is_live: bool) -> None:
        """A version that has given itself up ends."""
        del is_live
        if record.state is State.ROLLED_BACK and record.job is not None and self._versions.running == record.job.model_digest:
            logger.warning("agent release %s has given itself up; the one before is started", record.job.model_digest[:12])
            self._restart()

    def tidy(self) -> None:
        """Keep what runs and what the links name."""
        for digest in self._versions.collect_garbage():
            logger.info("agent release %s is deleted", digest[:12])


def no_agent_update(state_dir: Path) -> AgentUpdate:
    """Of an agent that was not started by the launcher: it refuses every job, and ends a trial that was under way."""
    versions = AgentVersions(state_dir / "agent", prefix=Path("/"))
    return AgentUpdate(versions, state_dir, config=None, restart=lambda: None, launched=False)


_WHY = {
    "crash_loop": "it ended more than three times before it had reached the server",
    "power_cuts": "more than ten power cuts in one trial",
    "no_confirmation": "it ran, and did not confirm itself in time; the launcher ended it",
    "incomplete": "its files were not all there",
    "put_aside": "a person has installed another version by hand",
}


def _glibc() -> tuple[int, int] | None:
    name, version = platform.libc_ver()
    try:
        major, minor = version.split(".")[:2]
        return (int(major), int(minor)) if name == "glibc" else None
    except ValueError:
        return None


def _sees_the_systems_packages(prefix: Path) -> bool:
    try:
        lines = (prefix / "pyvenv.cfg").read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    return any(line.replace(" ", "").lower() == "include-system-site-packages=true" for line in lines)
