"""The demo's numbers: what is rendered, what is labelled, how long is trained; each with its reason.

In: nothing. Out: `SYNTHETIC_RECIPE` and `FILM_RECIPE`. They were found by measurement on two shared cores
(`docs/results/demo-recipe.md` has the tables and the ways that failed); they suit the demo's two worlds and are no advice for
other data. Nothing here runs anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Everything that a demo needs to know before it starts.

    Args:
        source_width, source_height: pixels of the synthetic cameras; a film brings its own.
        scene_frames: near-duplicates of one synthetic scene; the unit of every split.
        first_frames: labelled frames of the first model, all cameras together.
        first_span_frames: frames of each camera that those are spread over; the live stream begins after them.
        held_out_frames: of the evaluation set: half by day and half by night, or spread over a film's last quarter.
        window_frames: frames that each agent looks at before it decides which to send.
        stream_fps: pace of the cameras in frames a second.
        labels_per_round: frames sent and labelled a round, all cameras together.
        first_training, round_training: fields of the server's `[loop.training]`.
        selection, agent_tables: the `[selection]` table of agent.toml, and further tables.
    """

    source_width: int
    source_height: int
    scene_frames: int
    first_frames: int
    first_span_frames: int
    held_out_frames: int
    window_frames: int
    stream_fps: float
    labels_per_round: int
    first_training: Mapping[str, Any]
    round_training: Mapping[str, Any]
    selection: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    agent_tables: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


SYNTHETIC_RECIPE = Recipe(
    # Renders in a millisecond and is still a picture that a person can label.
    source_width=320,
    source_height=240,
    scene_frames=10,
    # By day only. One frame in 25 of each camera, so nearly every one from another scene.
    first_frames=80,
    first_span_frames=1000,
    # 120 a condition: the rarest class has about 30 boxes in each.
    held_out_frames=240,
    # 200 by day, then 200 by night: 40 scenes on each camera.
    window_frames=400,
    stream_fps=10.0,
    labels_per_round=40,
    first_training={
        "model": "bowerbird-eighth",
        # 320 x 240 shrinks to 192 x 144: the smallest side at which a person is still 15 pixels wide.
        "image_size": 192,
        "epochs": 44,
        # Steps teach, not pictures: at equal time a batch of 4 beats 8 and 16.
        "batch": 4,
        "learning_rate": 0.002,
        "mosaic": 0.0,
        "seed": 0,
        "threads": 1,
    },
    round_training={
        "model": "bowerbird-eighth",
        "image_size": 192,
        "epochs": 20,
        "batch": 8,
        # Enough for the night and its fox, and the day gains too: 0.53 where batches of 4 at 0.001 gave 0.45 in the same time.
        "learning_rate": 0.004,
        "mosaic": 0.0,
        "seed": 1,
        "threads": 1,
    },
)

FILM_RECIPE = Recipe(
    source_width=768,
    source_height=576,
    scene_frames=10,
    first_frames=20,
    first_span_frames=79,
    held_out_frames=100,
    # An agent sees its half of the film's live part in one window (`demo/world.py` computes it from the film).
    window_frames=240,
    stream_fps=10.0,
    # Twice 12 are 5 % of the frames between the first tenth and the held-out part.
    labels_per_round=12,
    first_training={
        "model": "bowerbird-eighth",
        "image_size": 384,
        "epochs": 60,
        # 0.32 with a batch of 4 against 0.14 with 8, at equal time.
        "batch": 4,
        "learning_rate": 0.002,
        "mosaic": 1.0,
        "seed": 0,
        "threads": 1,
    },
    round_training={
        "model": "bowerbird-eighth",
        "image_size": 384,
        "epochs": 36,
        "batch": 4,
        "learning_rate": 0.001,
        "mosaic": 1.0,
        "seed": 1,
        "threads": 1,
    },
)
