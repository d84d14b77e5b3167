"""Invitations, certificates and states of devices in the catalogue.

In: hashes of tokens and keys, decisions of `identity/claims.py`. Out: rows, and a line in the event log for each change. It issues
no certificate and knows no token.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from bowerbird_server.catalogue import fleet, rollouts
from bowerbird_server.catalogue.core import Catalogue, Row, new_id, utc_now, utc_text
from bowerbird_server.errors import Conflict, EnvironmentFault, NotFound
from bowerbird_server.identity.clones import Remembered
from bowerbird_server.identity.states import Happening, State, after
from bowerbird_server.privacy.deletion_log import DeletionLog

log = logging.getLogger(__name__)

ALARM = "alarm"  # the kind of events that a person must look at


def text_of(at: datetime) -> str:
    """An aware time as the catalogue keeps it."""
    return utc_text(at.timestamp() * 1000)


def time_of(text: str) -> datetime:
    """An aware time from the catalogue's text."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def alarm(cat: Catalogue, subject: str, why: str, facts: Mapping[str, Any] | None = None) -> None:
    """Something that a person must look at; call it inside the transaction that notices it."""
    cat.log("identity", ALARM, subject, {"why": why, **(facts or {})})


# --- invitations ---------------------------------------------------------------------------------------------------------


def invite(
    cat: Catalogue,
    token_sha256: str,
    *,
    site: str,
    label: str,
    serial: str,
    device: str | None,
    approved: bool,
    now: datetime,
    expires: datetime,
    actor: str,
    setup: Mapping[str, Any] | None = None,
) -> Row:
    """A new invitation; open ones for the same device are withdrawn.

    Args:
        setup: what a board that has no bundle is told with its certificate; forgotten when the token would be too late.
    """
    identity = new_id()
    with cat.transaction():
        cat.execute("UPDATE invitation SET setup = '' WHERE setup <> '' AND expires_at < ?", text_of(now))
        if device is not None:
            cat.execute("UPDATE invitation SET state = 'withdrawn' WHERE device = ? AND state = 'open'", device)
        cat.insert(
            "invitation",
            {
                "id": identity,
                "token_sha256": token_sha256,
                "site": site,
                "label": label,
                "serial": serial,
                "device": device,
                "approved": int(approved),
                "created_at": text_of(now),
                "expires_at": text_of(expires),
                "setup": json.dumps(setup, sort_keys=True) if setup else "",
            },
        )
        cat.log(actor, "device invited", device or identity, {"label": label, "serial": serial, "approved": approved})
    found = cat.row("SELECT * FROM invitation WHERE id = ?", identity)
    assert found is not None  # noqa: S101 - it was just written
    return found


def invitation(cat: Catalogue, token_sha256: str) -> Row | None:
    """The invitation with this token."""
    return cat.row("SELECT * FROM invitation WHERE token_sha256 = ?", token_sha256)


def invitations(cat: Catalogue) -> list[Row]:
    """All invitations that are open, newest first, without their hashes."""
    return cat.rows(
        "SELECT id, site, label, serial, device, approved, created_at, expires_at FROM invitation "
        "WHERE state = 'open' ORDER BY id DESC"
    )


def note_claimed(cat: Catalogue, invitation_id: str, device: str, key_sha256: str, now: datetime) -> None:
    """The invitation belongs to this key from now on."""
    cat.execute(
        "UPDATE invitation SET state = 'claimed', device = ?, key_sha256 = ?, claimed_at = ? WHERE id = ?",
        device,
        key_sha256,
        text_of(now),
        invitation_id,
    )


# --- devices -------------------------------------------------------------------------------------------------------------


def add_pending(cat: Catalogue, device: str, *, site: str, label: str, serial: str, actor: str) -> None:
    """A device that is not trusted yet."""
    with cat.transaction():
        fleet.add_device(cat, device, site, actor)
        cat.execute("UPDATE device SET state = 'pending', label = ?, serial = ? WHERE id = ?", label, serial, device)


