"""The demo as users run it, in a world so small that it is through in a minute: the same processes, fewer and smaller pictures.

In: a folder, a cache for first models, what the cameras look at. Out: `DemoOptions` for `bowerbird_server.demo.run`, a screen that
remembers, and questions about what a demo left behind. Run as a program it is that demo in a process of its own, to be killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bowerbird_agent.spool.index import Ledger, ledger_of
from bowerbird_server.config import TrainingConfig
from bowerbird_server.demo import run as demo_run
from bowerbird_server.demo.founding import import_world, keep_first_model, kept_first_model
from bowerbird_server.demo.recipes import Recipe
from bowerbird_server.site import Site
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo

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
    window_frames=50,
    stream_fps=20.0,
    labels_per_round=6,
    first_training=_TRAINING,
    round_training={**_TRAINING, "learning_rate": 0.001, "seed": 1},
    # Three frames fit easily into a window of two and a half seconds: each round gets all that it asks for.
    selection={"min_gap_s": 0.1, "spread": 0.0},
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


def craft_first_model(options: demo_run.DemoOptions, boxes: Sequence[TinyBox], *, image_size: int = 64) -> None:
    """Let the demo in `options.folder` begin with a handmade model that sees `boxes`, instead of training one.

    Call it inside `demo_folder`. There are no weights behind it, so no round can train on.
    """
    world, data = demo_run.make_world(options), options.folder / "server"
    demo_run.write_config(data, demo_run.server_config(world))
    with Site.open(data) as site:
        dataset = import_world(site, world, options.folder / "first", lambda *_: None)
    first = kept_first_model(options.cache, dataset, TrainingConfig.model_validate(world.recipe.first_training))
    onnx, weights = options.folder / "crafted.onnx", options.folder / "crafted.pt"
    write_tiny_yolo(onnx, class_names=world.class_names, boxes=boxes, image_size=image_size)
    weights.write_bytes(b"no weights: this model was made by hand")
    keep_first_model(first, onnx, weights, {"crafted": True})


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Return as soon as `condition()` holds; fail with `what` when it never does."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"timed out after {timeout_s:.0f} s: {what}"
        time.sleep(0.05)


def ledger(state: demo_run.Running, device: str) -> tuple[Ledger, dict[str, str]]:
    """A device's account of its frames and the outcome of each settled one (frame id -> outcome), read from its spool's index.

    The agent may run: SQLite gives one consistent moment.
    """
    path = state.site.folder.devices / device / "state" / "spool" / "index.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as index:
        index.execute("BEGIN")
        counters = {str(name): int(value) for name, value in index.execute("SELECT name, value FROM counter")}
        in_spool = {str(name): int(n) for name, n in index.execute("SELECT state, count(*) FROM frame GROUP BY state")}
        outcomes = {str(frame): str(outcome) for frame, outcome in index.execute("SELECT frame_id, outcome FROM settled")}
        return ledger_of(counters, in_spool), outcomes


def assert_nothing_lost_nothing_doubled(state: demo_run.Running) -> None:
    """Every frame that an agent settled as committed is one row with its blob; every row was sent by its agent; books balance."""
    site = state.site
    for device in ("cam-1", "cam-2"):
        account, outcomes = ledger(state, device)
        assert account.balanced, f"{device}: {account}"
        committed = {frame for frame, outcome in outcomes.items() if outcome == "committed"}
        rows = {row["id"]: row for row in site.catalogue.rows("SELECT * FROM frame WHERE device = ?", device)}
        assert committed <= rows.keys(), f"{device}: receipts without a row: {committed - rows.keys()}"
        assert account.committed == len(committed), f"{device}: a frame was settled twice: {account}"
        # A frame whose receipt is still on its way waits in the spool; nothing else is here without the agent knowing.
        waiting = sum(account.in_spool.get(name, 0) for name in ("sent", "in_doubt", "new"))
        assert len(rows) - len(committed) <= waiting, f"{device}: rows that no agent sent: {rows.keys() - committed}"
        places = [(row["camera"], row["sequence"]) for row in rows.values()]
        assert len(places) == len(set(places)), f"{device}: a source frame was stored twice"
        for row in rows.values():
            assert site.blobs.verify(row["blob"]), f"frame {row['id']}: its picture is missing or damaged"
    labels = site.catalogue.rows("SELECT frame, count(*) AS labels FROM label GROUP BY frame HAVING labels > 1")
    assert not labels, f"labelled twice: {labels}"


def processes_below(folder: Path) -> dict[int, str]:
    """Process id -> command line of every process, this one apart, whose command line names something in `folder`."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(folder) in command:
                    found[int(entry.name)] = command
    return found


@contextlib.contextmanager
def no_process_left(folder: Path, *, grace_s: float = 15.0) -> Iterator[None]:
    """Fail when a process of this folder outlives the block; kill it in any case, also when the block failed."""
    try:
        yield
        deadline_s = time.monotonic() + grace_s
        while left := processes_below(folder):
            assert time.monotonic() < deadline_s, f"processes are left: {left}"
            time.sleep(0.05)
    finally:
        for pid in processes_below(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def pids(state: demo_run.Running) -> dict[str, int]:
    """Name -> process id of everything that runs now: agents, `server` (the supervisor) and its children."""
    found: dict[str, int] = {}
    for path in (state.options.folder / "processes.json", state.site.folder.root / "serve.json"):
        with contextlib.suppress(OSError, ValueError):
            found |= json.loads(path.read_text())["children"]
    return {name: pid for name, pid in found.items() if is_alive(pid)}


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def main(folder: Path, cache: Path) -> None:
    """What `bowerbird demo --json FOLDER/facts.json` does, with the small recipe."""
    from bowerbird_server.demo.facts import gather

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = demo_run.DemoOptions(folder, cache, recipe=SMALL)

    class Printing(Screen):
        def say(self, text: str) -> None:
            print(text, flush=True)

    screen = Printing()
    with demo_run.demo_folder(options, screen) as mark, demo_run.running_demo(options, mark, screen) as state:
        demo_run.wait_for_loop(state, screen)
        facts = gather(state)
        (folder / "facts.json").write_text(json.dumps(facts))
        demo_run.finish_mark(options, mark)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
