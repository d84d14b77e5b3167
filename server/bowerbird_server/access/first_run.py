"""The first administrator: a token that is made when nobody could come in, and shown once.

In: the catalogue, the data folder. Out: the token. On a terminal it is printed; elsewhere what is printed ends in a log, so it goes
into a file for the server's user only, which the first log-in removes.
"""

from __future__ import annotations

from pathlib import Path

from bowerbird_server.access.private_files import write_private
from bowerbird_server.access.roles import Role, Sites
from bowerbird_server.catalogue import accounts
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.layout import DataFolder
from bowerbird_server.web.endpoint import take_old_token

FIRST_TOKEN_NAME = "first-token"  # noqa: S105 - the name of a file
_DAYS = 30.0
_ACTOR = "serve"


def first_token(cat: Catalogue, folder: DataFolder) -> str | None:
    """A token for an administrator when there is none who could come in, None otherwise.

    The token that releases before this one kept in `web.json` goes on to be good; it is kept as a digest from now on, and revoked
    like any other.
    """
    old = take_old_token(folder)
    if old:
        accounts.ensure_administrator_token(cat, old, "web.json", _ACTOR)
    with cat.transaction():
        if accounts.has_administrator(cat):
            return None
        _, token = accounts.add_token(cat, FIRST_TOKEN_NAME, Role.ADMINISTRATOR, Sites(), _ACTOR, days=_DAYS)
    return token


def keep_first_token(folder: DataFolder, token: str) -> Path:
    """Put it where the server's user finds it; the first log-in with it removes the file."""
    path = folder.root / FIRST_TOKEN_NAME
    write_private(path, token.encode() + b"\n")
    return path
