"""`bowerbird tokens`: add, list, revoke."""

from __future__ import annotations

from typing import Annotated

import typer

from bowerbird_server.access.roles import Role, Sites
from bowerbird_server.catalogue import accounts
from bowerbird_server.cli.common import DATA, AsJson, Data, actor, open_site, say, show_json, show_rows, tell
from bowerbird_server.cli.users import SiteNames

app = typer.Typer(
    no_args_is_help=True, help="What programs come in with. Example: bowerbird tokens add prometheus --role metrics --days 365"
)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What it is for, for example prometheus.")],
    role: Annotated[
        str, typer.Option("--role", help="metrics, viewer, labeller, operator, release-manager or administrator.")
    ] = "viewer",
    site: SiteNames = None,
    days: Annotated[float, typer.Option(help="How long it is good for; 0: for ever.")] = 90.0,
    as_json: AsJson = False,
    data: Data = DATA,
) -> None:
    """Make a token; it is printed now and never again. Example: bowerbird tokens add prometheus --role metrics > token"""
    with open_site(data, make=True) as opened:
        identity, token = accounts.add_token(
            opened.catalogue, name, Role.of(role), Sites.of(site or ()), actor(), days=days or None
        )
    if as_json:
        show_json({"id": identity, "token": token})
        return
    tell(f"token {identity} ({name}, {role}); keep what follows where only the program can read it")
    say(token)


@app.command("list")
def list_tokens(data: Data = DATA, as_json: AsJson = False) -> None:
    """All tokens, newest first; not what they are, which nobody knows any more."""
    with open_site(data) as opened:
        rows = accounts.list_tokens(opened.catalogue)
    columns = {
        "id": "token",
        "name": "name",
        "role": "role",
        "sites": "sites",
        "state": "state",
        "expires_at": "until",
        "used_at": "last used",
        "created_by": "made by",
    }
    show_rows(rows, columns, as_json=as_json, none="no tokens yet; `bowerbird tokens add NAME --role viewer` makes one")


@app.command()
def revoke(token: Annotated[str, typer.Argument(help="Its id, as `tokens list` shows it.")], data: Data = DATA) -> None:
    """Make a token worth nothing from now on, and the sessions that it opened."""
    with open_site(data) as opened:
        accounts.revoke_token(opened.catalogue, token, actor())
    say(f"token {token} is revoked")
