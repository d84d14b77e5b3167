"""What the groups of commands share: options, opening the site, tables, JSON, progress.

In: rows. Out: text on the terminal. No command's own logic.
"""

from __future__ import annotations

import getpass
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bowerbird_server.site import Site

# A file or a pipe has no width: there a row is a line.
out = Console(width=None if sys.stdout.isatty() else 1000)
err = Console(stderr=True)

Data = Annotated[Path, typer.Option("--data", envvar="BOWERBIRD_DATA", help="The server's data folder.", show_default=True)]
Config = Annotated[Path | None, typer.Option("--config", help="bowerbird.toml; by default the one in the data folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of a table.")]
DATA = Path("bowerbird-data")


def actor() -> str:
    """Who is at the keyboard, for the event log."""
    try:
        return f"{getpass.getuser()}@cli"
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return "cli"


@contextmanager
def open_site(data: Path, config: Path | None = None, *, make: bool = False) -> Iterator[Site]:
    """The site, closed again at the end; `make` where the command is one that a site may begin with."""
    with Site.open(data, config, make=make) as site:
        yield site


def say(text: str) -> None:
    """A line on standard output exactly as it is: no folding, no markup."""
    out.print(text, highlight=False, markup=False, soft_wrap=True)


def tell(text: str) -> None:
    """A line on standard error exactly as it is."""
    err.print(text, highlight=False, markup=False, soft_wrap=True)


def configure_logging(*, verbose: bool = False) -> None:
    """Log lines on standard error, for the commands that run for long."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    for chatty in ("httpx", "httpcore", "uvicorn.access", "tuf", "securesystemslib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def show_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def show_rows(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, as_json: bool, none: str) -> None:
    """Rows as a table of `columns` (key -> heading), or all their keys as JSON; `none` says what to do when there are none."""
    if as_json:
        show_json([dict(row) for row in rows])
        return
    if not rows:
        say(none)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in columns.values():
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*("" if row.get(key) is None else Text(str(row[key])) for key in columns))
    out.print(table)


@contextmanager
def progress_of(description: str) -> Iterator[Callable[[int, int], None]]:
    """A function (done, total) that shows a bar from its first call on; work that fails before shows none."""
    with progress_bars() as bars:
        tasks: list[TaskID] = []

        def progress(done: int, total: int) -> None:
            if not tasks:
                tasks.append(bars.add_task(description, total=total))
            bars.update(tasks[0], completed=done, total=total)

        yield progress


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Bars on standard error for whatever takes longer than two seconds; plain silence where there is no terminal."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=False,
    ) as bars:
        yield bars
