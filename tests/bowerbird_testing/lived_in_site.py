"""A site that has been used: frames from a device and a folder, labels and corrections, data set versions, models, a deletion.

In: an empty folder. Out: an open `Site` whose catalogue has rows in every table that can be built again. Nothing is trained: the
models are handmade ONNX files.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from bowerbird_server.broker.mqtt_session import Arrived, Event
from bowerbird_server.catalogue import Row, fleet
from bowerbird_server.catalogue import identity as identity_rows
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.catalogue.classes import add_classes
from bowerbird_server.catalogue.datasets import assign_scene
from bowerbird_server.catalogue.record_keeping import delete_frames, keep_records
from bowerbird_server.identity.states import Happening
from bowerbird_server.ingest.chunks import ChunkStore
from bowerbird_server.ingest.dead_letters import DeadLetters
from bowerbird_server.ingest.ingest import Ingest
from bowerbird_server.labelling.backend import Box, submit_label
from bowerbird_server.releases.registry import register_model
from bowerbird_server.site import Site
from bowerbird_server.training.dataset_import import import_frames
from bowerbird_server.training.snapshot import take_snapshot
from bowerbird_testing.frame_messages import frame_message
from bowerbird_testing.tiny_yolo import write_tiny_yolo
from bowerbird_wire.codec import encode_frame
from bowerbird_wire.messages import FrameMessage

ANNOTATOR = "anna"
BIRD = Box("bird", (1.0, 2.0, 20.0, 30.0))
REBUILT = (
    "device",
    "camera",
    "frame",
    "detection",
    "class",
    "label",
    "scene_split",
    "dataset_version",
    "dataset_frame",
    "model",
)


class QuietSession:
    """A session whose answers nobody reads."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def publish(self, _topic: str, _payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        return True

    def acknowledge_all(self, _group: Sequence[Arrived]) -> bool:
        return True

    def is_current(self, _arrived: Arrived) -> bool:
        return True


def ingest_of(site: Site) -> Ingest:
    """Ingest without a broker."""
    dead_letters = DeadLetters(site.folder.root / "dead-letters")
    return Ingest(site.catalogue, site.blobs, dead_letters, ChunkStore(site.folder.parts), QuietSession())


def arrived(message: FrameMessage) -> Arrived:
    """A frame message as a session brings it."""
    return Arrived(1, f"bowerbird/v1/site/up/{message.header.device}/frame", encode_frame(message), 1, 1)


def live_in(folder: Path, scratch: Path) -> Site:
    """Make the site; the caller closes it."""
    site = Site.open(folder)
    cat, blobs = site.catalogue, site.blobs
    for device in ("cam-01", "cam-02", "cam-03"):
        fleet.add_device(cat, device, "site", "test")
    identity_rows.change_state(cat, "cam-03", Happening.RETIRED, "test")
    fleet.set_frames_total(cat, "cam-02", 50)
    add_classes(cat, ["bird", "fox"], "test")
    # Frame 5 of both cameras is the same picture.
    messages = [frame_message("cam-01", n) for n in range(20)] + [frame_message("cam-02", n) for n in (5, *range(101, 120))]
    ingest = ingest_of(site)
    for start in range(0, len(messages), 16):
        ingest.take([arrived(message) for message in messages[start : start + 16]])
    ids = [message.header.frame_id for message in messages]
    _pictures(scratch / "pictures")
    import_frames(site, scratch / "pictures")
    for identity in ids[:6]:
        submit_label(cat, blobs, identity, ANNOTATOR, "labelled", [BIRD], seconds=2.5, edits={"kept": 1})
    submit_label(cat, blobs, ids[6], ANNOTATOR, "rejected", [])
    submit_label(cat, blobs, ids[0], "ben", "labelled", [BIRD, Box("fox", (3.0, 3.0, 9.0, 9.0))])
    _import_taken_back(site, ids[10])
    assign_scene(cat, "import/night/00001", "holdout", ("condition:night",))
    version = take_snapshot(cat, blobs, holdout_share=0.5, actor="test")
    submit_label(cat, blobs, ids[7], ANNOTATOR, "labelled", [BIRD])
    take_snapshot(cat, blobs, holdout_share=0.5, actor="test")
    _models(site, scratch, version)
    delete_frames(cat, blobs, [ids[1], ids[30]], "test", "asked by the owner")
    keep_records(cat, blobs)
    return site


def rows(site: Site, table: str) -> list[Row]:
    """All rows of a table in an order of their own, times of the last contact and counters left out."""
    left_out = {"online", "boot_id", "agent_version", "model_digest", "status_at", "health_at", "health"}
    found = [
        {key: value for key, value in row.items() if table != "device" or key not in left_out}
        for row in site.catalogue.db[table].rows
    ]
    return sorted(found, key=lambda row: [str(value) for value in row.values()])


def _pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for n in range(3):
        cv2.imwrite(str(folder / f"{n}.jpg"), np.full((20, 30, 3), 40 * n, dtype=np.uint8))


def _import_taken_back(site: Site, frame: str) -> None:
    """A label import that fails half-way leaves a label event behind, but no label."""
    try:
        with site.catalogue.transaction():
            submit_label(site.catalogue, site.blobs, frame, "import", "labelled", [BIRD])
            raise InterruptedError
    except InterruptedError:
        pass


def _models(site: Site, scratch: Path, version: Row) -> None:
    first = register_model(
        site,
        write_tiny_yolo(scratch / "first.onnx", class_names=("bird", "fox")),
        weights=None,
        origin="imported",
        actor="test",
    )
    second = register_model(
        site,
        write_tiny_yolo(scratch / "second.onnx", class_names=("bird", "fox"), salt="second"),
        weights=scratch / "first.onnx",
        origin="trained",
        actor="test",
        parent=first["digest"],
        dataset_version=version["id"],
    )
    model_rows.promote(site.catalogue, first["digest"], "test", {})
    model_rows.promote(site.catalogue, second["digest"], "test", {"reasons": ["better"]})
    model_rows.set_metrics(site.catalogue, second["digest"], {"map50": 0.5}, {"promoted": True})
    model_rows.set_release(site.catalogue, second["digest"], 3, "test")