def note_serial(cat: Catalogue, device: str, serial: str) -> None:
    """What the board says of itself."""
    if serial:
        cat.execute("UPDATE device SET serial = ? WHERE id = ?", serial, device)


def other_with_serial(cat: Catalogue, serial: str, device: str) -> str | None:
    """Another device with this serial number that is not retired."""
    if not serial:
        return None
    found = cat.value(
        "SELECT id FROM device WHERE serial = ? AND id <> ? AND state <> 'retired' ORDER BY created_at LIMIT 1", serial, device
    )
    return None if found is None else str(found)


def change_state(cat: Catalogue, device: str, happening: Happening, actor: str, why: str = "") -> State:
    """Move a device on in its life; returns the new state.

    Raises:
        NotFound: there is no such device.
        Conflict: that cannot happen to a device in its state.
    """
    with cat.transaction():
        before = str(fleet.get(cat, device)["state"])
        new = after(before, happening)
        if new is None:
            if happening is Happening.RETIRED and before == State.RETIRED:
                return State.RETIRED
            raise Conflict(f"{device} is {before} and cannot be {happening.value}; `bowerbird devices show {device}` says more")
        cat.execute(
            "UPDATE device SET state = ?, state_why = ?, online = iif(? = 'active', online, 0) WHERE id = ?",
            new.value,
            why,
            new.value,
            device,
        )
        if happening is Happening.RESUMED:
            cat.execute("UPDATE device SET sightings = '{}' WHERE id = ?", device)
        if new is State.ACTIVE:
            rollouts.join(cat, device)
        cat.log(actor, f"device {happening.value}", device, {"from": before, "to": new.value, "why": why})
    if happening is not Happening.APPROVED:
        _remember(cat, device, new)
    return new


def _remember(cat: Catalogue, device: str, state: State) -> None:
    """Note beside the catalogue who was shut out, or let in again: a restored backup must not bring back who was revoked since.

    A disk that refuses does not keep anybody in.
    """
    at = utc_now()
    entry = {"kind": "device", "id": f"{device} {at}", "device": device, "state": state.value, "at": at}
    try:
        DeletionLog.beside(cat.path).append([{**entry, "site": fleet.get(cat, device)["site"]}])
    except EnvironmentFault as error:
        log.warning("device %s is %s, and a backup older than this would not know: %s", device, state.value, error)


def shut_out_again(cat: Catalogue, entries: Iterable[Mapping[str, Any]], actor: str) -> None:
    """Carry out what the log of deletions says of devices on a catalogue that is older; the newest entry of each counts.

    A device that the catalogue does not know gets a row, so that it is not taken for one that only came later.
    """
    newest = {str(entry["device"]): entry for entry in sorted(entries, key=lambda entry: str(entry["at"]))}
    for device, entry in newest.items():
        state = State(entry["state"])
        if state not in (State.SUSPENDED, State.RETIRED):
            continue
        with cat.transaction():
            if cat.value("SELECT 1 FROM device WHERE id = ?", device) is None:
                fleet.add_device(cat, device, str(entry["site"]), actor)
            before = str(fleet.get(cat, device)["state"])
            if before in (state, State.RETIRED):
                continue
            why = f"{state.value} on {entry['at']}, after the backup"
            cat.execute("UPDATE device SET state = ?, state_why = ?, online = 0 WHERE id = ?", state.value, why, device)
            cat.log(actor, f"device {state.value}", device, {"from": before, "to": state.value, "why": why})


def replace(cat: Catalogue, old: str, new: str, actor: str) -> None:
    """`new` stands where `old` stood: the same cameras, another device; `old` retires.

    Raises:
        NotFound: there is no such device.
        Conflict: they are the same, or `old` is not of the same site.
    """
    with cat.transaction():
        before, now = fleet.get(cat, old), fleet.get(cat, new)
        if old == new or before["site"] != now["site"]:
            raise Conflict(f"{new} cannot replace {old}: they must be two devices of one site")
        cat.execute("UPDATE device SET replaces = ? WHERE id = ?", old, new)
        cat.execute(
            "UPDATE camera SET place = (SELECT old.place FROM camera AS old WHERE old.device = ?1 AND old.name = camera.name) "
            "WHERE device = ?2 AND name IN (SELECT name FROM camera WHERE device = ?1)",
            old,
            new,
        )
        change_state(cat, old, Happening.RETIRED, actor, f"replaced by {new}")
        cat.log(actor, "device replaced", old, {"by": new})


