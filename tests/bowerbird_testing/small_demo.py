"""The demo as users run it, in a world so small that it is through in a minute: the same processes, fewer and smaller pictures.

In: a folder, a cache for first models, what the cameras look at. Out: `DemoOptions` for `bowerbird_server.demo.run`, a screen that
remembers, and questions about what a demo left behind. Run as a program it is that demo in a process of its own, to be killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bowerbird_agent.spool_index import Ledger, ledger_of
from bowerbird_server.demo import run as demo_run
from bowerbird_server.recipes import Recipe

_TRAINING: Mapping[str, Any] = {
    "model": "bowerbird-eighth",
    "image_size": 96,
    "epochs": 1,
    "batch": 4,
    "learning_rate": 0.002,
    "warmup_epochs": 0.5,
    "mosaic": 0.0,
    "seed": 0,
    "threads": 1,
}

# A first model that has learnt next to nothing, and rounds that cannot do much better: whatever the gate says, the loop goes round.
SMALL = Recipe(
    source_width=160,
    source_height=120,
    scene_frames=5,
    first_frames=12,
    first_span_frames=60,
    held_out_frames=12,
    window_frames=40,
    stream_fps=20.0,
    labels_per_round=6,
    first_training=_TRAINING,
    round_training={**_TRAINING, "learning_rate": 0.001, "seed": 1},
    agent_tables={"health": {"interval_s": 0.3}},
)


class Screen:
    """What the demo said, for messages of failed tests."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, text: str, done: int, total: int) -> None:
        said = f"{text.partition(' (')[0]}"
        if not self.lines or self.lines[-1] != said:
            self.lines.append(said)
