"""Users and API tokens in the catalogue: made, changed, taken away, and asked who they are.

In: names, roles, sites, secrets. Out: rows, and the `Principal` of a password or token. Secrets are kept as hashes only; each change is
an event. Sessions are in `sessions.py`; how often one may try is in `throttle.py`.
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import time
from contextlib import suppress

from bowerbird_server.access import passwords
from bowerbird_server.access.roles import Principal, Role, Sites
from bowerbird_server.catalogue.core import Catalogue, Row, utc_now, utc_text
from bowerbird_server.errors import BadInput, Conflict, NotFound

_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,79}")
_USED_EVERY_S = 600.0
_PROVIDER = ""  # instead of a hash, which no password matches


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"{name[:40]!r} cannot be the name of a {what}: use a-z, 0-9 and . _ @ - (at most 80, a letter or digit first)"
        )


def _check_role(role: Role, sites: Sites) -> None:
    if role is Role.ADMINISTRATOR and not sites.everywhere:
        raise BadInput("an administrator is one of the whole server; leave --site out, or choose another role")


# ---- users


def add_user(cat: Catalogue, name: str, password: str | None, role: Role, sites: Sites, actor: str) -> None:
    """A new account.

    Args:
        password: None for an account that comes in by the OpenID Connect provider, and by it only.

    Raises:
        BadInput: name, role or password cannot be used.
        Conflict: there is one of that name.
    """
    _check_name(name, "user")
    _check_role(role, sites)
    if role is Role.METRICS:
        raise BadInput("`metrics` is for programs: `bowerbird tokens add NAME --role metrics`")
    row = {
        "name": name,
        "password": _PROVIDER if password is None else passwords.hash_password(password, name),
        "role": role.word,
        "sites": sites.text(),
        "created_at": utc_now(),
    }
    with cat.transaction():
        if not cat.insert("user", row, ignore=True):
            raise Conflict(f"there is already a user {name!r}; `bowerbird users passwd` and `users role` change one")
        cat.log(actor, "user added", name, {"role": role.word, "sites": sites.words()})


def user(cat: Catalogue, name: str) -> Row:
    """A user's row.

    Raises:
        NotFound: there is none of that name.
    """
    row = cat.row("SELECT * FROM user WHERE name = ?", name)
    if row is None:
        raise NotFound(f"no user {name[:80]!r}; `bowerbird users list` shows all")
    return row


def is_user(cat: Catalogue, name: str) -> bool:
    """Whether a name belongs to an account, however it is written."""
    return cat.value("SELECT 1 FROM user WHERE name = lower(trim(?))", name) is not None


def list_users(cat: Catalogue) -> list[Row]:
    """Users by name, without their passwords' hashes."""
    rows = cat.rows("SELECT name, role, sites, created_at FROM user ORDER BY name")
    return [{**row, "sites": Sites.read(row["sites"]).words()} for row in rows]


def set_password(cat: Catalogue, name: str, password: str, actor: str) -> None:
    """A new password; who is logged in with the old one is thrown out.

    Raises:
        BadInput: the password cannot be used.
        NotFound: there is no such user.
        Conflict: it is one of the provider's.
    """
    kept = passwords.hash_password(password, name)
    with cat.transaction():
        if user(cat, name)["password"] == _PROVIDER:
            raise Conflict(
                f"{name} comes in by the provider and has no password; remove the account and add one with a password"
            )
        cat.execute("UPDATE user SET password = ? WHERE name = ?", kept, name)
        cat.execute("DELETE FROM web_session WHERE user = ?", name)
        cat.log(actor, "password changed", name)


