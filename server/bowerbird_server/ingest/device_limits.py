"""How much a device may send in 24 hours, so that one that has lost its mind does not fill the disk of all.

In: the catalogue's frames of the last day, what a group has added since. Out: for how long a device that is over its limit is told to
keep its frames. Nothing is lost: its frames stay in its spool. With several ingest processes each looks again every minute, so a limit
may be passed by what they take in that time. It publishes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from bowerbird_server.catalogue.core import Catalogue, utc_text
from bowerbird_server.config import IngestConfig

_LOOK_EVERY_S = 60.0
HOLD_S = 600.0


@dataclass(frozen=True)
class DeviceLimit:
    """What each device may send in any 24 hours; None for no limit."""

    frames_per_day: int | None = None
    bytes_per_day: int | None = None

    @classmethod
    def of(cls, config: IngestConfig) -> DeviceLimit:
        """As the site's configuration says."""
        megabytes = config.device_mb_per_day
        return cls(config.device_frames_per_day, None if megabytes is None else int(megabytes * 1e6))

    @property
    def has_any(self) -> bool:
        """Whether there is a limit at all."""
        return (self.frames_per_day, self.bytes_per_day) != (None, None)

    def is_reached(self, frames: int, size_bytes: int) -> bool:
        """Whether a device that has sent so much has to wait."""
        return (self.frames_per_day is not None and frames >= self.frames_per_day) or (
            self.bytes_per_day is not None and size_bytes >= self.bytes_per_day
        )


@dataclass
class DeviceLimits:
    """The count of each device. One thread owns it.

    Args:
        cat: the catalogue, of the calling thread.
        limit: the same for every device.
        now_s: monotonic seconds.
    """

    cat: Catalogue
    limit: DeviceLimit
    now_s: Callable[[], float]
    _looked_at_s: float | None = None
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict)  # device -> frames, bytes

    def hold_s(self, device: str) -> float:
        """Seconds for which a device should send no frames; 0 for a device within its limit."""
        if not self.limit.has_any:
            return 0.0
        self._look()
        return HOLD_S if self.limit.is_reached(*self._sent.get(device, (0, 0))) else 0.0

    def took(self, device: str, image_bytes: int) -> None:
        """A new frame of a device is committed."""
        frames, size = self._sent.get(device, (0, 0))
        self._sent[device] = (frames + 1, size + image_bytes)

    def _look(self) -> None:
        if self._looked_at_s is not None and self.now_s() - self._looked_at_s < _LOOK_EVERY_S:
            return
        self._looked_at_s = self.now_s()
        self._sent = _sent_in_a_day(self.cat)


class OverLimit:
    """Which devices have sent as much as they may in 24 hours, counted once a minute: a page that many look at asks every few seconds.

    Args:
        now_s: monotonic seconds.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._found: dict[Hashable, tuple[float, list[str]]] = {}

    def devices(self, cat: Catalogue, limit: DeviceLimit, scope: Hashable) -> list[str]:
        """By name.

        Args:
            scope: says which devices the catalogue shows.
        """
        if not limit.has_any:
            return []
        at_s, found = self._found.get(scope, (float("-inf"), []))
        if self._now_s() - at_s >= _LOOK_EVERY_S:
            found = sorted(device for device, sent in _sent_in_a_day(cat).items() if limit.is_reached(*sent))
            self._found[scope] = self._now_s(), found
        return found


def _sent_in_a_day(cat: Catalogue) -> dict[str, tuple[int, int]]:
    """Device -> frames, bytes of the last 24 hours."""
    since = utc_text((datetime.now(UTC) - timedelta(days=1)).timestamp() * 1000)
    rows = cat.rows(
        "SELECT device, count(*) AS frames, sum(bytes) AS bytes FROM frame WHERE received_at >= ? AND device IS NOT NULL "
        "GROUP BY device",
        since,
    )
    return {row["device"]: (row["frames"], row["bytes"]) for row in rows}
