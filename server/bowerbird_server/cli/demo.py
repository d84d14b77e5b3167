"""`bowerbird demo`: see the loop go round on this machine."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from platformdirs import user_cache_path
from rich.table import Table

from bowerbird_server.cli.common import actor, configure_logging, err, out, progress_bars
from bowerbird_server.cli.serve import stop_event
from bowerbird_server.errors import BadInput


def add_to(app: typer.Typer) -> None:
    """Register the command at the root."""
    app.command()(demo)


def demo(
    folder: Annotated[Path, typer.Option(help="Where everything is kept: data, logs, the report.")] = Path("bowerbird-demo"),
    video: Annotated[Path | None, typer.Option(help="A film of a fixed camera, instead of the synthetic ones.")] = None,
    gt: Annotated[Path | None, typer.Option("--gt", help="Its ground truth, MOTChallenge form.")] = None,
    class_name: Annotated[str, typer.Option("--class", help="What the boxes of --gt are.")] = "person",
    seed: Annotated[int, typer.Option(min=0, help="Of the synthetic world and of the random control.")] = 1,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the facts to this file.")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Leave everything up at the end, until Ctrl-C.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew even if an interrupted demo could go on.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log lines as well.")] = False,
) -> None:
    """Run the whole loop, twice: cameras choose frames, a simulated annotator labels, training, gate, signed update.

    No camera, account or key is needed, and no network. Example with your own film:
    bowerbird demo --video film.mp4 --gt gt.txt --json out.json
    """
    from bowerbird_server.demo import run as demo_run
    from bowerbird_server.demo.facts import gather
    from bowerbird_server.demo.report import write_report

    if verbose:
        configure_logging()
    else:
        logging.getLogger().addHandler(logging.NullHandler())  # the screen shows stages; `--verbose` shows log lines
    if gt is not None and video is None:
        raise BadInput("--gt goes with --video; without a film the cameras are synthetic and know their own truth")
    for path in (video, gt):
        if path is not None and not path.is_file():
            raise BadInput(f"{path} does not exist; check the path")
    options = demo_run.DemoOptions(
        folder=folder.resolve(),
        cache=user_cache_path("bowerbird") / "first-models",
        seed=seed,
        video=video,
        ground_truth=gt,
        class_name=class_name,
        fresh=fresh,
    )
    # SIGTERM must end the children too; Python turns SIGINT into KeyboardInterrupt already.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with _Screen() as screen, demo_run.demo_folder(options, screen) as mark:
        if video is not None and gt is None:
            _stop_at_the_queue(options, demo_run.queue_for_people(options, screen))
            demo_run.finish_mark(options, mark)
            return
        with demo_run.running_demo(options, mark, screen) as state:
            demo_run.wait_for_loop(state, screen)
            facts = gather(state)
            report = options.folder / "report.html"
            write_report(state.site, facts, report)
            facts_path = json_path or options.folder / "facts.json"
            facts_path.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
            demo_run.finish_mark(options, mark)
            screen.close()
            _show(facts, report, facts_path)
            if serve:
                _stay_up(state.site.folder)


class _Screen:
    """Progress bars on a terminal, one line per change elsewhere."""

    def __init__(self) -> None:
        self._bars = progress_bars()
        self._task: Any = None
        self._text = ""
        self._open = False

    def __enter__(self) -> _Screen:
        self._progress = self._bars.__enter__()
        self._open = True
        return self

    def __exit__(self, *details: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bars as they are; later lines go below them."""
        if self._open:
            self._open = False
            self._bars.__exit__(None, None, None)

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, soft_wrap=True)

    def progress(self, text: str, done: int, total: int) -> None:
        # The count of frames seen changes all the time; what is done now is what stands before it.
        kind = text.partition(" (")[0]
        if kind != self._text:
            if self._task is not None and self._progress.tasks:
                task = self._progress.tasks[-1]
                self._progress.update(self._task, total=task.total or 1, completed=task.total or 1)
            self._text = kind
            self._task = self._progress.add_task(text, total=total or None, completed=done)
            if not self._progress.console.is_terminal:
                self.say(f"[{time.strftime('%H:%M:%S')}] {kind}".replace("[", "\\["))
        else:
            self._progress.update(self._task, description=text, completed=done, total=total or None)


