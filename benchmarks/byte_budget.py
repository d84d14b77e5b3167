"""Whether the byte budget holds, and how much of it is used: weeks of a device with drift, bursts, outages, resends and restarts.

In: nothing. Out: a table, and the figure as a last line of JSON: bytes spent over the bytes that an oracle spends with the same
candidates, links and caps, the smallest over all budgets (goal 0.9), and the number of overshoots (must be 0). An auditor that
knows nothing of the bucket adds up what passed, in every rolling 24 hours and 30 days, each calendar day and month (UTC and
Berlin), and any shorter stretch against rate x t + burst. The oracle sends each byte as early as link and caps let it, counts
windows to the second and keeps nothing free for control.

    python benchmarks/byte_budget.py --quick
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from figure import report
from simulated_site import EPOCH_MS, Device, Month, Outages, frames

from bowerbird_agent.budget.budget import DAY_S, MONTH_S, ByteLimits
from bowerbird_agent.link.config import BudgetConfig
from bowerbird_agent.selection.policy import Policy

GOAL = 0.9
BUDGETS: Mapping[str, BudgetConfig] = {
    "2 MB a day": BudgetConfig(bytes_per_day=2_000_000),
    "8 MB a day": BudgetConfig(bytes_per_day=8_000_000),
    "8 MB a day, 150 MB a month": BudgetConfig(bytes_per_day=8_000_000, bytes_per_month=150_000_000),
    "4 MB a day, 8 MB carried over": BudgetConfig(bytes_per_day=4_000_000, carry_over_bytes=8_000_000),
    "thin link, 60 B/s, 8 MB a day": BudgetConfig(bytes_per_s=60.0, burst_bytes=400_000, bytes_per_day=8_000_000),
}


def main() -> int:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--quick", action="store_true", help="one seed, 31 days, a frame of each camera every four minutes: a minute"
    )
    arguments.add_argument("--days", type=float, default=62.0, help="simulated days (default 62; --quick 31)")
    arguments.add_argument("--seeds", type=int, default=3, help="worlds for each budget (default 3)")
    options = arguments.parse_args()
    seeds, step_s, days = (1, 240.0, 31.0) if options.quick else (options.seeds, 60.0, options.days)
    # Longer windows and gaps than a camera's, since the frames are farther apart.
    policy = Policy(window_frames=round(1800 / step_s), min_gap_s=2 * step_s)
    worlds = [list(frames(seed, days, step_s)) for seed in range(seeds)]
    shares: dict[str, float] = {}
    overshoots: list[str] = []
    for name, budget in BUDGETS.items():
        limits = budget.to_limits()
        for seed, world in enumerate(worlds):
            outages = Outages.draw(seed, days)
            month = Device(policy, limits, outages).live(iter(world))
            found = audit(month.spent, limits)
            overshoots += [f"{name}, seed {seed}: {each}" for each in found]
            ours = sum(size for _, size in month.spent)
            best = oracle_bytes(month, limits, outages, days, step_s)
            share = ours / best
            shares[name] = min(share, shares.get(name, share))
            print(
                f"{name:32} seed {seed}  {ours / 1e6:8.1f} MB of {best / 1e6:8.1f} MB = {share:.3f}   {len(found)} overshoots"
            )
    for each in overshoots:
        print("OVERSHOOT", each)
    return report(
        "byte_budget",
        min(shares.values()),
        GOAL,
        "bytes spent over an oracle's, smallest of all budgets; no overshoot",
        at_least=True,
        also=not overshoots,
        details={
            "overshoots": len(overshoots),
            "shares": {name: round(share, 4) for name, share in shares.items()},
            "days": days,
            "seeds": seeds,
            "frame_every_s": step_s,
        },
    )


def audit(spent: list[tuple[float, int]], limits: ByteLimits) -> list[str]:
    """Every cap that was exceeded, in words."""
    found = []
    day, month = limits.bytes_per_day, limits.bytes_per_month
    if day is not None:
        found += _rolling(spent, DAY_S, day + limits.carry_over_bytes, "24 hours")
        for days in range(2, 32) if limits.carry_over_bytes else ():
            found += _rolling(spent, days * DAY_S, days * day + limits.carry_over_bytes, f"{days} days")
        for zone in ("UTC", "Europe/Berlin"):
            found += _calendar(spent, zone, "%Y-%m-%d", day + limits.carry_over_bytes)
    if month is not None:
        found += _rolling(spent, 30 * DAY_S, month, "30 days")
        found += [each for zone in ("UTC", "Europe/Berlin") for each in _calendar(spent, zone, "%Y-%m", month)]
    if limits.bytes_per_s is not None and limits.burst_bytes is not None:
        lowest = 0.0  # of what was spent before a moment, less what the rate brought until then
        total = 0
        for at_s, size in spent:
            lowest = min(lowest, total - limits.bytes_per_s * at_s)
            total += size
            over = total - limits.bytes_per_s * at_s - lowest - limits.burst_bytes
            if over > 1e-3:
                found.append(f"rate exceeded by {over:.0f} bytes at {at_s:.0f} s")
    return found


def _rolling(spent: list[tuple[float, int]], window_s: float, cap: int, name: str) -> list[str]:
    worst, total = 0, 0
    inside: deque[tuple[float, int]] = deque()
    for at_s, size in spent:
        inside.append((at_s, size))
        total += size
        while inside[0][0] <= at_s - window_s:
            total -= inside.popleft()[1]
        worst = max(worst, total)
    return [f"{worst} bytes in {name}, {worst - cap} too many"] if worst > cap else []


def _calendar(spent: list[tuple[float, int]], zone: str, key: str, cap: int) -> list[str]:
    sums: dict[str, int] = {}
    place = ZoneInfo(zone)
    for at_s, size in spent:
        name = datetime.fromtimestamp(EPOCH_MS / 1000 + at_s, UTC).astimezone(place).strftime(key)
        sums[name] = sums.get(name, 0) + size
    return [f"{total} bytes on {name} ({zone}), {total - cap} too many" for name, total in sums.items() if total > cap]


def oracle_bytes(month: Month, limits: ByteLimits, outages: Outages, days: float, step_s: float) -> int:
    """Most bytes that could have passed: candidates as a fluid, sent as early as link and caps let them."""
    arrivals = iter([*month.admitted, (float("inf"), 0)])
    next_s, next_bytes = next(arrivals)
    waiting, spent, tokens = 0.0, 0.0, float(limits.burst_bytes or 0)
    windows = [(days_ * DAY_S, cap) for days_, cap in _windows(limits)]
    sums = [0.0] * len(windows)
    edges = [0] * len(windows)  # first entry of `history` that still counts
    times: list[float] = []
    amounts: list[float] = []
    control = month.control_bytes / (days * DAY_S)
    at_s = 0.0
    while at_s < days * DAY_S:
        while next_s <= at_s:
            waiting += next_bytes
            next_s, next_bytes = next(arrivals)
        waiting += control * step_s
        tokens = min(float(limits.burst_bytes or 0), tokens + (limits.bytes_per_s or 0.0) * step_s)
        room = min(waiting, tokens) if limits.bytes_per_s is not None else waiting
        for i, (window_s, cap) in enumerate(windows):
            while edges[i] < len(times) and times[edges[i]] <= at_s - window_s:
                sums[i] -= amounts[edges[i]]
                edges[i] += 1
            room = min(room, cap - sums[i])
        if room > 0 and outages.is_up(at_s):
            times.append(at_s)
            amounts.append(room)
            sums = [each + room for each in sums]
            waiting, tokens, spent = waiting - room, tokens - room, spent + room
        at_s += step_s
    return round(spent)


def _windows(limits: ByteLimits) -> list[tuple[float, int]]:
    """(days, cap) of all rolling windows."""
    found = []
    if limits.bytes_per_day is not None:
        last = 31 if limits.carry_over_bytes else 1
        found = [(float(n), n * limits.bytes_per_day + limits.carry_over_bytes) for n in range(1, last + 1)]
    if limits.bytes_per_month is not None:
        found.append((MONTH_S / DAY_S, limits.bytes_per_month))
    return found


if __name__ == "__main__":
    sys.exit(main())
