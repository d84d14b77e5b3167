"""Random kills of agents, ingest, broker and delivery over a link that resets: how many frames were lost, double or not accounted
for.

    python benchmarks/soak.py [--quick] [--kills N] [--seed N] [--folder FOLDER]

In: nothing, or the folder of a soak that was interrupted, which goes on where it was with the same seed. Out: a line after every
50 steps, and as a last line of JSON the number of discrepancies that the separate checker
(`bowerbird_testing/account_checker.py`) found: goal 0. The long form makes 1,000 kills, `--quick` 40. A discrepancy ends it and
leaves the folder for a look.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from figure import report

from bowerbird_testing.fault_site import Discrepancy
from bowerbird_testing.fault_soak import Soak


def main() -> int:
    """Kill, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 kills")
    parser.add_argument("--kills", type=int, default=1000, help="in all, those of an interrupted run included")
    parser.add_argument("--seed", type=int, default=1, help="of every draw")
    parser.add_argument("--folder", type=Path, help="to keep everything in, or to go on in; else a temporary one")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="bowerbird-soak-"))
    soak = Soak(folder, options.seed)
    began_s, steps = time.monotonic(), soak.step

    def say(numbers: dict[str, object]) -> None:
        print(f"{time.monotonic() - began_s:7.0f} s  {numbers}", flush=True)

    found, last = 0, {}
    print(f"seed {options.seed}, folder {folder}, from step {soak.step} on", flush=True)
    try:
        last = soak.run(40 if options.quick else options.kills, on_check=say)
    except Discrepancy as discrepancy:
        print(discrepancy, flush=True)
        found = 1
    details = {
        "kills": dict(soak.kills),
        "kills_in_all": sum(soak.kills.values()),
        "numbers": last,
        "seed": options.seed,
        "steps_of_this_run": soak.step - steps,
        "seconds": round(time.monotonic() - began_s),
    }
    return report("soak", float(found), 0.0, "discrepancies of the account", at_least=False, details=details)


if __name__ == "__main__":
    sys.exit(main())
