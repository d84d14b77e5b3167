"""This device's part in campaigns: which run, what was taken for each, and what is left of the share.

In: campaigns that the server wants, frames as they are judged, what the spool made of them. Out: claims, totals, and why a campaign was
not taken up. What was taken is counted on disk before the frame is (`storing.py`), so that a share is never exceeded; a power cut may
count one frame too many. It stores no frame and chooses no camera.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bowerbird_agent.selection.campaign import Lifetime, Term
from bowerbird_models.durable import write_durably
from bowerbird_wire import codec
from bowerbird_wire.errors import WireError
from bowerbird_wire.messages import Campaign

if TYPE_CHECKING:
    from bowerbird_models.detections import Detections

logger = logging.getLogger(__name__)

_FILE = "campaigns.json"
_PREFIX = "campaign."
MOST = 16  # campaigns at a time
_KEEP_EVERY_S = 300.0


def counter_names(campaign: str) -> tuple[str, str]:
    """Names of the spool's counters of frames and bytes taken for a campaign."""
    return f"{_PREFIX}{campaign}.frames", f"{_PREFIX}{campaign}.bytes"


class CampaignBook:
    """All campaigns of one device. Thread-safe.

    Args:
        folder: where they are kept over a restart; None keeps nothing.
        counters: the spool's, with what was taken before.
        clock_ok: whether wall time may be trusted now.
        allowed: whether agent.toml allows campaigns.
        now_s, wall_s: monotonic and UTC clocks.
    """

    def __init__(
        self,
        folder: Path | None = None,
        counters: Mapping[str, int] | None = None,
        *,
        clock_ok: Callable[[], bool] = lambda: True,
        allowed: Callable[[], bool] = lambda: True,
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._path = None if folder is None else folder / _FILE
        self._clock_ok, self._allowed, self._now_s, self._wall_s = clock_ok, allowed, now_s, wall_s
        self._lock = threading.Lock()
        self._stored = dict(counters or {})
        self._wished: tuple[Campaign, ...] = ()
        self._version = 0
        self._terms: dict[str, Term] = {}
        self._faults: dict[str, str] = {}
        self._taken: dict[str, tuple[int, int]] = {}
        self._lives: dict[str, Lifetime] = {}
        self._last_ms: dict[tuple[str, str], int] = {}
        self._kept_s = now_s()
        self._load()

    # --- the server's wish ---------------------------------------------------------------------------------------------

    def take_up(self, version: int, wished: Sequence[Campaign]) -> bool:
        """Run these campaigns and no others; False when they are not newer than what is here."""
        with self._lock:
            if version <= self._version:
                return False
            self._set(version, tuple(wished), {})
            self._keep()
            return True

    @property
    def version(self) -> int:
        """The newest wish that was taken up."""
        return self._version

    @property
    def is_empty(self) -> bool:
        """Whether nothing is looked for."""
        return not self._terms

    def taken(self) -> dict[str, tuple[int, int]]:
        """Campaign -> frames and bytes taken for it, of those that the server wants."""
        with self._lock:
            return {each.campaign: self._taken.get(each.campaign, (0, 0)) for each in self._wished[:MOST]}

    def faults(self) -> dict[str, str]:
        """Campaign -> why it was not taken up."""
        return dict(self._faults)

    def is_hungry(self) -> bool:
        """Whether a campaign that runs has used up its share."""
        with self._lock:
            return any(self._taken.get(name, (0, 0))[0] >= term.frames for name, term in self._terms.items())

    def keep_if_due(self) -> None:
        """Write down how long each still lives, for a start without a good clock."""
        with self._lock:
            if self._terms and self._now_s() - self._kept_s >= _KEEP_EVERY_S:
                self._keep()

    # --- frames --------------------------------------------------------------------------------------------------------

    def match(self, camera: str, at_ms: int, detections: Detections, class_names: Sequence[str]) -> str:
        """The campaign that wants this frame and has room for it, "" for none. Claim it once its size is known.

        The first that fits in the order of the server's list has it; the camera then waits the campaign's gap.
        """
        if not self._terms:
            return ""
        with self._lock:
            now_s, wall_s, is_good = self._now_s(), self._wall_s(), self._clock_ok()
            for name, term in self._terms.items():
                frames, size = self._taken.get(name, (0, 0))
                if frames >= term.frames or size >= term.bytes:
                    continue
                last_ms = self._last_ms.get((name, camera))
                if last_ms is not None and abs(at_ms - last_ms) < term.gap_s * 1000.0:
                    continue
                if not self._lives[name].runs(now_s, int(wall_s * 1000), clock_ok=is_good):
                    continue
                captured_s = at_ms / 1000.0
                offset_s = time.localtime(captured_s).tm_gmtoff
                if term.condition.holds(camera, detections, class_names, wall_s=captured_s, utc_offset_s=offset_s):
                    self._last_ms[name, camera] = at_ms
                    return name
        return ""

    def claim(self, campaign: str, size_bytes: int) -> bool:
        """Count a frame of this size as taken; False when the share has no room for it."""
        with self._lock:
            term = self._terms.get(campaign)
            frames, size = self._taken.get(campaign, (0, 0))
            if term is None or frames >= term.frames or size + size_bytes > term.bytes:
                return False
            self._taken[campaign] = (frames + 1, size + size_bytes)
            return True

    def give_back(self, campaign: str, size_bytes: int) -> None:
        """A claimed frame did not come into the spool."""
        with self._lock:
            frames, size = self._taken.get(campaign, (0, 0))
            self._taken[campaign] = (max(0, frames - 1), max(0, size - size_bytes))

    # --- inside --------------------------------------------------------------------------------------------------------

    def _set(self, version: int, wished: tuple[Campaign, ...], left_s: Mapping[str, float | None]) -> None:
        terms: dict[str, Term] = {}
        faults: dict[str, str] = {}
        for number, each in enumerate(wished):
            name = each.campaign[:63]
            try:
                if number >= MOST:
                    raise ValueError(f"a device takes part in at most {MOST} campaigns at a time")
                if not self._allowed():
                    raise ValueError("agent.toml does not allow campaigns (remote.allow)")
                terms[name] = Term.of(each)
            except ValueError as error:
                if len(faults) < MOST:
                    faults[name] = str(error)[:300]
                logger.warning("campaign %s is not taken up: %s", name, error)
        for name, term in terms.items():
            frames, size = counter_names(name)
            self._taken.setdefault(name, (self._stored.get(frames, 0), self._stored.get(size, 0)))
            life = self._lives.get(name)
            if life is None or life.until_ms != term.until_ms:
                self._lives[name] = Lifetime(term.until_ms, left_s.get(name), self._now_s())
                # Measured from now on, also when no frame is looked at for long.
                self._lives[name].runs(self._now_s(), int(self._wall_s() * 1000), clock_ok=self._clock_ok())
        self._lives = {name: life for name, life in self._lives.items() if name in terms}
        self._last_ms = {key: at for key, at in self._last_ms.items() if key[0] in terms}
        self._version, self._wished, self._faults = version, wished, faults
        self._terms = terms  # last: `match` looks at it without the lock

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            plain = json.loads(self._path.read_text("utf-8"))
            wished = tuple(codec.decode(Campaign, bytes.fromhex(text)) for text in plain["campaigns"])
            left_s = {str(name): None if left is None else float(left) for name, left in plain["left_s"].items()}
            self._set(int(plain["version"]), wished, left_s)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError, WireError) as error:
            logger.warning("%s cannot be read (%s); campaigns wait for the server", self._path, error)

    def _keep(self) -> None:
        self._kept_s = self._now_s()
        if self._path is None:
            return
        plain = {
            "version": self._version,
            "campaigns": [codec.encode(each).hex() for each in self._wished[: 2 * MOST]],
            "left_s": {name: life.left_at(self._kept_s) for name, life in self._lives.items()},
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._path, json.dumps(plain).encode(), 0o600)
        except OSError as error:
            logger.warning("%s cannot be written (%s); campaigns are forgotten at a restart", self._path, error)
