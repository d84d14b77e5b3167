"""`bowerbird users`: add, list, passwd, role, remove."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bowerbird_server.access.private_files import read_private
from bowerbird_server.access.roles import Role, Sites
from bowerbird_server.catalogue import accounts
from bowerbird_server.cli.common import DATA, AsJson, Data, actor, open_site, say, show_rows
from bowerbird_server.errors import BadInput

app = typer.Typer(no_args_is_help=True, help="Who may log in to the pages. Example: bowerbird users add ada --role labeller")

RoleName = Annotated[
    str,
    typer.Option(
        "--role", help="viewer, labeller, operator, release-manager or administrator; each may do what those before may."
    ),
]
SiteNames = Annotated[
    list[str] | None, typer.Option("--site", help="Only what is of this site; may be repeated. Default: all.")
]
PasswordFile = Annotated[
    Path | None, typer.Option(help="File with the password, mode 0600, instead of asking; `-` reads it from standard input.")
]


@app.command()
def add(
    name: str,
    role: RoleName = "viewer",
    site: SiteNames = None,
    password_file: PasswordFile = None,
    oidc: Annotated[
        bool, typer.Option("--oidc", help="No password: the OpenID Connect provider of [oidc] vouches for NAME.")
    ] = False,
    data: Data = DATA,
) -> None:
    """Make an account; asks for its password. Example: bowerbird users add ada --role operator --site north"""
    with open_site(data, make=True) as opened:
        password = None if oidc else _password(password_file)
        accounts.add_user(opened.catalogue, name, password, Role.of(role), Sites.of(site or ()), actor())
    say(f"{name} may log in as {role}")


@app.command("list")
def list_users(data: Data = DATA, as_json: AsJson = False) -> None:
    """All accounts with their roles and sites."""
    with open_site(data) as opened:
        rows = accounts.list_users(opened.catalogue)
    columns = {"name": "user", "role": "role", "sites": "sites", "created_at": "since"}
    show_rows(
        rows, columns, as_json=as_json, none="no users yet; `bowerbird users add ada --role administrator` makes the first"
    )


@app.command()
def passwd(name: str, password_file: PasswordFile = None, data: Data = DATA) -> None:
    """Set another password; who is logged in with the old one is thrown out."""
    with open_site(data) as opened:
        accounts.user(opened.catalogue, name)
        accounts.set_password(opened.catalogue, name, _password(password_file), actor())
    say(f"{name} has a new password")


@app.command()
def role(name: str, role: RoleName, site: SiteNames = None, data: Data = DATA) -> None:
    """Give an account another role, or other sites. Example: bowerbird users role ada --role viewer --site north"""
    with open_site(data) as opened:
        accounts.set_role(opened.catalogue, name, Role.of(role), Sites.of(site or ()), actor())
    say(f"{name} is {role} now")


@app.command()
def remove(name: str, data: Data = DATA) -> None:
    """Take an account away, sessions included; what it did stays in the audit log."""
    with open_site(data) as opened:
        accounts.remove_user(opened.catalogue, name, actor())
    say(f"{name} is gone")


def _password(file: Path | None) -> str:
    """The password: never an argument, which everybody on the machine could read."""
    if file is not None and str(file) == "-":
        return sys.stdin.readline().rstrip("\r\n")
    if file is not None:
        return read_private(file).strip()
    if not sys.stdin.isatty():
        raise BadInput("there is no terminal to ask for the password at; give --password-file FILE")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
