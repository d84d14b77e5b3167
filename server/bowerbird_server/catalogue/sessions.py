"""Who is logged in: a row a session, found by the digest of its cookie.

In: principals, cookies, the time. Out: cookies, sessions. A session ends when it was idle for too long, is too old, was logged out, or
when its account or token is taken away. It makes no answer to a browser.
"""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import suppress
from dataclasses import dataclass, replace

from bowerbird_server.access import passwords
from bowerbird_server.access.roles import Principal
from bowerbird_server.catalogue import accounts
from bowerbird_server.catalogue.core import Catalogue

_SEEN_EVERY_S = 60.0


@dataclass(frozen=True)
class Session:
    """Somebody who has logged in; `csrf_token` must come with every post of theirs."""

    author: str
    csrf_token: str
    principal: Principal


@dataclass(frozen=True)
class Ages:
    """After how long without a request, and after how long in any case, a session is over."""

    idle_s: float = 12 * 3600.0
    oldest_s: float = 7 * 24 * 3600.0


def begin(cat: Catalogue, principal: Principal, now_s: float) -> str:
    """A new session; returns its cookie, which is kept nowhere. Logs the log-in."""
    cookie = secrets.token_urlsafe(32)
    kind, _, which = principal.credential.partition(":")
    row = {
        "digest": passwords.digest(cookie),
        "author": principal.name,
        "user": which if kind == "user" else None,
        "token": which if kind == "token" else None,
        "created_at": now_s,
        "seen_at": now_s,
    }
    with cat.transaction():
        cat.insert("web_session", row)
        cat.log(principal.name, "logged in", principal.credential)
    return cookie


def session(cat: Catalogue, cookie: str, ages: Ages, now_s: float) -> Session | None:
    """The session of a cookie, with the role that its account or token has now; None when there is none or it is over."""
    row = cat.row("SELECT * FROM web_session WHERE digest = ?", passwords.digest(cookie)) if cookie else None
    if row is None or now_s - row["seen_at"] > ages.idle_s or now_s - row["created_at"] > ages.oldest_s:
        return None
    if row["user"] is not None:
        principal = accounts.principal_of_user(cat, row["user"])
    else:
        principal = accounts.principal_of_token_id(cat, row["token"])
    if principal is None:
        return None
    if now_s - row["seen_at"] > _SEEN_EVERY_S:
        with suppress(sqlite3.OperationalError), cat.transaction(durable=False):  # a full disk keeps nobody out
            cat.execute("UPDATE web_session SET seen_at = ? WHERE digest = ?", now_s, row["digest"])
    # Derived, so that it is kept nowhere either, and as hard to guess as the cookie.
    return Session(row["author"], passwords.digest(f"csrf {cookie}"), replace(principal, name=row["author"]))


def end(cat: Catalogue, cookie: str, actor: str) -> None:
    """Log out: the cookie is worth nothing any more, in any process."""
    with cat.transaction():
        if cat.execute("DELETE FROM web_session WHERE digest = ?", passwords.digest(cookie)):
            cat.log(actor, "logged out", actor)


def drop_old(cat: Catalogue, ages: Ages, now_s: float) -> int:
    """Remove the sessions that are over; returns how many."""
    return cat.execute(
        "DELETE FROM web_session WHERE seen_at < ? OR created_at < ?", now_s - ages.idle_s, now_s - ages.oldest_s
    )
