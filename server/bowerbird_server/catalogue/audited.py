"""The random audit's frames as the estimates need them: with people's boxes beside the model's, and those that are missing by name.

In: frames of the explore arm, their detections and labels, tombstones. Out: `Audited` and `Missing` values, metrics by camera and
period. It estimates nothing itself (`field_metrics.py` does).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from bowerbird_server.catalogue.core import Catalogue, Row, utc_text
from bowerbird_server.catalogue.fleet import camera_id
from bowerbird_server.drift.field_changes import changes
from bowerbird_server.drift.field_metrics import Audited, Estimate, Missing, by_groups, matched
from bowerbird_server.labelling.boxes import PRELABEL_CONFIDENCE
from bowerbird_server.training.ignored_regions import covered

PERIODS_S: Mapping[str, float | None] = {"day": 86_400.0, "week": 7 * 86_400.0, "all": None}
_LEAST_P = 1e-9


def audit(
    cat: Catalogue,
    *,
    camera: str | None = None,
    model: str | None = None,
    since: str = "",
    confidence: float = PRELABEL_CONFIDENCE,
) -> tuple[list[Audited], list[Missing]]:
    """The audit's frames that have a label, and those of which nothing is known.

    Frames that were taken before there was a model say nothing about one and are left out; an exact copy of a labelled frame has its
    label. Classes that the label's author did not look for, and boxes in regions that the device covered, count on neither side.

    Args:
        camera: its id, or None for all.
        model: digest, or its beginning, of the model that ran on the device. Tombstones name no model: with one, missing are only
            frames that arrived.
        since: captured at this time or later, UTC text.
        confidence: score from which a detection counts as shown.
    """
    rows = cat.rows(
        "SELECT id, blob, camera, captured_at, scene, state, inclusion_probability FROM frame WHERE arm = 'explore' AND model != '' "
        "AND inclusion_probability > 0 AND (?1 IS NULL OR camera = ?1) AND (?2 IS NULL OR substr(model, 1, length(?2)) = ?2) "
        "AND captured_at >= ?3 ORDER BY captured_at, id",
        camera,
        model,
        since,
    )
    labels = _labels(cat, rows)
    found = _detections(cat, [row["id"] for row in rows], confidence)
    hidden = _redacted(cat, [row["id"] for row in rows])
    audited: list[Audited] = []
    missing: list[Missing] = []
    for row in rows:
        captured_s = datetime.fromisoformat(row["captured_at"]).timestamp()
        label = None if row["state"] == "deleted" else labels.get(row["blob"])
        if label is None:
            missing.append(Missing(row["camera"], captured_s, row["inclusion_probability"]))
            continue
        drawn, reviewed = label
        regions = hidden.get(row["id"], [])
        ours = _counting(drawn, reviewed, regions)
        theirs = _counting(found.get(row["id"], []), reviewed, regions)
        right = matched(_xyxy(ours), [box[0] for box in ours], _xyxy(theirs), [box[0] for box in theirs])
        audited.append(
            Audited(row["camera"], captured_s, row["scene"], row["inclusion_probability"], len(ours), len(theirs), right)
        )
    if model is None:
        missing += _tombstones(cat, camera, since)
    return audited, missing


def metrics(
    cat: Catalogue, *, period: str = "week", camera: str | None = None, model: str | None = None, since: str = ""
) -> list[Row]:
    """Metrics of every camera and period, and of all cameras together (camera ""), newest period first."""
    length_s = PERIODS_S[period]
    audited, missing = audit(cat, camera=camera, model=model, since=since)

    def begin(frame: Audited | Missing) -> str:
        return "" if length_s is None else utc_text(frame.captured_s // length_s * length_s * 1000)

    def cell(frame: Audited | Missing) -> tuple[str, int]:
        return frame.camera, int(frame.captured_s // 86_400)

    found = []
    for groups in (
        by_groups(audited, missing, lambda frame: ("", begin(frame)), cell=cell),
        by_groups(audited, missing, lambda frame: (frame.camera, begin(frame)), cell=cell),
    ):
        for key, value in groups.items():
            found.append(
                {
                    "camera": key[0],
                    "begin": key[1],
                    "precision": _plain(value.precision),
                    "recall": _plain(value.recall),
                    "frames": value.frames,
                    "scenes": value.scenes,
                    "missing": value.missing,
                    "missing_share": value.missing_share,
                    "frames_seen": value.frames_seen,
                }
            )
    found.sort(key=lambda row: str(row["camera"]))
    found.sort(key=lambda row: str(row["begin"]), reverse=True)
    return found


def in_words(row: Row) -> Row:
    """A row of `metrics` for people."""
    words = dict(row)
    words["camera"] = row["camera"] or "all"
    words["begin"] = row["begin"][:10] or "ever"
    for name in ("precision", "recall"):
        rate = row[name]
        words[name] = "-" if rate["value"] is None else f"{rate['value']:.3f} ({rate['low']:.3f} to {rate['high']:.3f})"
    words["missing"] = f"{row['missing']} ({row['missing_share'] * 100:.0f} %)" if row["missing"] else "0"
    return words


def recall_changes(cat: Catalogue, camera: str, *, model: str | None = None) -> list[Row]:
    """When a camera's recall changed: `at`, `before`, `after`."""
    audited, _ = audit(cat, camera=camera, model=model)
    return [
        {"at": utc_text(change.noticed_s * 1000), "before": change.before, "after": change.after} for change in changes(audited)
    ]


