"""Invitations: a token, the bundle around it, and the rows that make it good for one board.

In: an open site, labels or names, an operator's choices. Out: `Invitation`s, each with its bundle; the token exists nowhere else.
It answers no claim (`claims.py` does) and prints nothing.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from bowerbird_server.catalogue import identity as rows
from bowerbird_server.errors import BadInput
from bowerbird_server.identity.authority import Authority
from bowerbird_server.identity.place import claim_urls
from bowerbird_server.identity.tokens import new_token, token_hash
from bowerbird_server.releases.registry import open_repository
from bowerbird_server.site import Site
from bowerbird_wire.bundle import Bundle
from bowerbird_wire.claim import claim_text

MAX_HOURS = 72
MAX_LABEL = 64


@dataclass(frozen=True)
class Wanted:
    """One board that is expected.

    Args:
        label: what the operator calls it.
        serial: the board must say this one; "" for any.
        device: its id when that is settled.
        cameras: `[[cameras]]` tables of its agent.toml.
    """

    label: str
    serial: str = ""
    device: str | None = None
    cameras: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Invitation:
    """A bundle, and the same in a form for a QR code."""

    wanted: Wanted
    bundle: Bundle
    text: str


def invite(
    site: Site,
    wanted: Wanted,
    *,
    broker: Mapping[str, Any],
    tables: Mapping[str, Mapping[str, Any]],
    actor: str,
    approved: bool = True,
    hours: float = MAX_HOURS,
    host: str | None = None,
    now: datetime | None = None,
) -> Invitation:
    """A new invitation; an open one for the same device ends.

    Args:
        broker: the `broker` table of its agent.toml.
        tables: further tables.
        approved: False: a person looks at the claim first.
        hours: how long the token is good.
        host: the server's name or address as this board sees it.

    Raises:
        BadInput: the label is empty or too long, or the token would be good for too long.
    """
    if not 0 < hours <= MAX_HOURS:
        raise BadInput(f"a token is good for at most {MAX_HOURS} hours; {hours:g} is not possible")
    for what, text in (("label", wanted.label), ("serial number", wanted.serial)):
        if len(text) > MAX_LABEL or not text.isprintable():
            raise BadInput(f"the {what} {text[:80]!r} must be at most {MAX_LABEL} printable characters")
    now = now or datetime.now(tz=UTC)
    token = new_token()
    authority = Authority.open(site.folder.identity)
    expires = now + timedelta(hours=hours)
    urls, trusted_root = claim_urls(site, host), open_repository(site).trusted_root().decode()
    all_tables = {"broker": broker, **tables}
    setup = {"claim_urls": urls, "trusted_root": trusted_root, "tables": all_tables, "cameras": list(wanted.cameras)}
    rows.invite(
        site.catalogue,
        token_hash(token),
        site=site.config.site,
        label=wanted.label,
        serial=wanted.serial,
        device=wanted.device,
        approved=approved,
        now=now,
        expires=expires,
        actor=actor,
        setup=setup,
    )
    bundle = Bundle(
        site=site.config.site,
        token=token,
        claim_urls=urls,
        ca=authority.root_pem.decode(),
        pin=authority.pin,
        expires_at=rows.text_of(expires),
        label=wanted.label,
        device=wanted.device or "",
        serial=wanted.serial,
        trusted_root=trusted_root,
        tables=all_tables,
        cameras=wanted.cameras,
    )
    return Invitation(wanted, bundle, claim_text(urls[0], token, authority.pin))


def read_list(text: str) -> list[Wanted]:
    """Boards from a CSV with a heading: `serial`, and if wanted `label`, `camera` (name=source, several with ';').

    Raises:
        BadInput: all faults, each with its line.
    """
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")))
    known = {"serial", "label", "camera"}
    if not reader.fieldnames or "serial" not in reader.fieldnames or not set(reader.fieldnames) <= known:
        raise BadInput(f"the first line must name the columns: serial, and if wanted label, camera; it is {reader.fieldnames}")
    found: list[Wanted] = []
    faults: list[str] = []
    seen: set[str] = set()
    for number, row in enumerate(reader, start=2):
        serial = (row.get("serial") or "").strip()
        if not serial or None in row:
            faults.append(f"line {number}: {'too many columns' if serial else 'no serial number'}")
        elif serial in seen:
            faults.append(f"line {number}: {serial} stands there twice")
        seen.add(serial)
        cameras = cameras_of((row.get("camera") or "").split(";"))
        found.append(Wanted((row.get("label") or "").strip() or serial, serial, cameras=cameras))
    if faults:
        raise BadInput("the list cannot be used:\n" + "\n".join(f"  {fault}" for fault in faults))
    return found


def cameras_of(texts: Sequence[str]) -> list[dict[str, Any]]:
    """`[[cameras]]` tables from `name=source` or `source` texts; those without a name are numbered."""
    tables: list[dict[str, Any]] = []
    for text in filter(None, map(str.strip, texts)):
        name, equals, source = text.partition("=")
        named = bool(equals) and name.replace("-", "").isalnum() and name == name.lower()
        tables.append({"name": name if named else f"camera-{len(tables) + 1}", "source": source if named else text})
    return tables


def file_name(label: str) -> str:
    """A label as a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip(".-") or "board"
