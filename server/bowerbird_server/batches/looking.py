"""Has received frames looked at by the champion, and by a teacher where one is configured, in a child process.

In: an open site. Out: rows of `catalogue/looks.py`. Nothing is decided here, and nothing breaks without: a batch is then built on
what the devices said. Devices scored frames with the model they had at that time; the champion may know better by now.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bowerbird_server.catalogue import Catalogue, Row, calibrations, fleet_sketches, looks
from bowerbird_server.catalogue import frames as frame_rows
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.errors import BadInput, ServerError
from bowerbird_server.site import Site
from bowerbird_server.training.train import run_child

logger = logging.getLogger(__name__)

AT_ONCE = 2000
_TEACHER = "labelling.teacher"
_DOUBT, _DOUBT_AS_DEVICES = "labelling.doubt", 2


@dataclass(frozen=True)
class Eye:
    """What looks: `digest` is the champion's package, a teacher's file, or "" for pixels alone. `calibration`: the champion's table."""

    digest: str
    model: Path | None
    is_teacher: bool = False
    calibration: bytes = b""


def eyes(site: Site) -> list[Eye]:
    """Whoever looks at this site's frames; none when the configuration says so.

    Raises:
        BadInput: the teacher's file cannot be read.
    """
    settings = site.config.labelling
    if settings.rescore == "off":
        return []
    champion = model_rows.champion(site.catalogue)
    found = [Eye("", None)]
    if champion is not None:
        table = calibrations.of_model(site.catalogue, champion["digest"])
        found = [Eye(champion["digest"], site.blobs.path(champion["onnx_sha256"]), calibration=table)]
    if settings.rescore == "teacher":
        path = Path(settings.teacher)
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise BadInput(f"labelling.teacher: {path} cannot be read ({error.strerror}); name an ONNX file") from error
        found.append(Eye(digest, path, is_teacher=True))
    return found


def look_at_frames(site: Site, *, limit: int = AT_ONCE, threads: int = 1, cancelled: Callable[[], bool] = lambda: False) -> int:
    """Have up to `limit` frames looked at that were not yet; returns how many looks there were.

    Raises:
        ServerError: the model, the teacher or the surroundings do not allow it.
    """
    count = 0
    watching = eyes(site)
    site.catalogue.set_setting(_TEACHER, next((eye.digest for eye in watching if eye.is_teacher), ""))
    if site.catalogue.setting(_DOUBT, 0) != _DOUBT_AS_DEVICES:
        looks.forget_others(site.catalogue, [])  # doubts of an earlier release are on another scale
        site.catalogue.set_setting(_DOUBT, _DOUBT_AS_DEVICES)
    if watching:
        looks.forget_others(site.catalogue, [eye.digest for eye in watching])
    for eye in watching:
        wanted = looks.lacking(site.catalogue, eye.digest, limit)
        if wanted:
            looks.add(site.catalogue, eye.digest, _look(site, eye, wanted, threads, cancelled))
            count += len(wanted)
    return count


def try_to_look(site: Site, *, limit: int = AT_ONCE, cancelled: Callable[[], bool] = lambda: False) -> int:
    """As `look_at_frames`, and then what the fleet has enough of is made anew; what stands against it is logged, and work goes on."""
    try:
        count = look_at_frames(site, limit=limit, cancelled=cancelled)
        champion = model_rows.champion(site.catalogue)
        digest = "" if champion is None else champion["digest"]
        fleet_sketches.refresh(site.catalogue, digest, site.config.labelling.enough_labels, "looking")
    except ServerError as fault:
        logger.warning("received frames were not looked at, devices' scores count: %s", fault)
        return 0
    return count


def teacher_of(cat: Catalogue) -> str:
    """Digest of the teacher that looked last, "" for none."""
    return str(cat.setting(_TEACHER, ""))


def _look(site: Site, eye: Eye, wanted: list[Row], threads: int, cancelled: Callable[[], bool]) -> list[looks.Look]:
    shown = [
        {
            "id": row["id"],
            "path": str(site.blobs.path(row["blob"])),
            "seen": [
                [[seen["left"], seen["top"], seen["right"], seen["bottom"]], seen["score"], seen["class_name"]]
                for seen in frame_rows.detections(site.catalogue, row["id"])
            ],
        }
        for row in wanted
    ]
    with tempfile.TemporaryDirectory(prefix="looks-", dir=site.folder.training) as scratch:
        out_dir = Path(scratch)
        task = {
            "do": "look",
            "model": "" if eye.model is None else str(eye.model),
            "is_teacher": eye.is_teacher,
            "calibration": eye.calibration.hex(),
            "frames": shown,
            "threads": threads,
            "out_dir": str(out_dir),
        }
        for _ in run_child(task, out_dir, threads, cancelled, "bowerbird_server.batches.look_child", "look at frames"):
            pass
        with np.load(out_dir / "looks.npz", allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
    return [
        looks.Look(
            frame=row["id"],
            luma=found["luma"][i].tobytes() if found["readable"][i] else b"",
            embedding=found["embedding"][i].astype(np.float32) if found["embedding"][i].any() else None,
            doubt=None if np.isnan(found["doubt"][i]) else float(found["doubt"][i]),
            boxes=float(found["boxes"][i]),
            class_names=tuple(json.loads(str(found["class_names"][i]))),
        )
        for i, row in enumerate(wanted)
    ]
