"""The demo's HTML report: one file with pictures, that needs no server and no network.

In: the facts and the site. Out: `report.html`. Charts are SVG drawn here from the facts; a figure is shown only where it is known.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape

from bowerbird_server.catalogue import fleet, frames
from bowerbird_server.demo.charts import Series, line_chart
from bowerbird_server.site import Site

_THUMBNAIL_WIDTH = 300
_BOX_COLOUR_BGR = (60, 180, 255)


def write_report(site: Site, facts: dict[str, Any], path: Path) -> None:
    """Write the report of a finished demo."""
    environment = Environment(loader=PackageLoader("bowerbird_server.demo"), autoescape=select_autoescape(), trim_blocks=True)
    page = environment.get_template("report.html").render(
        facts=facts,
        accuracy=accuracy_chart(facts),
        bytes=bytes_chart(site, facts),
        pictures={frame["id"]: _thumbnail(site, frame["id"]) for row in facts["rounds"] for frame in row["frames"]},
        conditions=sorted(facts["first"]["per_slice"]),
    )
    path.write_text(page, encoding="utf-8")


def accuracy_chart(facts: dict[str, Any]) -> str:
    """mAP50-95 over labels: all conditions, each condition, and the random control as a point."""
    steps = [(facts["first"]["labels"], facts["first"])]
    for row in facts["rounds"]:
        if row["map50_95"] is not None:
            steps.append((steps[-1][0] + row["labels"], row))
    series = [Series("all conditions", [(x, model["map50_95"]) for x, model in steps])]
    for name in sorted(facts["first"]["per_slice"]):
        if name.startswith("condition:"):
            points = [(x, model["per_slice"][name]) for x, model in steps if name in model["per_slice"]]
            series.append(Series(name.removeprefix("condition:"), points))
    control = facts["random"]
    if control is not None and control["map50_95"] is not None:
        series.append(Series("random picks", [(facts["first"]["labels"] + control["labels"], control["map50_95"])]))
    return line_chart(series, x_title="labels", y_title="mAP50-95 on held-out frames", y_max=1.0)


def bytes_chart(site: Site, facts: dict[str, Any]) -> str:
    """Uplink over time, all devices together, beside what the rule `max conf < 0.6` would have cost by then.

    Sending everything is left to the table: it would flatten both lines.
    """
    told: dict[str, dict[str, tuple[int, int]]] = {}
    for device in facts["devices"]:
        for row in fleet.health_history(site.catalogue, device["id"]):
            counters = row["counters"]
            told.setdefault(row["at"], {})[device["id"]] = (counters.get("bytes_sent", 0), counters.get("rule_bytes", 0))
    newest: dict[str, tuple[int, int]] = {}
    ours, rule = [], []
    times = sorted(told)
    for at in times:
        newest |= told[at]
        seconds = float((np.datetime64(at.rstrip("Z")) - np.datetime64(times[0].rstrip("Z"))) / np.timedelta64(1, "s"))
        ours.append((seconds, sum(sent for sent, _ in newest.values()) / 1e6))
        rule.append((seconds, sum(would for _, would in newest.values()) / 1e6))
    series = [Series("sent", ours), Series("max conf < 0.6", rule)]
    return line_chart(series, x_title="seconds", y_title="megabytes", y_max=None)


def _thumbnail(site: Site, frame: str) -> str:
    """The frame with what the device saw in it, as a data URI."""
    row = frames.get(site.catalogue, frame)
    image = cv2.imdecode(np.frombuffer(site.blobs.read(row["blob"]), np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        return ""
    for seen in frames.detections(site.catalogue, frame):
        if seen["score"] >= 0.25:
            corners = [round(seen[side]) for side in ("left", "top", "right", "bottom")]
            cv2.rectangle(image, corners[:2], corners[2:], _BOX_COLOUR_BGR, 1)
    height = round(image.shape[0] * _THUMBNAIL_WIDTH / image.shape[1])
    small = cv2.resize(image, (_THUMBNAIL_WIDTH, height), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