def _stop_at_the_queue(options: Any, data: Path) -> None:
    out.print(
        f"""
There is no ground truth for {options.video}, so a person has to label. The first frames are in the queue:

  bowerbird serve --data {data}
      prints the address of the dashboard and a token; Review there shows the frames.
  bowerbird train start --data {data}
      trains the first model from what you labelled.
  bowerbird rollout start --data {data}
      brings it to the agents, which choose the next frames:
  bowerbird-agent run --config {data}/devices/cam-1/agent.toml""",
        highlight=False,
        soft_wrap=True,
    )


def _stay_up(folder: Any) -> None:
    from bowerbird_server.access.roles import Role, Sites
    from bowerbird_server.catalogue import Catalogue, accounts
    from bowerbird_server.web.endpoint import WebEndpoint

    endpoint = WebEndpoint.load(folder)
    with Catalogue(folder.catalogue) as cat:
        _, token = accounts.add_token(cat, "demo", Role.ADMINISTRATOR, Sites(), actor(), days=7, only_one=True)
    out.print(f"\nStill up: {endpoint.url}/login#token={token}\nCtrl-C stops everything.", highlight=False, soft_wrap=True)
    stop: threading.Event = stop_event()
    stop.wait()


def _show(facts: dict[str, Any], report: Path, facts_path: Path) -> None:
    table = Table(title="What the demo did", title_justify="left", box=None, pad_edge=False, header_style="bold")
    conditions = [name for name in sorted(facts["first"]["per_slice"]) if name.startswith("condition:")]
    for heading in ("model", "labels", "mAP50-95", *(name.removeprefix("condition:") for name in conditions), "gate"):
        table.add_column(heading, justify="left" if heading in ("model", "gate") else "right")

    def row(name: str, labels: str, model: dict[str, Any], gate: str) -> None:
        cells = [_number(model.get("map50_95")), *(_number(model.get("per_slice", {}).get(slice_)) for slice_ in conditions)]
        table.add_row(name, labels, *cells, gate)

    row(f"first {facts['first']['digest'][:12]}", str(facts["first"]["labels"]), facts["first"], "the one to beat")
    for one in facts["rounds"]:
        gate = "promoted" if one["promoted"] else f"rejected: {'; '.join(one.get('reasons') or [one['error']])}"
        row(f"round {one['number']} {(one['digest'] or '')[:12]}", f"+{one['labels']}", one, gate)
    if facts["random"]:
        row(
            "random picks, same training",
            f"+{facts['random']['labels']}",
            facts["random"],
            facts["random"]["error"] or "for comparison",
        )
    out.print()
    out.print(table)
    frames, sent = facts["frames"], facts["bytes"]
    out.print(
        f"""
frames   {frames["seen"]} seen, {frames["scored"]} scored, {frames["sent"]} sent; max conf < 0.6 would send {frames["rule"]}
bytes    {sent["sent"]:,} sent; everything would be {sent["everything"]:,}, the rule {sent["rule"]:,}
devices  {", ".join(f"{d['id']} runs {d['digest'][:12]}" for d in facts["devices"])}
gate     {facts["gate"]["profile"]}: {facts["gate"]["note"]}; {facts["held_out"]["scenes"]} held-out scenes
time     {facts["seconds"]:.0f} s

report   {report}
facts    {facts_path}
logs     {report.parent}/logs and {report.parent}/server/logs
next     bowerbird serve --data {report.parent}/server    (dashboard, review page, API)""",
        highlight=False,
        soft_wrap=True,
    )
    if not all(device["digest"] == facts["promoted"]["digest"] for device in facts["devices"]):
        err.print("not every agent runs the champion", highlight=False)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
