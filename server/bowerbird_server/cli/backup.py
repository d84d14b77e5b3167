"""`bowerbird backup` and `bowerbird restore`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import TaskID

from bowerbird_server.backup import back_up
from bowerbird_server.backup import restore as restore_site
from bowerbird_server.cli.common import DATA, AsJson, Config, Data, actor, open_site, progress_bars, say, show_json, tell
from bowerbird_server.errors import BadInput
from bowerbird_server.releases.registry import open_repository
from bowerbird_server.sealed import read_passphrase

_SHOWN = 20


def add_to(app: typer.Typer) -> None:
    """Register the commands at the root."""
    app.command()(backup)
    app.command()(restore)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A function (what, done, total) that shows a bar for each thing that takes long."""
    with progress_bars() as bars:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield progress


def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder, or that of the backup before.")],
    data: Data = DATA,
    config: Config = None,
    with_keys: Annotated[
        bool, typer.Option("--with-keys", help="Also the authority's and the signing keys, sealed under a passphrase.")
    ] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="Seal what --with-keys brings under the first line of this file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Back the site up, also while its server runs; a second time only what is new is copied. Ends with 1 when it lacks something."""
    with open_site(data, config) as site, stages() as progress:
        if passphrase_file is not None and not with_keys:
            raise BadInput("--passphrase-file seals what --with-keys brings; give both, or neither")
        if with_keys and passphrase_file is None:
            raise BadInput(
                "among the keys is the one that makes devices: seal them with --passphrase-file FILE, whose first line is a passphrase"
            )
        passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
        made = back_up(site, folder, with_keys=with_keys, passphrase=passphrase, on_progress=progress)
        site.catalogue.log(actor(), "site backed up", site.config.site, {"folder": str(folder.resolve())})
    if as_json:
        show_json(dataclasses.asdict(made))
    else:
        say(f"{made.blobs} blobs ({made.copied} new, {made.bytes / 1e6:.1f} MB in all) and the catalogue are in {folder}")
        if not made.with_keys:
            say("keys are not; keep them elsewhere, or add --with-keys --passphrase-file FILE")
    for text in made.lacks[:_SHOWN]:
        tell(text)
    if len(made.lacks) > _SHOWN:
        tell(f"... and {len(made.lacks) - _SHOWN} more; `bowerbird catalogue verify` lists all such faults")
    if made.lacks:
        tell("everything else is backed up, and a good copy that an earlier backup has brought here stays")
        raise typer.Exit(1)


def restore(
    folder: Annotated[Path, typer.Argument(help="What `bowerbird backup` wrote.")],
    data: Data = DATA,
    deletions: Annotated[
        list[Path] | None,
        typer.Option(help="A newer deletions.jsonl, of the lost data folder or beside another backup; may be repeated."),
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="File whose first line is the passphrase that the backup's keys are sealed with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a new data folder from a backup. Counters that devices hold the highest of are raised, so that they go on listening."""
    with stages() as progress:
        passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
        restored = restore_site(folder, data, actor(), progress, deletions=deletions or (), passphrase=passphrase)
    if restored.with_keys:
        with open_site(data) as site:
            open_repository(site).refresh()
    if as_json:
        show_json(dataclasses.asdict(restored))
    else:
        say(f"{restored.frames} frames and {restored.blobs} blobs of {restored.made_at} are in {data}")
        if restored.erased:
            say(f"{restored.erased} frames of it were erased after it was made and did not come back")
        if not deletions:
            say(
                "frames that were erased after the last backup into this folder may be back: restore with --deletions FILE, "
                "the deletions.jsonl of the lost data folder, if it can still be read"
            )
        if not restored.with_keys:
            say(
                f"the backup holds no keys: put yours into {data}/keys (mode 0600) before `bowerbird serve`, and give each device "
                "a new password with `bowerbird devices add NAME`"
            )
    for text in restored.missing:
        tell(f"{text}; `bowerbird catalogue verify` says what to do")
    if restored.missing:
        raise typer.Exit(1)
