"""Real footage through real processes: two agents share a film, the server collects, the simulated annotator answers from MOT truth.

The model is handmade and nothing is trained: what is shown is the way of frames and labels.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pytest

from bowerbird_server.catalogue import Row
from bowerbird_server.demo import run as demo_run
from bowerbird_server.demo.world import FilmWorld
from bowerbird_testing.broker import mosquitto_path
from bowerbird_testing.small_demo import (
    SMALL,
    Screen,
    assert_nothing_lost_nothing_doubled,
    craft_first_model,
    no_process_left,
    wait_until,
)
from bowerbird_testing.tiny_yolo import TinyBox

FOOTAGE = Path(__file__).resolve().parents[3] / "shared" / "data" / "pets09-s2l1"
pytestmark = [
    pytest.mark.broker,
    pytest.mark.xdist_group("system"),
    pytest.mark.skipif(mosquitto_path() is None, reason="mosquitto is not installed: apt-get install mosquitto"),
    pytest.mark.skipif(
        not (FOOTAGE / "vtest.avi").exists(), reason="the footage ../shared/data/pets09-s2l1 is not beside the repository"
    ),
]
# Each agent looks at 100 frames, that is one segment of ten seconds, before it chooses.
RECIPE = replace(
    SMALL,
    first_frames=4,
    held_out_frames=4,
    stream_fps=30.0,
    labels_per_round=8,
    selection={"window_frames": 100, "min_gap_s": 0.5},
)
# Sure of one place, unsure of another, depending on the light there.
BOXES = (TinyBox((4, 28, 28, 36), 0, 0.9, "bright"), TinyBox((20, 30, 50, 56), 0, 0.45))
SMALLEST_SIDE_PX = 3.0


@dataclass(frozen=True)
class Labelled:
    """The site when its first round is labelled."""

    state: demo_run.Running
    world: FilmWorld
    frames: list[Row]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Labelled]:
    """Run server, agents and annotator until the first round's frames are labelled."""
    base = tmp_path_factory.mktemp("film")
    options = demo_run.DemoOptions(
        base / "demo", base / "first-models", video=FOOTAGE / "vtest.avi", ground_truth=FOOTAGE / "gt.txt", recipe=RECIPE
    )
    screen = Screen()
    with no_process_left(options.folder), demo_run.demo_folder(options, screen) as mark:
        craft_first_model(options, BOXES)
        with demo_run.running_demo(options, mark, screen) as state:
            assert isinstance(state.world, FilmWorld)
            done = "SELECT count(*) FROM frame WHERE device IS NOT NULL AND state = 'labelled'"
            wait_until(lambda: state.site.catalogue.value(done) > 0, "labels", 180)
            batch_done = "SELECT count(*) FROM batch WHERE state = 'done'"
            wait_until(lambda: state.site.catalogue.value(batch_done) > 0, "the first batch's last label", 60)
            rows = state.site.catalogue.rows("SELECT * FROM frame WHERE device IS NOT NULL ORDER BY sequence")
            yield Labelled(state, state.world, rows)


def test_the_agents_take_alternate_segments_of_ten_seconds(labelled: Labelled) -> None:
    """Segment 0, 2, 4 ... of the film's timeline are the first agent's, the others the second's."""
    segment = round(FilmWorld.SEGMENT_S * labelled.world.fps)
    whose: dict[int, set[str]] = {0: set(), 1: set()}
    for row in labelled.frames:
        whose[(row["sequence"] // segment) % 2].add(row["device"])
    assert whose == {0: {"cam-1"}, 1: {"cam-2"}}


def test_no_frame_of_the_film_comes_twice(labelled: Labelled) -> None:
    """Not from one agent, nor from both; and none from the parts for first labels and evaluation."""
    sequences = [row["sequence"] for row in labelled.frames]
    assert len(sequences) == len(set(sequences))
    assert labelled.world.first_end <= min(sequences)
    assert max(sequences) < labelled.world.live_end
    assert_nothing_lost_nothing_doubled(labelled.state)


def test_a_frames_time_is_its_place_on_the_film(labelled: Labelled) -> None:
    """Two frames are as far apart in captured time as they are in the film, whichever agent sent them."""
    at = {row["sequence"]: datetime.fromisoformat(row["captured_at"]).timestamp() for row in labelled.frames}
    zero = {round(time_s - sequence / labelled.world.fps, 2) for sequence, time_s in at.items()}
    assert max(zero) - min(zero) <= 0.02


def test_labels_are_the_ground_truth_in_pixels_of_the_stored_picture(labelled: Labelled) -> None:
    """Read from the file again here: clipped to the picture, scaled to what was stored, nothing added, only slivers left out."""
    with (FOOTAGE / "gt.txt").open() as file:
        lines = [[float(cell) for cell in line] for line in csv.reader(file) if line]
    catalogue = labelled.state.site.catalogue
    checked = 0
    for row in labelled.frames:
        label = catalogue.row("SELECT * FROM label_newest WHERE frame = ?", row["id"])
        if label is None:
            continue
        scale = row["width"] / row["source_width"]
        assert (row["source_width"], row["source_height"]) == (768, 576)
        truth = []
        for number, _, left, top, width, height, *_ in lines:
            if number == row["sequence"] + 1:
                box = (max(left, 0), max(top, 0), min(left + width, 768), min(top + height, 576))
                truth.append([value * scale for value in box])
        boxes = sorted(box["box_xyxy"] for box in json.loads(label["boxes"]))
        kept = sorted(box for box in truth if min(box[2] - box[0], box[3] - box[1]) >= SMALLEST_SIDE_PX)
        assert len(boxes) == len(kept)
        for ours, theirs in zip(boxes, kept, strict=True):
            assert ours == pytest.approx(theirs, abs=0.6)
        assert label["author"] == "simulated annotator"
        checked += len(boxes)
    assert checked > 0