def set_role(cat: Catalogue, name: str, role: Role, sites: Sites, actor: str) -> None:
    """Another role or other sites; sessions that are open have it with their next request.

    Raises:
        BadInput: the role is not for users.
        NotFound: there is no such user.
        Conflict: nobody would be administrator any more.
    """
    _check_role(role, sites)
    if role is Role.METRICS:
        raise BadInput("`metrics` is for programs: `bowerbird tokens add NAME --role metrics`")
    with cat.transaction():
        before = user(cat, name)
        cat.execute("UPDATE user SET role = ?, sites = ? WHERE name = ?", role.word, sites.text(), name)
        _check_somebody_is_administrator(cat)
        cat.log(actor, "user role", name, {"role": role.word, "sites": sites.words(), "from": before["role"]})


def remove_user(cat: Catalogue, name: str, actor: str) -> None:
    """The account and its sessions go; what it did stays in the log.

    Raises:
        NotFound: there is no such user.
        Conflict: nobody would be administrator any more.
    """
    with cat.transaction():
        user(cat, name)
        cat.execute("DELETE FROM user WHERE name = ?", name)
        cat.execute("DELETE FROM web_session WHERE user = ?", name)
        _check_somebody_is_administrator(cat)
        cat.log(actor, "user removed", name)


def principal_of_password(cat: Catalogue, name: str, password: str) -> Principal | None:
    """Who a name and password are, None for nobody; takes as long for a name that is none."""
    row = cat.row("SELECT * FROM user WHERE name = ?", name)
    if not passwords.password_matches(None if row is None else row["password"], password) or row is None:
        return None
    if passwords.is_outdated(row["password"]):
        cat.execute("UPDATE user SET password = ? WHERE name = ?", passwords.hash_password(password, name), name)
    return _principal_of_user(row)


def principal_of_provider(cat: Catalogue, name: str) -> Principal | None:
    """Who the account is whose name the provider vouches for; None when there is none, or it is one with a password."""
    row = cat.row("SELECT * FROM user WHERE name = ? AND password = ?", name, _PROVIDER)
    return None if row is None else _principal_of_user(row)


def principal_of_user(cat: Catalogue, name: str) -> Principal | None:
    """Who an account is now, None when it is gone."""
    row = cat.row("SELECT * FROM user WHERE name = ?", name)
    return None if row is None else _principal_of_user(row)


def _principal_of_user(row: Row) -> Principal:
    return Principal(row["name"], Role.of(row["role"]), Sites.read(row["sites"]), f"user:{row['name']}")


# ---- tokens


def add_token(
    cat: Catalogue,
    name: str,
    role: Role,
    sites: Sites,
    actor: str,
    *,
    days: float | None = 90.0,
    token: str | None = None,
    only_one: bool = False,
) -> tuple[str, str]:
    """A new token for a program.

    Args:
        days: how long it is good for; None for ever.
        token: one that was made elsewhere; a new one by default.
        only_one: revoke those of the same name.

    Returns:
        Its id, and the token itself, which is kept nowhere.

    Raises:
        BadInput: the name or the days cannot be used.
        Conflict: the token is known already.
    """
    _check_name(name, "token")
    _check_role(role, sites)
    if days is not None and not 0 < days <= 3660:
        raise BadInput("a token is good for more than 0 and at most 3660 days")
    secret = token or passwords.new_token()
    identity = secrets.token_hex(4)
    row = {
        "id": identity,
        "digest": passwords.digest(secret),
        "name": name,
        "role": role.word,
        "sites": sites.text(),
        "created_at": utc_now(),
        "created_by": actor,
        "expires_at": None if days is None else utc_text((time.time() + days * 86400) * 1000),
    }
    with cat.transaction():
        if only_one:
            for old in cat.rows("SELECT id FROM api_token WHERE name = ? AND revoked_at IS NULL", name):
                revoke_token(cat, old["id"], actor)
        if not cat.insert("api_token", row, ignore=True):
            raise Conflict("this token is known already")
        cat.log(actor, "token added", identity, {"name": name, "role": role.word, "sites": sites.words()})
    return identity, secret


