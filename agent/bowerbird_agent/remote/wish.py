"""Where a wish from the server stands on this device: on trial, in force, refused, or taken back. Pure.

In: what stood before and what has happened. Out: what stands now, as a value that `remote/runner.py` keeps on disk before it is acted
on. It does not judge a document (`remote/config.py`) and reads no clock.

A new document is on trial until it has been in force for `probation_s` without harm. Until then the one before is kept: two
starts after an end that was not orderly, no camera or no server bring it back, and that version is never tried again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

# Starts after an end that was not orderly, while on trial, from which on the document is to blame.
MOST_STARTS = 2
_FAULTS_KEPT = 20
_FAULT_LENGTH = 200


@dataclass(frozen=True)
class Standing:
    """What is in force, what was before, and what became of the newest wish.

    Args:
        seen: newest version that was judged; older ones are ignored.
        version, document: in force; 0 and {} for agent.toml alone.
        on_trial: whether it must still prove itself.
        good_version, good_document: what is fallen back to.
        starts: starts of the process while on trial, after an end that was not orderly.
        orderly: whether the process ended in order.
        had_camera: whether a camera was well when the trial began, so that its loss counts.
        turned_down: the newest version that is not in force for a reason, 0 for none.
        outcome: that reason: "refused" or "fell_back"; "" for none.
        faults: the same in words.
        differs: key paths in which agent.toml adds to the wish in force.
    """

    seen: int = 0
    version: int = 0
    document: Mapping[str, Any] = field(default_factory=dict)
    on_trial: bool = False
    good_version: int = 0
    good_document: Mapping[str, Any] = field(default_factory=dict)
    starts: int = 0
    orderly: bool = True
    had_camera: bool = False
    turned_down: int = 0
    outcome: str = ""
    faults: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """For the server, about `seen`: none, trial, in_force, refused or fell_back."""
        if self.seen == 0:
            return "none"
        if self.turned_down == self.seen:
            return self.outcome
        return "trial" if self.on_trial else "in_force"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def from_plain(plain: Mapping[str, Any]) -> Standing:
    """The standing of `Standing.plain`.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    known = {key: plain[key] for key in Standing.__dataclass_fields__ if key in plain}
    for key in ("faults", "differs"):
        known[key] = tuple(str(text) for text in known.get(key, ()))
    standing = Standing(**known)
    numbers: tuple[object, ...] = (
        standing.seen,
        standing.version,
        standing.good_version,
        standing.starts,
        standing.turned_down,
    )
    documents: tuple[object, ...] = (standing.document, standing.good_document)
    if not all(isinstance(number, int) for number in numbers) or not all(isinstance(each, dict) for each in documents):
        raise ValueError("a number or a document is none")
    return standing


def accepted(
    standing: Standing, version: int, document: Mapping[str, Any], *, had_camera: bool, differs: tuple[str, ...] = ()
) -> Standing:
    """A newer document without faults is on trial; one that was still on trial itself is not what is fallen back to."""
    good = (standing.good_version, standing.good_document) if standing.on_trial else (standing.version, standing.document)
    return replace(
        standing,
        seen=version,
        version=version,
        document=document,
        on_trial=True,
        good_version=good[0],
        good_document=good[1],
        starts=0,
        had_camera=had_camera or (standing.on_trial and standing.had_camera),
        outcome="",
        faults=(),
        differs=differs,
    )


def refused(standing: Standing, version: int, faults: tuple[str, ...]) -> Standing:
    """A newer document with faults changes nothing."""
    return replace(standing, seen=version, turned_down=version, outcome="refused", faults=_short(faults))


def proved(standing: Standing) -> Standing:
    """The time of trial is over without harm."""
    return replace(standing, on_trial=False, good_version=0, good_document={}, starts=0)


def fallen_back(standing: Standing, why: str) -> Standing:
    """The document on trial did harm, or no longer fits agent.toml: the one before is in force again."""
    was_newest = standing.version == standing.seen
    return replace(
        standing,
        version=standing.good_version if standing.on_trial else 0,
        document=standing.good_document if standing.on_trial else {},
        on_trial=False,
        good_version=0,
        good_document={},
        starts=0,
        # A newer wish that was refused meanwhile stays what the server is told about.
        turned_down=standing.version if was_newest else standing.turned_down,
        outcome="fell_back" if was_newest else standing.outcome,
        faults=_short((why,)) if was_newest else standing.faults,
        differs=(),
    )


def started(standing: Standing) -> Standing:
    """The process begins. Call `fallen_back` when `is_to_blame` says so."""
    starts = standing.starts + int(standing.on_trial and not standing.orderly)
    return replace(standing, starts=starts, orderly=False)


def is_to_blame(standing: Standing) -> bool:
    """Whether the process has ended so often on trial that the document must be the reason."""
    return standing.on_trial and standing.starts >= MOST_STARTS


def harm(standing: Standing, *, camera_well: bool, server_heard: bool) -> str:
    """At the end of the trial: what speaks against the document, "" for nothing."""
    if standing.had_camera and not camera_well:
        return "no camera gives pictures any more"
    if not server_heard:
        return "the server was not reached in the time of trial"
    return ""


def _short(faults: tuple[str, ...]) -> tuple[str, ...]:
    more = len(faults) - _FAULTS_KEPT
    kept = tuple(fault[:_FAULT_LENGTH] for fault in faults[:_FAULTS_KEPT])
    return (*kept, f"and {more} more") if more > 0 else kept
