"""Running the demo: found the site, start everything, let the loop go round, wait, compare with random picks, stop.

In: options. Out: the facts of the run. Every step looks at what is on disk first, so a demo that was killed goes on when it is
started again with the same options. The loop itself is the server's (`scheduler.py`); nothing here moves it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from bowerbird_server.access.roles import Role, Sites
from bowerbird_server.batches.batch import build_batch
from bowerbird_server.catalogue import Row, accounts, fleet, frames, rollouts
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.catalogue import training as run_rows
from bowerbird_server.catalogue.classes import add_classes
from bowerbird_server.config import (
    CONFIG_NAME,
    GateConfig,
    LabellingConfig,
    LoopConfig,
    ModelsConfig,
    ServerConfig,
    SigningConfig,
    TrainingConfig,
)
from bowerbird_server.demo.control import Control
from bowerbird_server.demo.enrolling import enrol_here, is_enrolled
from bowerbird_server.demo.founding import ACTOR, FirstModel, first_model, found, import_world
from bowerbird_server.demo.recipes import FILM_RECIPE, SYNTHETIC_RECIPE, Recipe
from bowerbird_server.demo.world import FilmWorld, SyntheticWorld, World
from bowerbird_server.errors import Conflict, EnvironmentFault, NotFound
from bowerbird_server.fleet.provision import add_device
from bowerbird_server.labelling.simulated import run_annotator
from bowerbird_server.releases.registry import publish
from bowerbird_server.site import Site
from bowerbird_server.supervisor import ChildSpec, Supervisor
from bowerbird_server.training.dataset_import import import_frames
from bowerbird_server.web.endpoint import WebEndpoint

logger = logging.getLogger(__name__)

ROUNDS = 2
# One machine plays everything: no thin link, health every second for the progress bars, and every frame encoded once to know what
# sending everything would have cost. The guard looks at temperature only: the machine is crowded on purpose.
AGENT_TABLES: dict[str, dict[str, Any]] = {
    "budget": {"bytes_per_s": 200_000.0, "burst_bytes": 2_000_000},
    "accounting": {"encode_everything": True},
    "health": {"interval_s": 1.0},
    # Server, training and agents share this machine: nothing that a device measured here would be worth keeping.
    "model": {"runtime": "onnxruntime-cpu", "threads": 1},
    "guard": {"cpu_pressure": 100.0},
}
MARK = "demo.json"
ENROLLED = "state/identity/claimed"  # in a device's folder, once it is one
# A stage that makes no progress for so long is given up, with a word on where to look.
STALLED_S = 900.0


@dataclass(frozen=True)
class DemoOptions:
    """What the user asked for. `recipe` replaces the demo's own numbers: tests run the same demo in a small world."""

    folder: Path
    cache: Path
    seed: int = 1
    video: Path | None = None
    ground_truth: Path | None = None
    class_name: str = "person"
    fresh: bool = False
    recipe: Recipe | None = None

    def identity(self) -> dict[str, Any]:
        """What must be the same for a killed demo to be continued."""
        return {
            "seed": self.seed,
            "video": None if self.video is None else str(self.video.resolve()),
            "ground_truth": None if self.ground_truth is None else str(self.ground_truth.resolve()),
            "class": self.class_name,
            **({} if self.recipe is None else {"recipe": repr(self.recipe)}),
        }


class Screen(Protocol):
    """Where the demo tells what it is doing."""

    def say(self, text: str) -> None:
        """A line that stays."""
        ...

    def progress(self, text: str, done: int, total: int) -> None:
        """How far something is; `total` 0 when nobody knows."""
        ...


@dataclass
class Running:
    """A demo that is up: the site, its world and what was founded."""

    options: DemoOptions
    site: Site
    world: World
    first: FirstModel
    first_digest: str
    founding: Path
    started_s: float
    control: Control | None = None


def make_world(options: DemoOptions) -> World:
    """The world that the options name."""
    if options.video is None:
        return SyntheticWorld(options.recipe or SYNTHETIC_RECIPE, options.seed)
    return FilmWorld(options.recipe or FILM_RECIPE, options.video, options.ground_truth, options.class_name)


