"""The seam between the update runner and what it updates: the model that answers frames, or the agent itself.

In: nothing. Out: `Updated`, which `model_update.py` and `agent_update.py` fill, and the values that pass between. The runner
knows the order of things and persists each state before it acts; what a step does is here behind one method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bowerbird_agent.updates.updater import Event, Record, Refusal, Subject
from bowerbird_models.manifest import PackageFile, Probation


@dataclass(frozen=True)
class Contents:
    """What a manifest lists: the files to fetch, and the bytes that must be free for fetching and all that follows."""

    files: Sequence[PackageFile]
    needed_bytes: int


@dataclass(frozen=True)
class TrialTerms:
    """How a trial is judged; `baseline_ms` is the median latency of what ran before, 0 where none is known."""

    probation: Probation
    baseline_ms: float = 0.0


class Updated(Protocol):
    """What can be updated. Methods are called in the runner's thread, or before it starts; each may be called again after a crash."""

    subject: Subject
    role: str  # of TUF: the first part of its targets' paths

    @property
    def running_digest(self) -> str:
        """What runs now, "" for none (of the agent: the one that was installed by hand)."""
        ...

    @property
    def running_file_digest(self) -> str:
        """SHA-256 of the file that runs, "" where there is no such file."""
        ...

    def contents(self, manifest: bytes) -> Contents:
        """Read a manifest that TUF vouches for.

        Raises:
            PackageError: it is none.
            UpdateRefused: it is not for this device.
        """
        ...

    def has(self, digest: str) -> bool:
        """Whether everything of it is here and intact, so that nothing need be fetched."""
        ...

    def twin(self, name: str) -> Path | None:
        """Where a file of this name lies already, perhaps with the same content."""
        ...

    def put(self, incoming: Path, digest: str) -> Event:
        """Take over a fetched folder, verified; VERIFIED, or TO_BUILD where something must be made of it.

        Raises:
            PackageError: it does not verify.
        """
        ...

    def build(self, digest: str, should_stop: Callable[[], bool]) -> Refusal | None:
        """Make what runs of what was fetched."""
        ...

    def test(self, digest: str, should_stop: Callable[[], bool]) -> Refusal | None:
        """Try it beside what runs, in a child process."""
        ...

    def lost(self, record: Record) -> Refusal | None:
        """At boot, in a trial: why it is lost already."""
        ...

    def enter_trial(self, record: Record) -> TrialTerms | Refusal | None:
        """Swap, if that is not done yet; None: the trial goes on in another process, which has been asked for."""
        ...

    def pause_trial(self) -> None:
        """The process ends in good order during a trial: it does not count against it."""
        ...

    def align(self, record: Record) -> None:
        """Make the disk agree with the record: the process may have died between the two."""
        ...

    def ended(self, record: Record, *, is_live: bool) -> None:
        """After a terminal record and `align`: go on with what is active now. `is_live`: the runner's thread runs."""
        ...

    def tidy(self) -> None:
        """Nothing is under way: keep what is in use and nothing else."""
        ...
