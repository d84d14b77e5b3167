"""A model that is truly better passes the gate and reaches two running agents, signed, without a restart.

The small demo's site and processes, with handmade models whose worth is known: the champion sees one box that is never there, the
challenger sees what is in the held-out pictures.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bowerbird_server.catalogue import fleet, rollouts
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.catalogue.datasets import dataset_version
from bowerbird_server.demo import run as demo_run
from bowerbird_server.demo.world import World
from bowerbird_server.releases.registry import import_model, publish
from bowerbird_server.training.promotion_gate import PROFILES, compare
from bowerbird_server.training.training_runs import evaluate_on, keep_verdict
from bowerbird_testing.broker import mosquitto_path
from bowerbird_testing.small_demo import (
    SMALL,
    Screen,
    assert_nothing_lost_nothing_doubled,
    craft_first_model,
    no_process_left,
    pids,
    wait_until,
)
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo

pytestmark = [
    pytest.mark.broker,
    pytest.mark.xdist_group("system"),
    pytest.mark.skipif(mosquitto_path() is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]
SIDE = 128
# The first window never ends: the cameras watch with the model they have, and no round gets in the way.
RECIPE = replace(SMALL, window_frames=100_000, held_out_frames=2)
DEVICES = ("cam-1", "cam-2")


def boxes_in_held_out(world: World) -> list[TinyBox]:
    """What is in the held-out pictures, in pixels of a letterboxed input of `SIDE`."""
    ids = {name: number for number, name in enumerate(world.class_names)}
    found = []
    for picture in world.first_and_held_out():
        height, width = picture.image_bgr.shape[:2]
        scale = SIDE / max(width, height)
        left, top = (SIDE - width * scale) / 2, (SIDE - height * scale) / 2
        if picture.split == "test":
            for name, (x1, y1, x2, y2) in picture.boxes:
                box = (x1 * scale + left, y1 * scale + top, x2 * scale + left, y2 * scale + top)
                found.append(TinyBox(box, ids[name], 0.8))
    return found


def test_a_better_model_passes_the_gate_and_reaches_both_agents_without_a_restart(tmp_path: Path) -> None:
    """Evaluated on the same held-out frames, promoted with a reason, signed as release 2, run by the processes of before."""
    folder = tmp_path / "demo"
    options = demo_run.DemoOptions(folder, tmp_path / "first-models", recipe=RECIPE)
    screen = Screen()
    with no_process_left(folder), demo_run.demo_folder(options, screen) as mark:
        craft_first_model(options, [TinyBox((1, 17, 6, 22), 0, 0.9)], image_size=SIDE)
        with demo_run.running_demo(options, mark, screen) as state:
            site = state.site

            def both_run(digest: str) -> bool:
                rows = fleet.list_devices(site.catalogue)
                return {row["id"]: row["model_digest"] for row in rows} == dict.fromkeys(DEVICES, digest)

            wait_until(lambda: both_run(state.first_digest), "both agents run the first model", 120)
            before = pids(state)

            onnx = write_tiny_yolo(
                tmp_path / "better.onnx",
                class_names=state.world.class_names,
                boxes=boxes_in_held_out(state.world),
                image_size=SIDE,
            )
            challenger = import_model(site, onnx, trust=False, actor="test")["digest"]
            version = dataset_version(site.catalogue, "newest")
            measured = evaluate_on(site, challenger, version)
            verdict = compare(
                evaluate_on(site, state.first_digest, version), measured, PROFILES[site.config.gate.profile], seed=0
            )
            keep_verdict(site, challenger, measured, verdict)
            assert verdict.promoted, verdict
            assert verdict.difference > 0.1
            release = publish(site, challenger, "test")
            assert release == 2
            rollout = rollouts.start_rollout(site.catalogue, challenger, release, list(DEVICES), "test")

            wait_until(lambda: both_run(challenger), "both agents run the promoted model", 120)
            wait_until(lambda: rollouts.get(site.catalogue, rollout)["state"] == "completed", "the rollout's end", 60)
            after = pids(state)
            assert {name: after[name] for name in DEVICES} == {name: before[name] for name in DEVICES}
            assert json.loads(model_rows.model(site.catalogue, "champion")["verdict"])["reasons"]
            assert model_rows.model(site.catalogue, state.first_digest)["state"] == "retired"
            # A retry of publishing is the same release; the counter counts models, not attempts.
            assert publish(site, challenger, "test") == 2
            assert_nothing_lost_nothing_doubled(state)
