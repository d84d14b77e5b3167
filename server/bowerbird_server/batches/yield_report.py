"""Whether choosing pays on this site, for people and programs: verdict, strategies, what models gained, and which rule is in force.

In: an open catalogue. Out: one JSON-able dictionary. It changes nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from bowerbird_server.batches.yields import by_strategy, edit_rates, judge_policy
from bowerbird_server.catalogue import Catalogue, judged


def yield_report(cat: Catalogue) -> dict[str, Any]:
    """`verdict`, `strategies`, `edits` (how good pre-labels were), `accuracy` (newest model first), `by` (`score` or `diversity`) and
    `fallen_back` (None, or since when and why)."""
    frames = judged.judged_frames(cat)
    fallen = judged.fallen_back(cat)
    return {
        "by": "score" if fallen is None else "diversity",
        "fallen_back": None if fallen is None else {"since": fallen["since"], "why": fallen["why"]},
        "verdict": dataclasses.asdict(judge_policy(frames)),
        "strategies": [dataclasses.asdict(one) for one in by_strategy(frames)],
        "edits": [dataclasses.asdict(one) for one in edit_rates(frames)],
        "accuracy": [dataclasses.asdict(one) for one in judged.accuracy_gains(cat)],
    }
