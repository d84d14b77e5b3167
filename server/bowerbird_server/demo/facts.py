"""The facts of a demo, gathered from the catalogue: what `--json` writes, the table shows and the report draws.

In: a demo whose loop is through. Out: one JSON-able dictionary. It measures nothing itself: accuracies are the gate's, bytes and
frames are the agents' own counters.
"""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Any

from bowerbird_server.catalogue import Row, fleet
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.demo.run import Running, rounds_with_labels

_LIBRARIES = ("bowerbird", "ultralytics-opencv-headless", "torch", "onnxruntime", "opencv-python-headless", "paho-mqtt", "tuf")


def gather(state: Running) -> dict[str, Any]:
    """Everything that the demo can say about its run."""
    catalogue = state.site.catalogue
    first = model_rows.model(catalogue, state.first_digest)
    champion = model_rows.model(catalogue, "champion")
    devices = fleet.list_devices(catalogue)
    counters = [row["health"] for row in devices]
    control = None if state.control is None else state.control.result
    return {
        "source": "synthetic" if state.options.video is None else str(state.options.video),
        "seed": state.options.seed,
        "gate": {"profile": state.site.config.gate.profile, "note": "a point estimate is not a significance test"},
        "first": {**_model_facts(first), "labels": state.world.recipe.first_frames},
        "rounds": [_round_facts(state, row) for row in rounds_with_labels(state.site)],
        "promoted": _model_facts(champion),
        "random": None
        if control is None
        else {
            "labels": control.labels,
            "map50_95": control.metrics.get("map50_95"),
            "per_slice": control.metrics.get("per_slice", {}),
            "error": control.error,
        },
        "devices": [
            {
                "id": row["id"],
                "digest": row["model_digest"],
                "frames_seen": row["health"].get("frames_seen", 0),
                "frames_sent": row["health"].get("frames_committed", 0),
                "bytes_sent": row["health"].get("bytes_sent", 0),
            }
            for row in devices
        ],
        "frames": {
            "seen": _sum(counters, "frames_seen"),
            "scored": _sum(counters, "frames_scored"),
            "sent": int(catalogue.value("SELECT count(*) FROM frame WHERE device IS NOT NULL")),
            "rule": _sum(counters, "rule_frames"),
            "dropped": _sum(counters, "frames_dropped"),
        },
        "bytes": {
            "sent": _sum(counters, "bytes_sent"),
            "received": _sum(counters, "bytes_received"),
            "everything": _sum(counters, "all_bytes"),
            "rule": _sum(counters, "rule_bytes"),
        },
        "held_out": {key: json.loads(first["metrics"])[key] for key in ("frames", "scenes", "boxes")},
        "seconds": round(time.time() - state.started_s, 1),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _model_facts(row: Row) -> dict[str, Any]:
    metrics, verdict = json.loads(row["metrics"]), json.loads(row["verdict"])
    return {
        "digest": row["digest"],
        "map50_95": metrics.get("map50_95"),
        "map50": metrics.get("map50"),
        "per_slice": metrics.get("per_slice", {}),
        "per_class": metrics.get("per_class", {}),
        "release": row["release"],
        "reasons": verdict.get("reasons", []),
    }


def _round_facts(state: Running, row: Row) -> dict[str, Any]:
    catalogue = state.site.catalogue
    run = catalogue.row("SELECT * FROM training_run WHERE id = ?", row["training_run"]) or {}
    digest = json.loads(run.get("result") or "{}").get("model")
    facts: dict[str, Any] = {
        "number": row["number"],
        "labels": row["labels"],
        "promoted": run.get("state") == "promoted",
        "map50_95": None,
        "digest": digest,
        "error": run.get("error", ""),
    }
    if digest is not None:
        facts |= _model_facts(model_rows.model(catalogue, digest))
    facts["frames"] = [
        {
            "id": frame["id"],
            "camera": frame["camera"],
            "sequence": frame["sequence"],
            "captured_at": frame["captured_at"],
            "arm": frame["arm"],
            "score": frame["score"],
            "reasons": frame["reason"].split(","),
            "why": frame["why"],
            "inclusion_probability": frame["inclusion_probability"],
            "bytes": frame["bytes"],
        }
        for frame in catalogue.rows(
            "SELECT frame.*, batch_frame.why FROM batch_frame JOIN frame ON frame.id = batch_frame.frame "
            "WHERE batch_frame.batch = ? ORDER BY batch_frame.position",
            row["batch"],
        )
    ]
    return facts


def _sum(counters: list[dict[str, Any]], key: str) -> int:
    return sum(int(health.get(key, 0)) for health in counters)


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
