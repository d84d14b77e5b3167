"""Why, or why not, one frame: a decision of the recent past found again, with what became of it, in words.

In: the ring that a running device keeps (`decision_log.py`), and a frame's id or `camera:sequence`. Out: an `Explanation`. It only
reads; the device need not run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from bowerbird_agent.errors import AgentError
from bowerbird_agent.selection.campaign import ARM, REASON
from bowerbird_agent.selection.decision_log import read_newest_first
from bowerbird_agent.selection.decisions import DROPS, REFUSALS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ID = re.compile(r"[0-9a-f]{6,64}")
_PLACE = re.compile(r"(?P<camera>[^:]+):(?P<sequence>\d+)")


@dataclass(frozen=True)
class Explanation:
    """A frame's decision and its end.

    Args:
        decision: as `Decision.plain` gives it.
        outcome: "chosen", "dropped", "waiting" (its window is open, or its end was not written yet) or "refused".
        why: why it was refused or dropped, as the code calls it; "" otherwise.
        place: its place in the order of sending, from 1; None unless chosen.
        window: what was left at its window's end; empty before.
    """

    decision: Mapping[str, Any]
    outcome: str
    why: str
    place: int | None
    window: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "outcome": self.outcome,
            "why": self.why,
            "place": self.place,
            **self.decision,
            "window": dict(self.window),
        }

    def lines(self) -> list[str]:
        """For a person to read."""
        d = self.decision
        at = datetime.fromtimestamp(d["captured_at_ms"] / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        name = f" {d['frame_id'][:12]}" if d["frame_id"] else ""
        model = f"model {d['model'][:12]}" if d["model"] else "no model"
        lines = [f"frame {d['camera']}:{d['sequence']}{name}, {at}, {model}", self._verdict(), ""]
        if not d["model"]:
            lines.append("model      none yet: novelty, typicality and chance choose among frames that a server has asked for")
        chance = d["inclusion_probability"]
        if d["arm"] == ARM:
            name = d["reasons"][0].removeprefix(REASON)
            lines.append(f"arm        campaign {name}: the server looks for such frames; the policy was not asked")
        elif d["arm"] == "explore":
            lines.append(f"arm        explore: taken at random before it was looked at, with probability {chance:.6f}")
        else:
            lines.append(f"arm        policy; the random audit would have taken it with probability {chance:.6f}")
        if d.get("twin"):
            lines.append(
                f"twin       {d['twin'][:12]}: nothing has changed since; where the server has that picture, a reference to it goes"
            )
        lines.append(f"value      {d['value']:.4f}" + ("" if d["bar"] is None else f", had to exceed {d['bar']:.4f}"))
        lines.append(f"rank       {d['rank']:.4f} of the frames judged lately (1 is the highest)")
        lines.append(f"spoke      {', '.join(d['reasons']) or 'none'}")
        for strategy in {**d["weights"], **d["strategies"]}:
            score, weight = d["strategies"].get(strategy, 0.0), d["weights"].get(strategy, 0.0)
            lines.append(f"  {strategy:20} {score:.4f}  weight {weight:g}  counts {score * weight:.4f}")
        for class_name, score, probability, weight in d.get("doubted", ()):
            lines.append(
                f"box        {class_name} scored {score:.4f}, right with probability {probability:.4f}, weight {weight:g}"
            )
        lines.append(
            f"then       {d['waiting']} candidates waited; {_left(d['frames_left'], 'frames', ' could still be sent')}"
        )
        if self.window:
            w = self.window
            left = f"{_left(w['frames_left'], 'frames')}, {_left(w['bytes_left'], 'bytes')} before choosing"
            lines.append(f"window     {left}; {w['explore_share']:g} of its random candidates were chosen")
        return lines

    def _verdict(self) -> str:
        if self.outcome == "chosen" and self.decision["arm"] == ARM:
            return "taken for a campaign, at once"
        if self.outcome == "chosen":
            return f"chosen, place {self.place} of its window"
        if self.outcome == "dropped":
            return f"candidate, not chosen: {DROPS.get(self.why, self.why.replace('_', ' '))} ({self.why})"
        if self.outcome == "refused":
            return f"no candidate: {REFUSALS.get(self.why, self.why.replace('_', ' '))} ({self.why})"
        return "candidate; its window has not ended yet, or the disk was behind"


def explain(folder: Path, frame: str) -> Explanation:
    """Find a frame among the newest decisions.

    Args:
        folder: of the ring.
        frame: its id, or the first six or more digits of it, or `camera:sequence`; the newest that fits is taken.

    Raises:
        AgentError: neither form, or no such frame in the ring.
    """
    place = _PLACE.fullmatch(frame)
    if place is None:
        frame = frame.lower()
    if place is None and not _ID.fullmatch(frame):
        raise AgentError(f"{frame!r} names no frame; write camera:sequence, such as gate:1234, or a frame id in hex digits")
    became: dict[str, tuple[str, str, int | None, Mapping[str, Any]]] = {}
    count = 0
    around: dict[str, int] = {}  # of this camera the nearest frames that were looked at, "before" and "after"
    oldest: Mapping[str, Any] | None = None
    cameras: set[str] = set()
    for entry in read_newest_first(folder):
        if "sequence" not in entry:
            window: Mapping[str, Any] = {
                key: entry[key] for key in ("frames_left", "bytes_left", "explore_share") if key in entry
            }
            for number, frame_id in enumerate(entry.get("chosen", ()), 1):
                became.setdefault(frame_id, ("chosen", "", number, window))
            for frame_id, why in entry.get("dropped", {}).items():
                became.setdefault(frame_id, ("dropped", why, None, window))
            continue
        count, oldest = count + 1, entry
        cameras.add(entry["camera"])
        if place is not None and entry["camera"] == place["camera"]:
            side, nearer = ("before", max) if entry["sequence"] < int(place["sequence"]) else ("after", min)
            around[side] = nearer(around.get(side, entry["sequence"]), entry["sequence"])
        if place is None:
            fits = bool(entry["frame_id"]) and entry["frame_id"].startswith(frame)
        else:
            fits = entry["camera"] == place["camera"] and entry["sequence"] == int(place["sequence"])
        if fits:
            if not entry["admitted"]:
                return Explanation(entry, "refused", entry["refused"], None, {})
            return Explanation(entry, *became.get(entry["frame_id"], ("waiting", "", None, {})))
    if len(around) == 2:
        raise AgentError(
            f"nobody looked at frame {frame}: after {around['before']} the device looked at {around['after']}. A newer frame had "
            "replaced it before the model was free; a lower fps of the camera, or a faster model, leaves fewer out"
        )
    if place is not None and cameras and place["camera"] not in cameras:
        raise AgentError(
            f"no camera {place['camera']!r} among those whose decisions are kept here: {', '.join(sorted(cameras))}"
        )
    raise AgentError(_unknown(frame, folder, count, oldest))


def _unknown(frame: str, folder: Path, count: int, oldest: Mapping[str, Any] | None) -> str:
    if oldest is None:
        return (
            f"no decision is written in {folder}; the device writes them every ten seconds while it runs, "
            "unless accounting.keep_decisions is 0"
        )
    return (
        f"frame {frame} is not among the {count} decisions kept here, of which {oldest['camera']}:{oldest['sequence']} is the oldest. "
        "The newest ten seconds are not written yet; frames that were not admitted have no id, ask for camera:sequence"
    )


def _left(count: int | None, what: str, more: str = "") -> str:
    return f"no limit of {what}" if count is None else f"{count} {what}{more}"