# --- certificates --------------------------------------------------------------------------------------------------------


def newest_certificate(cat: Catalogue, device: str) -> Row | None:
    """The certificate with the highest generation that was issued to a device."""
    return cat.row("SELECT * FROM certificate WHERE device = ? ORDER BY generation DESC LIMIT 1", device)


def certificates(cat: Catalogue, device: str) -> list[Row]:
    """All of a device's certificates, newest first, without the text."""
    return cat.rows(
        "SELECT generation, key_sha256, issued_at, not_after, seen_at FROM certificate WHERE device = ? ORDER BY generation DESC",
        device,
    )


def generation_of_key(cat: Catalogue, device: str, key_sha256: str) -> int:
    """Which of a device's certificates was for this key, 0 for none."""
    found = cat.value("SELECT generation FROM certificate WHERE device = ? AND key_sha256 = ?", device, key_sha256)
    return 0 if found is None else int(found)


def put_certificate(
    cat: Catalogue, device: str, generation: int, *, key_sha256: str, pem: str, now: datetime, not_after: datetime
) -> None:
    """A certificate was issued; one of the same generation, which was never used, gives way."""
    with cat.transaction():
        cat.execute("DELETE FROM certificate WHERE device = ? AND generation = ?", device, generation)
        cat.insert(
            "certificate",
            {
                "device": device,
                "generation": generation,
                "key_sha256": key_sha256,
                "pem": pem,
                "issued_at": text_of(now),
                "not_after": text_of(not_after),
            },
        )
        cat.log("identity", "certificate issued", device, {"generation": generation, "key": key_sha256[:16]})


def note_seen(cat: Catalogue, device: str, generation: int) -> None:
    """The device has used this certificate."""
    cat.execute(
        "UPDATE certificate SET seen_at = ? WHERE device = ? AND generation = ? AND seen_at IS NULL",
        utc_now(),
        device,
        generation,
    )


def has_signed(cat: Catalogue, device: str) -> bool:
    """Whether a device is known to sign its reports."""
    return bool(cat.value("SELECT signs_reports FROM device WHERE id = ?", device))


def note_signs(cat: Catalogue, device: str, *, signs: bool) -> None:
    """Remember whether a device signs its reports."""
    cat.execute("UPDATE device SET signs_reports = ?1 WHERE id = ?2 AND signs_reports <> ?1", int(signs), device)


def remembered(cat: Catalogue, device: str) -> Remembered:
    """What is kept of a device's connections."""
    text = cat.value("SELECT sightings FROM device WHERE id = ?", device)
    if text is None:
        raise NotFound(f"no device {device[:80]!r}")
    return Remembered.from_plain(json.loads(text))


def remember(cat: Catalogue, device: str, what: Remembered) -> None:
    """Keep it."""
    cat.execute("UPDATE device SET sightings = ? WHERE id = ?", json.dumps(what.to_plain(), sort_keys=True), device)


def forget_tokens(cat: Catalogue) -> int:
    """After a restore: no invitation of before is good; returns how many were open."""
    return cat.execute("UPDATE invitation SET state = 'withdrawn' WHERE state = 'open'")


def alarms(cat: Catalogue, *, limit: int = 50, since: datetime | None = None, subject: str | None = None) -> list[Row]:
    """The newest alarms, of one subject if that is named: `at`, `subject`, `why` as a dictionary."""
    rows = cat.rows(
        "SELECT at, subject, why FROM event WHERE kind = ?1 AND at >= ?2 AND (?3 IS NULL OR subject = ?3) ORDER BY id DESC LIMIT ?4",
        *(ALARM, "" if since is None else text_of(since), subject, limit),
    )
    return [{**row, "why": json.loads(row["why"])} for row in rows]
