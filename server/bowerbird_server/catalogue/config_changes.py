"""Changes of devices' configuration on their way: which devices have a wish, in which wave the others follow.

In: operators' changes, `Reported` messages. Out: rows, each step with its event. It publishes nothing (`delivery.py` does).
A change to many devices goes in waves by the rules of a rollout (`rollout.py`): the next wave opens when the one before is in force,
and refusals or devices that fell back pause it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from bowerbird_server.catalogue import device_config
from bowerbird_server.catalogue.core import Catalogue, Row, new_id, utc_now
from bowerbird_server.errors import BadInput, Conflict, NotFound
from bowerbird_server.fleet import device_config as rules
from bowerbird_server.fleet.rollout import (
    CANCELLED,
    FAILED,
    OFFERED,
    SUCCEEDED,
    TIMED_OUT,
    WAITING,
    Event,
    Execution,
    IllegalTransition,
    Settings,
    State,
    accepts,
    assign_waves,
    decide,
)
from bowerbird_server.fleet.rollout import advance as next_state
from bowerbird_wire.messages import Reported

ACTOR = "delivery"
# State in the device's report -> state of its part in the change.
_OUTCOMES = {"in_force": SUCCEEDED, "trial": "trial", "refused": FAILED, "fell_back": FAILED}


def change(cat: Catalogue, devices: Sequence[str], patch: Mapping[str, Any], actor: str, *, at_once: bool = False) -> str:
    """Begin a change of these devices' documents; a running server carries it out, wave by wave.

    Devices that are not connected come last: nobody learns anything from waiting for them first.

    Args:
        patch: as `device_config.merged` takes it.
        at_once: no waves.

    Returns:
        The change's id.

    Raises:
        BadInput: no devices, or a document that no device would look at.
    """
    if not devices:
        raise BadInput("a change needs at least one device")
    rules.check(patch.get("set", {}))
    settings = rules.settings_for(len(devices), at_once=at_once)
    identity, now = new_id(), utc_now()
    with cat.transaction():
        for device in devices:
            rules.check(rules.merged(device_config.document(cat, device), patch))
        online = {row["id"] for row in cat.rows("SELECT id FROM device WHERE online = 1")}
        waves = assign_waves(identity, [d for d in devices if d in online], settings.wave_shares)
        last = max(waves.values(), default=0)
        cat.insert(
            "config_change",
            {
                "id": identity,
                "at": now,
                "actor": actor,
                "patch": json.dumps(patch, sort_keys=True),
                "settings": settings.to_json(),
                "state": State.RUNNING.value,
            },
        )
        cat.insert_many(
            "config_change_device",
            [
                {
                    "change": identity,
                    "device": device,
                    "wave": waves.get(device, last),
                    "state": WAITING,
                    "updated_at": now,
                }
                for device in sorted(set(devices))
            ],
        )
        cat.log(actor, "configuration change", identity, {"devices": len(set(devices)), "patch": dict(patch)})
    return identity


def advance(cat: Catalogue) -> list[str]:
    """Carry changes on by a step each; returns those that moved."""
    moved = []
    for row in cat.rows("SELECT * FROM config_change WHERE state = 'running' ORDER BY id"):
        settings = Settings.from_json(row["settings"])
        members = cat.rows("SELECT * FROM config_change_device WHERE change = ? ORDER BY wave, device", row["id"])
        decision = decide([_execution(member) for member in members], settings)
        if not (decision.offer or decision.timed_out or decision.event):
            continue
        moved.append(row["id"])
        with cat.transaction():
            for device in decision.timed_out:
                _set_part(cat, row["id"], device, TIMED_OUT)
            for device in decision.offer:
                version = _wish(cat, device, json.loads(row["patch"]), row["actor"], row["id"])
                _set_part(cat, row["id"], device, OFFERED, version=version)
            if decision.event is not None:
                move(cat, row["id"], decision.event, ACTOR, decision.why)
    return moved


def move(cat: Catalogue, identity: str, event: Event, actor: str, why: Mapping[str, Any] | None = None) -> None:
    """Pause, resume, abort or complete a change.

    Raises:
        NotFound: no such change.
        Conflict: its state does not allow it.
    """
    with cat.transaction():
        row = get_change(cat, identity)
        try:
            state = next_state(State(row["state"]), event)
        except IllegalTransition as error:
            raise Conflict(str(error).replace("a rollout", "a change")) from error
        if event is Event.RESUME:
            # Whoever goes on has looked at the failures: they are no reason to stop again.
            cat.execute(
                "UPDATE config_change_device SET state = ? WHERE change = ? AND state IN (?, ?)",
                CANCELLED,
                row["id"],
                FAILED,
                TIMED_OUT,
            )
        if state is State.ABORTED:
            cat.execute(
                "UPDATE config_change_device SET state = ? WHERE change = ? AND state = ?", CANCELLED, row["id"], WAITING
            )
        cat.execute(
            "UPDATE config_change SET state = ?, why = ? WHERE id = ?", state.value, json.dumps(dict(why or {})), row["id"]
        )
        cat.log(actor, f"configuration change {state.value}", row["id"], why)


def get_change(cat: Catalogue, identity: str) -> Row:
    """A change with `patch` and `why` decoded and its `devices`; the beginning of the id is enough where it is unique.

    Raises:
        NotFound: no such change.
    """
    found = cat.starting_with("config_change", "id", identity)
    if len(found) != 1:
        raise NotFound(f"no change {identity[:80]!r}; `bowerbird devices config changes` shows all")
    return _decoded(cat, found[0])


def changes(cat: Catalogue, limit: int = 50) -> list[Row]:
    """The newest changes first, each with its `devices`."""
    return [_decoded(cat, row) for row in cat.rows("SELECT * FROM config_change ORDER BY id DESC LIMIT ?", limit)]


def _decoded(cat: Catalogue, row: Row) -> Row:
    members = cat.rows("SELECT * FROM config_change_device WHERE change = ? ORDER BY wave, device", row["id"])
    return {
        **row,
        "patch": json.loads(row["patch"]),
        "settings": json.loads(row["settings"]),
        "why": json.loads(row["why"]),
        "devices": members,
    }


def _execution(member: Row) -> Execution:
    age_s = (datetime.now(UTC) - datetime.fromisoformat(member["updated_at"])).total_seconds()
    return Execution(member["device"], member["wave"], member["state"], age_s, member["code"])


def _set_part(
    cat: Catalogue, identity: str, device: str, state: str, *, version: int | None = None, code: str = "", detail: str = ""
) -> None:
    cat.execute(
        "UPDATE config_change_device SET state = ?, version = coalesce(?, version), code = ?, detail = ?, updated_at = ? "
        "WHERE change = ? AND device = ?",
        state,
        version,
        code,
        detail[:500],
        utc_now(),
        identity,
        device,
    )


def _wish(cat: Catalogue, device: str, patch: Mapping[str, Any], actor: str, change_id: str) -> int:
    """Apply a patch to a device's document; returns the new version."""
    row = device_config.standing(cat, device)
    new = rules.merged(json.loads(row["document"]), patch)
    version: int = max(row["version"], int(json.loads(row["reported"]).get("config_version", 0))) + 1
    text = json.dumps(new, sort_keys=True)
    cat.execute(
        "INSERT INTO device_config (device, version, document) VALUES (?1, ?2, ?3) "
        "ON CONFLICT (device) DO UPDATE SET version = ?2, document = ?3",
        device,
        version,
        text,
    )
    # An older change that still waits for this device's answer will never hear of its version again.
    cat.execute(
        "UPDATE config_change_device SET state = ? WHERE device = ? AND change != ? AND state IN (?, 'trial')",
        CANCELLED,
        device,
        change_id,
        OFFERED,
    )
    cat.insert(
        "config_history",
        {
            "id": new_id(),
            "device": device,
            "version": version,
            "at": utc_now(),
            "actor": actor,
            "change": change_id,
            "document": text,
        },
    )
    cat.log(actor, "configuration wished", device, {"version": version, "change": change_id, "patch": dict(patch)})
    return version


def record(cat: Catalogue, device: str, reported: Reported) -> bool:
    """Note what a device made of its wish, and what that means for the change that it belongs to; returns whether it is news."""
    with cat.transaction():
        if not device_config.record(cat, device, reported):
            return False
        to = _OUTCOMES.get(reported.state)
        for part in cat.rows(
            "SELECT * FROM config_change_device WHERE device = ? AND version = ? AND version > 0",
            device,
            reported.config_version,
        ):
            if to is not None and part["state"] != to and part["state"] != CANCELLED and accepts(part["state"], to):
                code = reported.state if to == FAILED else ""
                _set_part(cat, part["change"], device, to, code=code, detail="; ".join(reported.faults))
    return True