@contextmanager
def demo_folder(options: DemoOptions, screen: Screen) -> Iterator[dict[str, Any]]:
    """The demo's folder, locked; emptied unless an unfinished demo with the same options is to be continued.

    Yields the mark: `started_at` as seconds since the epoch, and the options.

    Raises:
        Conflict: another demo runs in it, or the folder holds something else.
    """
    folder, mark_path = options.folder, options.folder / MARK
    if folder.exists() and any(folder.iterdir()) and not mark_path.exists():
        raise Conflict(f"{folder} holds something that is no demo; name another folder with --folder")
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        mark = json.loads(mark_path.read_text()) if mark_path.exists() else {}
        same = mark.get("options") == options.identity() and not mark.get("finished")
        if same and not options.fresh:
            screen.say(f"continuing the demo that was interrupted in {folder} (--fresh begins a new one)")
        else:
            for entry in folder.iterdir():
                if entry.name != ".lock":
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            mark = {"options": options.identity(), "started_at": time.time()}
            mark_path.write_text(json.dumps(mark))
        yield mark


@contextmanager
def _lock(folder: Path) -> Iterator[IO[str]]:
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(f"another demo runs in {folder}; wait for it, or name another folder with --folder") from error
        yield file


def finish_mark(options: DemoOptions, mark: dict[str, Any]) -> None:
    """Note that the demo is complete, so that the next one begins anew."""
    (options.folder / MARK).write_text(json.dumps({**mark, "finished": time.time()}))


def server_config(world: World) -> ServerConfig:
    """The demo's bowerbird.toml as a value."""
    recipe = world.recipe
    return ServerConfig(
        site="demo",
        loop=LoopConfig(
            rounds=ROUNDS,
            frames_per_round=recipe.labels_per_round,
            wait_s=600.0,
            holdout_share=0.0,
            collect=True,
            train=True,
            roll_out=True,
            training=TrainingConfig.model_validate(recipe.round_training),
        ),
        # Its evaluation set is drawn beforehand, from scenes of its own.
        labelling=LabellingConfig(evaluation_share=0.0),
        gate=GateConfig(profile="point_estimate"),
        models=ModelsConfig(variants=[]),  # calibrating and measuring them would be half of the demo's time
        signing=SigningConfig(mode="automatic"),
    )


def write_config(folder: Path, config: ServerConfig) -> None:
    """The same as a file, which is what the server's processes read."""
    lines = [
        "# Written by `bowerbird demo`; the gate's profile `point_estimate` is not a significance test.",
        f'site = "{config.site}"',
    ]
    for name in ("loop", "labelling", "gate", "models", "signing"):
        lines += _toml_table(name, getattr(config, name).model_dump(exclude_none=True))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text("\n".join(lines) + "\n")


