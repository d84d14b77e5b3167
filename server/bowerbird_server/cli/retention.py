"""`bowerbird retention`: what the limits of `[retention]` would delete now, and doing it."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from bowerbird_server.cli.common import DATA, AsJson, Config, Data, open_site, say, show_json
from bowerbird_server.privacy.retention import apply, find_due


def add_to(app: typer.Typer) -> None:
    """Register the command at the root."""
    app.command()(retention)


def retention(
    data: Data = DATA,
    config: Config = None,
    do_it: Annotated[bool, typer.Option("--yes", help="Delete now, instead of leaving it to the scheduler.")] = False,
    as_json: AsJson = False,
) -> None:
    """Frames that are kept too long by the limits of [retention]: shows how many, and why; --yes deletes them at once."""
    with open_site(data, config) as site:
        limits = site.config.retention
        counts = apply(site) if do_it else dict(Counter(why for _, why in find_due(site)))
    if as_json:
        show_json({"limits": limits.model_dump(), "deleted" if do_it else "due": counts})
        return
    if limits.is_unlimited:
        say("no limit is set in [retention], so every frame is kept")
    for why, count in sorted(counts.items()):
        say(f"{count} frames {'deleted' if do_it else 'are due'} ({why})")
    if not counts and not limits.is_unlimited:
        say("no frame is due")