def ensure_administrator_token(cat: Catalogue, token: str, name: str, actor: str) -> None:
    """A token that was made elsewhere counts as an administrator's, unless it was known before.

    Raises:
        ValueError: it is too short to be a secret.
    """
    passwords.check_token(token)
    if cat.value("SELECT 1 FROM api_token WHERE digest = ?", passwords.digest(token)) is None:
        add_token(cat, name, Role.ADMINISTRATOR, Sites(), actor, days=None, token=token)


def revoke_token(cat: Catalogue, token_id: str, actor: str) -> None:
    """The token is worth nothing from now on, nor are sessions that it opened.

    Raises:
        NotFound: there is no such token.
    """
    with cat.transaction():
        if cat.value("SELECT 1 FROM api_token WHERE id = ?", token_id) is None:
            raise NotFound(f"no token {token_id[:40]!r}; `bowerbird tokens list` shows all, with their ids")
        if cat.execute("UPDATE api_token SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", utc_now(), token_id):
            cat.execute("DELETE FROM web_session WHERE token = ?", token_id)
            cat.log(actor, "token revoked", token_id)


def list_tokens(cat: Catalogue) -> list[Row]:
    """Tokens, newest first, without their digests; `state` is active, expired or revoked."""
    rows = cat.rows(
        "SELECT id, name, role, sites, created_at, created_by, expires_at, revoked_at, used_at, CASE WHEN revoked_at IS NOT NULL "
        "THEN 'revoked' WHEN expires_at <= ? THEN 'expired' ELSE 'active' END AS state FROM api_token ORDER BY created_at DESC, id",
        utc_now(),
    )
    return [{**row, "sites": Sites.read(row["sites"]).words()} for row in rows]


def principal_of_token(cat: Catalogue, token: str) -> Principal | None:
    """Who a token is, None when it is none, expired or revoked. Found by its digest, so that nothing is compared letter by letter."""
    return _principal_of_token(cat, cat.row("SELECT * FROM api_token WHERE digest = ?", passwords.digest(token)))


def principal_of_token_id(cat: Catalogue, token_id: str) -> Principal | None:
    """Who the token of an id is now, None when it is expired or revoked."""
    return _principal_of_token(cat, cat.row("SELECT * FROM api_token WHERE id = ?", token_id))


def _principal_of_token(cat: Catalogue, row: Row | None) -> Principal | None:
    now = utc_now()
    if row is None or row["revoked_at"] is not None or (row["expires_at"] is not None and row["expires_at"] <= now):
        return None
    if row["used_at"] is None or row["used_at"] < utc_text((time.time() - _USED_EVERY_S) * 1000):
        with suppress(sqlite3.OperationalError), cat.transaction(durable=False):  # a full disk keeps nobody out
            cat.execute("UPDATE api_token SET used_at = ? WHERE id = ?", now, row["id"])
    return Principal(row["name"], Role.of(row["role"]), Sites.read(row["sites"]), f"token:{row['id']}")


# ---- everybody


def has_administrator(cat: Catalogue) -> bool:
    """Whether anybody could come in as administrator."""
    found = cat.value(
        "SELECT 1 FROM user WHERE role = ?1 AND sites = ?2 UNION ALL SELECT 1 FROM api_token WHERE role = ?1 AND sites = ?2 "
        "AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?3) LIMIT 1",
        *(Role.ADMINISTRATOR.word, json.dumps("*"), utc_now()),
    )
    return found is not None


def _check_somebody_is_administrator(cat: Catalogue) -> None:
    if not has_administrator(cat):
        raise Conflict("nobody would be administrator any more; make another one first")


def forget_credentials(cat: Catalogue, actor: str) -> int:
    """After a restore: sessions and tokens are worth nothing, since they may have been ended after the backup; returns how many."""
    with cat.transaction():
        count = cat.execute("DELETE FROM web_session")
        for row in cat.rows("SELECT id FROM api_token WHERE revoked_at IS NULL"):
            revoke_token(cat, row["id"], actor)
            count += 1
    return count
