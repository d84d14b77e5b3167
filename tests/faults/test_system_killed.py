"""kill -9 of every process of a running site, in mid-flow: nothing is lost, nothing doubled, all is up again, nobody is orphaned.

The small demo runs as users run it. What is killed when is drawn from a seed; a failure tells the draws.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bowerbird_server.catalogue import fleet
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.catalogue import training as run_rows
from bowerbird_server.demo import run as demo_run
from bowerbird_server.site import Site
from bowerbird_testing import small_demo
from bowerbird_testing.broker import mosquitto_path
from bowerbird_testing.small_demo import (
    SMALL,
    Screen,
    assert_nothing_lost_nothing_doubled,
    is_alive,
    no_process_left,
    pids,
    processes_below,
    wait_until,
)

pytestmark = [
    pytest.mark.train,
    pytest.mark.broker,
    pytest.mark.xdist_group("system"),
    pytest.mark.skipif(mosquitto_path() is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]
SEED = 7
PATIENCE_S = 240.0  # for one stage, on a machine that does other things as well
EVERYTHING = {"cam-1", "cam-2", "server", "broker", "ingest", "delivery", "web", "claims", "scheduler"}


class Flow:
    """Where a site's loop is, asked of its catalogue."""

    def __init__(self, site: Site) -> None:
        self.catalogue = site.catalogue

    def rolling_out_first(self) -> bool:
        """A device fetches the first model."""
        return self.catalogue.row("SELECT 1 FROM execution WHERE state NOT IN ('waiting', 'succeeded')") is not None

    def round_is(self, number: int, *states: str) -> Callable[[], bool]:
        """Whether the round has got to one of these states, or beyond it."""
        order = ("collecting", "labelling", "training", "rolling_out", "finished")
        least = min(order.index(state) for state in states)

        def reached() -> bool:
            state = self.catalogue.value("SELECT state FROM round WHERE number = ?", number)
            return state is not None and order.index(state) >= least

        return reached

    def trains(self) -> bool:
        """A training run is under way."""
        return self.catalogue.row("SELECT 1 FROM training_run WHERE state = 'training' AND base_model IS NOT NULL") is not None

    def is_through(self) -> bool:
        """Both rounds are finished and every device runs the champion."""
        finished = sum(row["state"] == "finished" for row in run_rows.rounds(self.catalogue))
        champion = model_rows.champion(self.catalogue)
        running = {row["model_digest"] for row in fleet.list_devices(self.catalogue)}
        return finished == demo_run.ROUNDS and champion is not None and running == {champion["digest"]}


def kill(pid: int) -> None:
    """kill -9."""
    os.kill(pid, signal.SIGKILL)


def training_children(folder: Path) -> dict[int, str]:
    """The training processes that work below a folder."""
    return {pid: line for pid, line in processes_below(folder).items() if "train_child" in line}


def test_every_process_killed_in_mid_flow(tmp_path: Path, first_models: Path) -> None:
    """Agents, server and each of its processes die at some moment of a loop that completes all the same."""
    folder = tmp_path / "demo"
    options = demo_run.DemoOptions(folder, first_models, recipe=SMALL)
    draw, screen = random.Random(SEED), Screen()
    history: list[str] = []
    with (
        no_process_left(folder),
        demo_run.demo_folder(options, screen) as mark,
        demo_run.running_demo(options, mark, screen) as state,
    ):
        flow = Flow(state.site)

        def strike(victim: str, when: Callable[[], bool], longest_s: float) -> None:
            wait_until(when, f"the moment to kill {victim} after {history}", PATIENCE_S)
            delay_s = draw.uniform(0.0, longest_s)
            time.sleep(delay_s)
            wait_until(lambda: victim in pids(state), f"{victim} runs, to be killed, after {history}", PATIENCE_S)
            pid = pids(state)[victim]
            kill(pid)
            history.append(f"{victim} ({delay_s:.2f} s into it)")
            wait_until(lambda: not is_alive(pid), f"{victim} is dead", 10)

        for victim in ("delivery", "cam-2"):
            strike(victim, flow.rolling_out_first, 0.5)
        for victim in ("cam-1", "ingest", "broker"):
            strike(victim, flow.round_is(1, "collecting"), 1.0)
        for victim in ("web", "claims"):
            strike(victim, flow.round_is(1, "labelling"), 0.3)

        wait_until(lambda: flow.trains() and bool(training_children(folder)), f"a training after {history}", PATIENCE_S)
        trained = training_children(folder)
        run = state.site.catalogue.row("SELECT * FROM training_run WHERE state = 'training'")
        assert run is not None
        strike("scheduler", flow.trains, 1.0)
        wait_until(lambda: not any(map(is_alive, trained)), "the end of the scheduler's training process", 10)
        wait_until(lambda: bool(training_children(folder)), f"the training begins anew after {history}", PATIENCE_S)

        strike("server", flow.round_is(2, "collecting"), 1.0)
        strike("cam-2", flow.round_is(2, "collecting"), 1.0)
        wait_until(flow.is_through, f"the loop is through after {history}", PATIENCE_S)

        wait_until(lambda: pids(state).keys() == EVERYTHING, f"all is up again after {history}", 60)
        assert run_rows.run(state.site.catalogue, run["id"])["state"] in ("promoted", "rejected")
        runs = state.site.catalogue.rows("SELECT * FROM training_run WHERE base_model IS NOT NULL")
        assert len(runs) == demo_run.ROUNDS, f"a training was queued twice after {history}: {runs}"
        assert_nothing_lost_nothing_doubled(state)
        assert_whole(state)