def _toml_table(name: str, values: dict[str, Any]) -> list[str]:
    lines = ["", f"[{name}]"] + [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _toml_table(f"{name}.{key}", value)
    return lines


@contextmanager
def running_demo(options: DemoOptions, mark: dict[str, Any], screen: Screen) -> Iterator[Running]:
    """Found the site if need be, start server, agents and annotator, and stop them at the end."""
    world = make_world(options)
    data = options.folder / "server"
    write_config(data, server_config(world))
    with Site.open(data) as site:
        founding = options.folder / "first"
        dataset = import_world(site, world, founding, screen.progress)
        first = first_model(
            site, dataset, TrainingConfig.model_validate(world.recipe.first_training), options.cache, screen.progress
        )
        first_row = _founded(site) or found(site, first, dataset)
        agents = _agents(site, world)
        if not rollouts.list_rollouts(site.catalogue):
            release = publish(site, first_row["digest"], ACTOR)
            rollouts.start_rollout(site.catalogue, first_row["digest"], release, sorted(agents), ACTOR)
        state = Running(options, site, world, first, first_row["digest"], founding, mark["started_at"])
        with _processes(options, site, agents, screen):
            yield state


def _founded(site: Site) -> Row | None:
    """The first model's row when this site has one: the one without a parent."""
    return site.catalogue.row(
        "SELECT * FROM model WHERE parent IS NULL AND state IN ('champion', 'retired') ORDER BY created_at"
    )


def _agents(site: Site, world: World) -> dict[str, Path]:
    """Device id -> its agent.toml, made on the first start."""
    made = {}
    for device, camera in world.cameras().items():
        folder = site.folder.devices / device
        if not (folder / "agent.toml").exists() or not is_enrolled(site, folder):
            tables = {"selection": world.selection(), **AGENT_TABLES, **world.recipe.agent_tables}
            folder = add_device(site, device, actor=ACTOR, cameras=[camera], tables=tables)
        made[device] = folder / "agent.toml"
    enrol_here(site, [config.parent for config in made.values()])
    return made


@contextmanager
def _processes(options: DemoOptions, site: Site, agents: dict[str, Path], screen: Screen) -> Iterator[None]:
    """Server and agents as processes that are started again when they die, and the simulated annotator beside them."""
    serve = (sys.executable, "-m", "bowerbird_server.cli", "serve", "--data", str(site.folder.root))
    # The server stops its own children in order first.
    server = ChildSpec("server", serve, stop_wait_s=20)
    children = [server]
    for device, config in agents.items():
        children.append(ChildSpec(device, (sys.executable, "-m", "bowerbird_agent", "run", "--config", str(config))))
    stop = threading.Event()
    logs = options.folder / "logs"
    supervisor = Supervisor(children, logs, state_path=options.folder / "processes.json")
    threads = [threading.Thread(target=supervisor.run, args=(stop,), name="supervisor")]
    if options.video is None or options.ground_truth is not None:
        threads.append(threading.Thread(target=_annotate, args=(options, site.folder.root, stop), name="simulated annotator"))
    screen.say(f"starting broker, server and agents {', '.join(agents)}; their logs are in {logs}")
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=30)


def _annotate(options: DemoOptions, data: Path, stop: threading.Event) -> None:
    """The simulated annotator: a client of the same API as the review page, answering from the ground truth."""
    world = make_world(options)
    with Site.open(data) as site:
        folder = site.folder
    while not stop.is_set():
        try:
            endpoint = WebEndpoint.load(folder)
        except NotFound:
            stop.wait(0.2)
            continue
        with Site.open(data) as site:
            name, role = "simulated-annotator", Role.OPERATOR  # it appends the classes of its ground truth
            _, token = accounts.add_token(site.catalogue, name, role, Sites(), ACTOR, days=7, only_one=True)
        run_annotator(endpoint.url, token, world.truth, stop, class_names=world.class_names)
        return


def wait_for_loop(state: Running, screen: Screen) -> None:
    """Until both rounds are finished, both agents run the champion and the control is trained.

    Raises:
        EnvironmentFault: nothing moved for a long time.
    """
    seen: tuple[str, int, int] | None = None
    moved_s = time.monotonic()
    while True:
        now = _where(state)
        if now is None:
            break
        if now != seen:
            moved_s, seen = time.monotonic(), now
            screen.progress(*now)
        if time.monotonic() - moved_s > STALLED_S:
            raise EnvironmentFault(
                f"nothing has moved for {STALLED_S:.0f} s while {now[0]}; the logs in {state.options.folder / 'logs'} and "
                f"{state.site.folder.logs} say why. `bowerbird demo` goes on from here when it is started again."
            )
        _start_control_when_due(state)
        time.sleep(0.25)
    if state.control is None:
        _start_control(state, sum(row["labels"] for row in rounds_with_labels(state.site)))
    assert state.control is not None  # noqa: S101 - for the type checker
    while state.control.is_alive():
        screen.progress("training the random control for comparison", *state.control.progress)
        state.control.join(timeout=0.5)


