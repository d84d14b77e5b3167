"""The demo's numbers: what the cameras show, how many labels, how long to train. Measured in `docs/results/demo-recipe.md`.

In: nothing. Out: `SYNTHETIC_RECIPE` and `FILM_RECIPE`. They are for a laptop's two cores and small models; a real site sets its own
in bowerbird.toml.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Everything the demo needs to know about one kind of world.

    Args:
        source_width, source_height: of the synthetic cameras, pixels; a film has its own size.
        scene_frames: consecutive frames of one synthetic scene.
        stream_fps: frames a second that each camera shows.
        window_frames: frames of each camera that are compared before the best are sent.
        first_frames: labelled frames that the first model is trained on.
        first_span_frames: frames of the day before the live stream that the first ones are spread over.
        held_out_frames: frames of the evaluation set, half by day and half by night.
        labels_per_round: frames that both agents together send in a round.
        first_training, round_training: fields of `config.TrainingConfig`.
        selection: further fields of the agents' `[selection]` table.
        agent_tables: further tables of agent.toml.
    """

    first_frames: int
    held_out_frames: int
    labels_per_round: int
    stream_fps: float
    first_training: Mapping[str, Any]
    round_training: Mapping[str, Any]
    source_width: int = 320
    source_height: int = 240
    scene_frames: int = 10
    window_frames: int = 600
    first_span_frames: int = 2000
    selection: Mapping[str, Any] = field(default_factory=dict)
    agent_tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_AGENT_TABLES: Mapping[str, Mapping[str, Any]] = {
    "budget": {"bytes_per_s": 200_000.0, "burst_bytes": 2_000_000},
    "accounting": {"encode_everything": True},
    "health": {"interval_s": 1.0},
}

SYNTHETIC_RECIPE = Recipe(
    first_frames=160,
    held_out_frames=240,
    labels_per_round=48,
    stream_fps=20.0,
    first_training={"model": "bowerbird-eighth", "image_size": 224, "epochs": 40, "batch": 8},
    round_training={"model": "bowerbird-eighth", "image_size": 224, "epochs": 12, "batch": 8, "learning_rate": 0.001},
    agent_tables=_AGENT_TABLES,
)

FILM_RECIPE = Recipe(
    first_frames=20,
    held_out_frames=199,
    labels_per_round=12,
    stream_fps=20.0,
    first_training={"model": "bowerbird-eighth", "image_size": 384, "epochs": 100, "batch": 8, "mosaic": 1.0},
    round_training={
        "model": "bowerbird-eighth",
        "image_size": 384,
        "epochs": 60,
        "batch": 8,
        "mosaic": 1.0,
        "learning_rate": 0.001,
    },
    agent_tables=_AGENT_TABLES,
)
