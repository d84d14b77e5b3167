"""Counters that survive kill -9, and which frames of a source were counted already.

In: additions from any thread. Out: totals, and the changes since the last flush for the spool thread to write in one transaction. All
facts are additive (also "which frames were seen": one bit each), so a flush is one sum and a lost flush loses at most its second.
It writes nothing itself.
"""

from __future__ import annotations

import threading
from types import MappingProxyType
from typing import TYPE_CHECKING

from bowerbird_agent.capture.capture import is_live, kind_of, source_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bowerbird_agent.capture.camera_config import CameraConfig

_BITS = 62  # a SQLite integer has 63 and a sign

FRAMES_SEEN = "frames_seen"
FRAMES_SCORED = "frames_scored"
FRAMES_SELECTED = "frames_selected"
FRAMES_DROPPED = "frames_dropped"
FRAMES_COMMITTED = "frames_committed"
BYTES_SENT = "bytes_sent"
BYTES_RECEIVED = "bytes_received"
REFERENCES_SENT = "references_sent"
RULE_FRAMES = "rule_frames"
RULE_BYTES = "rule_bytes"
ALL_BYTES = "all_bytes"
ROUND_FRAMES_SEEN = "round_frames_seen"
WINDOWS_CLOSED = "windows_closed"
ROUND_WINDOWS_CLOSED = "round_windows_closed"
STORE_REFUSED = "store_refused"
REDACTION_FAILURES = "redaction_failures"
DETECTOR_FAILURES = "detector_failures"
SCORING_FAILURES = "scoring_failures"
FRAMES_SKIPPED = "frames_skipped_by_guard"
DETECTIONS_PUBLISHED = "detections_published"
DETECTIONS_UNPUBLISHED = "detections_unpublished"
CAMPAIGN_FRAMES = "campaign_frames"
# Of those, the ones taken before the newest `Desired`: what campaigns take is on top of what it allows.
CAMPAIGN_FRAMES_BEFORE = "campaign_frames_before"
DESIRED_VERSION = "desired_version"
# frames_total + 1, so that 0 says "no limit known".
DESIRED_FRAMES = "desired_frames_plus_1"


def spent_on(kind: str) -> str:
    """Name of the counter of the bytes that went into one kind (`bowerbird_wire.spent`)."""
    return f"spent.{kind}"


def dropped_of(camera: str) -> str:
    """Name of the counter of one camera's dropped frames."""
    return f"{FRAMES_DROPPED}.{camera}"


class Counters:
    """Named integers. Thread-safe.

    Args:
        stored: totals as the spool knows them.
    """

    def __init__(self, stored: Mapping[str, int] | None = None) -> None:
        self._totals = dict(stored or {})
        self._changes: dict[str, int] = {}
        self._round = 0
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        """Add `count`, which may be negative."""
        with self._lock:
            self._totals[name] = self._totals.get(name, 0) + count
            self._changes[name] = self._changes.get(name, 0) + count

    def count_dropped(self, camera: str) -> None:
        """One frame of this camera was given up: a newer one replaced it, or the disk is behind."""
        self.add(FRAMES_DROPPED)
        self.add(dropped_of(camera))

    def set_to(self, name: str, value: int) -> None:
        """Make the total `value`."""
        with self._lock:
            self._set(name, value)

    def _set(self, name: str, value: int) -> None:
        change = value - self._totals.get(name, 0)
        self._totals[name] = value
        self._changes[name] = self._changes.get(name, 0) + change

    @property
    def round(self) -> int:
        """The number of the round, counted from the start of the process."""
        with self._lock:
            return self._round

    def begin_round(self, together_with: Mapping[str, int] = MappingProxyType({})) -> int:
        """Begin the round's counters again, and set others, in one step: no flush and no report sees one without the other."""
        with self._lock:
            self._round += 1
            for name, value in {**together_with, ROUND_FRAMES_SEEN: 0, ROUND_WINDOWS_CLOSED: 0}.items():
                self._set(name, value)
            return self._round

    def add_in_round(self, name: str, round_number: int) -> None:
        """Add one, unless that round is over: what was begun before belongs to nobody's count."""
        with self._lock:
            if round_number == self._round:
                self._set(name, self._totals.get(name, 0) + 1)

    def value(self, name: str) -> int:
        """The total; 0 for a name never added to."""
        with self._lock:
            return self._totals.get(name, 0)

    def take_changes(self) -> dict[str, int]:
        """What was added since the last call; give it back with `give_back` if it could not be written."""
        with self._lock:
            changes, self._changes = self._changes, {}
        return {name: change for name, change in changes.items() if change}

    def give_back(self, changes: Mapping[str, int]) -> None:
        """Changes that were not written; the totals have them already."""
        with self._lock:
            for name, change in changes.items():
                self._changes[name] = self._changes.get(name, 0) + change


class SeenFrames:
    """Which frames of one camera were seen before, over loops and restarts, so that each is counted once.

    Films and folders keep one bit per frame; endless and live sources only their highest sequence, behind which they resume.
    """

    def __init__(self, config: CameraConfig, counters: Counters) -> None:
        self._counters = counters
        self._camera = config.name
        self._key = source_key(config.source)
        # One film may be shared in segments or ranges: another part of it is another set of frames.
        self._has_bits = not is_live(config.source) and (kind_of(config.source) == "path" or config.loop)
        self._high_water = f"high_water.{self._camera}" if is_live(config.source) else f"high_water.{self._camera}.{self._key}"

    @property
    def resume_after(self) -> int:
        """The highest sequence that was seen, -1 for none."""
        return self._counters.value(self._high_water) - 1

    def is_new(self, sequence: int) -> bool:
        """Whether a frame is seen for the first time; it counts as seen from now on."""
        is_higher = sequence > self.resume_after
        if is_higher:
            self._counters.set_to(self._high_water, sequence + 1)
        if not self._has_bits:
            return is_higher
        chunk, bit = f"seen.{self._camera}.{self._key}.{sequence // _BITS}", 1 << sequence % _BITS
        if self._counters.value(chunk) & bit:
            return False
        self._counters.add(chunk, bit)
        return True