def _where(state: Running) -> tuple[str, int, int] | None:
    """What the loop is doing: words, done, in all; None when it is through."""
    catalogue = state.site.catalogue
    rounds = run_rows.rounds(catalogue)
    champion = model_rows.champion(catalogue)
    devices = fleet.list_devices(catalogue)
    on_champion = sum(champion is not None and row["model_digest"] == champion["digest"] for row in devices)
    if not rounds:
        return ("sending the first model to the agents", on_champion, len(devices))
    current = rounds[-1]
    where = f"round {current['number']} of {ROUNDS}"
    if current["state"] == "collecting":
        received = frames.count_by_state(catalogue).get("received", 0)
        seen = sum(int(row["health"].get("frames_seen", 0)) for row in devices)
        if received == 0:
            return (f"{where}: the cameras watch ({seen} frames seen)", 0, 0)
        return (f"{where}: collecting frames", received, current["frames_wanted"])
    if current["state"] == "labelling":
        done, total = _batch_progress(state.site, current["batch"])
        return (f"{where}: the simulated annotator labels", done, total)
    if current["state"] == "training":
        run = run_rows.run(catalogue, current["training_run"])
        words = "evaluating champion and challenger" if run["state"] == "evaluating" else "training"
        return (f"{where}: {words}", run["epoch"], run["epochs"])
    if current["state"] == "rolling_out":
        return (f"{where}: rolling the new model out", on_champion, len(devices))
    if current["number"] < ROUNDS or on_champion < len(devices):
        return (f"{where}: waiting for the agents", on_champion, len(devices))
    return None


def _batch_progress(site: Site, batch: str) -> tuple[int, int]:
    row = site.catalogue.row(
        "SELECT count(*) AS total, sum(frame.state IN ('labelled', 'rejected')) AS done "
        "FROM batch_frame JOIN frame ON frame.id = batch_frame.frame WHERE batch = ?",
        batch,
    )
    return (0, 0) if row is None else (int(row["done"] or 0), int(row["total"]))


def rounds_with_labels(site: Site) -> list[Row]:
    """The rounds, each with `labels`: how many of its frames were labelled."""
    return site.catalogue.rows(
        """SELECT round.*, (SELECT count(*) FROM batch_frame JOIN frame ON frame.id = batch_frame.frame
                            WHERE batch_frame.batch = round.batch AND frame.state = 'labelled') AS labels
           FROM round ORDER BY number"""
    )


def _start_control_when_due(state: Running) -> None:
    """As soon as the last round's labels are in: it trains beside the loop's own last training, on the other core."""
    if state.control is not None:
        return
    rounds = rounds_with_labels(state.site)
    if len(rounds) == ROUNDS and rounds[-1]["state"] in ("training", "rolling_out", "finished"):
        _start_control(state, sum(row["labels"] for row in rounds))


def _start_control(state: Running, labels: int) -> None:
    seen = {row["id"]: int(row["health"].get("frames_seen", 0)) for row in fleet.list_devices(state.site.catalogue)}
    state.control = Control(
        state.options.folder / "control",
        state.site.config,
        state.world,
        state.founding,
        state.first,
        state.world.stream(seen),
        labels,
        state.options.seed,
    )
    state.control.start()


def queue_for_people(options: DemoOptions, screen: Screen) -> Path:
    """A film without ground truth: its first frames go to the label queue; returns the data folder to serve."""
    world = make_world(options)
    data = options.folder / "server"
    write_config(data, server_config(world))
    pictures = options.folder / "first"
    with Site.open(data) as site:
        world_frames = [picture for picture in world.first_and_held_out() if picture.split == "train"]
        pictures.mkdir(exist_ok=True)
        from cv2 import imwrite

        for done, picture in enumerate(world_frames, start=1):
            imwrite(str(pictures / f"{picture.name}.png"), picture.image_bgr)
            screen.progress("taking frames from the film", done, len(world_frames))
        add_classes(site.catalogue, [options.class_name], ACTOR)
        import_frames(site, pictures, lambda done, total: screen.progress("taking them in", done, total))
        build_batch(site.catalogue, frames=len(world_frames))
        _agents(site, world)
    return data
