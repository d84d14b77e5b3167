"""`bowerbird identity`: the site's certificate authority."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from bowerbird_server.cli.common import DATA, AsJson, Config, Data, actor, open_site, say, show_json
from bowerbird_server.identity.authority import Authority
from bowerbird_server.identity.place import listener_address

app = typer.Typer(no_args_is_help=True, help="The site's certificate authority. Example: bowerbird identity show")


@app.command()
def show(data: Data = DATA, config: Config = None, as_json: AsJson = False) -> None:
    """The root's pin, when the issuing authority ends, where the root's key is, and where claims are answered."""
    with open_site(data, config) as site:
        authority = Authority.open(site.folder.identity)
        address = listener_address(site)
    root_key = authority.folder / "root.key"
    facts = {
        "pin": authority.pin,
        "issuing_ends": authority.issuing_ends.isoformat(),
        "root_key": str(root_key) if root_key.exists() else None,
        "claims": f"{address.host}:{address.port}",
        "names": list(address.names),
    }
    if as_json:
        show_json(facts)
        return
    say(f"pin           {authority.pin}")
    say(f"issuing until {authority.issuing_ends:%Y-%m-%d}")
    if root_key.exists():
        say(f"root's key    {root_key}: carry it away (an encrypted stick in a safe); it is needed only for `identity roll`")
    else:
        say("root's key    not here, as it should be")
    say(f"claims        {address.host}:{address.port}, for {', '.join(address.names)}")


@app.command()
def roll(
    root_key: Annotated[Path | None, typer.Option(help="The root's key; by default where it was made.")] = None,
    data: Data = DATA,
    config: Config = None,
) -> None:
    """A new issuing authority beside the one there is; devices change over as they renew, and need to know nothing."""
    with open_site(data, config) as site:
        authority = Authority.open(site.folder.identity)
        rolled = authority.roll(root_key or authority.folder / "root.key", now=datetime.now(tz=UTC))
        site.catalogue.log(actor(), "issuing authority rolled", rolled.pin[:16], {"until": rolled.issuing_ends.isoformat()})
    say(
        f"a new issuing authority signs from now on, until {rolled.issuing_ends:%Y-%m-%d}; restart `bowerbird serve` for its own"
    )
