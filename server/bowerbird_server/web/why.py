"""Why a frame is here, in words: what its device's selection said about it when it was sent.

In: a frame as `shapes.frame_shape` gives it. Out: sentences and a table row for each strategy, those that spoke first. What a device
does not send (weights, gates, the budget then) is not here: `bowerbird-agent explain` tells it on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# The same names as on the device; a test compares them. Strategies of newer devices are shown without words.
MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "entropy": "how unsure the model is of its boxes, all together",
        "least_confidence": "how unsure it is of its least certain shown box",
        "margin": "how close the two best classes of a box are",
        "localisation": "how blurred the edges of its boxes are",
        "close_to_threshold": "how close a box is to being shown or not",
        "count": "how many boxes are shown",
        "missed_object": "motion that no box explains, or a strong box that was not shown",
        "flicker": "an object that was seen in one frame and is lost in the next",
        "periodic": "it lies in the middle of its stretch of time",
        "rule_max": "the printed rule: the best box is below 0.6",
        "rule_min": "the printed rule: some box is below 0.6",
        "rare_class": "a class that is seldom seen on this device",
        "novelty": "how unlike the frames kept before",
        "random": "chance",
    }
)


def sentence(frame: Mapping[str, Any]) -> str:
    """How the frame came to be chosen."""
    if not frame["camera"]:
        return "It was imported; no device chose it."
    if frame["arm"] == "fetched":
        return "Somebody asked its device for it; it was not chosen, and no statistic of the selection counts it."
    chance = frame["inclusion_probability"]
    if frame["arm"] == "explore":
        return (
            f"Taken at random before its device looked at it, with probability {chance:.4g}: "
            f"in unbiased estimates it stands for about {1 / chance:.0f} frames."
        )
    if frame["arm"] == "campaign":
        name = next((r.partition(":")[2] for r in frame["reasons"] if r.startswith("campaign:")), "")
        return f"Taken for campaign {name}: it looks for such frames, whatever the device's policy thinks of them."
    audit = f"The random audit would have taken it with probability {chance:.4g}." if chance else "No random audit was on."
    return (
        f"Chosen by its device's policy: its value ranked above {100 * frame['score']:.0f} % of the frames judged lately, and among "
        f"those that waited for the end of its window it was worth its bytes. {audit}"
    )


def strategy_rows(frame: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each strategy `name`, `score` in [0, 1], `spoke` and `meaning`; those that spoke first, in their order."""
    spoke = [name for name in frame["reasons"] if name in frame["strategy_scores"]]
    silent = sorted(set(frame["strategy_scores"]) - set(spoke), key=lambda name: -frame["strategy_scores"][name])
    return [
        {
            "name": name,
            "score": frame["strategy_scores"][name],
            "spoke": name in spoke,
            "meaning": MEANINGS.get(name, ""),
        }
        for name in (*spoke, *silent)
    ]