def assert_whole(state: demo_run.Running) -> None:
    """As many frames and labels as were asked for, each labelled frame in one batch, each round with its own training."""
    catalogue = state.site.catalogue
    rounds = demo_run.rounds_with_labels(state.site)
    assert [row["labels"] for row in rounds] == [SMALL.labels_per_round] * demo_run.ROUNDS
    assert catalogue.value("SELECT count(*) FROM frame WHERE device IS NOT NULL") == demo_run.ROUNDS * SMALL.labels_per_round
    assert catalogue.value("SELECT count(*) FROM batch_frame") == demo_run.ROUNDS * SMALL.labels_per_round
    assert not catalogue.rows("SELECT frame FROM batch_frame GROUP BY frame HAVING count(*) > 1")
    assert catalogue.value("SELECT count(*) FROM rollout WHERE state <> 'completed'") == 0


def start_demo(folder: Path, first_models: Path) -> subprocess.Popen[bytes]:
    """The small demo as a process of its own."""
    command = [sys.executable, "-m", "bowerbird_testing.small_demo", str(folder), str(first_models)]
    tests = str(Path(small_demo.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": tests, "OMP_NUM_THREADS": "1"}
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def test_the_demo_itself_killed_goes_on_when_started_again(tmp_path: Path) -> None:
    """Killed while it is founded, while its first model trains, while frames are collected and while a round trains."""
    folder, cache = tmp_path / "demo", tmp_path / "first-models"
    log = folder.with_suffix(".log")
    draw = random.Random(SEED)
    history: list[str] = []

    def stage(reached: Callable[[Flow], bool]) -> Callable[[], bool]:
        def asked() -> bool:
            assert demo.poll() is None, f"the demo ended by itself after {history}:\n{log.read_text()[-3000:]}"
            if not (folder / "server" / "catalogue.db").exists():
                return False
            with Site.open(folder / "server") as site:
                return reached(Flow(site))

        return asked

    def imports(flow: Flow) -> bool:
        return bool(flow.catalogue.value("SELECT count(*) FROM frame"))

    def first_training(flow: Flow) -> bool:
        return bool(training_children(folder))

    def collects(flow: Flow) -> bool:
        return flow.round_is(1, "collecting")()

    stages: dict[str, tuple[Callable[[Flow], bool], float]] = {
        "founding": (imports, 0.1),
        "first training": (first_training, 2.0),
        "collecting": (collects, 1.0),
        "training": (Flow.trains, 2.0),
    }
    with no_process_left(tmp_path):
        for name, (reached, longest_s) in stages.items():
            demo = start_demo(folder, cache)
            wait_until(stage(reached), f"{name} after {history}", PATIENCE_S)
            time.sleep(draw.uniform(0.0, longest_s))
            kill(demo.pid)
            demo.wait()
            history.append(name)
            wait_until(lambda: not processes_below(tmp_path), f"everything dies with the demo ({history})", 15)
        demo = start_demo(folder, cache)
        assert demo.wait(PATIENCE_S) == 0, log.read_text()[-3000:]
        assert log.read_text().count("continuing the demo") == len(stages)
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    options = demo_run.DemoOptions(folder, cache, recipe=SMALL)
    with Site.open(folder / "server") as site:
        world = demo_run.make_world(options)
        first = model_rows.model(site.catalogue, facts["first"]["digest"])
        state = demo_run.Running(options, site, world, None, first["digest"], folder / "first", 0.0)  # type: ignore[arg-type]
        assert_nothing_lost_nothing_doubled(state)
        assert_whole(state)
        foundings = site.catalogue.rows("SELECT state FROM training_run WHERE base_model IS NULL")
        assert [row["state"] for row in foundings] == ["promoted"], "the first model was trained once, by one run"
        assert site.catalogue.value("SELECT count(*) FROM frame WHERE device IS NULL") == (
            SMALL.first_frames + SMALL.held_out_frames
        )
    assert {device["digest"] for device in facts["devices"]} == {facts["promoted"]["digest"]}
