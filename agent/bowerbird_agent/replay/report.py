"""What a replay found, as one HTML file: figures side by side, when frames were picked, and a contact sheet.

In: trials. Out: a page without a script or anything from elsewhere; small pictures stand in it. It judges nothing.
"""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

import cv2
import numpy as np

from bowerbird_agent.replay.snapshot_drawing import draw_boxes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bowerbird_agent.replay.replay import Pick, Trial

MOST_PICTURES = 240
_WIDTH_PX, _QUALITY = 240, 60
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: .8rem; }
figure { margin: 0; border: 1px solid #8884; border-radius: 6px; overflow: hidden; }
figure img { width: 100%; display: block; }
figcaption { padding: .35rem .5rem; font-size: .85rem; }
.explore { border-color: #0072b2; border-width: 2px; }
.dim { opacity: .7; } svg { width: 100%; height: 26px; display: block; background: #8881; }
"""


def report_page(trials: Sequence[Trial], *, source: str, model: str) -> str:
    """The page as text.

    Args:
        trials: at least one, all of the same film.
        source, model: what was run, in words.
    """
    first = trials[0]
    words = f"{first.frames} frames, {_duration(first.seconds)} of {escape(source)}, seen by {escape(model)}"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Bowerbird replay</title>',
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>',
        f"<h1>What would have gone up</h1><p>{words}.</p>",
        _figures(trials),
        '<p class="dim">Bytes a day: if every day were like this film; the budget may let less go. A missed object is one of the '
        "ground truth on which the model shows no box; it is found when it was missed in a picked frame.</p>"
        if any(trial.missed_tracks is not None for trial in trials)
        else '<p class="dim">Bytes a day: if every day were like this film; the budget may let less go.</p>',
    ]
    for trial in trials:
        parts.append(f"<h2>{escape(trial.setting.name)}</h2>")
        if trial.note:
            parts.append(f"<p><b>Note:</b> {escape(trial.note)}.</p>")
        parts.append(_timeline(trial))
        parts.append(_counts("Why frames were picked", trial.plain()["reasons"]))
        parts.append(_counts("Why frames were not even candidates", trial.refused))
        parts.append(_counts("Why candidates were not picked", trial.dropped))
        shown = trial.picks[:MOST_PICTURES]
        names = sorted({found.class_name for pick in shown for found in pick.header.detections})  # one colour for each
        visible = trial.setting.policy.visible_confidence
        parts.append('<div class="sheet">' + "".join(_figure(pick, names, visible=visible) for pick in shown) + "</div>")
        if len(shown) < len(trial.picks):
            parts.append(f'<p class="dim">{len(trial.picks) - len(shown)} more were picked and are not shown.</p>')
        if not shown:
            parts.append("<p>No frame was picked.</p>")
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _figures(trials: Sequence[Trial]) -> str:
    rows = [
        ("Frames picked", [f"{len(t.picks)} ({_share(len(t.picks), t.frames)})" for t in trials]),
        ("… at random, without looking", [str(sum(p.header.arm == "explore" for p in t.picks)) for t in trials]),
        ("Bytes picked", [words_of_bytes(t.picked_bytes) for t in trials]),
        ("Bytes a day", [words_of_bytes(t.picked_bytes_per_day) for t in trials]),
        (
            "Sent before the film ended",
            [f"{sum(p.sent_at_ms is not None for p in t.picks)}, {words_of_bytes(t.sent_bytes)}" for t in trials],
        ),
    ]
    if all(trial.missed_tracks is not None for trial in trials):
        rows += [
            ("Missed objects found", [f"{t.found_tracks} of {t.missed_tracks}" for t in trials]),
            ("Missed boxes in a picked frame", [_per(t.found_boxes, len(t.picks)) for t in trials]),
            ("… in any frame", [_per(t.missed_boxes, t.truth_frames) for t in trials]),
        ]
    head = "".join(f"<th>{escape(trial.setting.name)}</th>" for trial in trials)
    lines = [f"<tr><th></th>{head}</tr>"]
    for name, values in rows:
        cells = "".join(f'<td class="number">{escape(value)}</td>' for value in values)
        lines.append(f"<tr><th>{name}</th>{cells}</tr>")
    return "<table>" + "".join(lines) + "</table>"


def _timeline(trial: Trial) -> str:
    """A tick for each picked frame along the film, those at random in another colour."""
    if not trial.picks:
        return ""
    first = min(pick.header.sequence for pick in trial.picks)
    span = max(trial.frames, max(pick.header.sequence for pick in trial.picks) + 1)
    ticks = "".join(
        f'<rect x="{1000 * pick.header.sequence / span:.1f}" y="0" width="2" height="26" '
        f'fill="{"#0072b2" if pick.header.arm == "explore" else "#d55e00"}"/>'
        for pick in trial.picks
    )
    said = f"When frames were picked; the first is frame {first}"
    return (
        f'<svg viewBox="0 0 1000 26" preserveAspectRatio="none" role="img" aria-label="{said}">{ticks}</svg>'
        '<p class="dim">Along the film: picked by the policy (orange), at random (blue).</p>'
    )


def _counts(title: str, counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    said = ", ".join(f"{escape(name.replace('_', ' '))} {count}" for name, count in counts.items())
    return f"<p><b>{title}:</b> {said}</p>"


def _figure(pick: Pick, names: Sequence[str], *, visible: float) -> str:
    header = pick.header
    arm = f"at random (p {header.inclusion_probability:.4f})" if header.arm == "explore" else f"rank {header.score:.2f}"
    lines = [f"<b>frame {header.sequence}</b> · {arm}", escape(_joined(header.reasons)), f"{words_of_bytes(pick.size_bytes)}"]
    if pick.missed is not None:
        lines[-1] += f" · {len(pick.missed)} missed"
    if pick.sent_at_ms is None:
        lines[-1] += " · not sent before the end"
    picture = base64.b64encode(_small(pick, names, visible)).decode()
    return (
        f'<figure class="{escape(header.arm)}"><img loading="lazy" alt="frame {header.sequence}" '
        f'src="data:image/jpeg;base64,{picture}"><figcaption>{"<br>".join(lines)}</figcaption></figure>'
    )


def _small(pick: Pick, names: Sequence[str], visible: float) -> bytes:
    """The frame at the width of the sheet, as JPEG, with the boxes that the model gave."""
    image = np.asarray(cv2.imdecode(np.frombuffer(pick.jpeg, np.uint8), cv2.IMREAD_COLOR), np.uint8)
    boxes = [(found.class_name, found.score, found.box_xyxy, names.index(found.class_name)) for found in pick.header.detections]
    image = draw_boxes(image, boxes, visible=visible)
    scale = _WIDTH_PX / image.shape[1]
    if scale < 1:
        size = (_WIDTH_PX, max(1, round(image.shape[0] * scale)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes())


def _joined(reasons: Iterable[str]) -> str:
    return ", ".join(reason.replace("_", " ") for reason in reasons) or "no strategy spoke"


def words_of_bytes(count: float) -> str:
    """For people: three digits or so and a unit."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _per(part: int, whole: int) -> str:
    return f"{part / whole:.2f}" if whole else "-"