def _plain(estimate: Estimate) -> Row:
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "least": estimate.least,
        "most": estimate.most,
    }


_Box = tuple[str, tuple[float, float, float, float]]


def _xyxy(boxes: Sequence[_Box]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.array([box for _, box in boxes], np.float64).reshape(-1, 4)


def _counting(boxes: Sequence[_Box], reviewed: frozenset[str], regions: Sequence[tuple[float, ...]]) -> list[_Box]:
    """The boxes that people and model can both be asked about."""
    asked = [box for box in boxes if box[0] in reviewed]
    if not regions or not asked:
        return asked
    is_hidden = covered(_xyxy(asked), np.array(regions, np.float64))
    return [box for box, hidden in zip(asked, is_hidden, strict=True) if not hidden]


def _redacted(cat: Catalogue, frames: Sequence[str]) -> dict[str, list[tuple[float, ...]]]:
    """Frame -> the regions that its device covered."""
    found: dict[str, list[tuple[float, ...]]] = {}
    rows = cat.rows(
        'SELECT frame, "left", top, "right", bottom FROM redaction WHERE frame IN (SELECT value FROM json_each(?))',
        json.dumps(list(frames)),
    )
    for row in rows:
        found.setdefault(row["frame"], []).append((row["left"], row["top"], row["right"], row["bottom"]))
    return found


def _labels(cat: Catalogue, rows: Sequence[Row]) -> dict[str, tuple[list[_Box], frozenset[str]]]:
    """Image digest -> boxes and reviewed classes of the newest label of any frame with this image, if it is one."""
    blobs = json.dumps(sorted({row["blob"] for row in rows}))
    found = cat.rows(
        "SELECT frame.blob, label_newest.boxes, label_newest.classes_reviewed FROM label_newest "
        "JOIN frame ON frame.id = label_newest.frame WHERE label_newest.verdict = 'labelled' AND frame.state != 'deleted' "
        "AND frame.blob IN (SELECT value FROM json_each(?)) ORDER BY label_newest.created_at",
        blobs,
    )
    return {
        row["blob"]: (
            [(box["class"], tuple(box["box_xyxy"])) for box in json.loads(row["boxes"])],
            frozenset(json.loads(row["classes_reviewed"])),
        )
        for row in found
    }


def _detections(cat: Catalogue, frames: Sequence[str], confidence: float) -> dict[str, list[_Box]]:
    """Frame -> what the device's model showed there, by falling score."""
    found: dict[str, list[_Box]] = {}
    rows = cat.rows(
        'SELECT frame, class_name, "left", top, "right", bottom FROM detection WHERE score >= ? '
        "AND frame IN (SELECT value FROM json_each(?)) ORDER BY frame, score DESC",
        confidence,
        json.dumps(list(frames)),
    )
    for row in rows:
        box = (row["left"], row["top"], row["right"], row["bottom"])
        found.setdefault(row["frame"], []).append((row["class_name"], box))
    return found


def _tombstones(cat: Catalogue, camera: str | None, since: str) -> list[Missing]:
    """The audit's frames that devices say they gave up; one that came all the same is not missing."""
    rows = cat.rows(
        "SELECT device, camera, captured_at, inclusion_probability FROM tombstone WHERE arm = 'explore' "
        "AND inclusion_probability > ? AND captured_at >= ? AND frame NOT IN (SELECT id FROM frame)",
        _LEAST_P,
        since,
    )
    gone = []
    for row in rows:
        of = camera_id(row["device"], row["camera"])
        if camera is None or of == camera:
            captured_s = datetime.fromisoformat(row["captured_at"]).replace(tzinfo=UTC).timestamp()
            gone.append(Missing(of, captured_s, min(1.0, row["inclusion_probability"])))
    return gone
