"""How much a device loses by not knowing the future: the value of what it sent over that of what an oracle would have sent.

In: nothing. Out: a table, and the figure as a last line of JSON: the smallest ratio over all budgets and worlds (goal 0.8). The device
is the agent's own code (`simulated_site.py`). A frame's value is what `Selector.judge` gave it; novelty and diversity are switched off
for both sides, since what they are worth hangs on what else was sent. The oracle sees all weeks at once, may send a frame any time
after it was taken, and has the same caps, outages, control bytes and least gap between frames of a camera; it takes frames by value per
byte while they fit. Two figures: of what was chosen by value, against an oracle that must send the same random frames; and of
the whole, random fifth included, against an oracle that sends none. The figure is the first. Beside it stands first come, first served:
windows that plan with all the bytes that the caps leave.

    python benchmarks/regret.py --quick
"""

from __future__ import annotations

import argparse
import sys
from bisect import bisect_left, insort
from typing import TYPE_CHECKING

import numpy as np
from figure import report
from simulated_site import Device, Month, Outages, frames

from bowerbird_agent.budget.budget import DAY_S
from bowerbird_agent.link.config import BudgetConfig
from bowerbird_agent.selection.policy import Policy

if TYPE_CHECKING:
    from numpy.typing import NDArray

GOAL = 0.8
BUDGETS_BYTES = (1_000_000, 3_000_000, 9_000_000)


def main() -> int:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--quick", action="store_true", help="one world, a frame of each camera every four minutes: a minute"
    )
    arguments.add_argument("--days", type=float, default=31.0, help="simulated days (default 31)")
    arguments.add_argument("--seeds", type=int, default=3, help="worlds for each budget (default 3)")
    options = arguments.parse_args()
    seeds, days, step_s = (1, options.days, 240.0) if options.quick else (options.seeds, options.days, 60.0)
    policy = Policy(window_frames=round(1800 / step_s), min_gap_s=2 * step_s, novelty_share=0.0, shortlist=1, spread=0.0)
    rows: dict[str, dict[str, float]] = {}
    for seed in range(seeds):
        world = list(frames(seed, days, step_s))
        outages = Outages.draw(seed, days)
        for day_bytes in BUDGETS_BYTES:
            limits = BudgetConfig(bytes_per_day=day_bytes).to_limits()
            found = {}
            for name, paced in (("ours", True), ("first come", False)):
                month = Device(policy, limits, outages, paced=paced).live(iter(world))
                whole = _value(month, month.sent)
                explored = [number for number in month.sent if number in month.explored]
                chosen = _value(month, [number for number in month.sent if number not in month.explored])
                found[name] = whole / oracle_value(month, day_bytes, outages, days, policy.min_gap_s)
                found[f"{name}, chosen"] = chosen / oracle_value(
                    month, day_bytes, outages, days, policy.min_gap_s, already=explored
                )
            rows[f"{day_bytes / 1e6:g} MB a day, seed {seed}"] = found
            print(
                f"{day_bytes / 1e6:4g} MB a day  seed {seed}  " + "  ".join(f"{k} {v:.3f}" for k, v in found.items()),
                flush=True,
            )
    return report(
        "regret",
        min(row["ours, chosen"] for row in rows.values()),
        GOAL,
        "value chosen over an oracle's, smallest of all budgets and worlds",
        at_least=True,
        details={
            "ratios": {name: {k: round(v, 4) for k, v in row.items()} for name, row in rows.items()},
            "days": days,
            "seeds": seeds,
            "frame_every_s": step_s,
        },
    )


def _value(month: Month, numbers: list[int]) -> float:
    return sum(month.values[number][2] for number in numbers)


def oracle_value(
    month: Month, day_bytes: int, outages: Outages, days: float, gap_s: float, already: list[int] | None = None
) -> float:
    """What an oracle sends, frames in `already` (which count nothing) sent as well.

    Frames are taken in the order of value per byte while they keep the gap and, for every day d, the bytes of frames taken from
    day d on fit what can pass from day d on: with release times that is all a schedule needs. Of the last frame a part is taken.
    """
    at_s, camera, value, size = np.array(month.values, np.float64).T
    # Control comes out of the same caps, evenly.
    room = _room_from(day_bytes - month.control_bytes / days, outages, days)
    for number in already or ():
        room[: int(at_s[number] // DAY_S) + 1] -= size[number]
    taken: list[list[float]] = [[], []]
    total = 0.0
    for i in np.argsort(-value / size, kind="stable").tolist():
        if value[i] <= 0.0:
            break
        day, times = int(at_s[i] // DAY_S), taken[int(camera[i])]
        fits = min(1.0, max(0.0, float(room[: day + 1].min())) / size[i])
        place = bisect_left(times, at_s[i])
        if fits <= 0.0 or any(abs(at_s[i] - near) < gap_s for near in times[max(0, place - 1) : place + 1]):
            continue
        insort(times, at_s[i])
        total += fits * float(value[i])
        room[: day + 1] -= fits * size[i]
    return total


def _room_from(day_bytes: float, outages: Outages, days: float) -> NDArray[np.float64]:
    """(days,) the most bytes that can pass from the beginning of each day to the end; days wholly without a link carry none."""
    whole = int(np.ceil(days))
    carries = []
    for day in range(whole):
        moments = np.arange(day * DAY_S, (day + 1) * DAY_S, 600.0)
        carries.append(float(any(outages.is_up(float(moment)) for moment in moments)))
    return np.cumsum(np.array(carries[::-1]) * day_bytes)[::-1].copy()


if __name__ == "__main__":
    sys.exit(main())
