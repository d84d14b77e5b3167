"""What the uplink costs at this moment: whether it is quiet hours, and whether the way out is a metered interface.

In: time ranges, interface names, wall time, the kernel's routing tables (`/proc/net`). Out: seconds of quiet left, metered or not. The
rules are pure functions; `Tariff` reads clock and files for them, at most every ten seconds. It counts no bytes and stops nothing.

What cannot be known is taken to be dear: with quiet hours and a clock that was never set it is quiet, and where the routing table
cannot be read the uplink is metered.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

DAY_S = 86_400
_RECHECK_S = 10.0
_RANGE = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)( UTC)?")
_UP, _REJECT = 0x1, 0x200  # flags of a route: RTF_UP, RTF_REJECT


@dataclass(frozen=True)
class QuietHours:
    """A range of each day, seconds from midnight; one that ends before it begins goes over midnight."""

    begin_s: int
    end_s: int
    is_utc: bool = False

    @classmethod
    def parse(cls, text: str) -> QuietHours:
        """The range in "22:00-06:00" (the device's local time) or "22:00-06:00 UTC".

        Raises:
            ValueError: it is none.
        """
        found = _RANGE.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no time range; write it like '22:00-06:00', or '22:00-06:00 UTC'")
        hours = [int(part) for part in found.groups()[:4]]
        begin_s, end_s = ((hours[i] * 60 + hours[i + 1]) * 60 for i in (0, 2))
        if max(hours[1], hours[3]) > 59 or begin_s >= DAY_S or end_s > DAY_S:
            raise ValueError(f"{text!r} is no time range: hours go to 23, minutes to 59, and 24:00 ends a day")
        if begin_s == end_s % DAY_S and end_s != DAY_S:
            raise ValueError(f"{text!r} begins when it ends; for a whole day write '00:00-24:00'")
        return cls(begin_s, end_s, found[5] is not None)

    def left_s(self, second_of_day: float) -> float:
        """Seconds until the range ends; 0 outside of it."""
        inside = (
            self.begin_s <= second_of_day < self.end_s
            if self.begin_s < self.end_s
            else not self.end_s <= second_of_day < self.begin_s
        )
        return (self.end_s - second_of_day) % DAY_S or float(DAY_S) if inside else 0.0


def quiet_left_s(hours: Sequence[QuietHours], wall_s: float, utc_offset_s: float) -> float:
    """Seconds until no range holds any more, at most a day; 0 when it is not quiet.

    Args:
        wall_s: UTC seconds since the epoch.
        utc_offset_s: of the device's local time, at that moment; a change of it within the range is seen when it has come.
    """
    left_s = 0.0
    while left_s < DAY_S:
        at_s = wall_s + left_s
        more_s = max((each.left_s((at_s + (0 if each.is_utc else utc_offset_s)) % DAY_S) for each in hours), default=0.0)
        if more_s == 0.0:
            return left_s
        left_s += more_s
    return float(DAY_S)


def default_interfaces(ipv4: str, ipv6: str) -> tuple[str, ...]:
    """The interfaces that lead out, one per family at most: that of the default route with the lowest metric.

    Args:
        ipv4, ipv6: text of `/proc/net/route` and `/proc/net/ipv6_route`.
    """
    found = []
    for routes in (_ipv4_defaults(ipv4), _ipv6_defaults(ipv6)):
        if routes:
            found.append(min(routes)[1])
    return tuple(dict.fromkeys(found))


def _ipv4_defaults(text: str) -> list[tuple[int, str]]:
    # Iface Destination Gateway Flags RefCnt Use Metric Mask ...; a header comes first.
    rows = [line.split() for line in text.splitlines()[1:]]
    return [
        (int(row[6]), row[0])
        for row in rows
        if len(row) >= 8 and row[1] == row[7] == "00000000" and int(row[3], 16) & (_UP | _REJECT) == _UP
    ]


def _ipv6_defaults(text: str) -> list[tuple[int, str]]:
    # Destination, its prefix, source, its prefix, next hop, metric, references, use, flags, interface; all numbers in hex.
    rows = [line.split() for line in text.splitlines()]
    return [
        (int(row[5], 16), row[9])
        for row in rows
        if len(row) >= 10
        and row[9] != "lo"
        and (row[0], row[1]) == ("0" * 32, "00")
        and int(row[8], 16) & (_UP | _REJECT) == _UP
    ]


class Tariff:
    """Asks clock and kernel. Owned by one thread; the settings may be assigned from another.

    Args:
        quiet_hours: ranges in which no frame goes.
        metered_interfaces: names or patterns (`wwan*`).
        proc_net: folder with `route` and `ipv6_route`.
        clock_ok: whether the wall clock has been set.
        wall_s: UTC seconds since the epoch.
        utc_offset_s: wall seconds -> offset of local time in seconds.
    """

    def __init__(
        self,
        quiet_hours: Sequence[QuietHours] = (),
        metered_interfaces: Sequence[str] = (),
        *,
        proc_net: Path = Path("/proc/net"),
        clock_ok: Callable[[], bool] = lambda: True,
        wall_s: Callable[[], float] = time.time,
        utc_offset_s: Callable[[float], float] = lambda wall_s: float(time.localtime(wall_s).tm_gmtoff),
    ) -> None:
        self.quiet_hours, self.metered_interfaces = tuple(quiet_hours), tuple(metered_interfaces)
        self._proc_net, self._clock_ok, self._wall_s, self._utc_offset_s = proc_net, clock_ok, wall_s, utc_offset_s
        self._looked: tuple[float, tuple[str, ...], bool] | None = None  # when, for which names, the answer

    def quiet_left_s(self) -> float:
        """Seconds of quiet that are left now; 0 when frames may go."""
        hours = self.quiet_hours
        if not hours:
            return 0.0
        if not self._clock_ok():
            return _RECHECK_S
        wall_s = self._wall_s()
        return quiet_left_s(hours, wall_s, self._utc_offset_s(wall_s))

    def is_metered(self, now_s: float) -> bool:
        """Whether a default route leads over a metered interface. `now_s`: monotonic seconds."""
        names = self.metered_interfaces
        if not names:
            return False
        if self._looked is None or now_s - self._looked[0] >= _RECHECK_S or self._looked[1] != names:
            self._looked = (now_s, names, self._look(names))
        return self._looked[2]

    def link_changed(self) -> None:
        """A new connection: it may go another way than the last one."""
        self._looked = None

    def _look(self, names: tuple[str, ...]) -> bool:
        try:
            ipv4 = (self._proc_net / "route").read_text("ascii")
            path = self._proc_net / "ipv6_route"  # a kernel without IPv6 has none
            ipv6 = path.read_text("ascii") if path.exists() else ""
            interfaces = default_interfaces(ipv4, ipv6)
        except (OSError, ValueError):
            return True
        return any(fnmatchcase(interface, name) for interface in interfaces for name in names)
