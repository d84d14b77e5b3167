"""What is wished of each device's configuration, the changes on their way, and what devices made of them.

In: operators' changes, `Reported` messages. Out: rows, each change with its event. It publishes nothing (`delivery.py` does).
A change to many devices goes in waves by the rules of a rollout (`rollout.py`): the next wave opens when the one before is in force,
and refusals or devices that fell back pause it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from bowerbird_server import device_config as rules
from bowerbird_server.catalogue import fleet
from bowerbird_server.catalogue.core import Catalogue, Row, new_id, utc_now
from bowerbird_server.errors import BadInput, Conflict, NotFound
from bowerbird_server.rollout import (
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
from bowerbird_server.rollout import advance as next_state
from bowerbird_wire.errors import TopicError
from bowerbird_wire.messages import Reported
from bowerbird_wire.topics import check_name

ACTOR = "delivery"
_MOST_VERSIONS = 2**53
_MOST_FAULTS = 32
_NEVER: Mapping[str, Any] = {
    "version": 0,
    "document": "{}",
    "campaigns_version": 0,
    "reported": "{}",
    "reported_at": None,
}
# State in the device's report -> state of its part in the change.
_OUTCOMES = {"in_force": SUCCEEDED, "trial": "trial", "refused": FAILED, "fell_back": FAILED}


# --- which devices -----------------------------------------------------------------------------------------------------


def tag(cat: Catalogue, device: str, tags: Sequence[str], actor: str, *, remove: bool = False) -> list[str]:
    """Add tags to a device or take them away; returns all it has.

    Raises:
        NotFound: no such device.
        BadInput: a tag that is no name.
    """
    with cat.transaction():
        fleet.get(cat, device)
        for name in tags:
            try:
                check_name(name, "tag")
            except TopicError as error:
                raise BadInput(str(error)) from error
            if remove:
                cat.execute("DELETE FROM device_tag WHERE device = ? AND tag = ?", device, name)
            else:
                cat.insert("device_tag", {"device": device, "tag": name}, ignore=True)
        if tags:
            cat.log(actor, "device untagged" if remove else "device tagged", device, {"tags": list(tags)})
    return tags_of(cat, device)


def tags_of(cat: Catalogue, device: str) -> list[str]:
    """The tags of a device, sorted."""
    return [row["tag"] for row in cat.rows("SELECT tag FROM device_tag WHERE device = ? ORDER BY tag", device)]


def resolve(
    cat: Catalogue,
    names: Sequence[str] = (),
    *,
    site: str | None = None,
    tagged: str | None = None,
    everyone: bool = False,
) -> list[str]:
    """The active devices that an operator means, sorted: by name, of a site, with a tag, or all of them.

    Raises:
        BadInput: nothing was named, or names together with a group.
        NotFound: a name that is no active device, or a group without any.
    """
    groups = [site is not None, tagged is not None, everyone]
    if not names and not any(groups):
        raise BadInput("name devices, or a group of them: --site, --tag or --all")
    if names and any(groups):
        raise BadInput("name devices or a group of them, not both")
    active = fleet.active_devices(cat)
    unknown = sorted(set(names) - active.keys())
    if unknown:
        raise NotFound(f"no active device {', '.join(unknown)[:200]}; `bowerbird devices list` shows all")
    if names:
        return sorted(set(names))
    tagged_ones = {row["device"] for row in cat.rows("SELECT device FROM device_tag WHERE tag = ?", tagged)}
    found = [
        device
        for device, its_site in active.items()
        if (site is None or its_site == site) and (tagged is None or device in tagged_ones)
    ]
    if not found:
        raise NotFound("there is no active device in that group; `bowerbird devices list` shows all")
    return sorted(found)


# --- changes -----------------------------------------------------------------------------------------------------------


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
            rules.check(rules.merged(document(cat, device), patch))
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
                "settings": json.dumps(dataclasses.asdict(settings)),
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
        settings = Settings(**{**json.loads(row["settings"]), "wave_shares": tuple(json.loads(row["settings"])["wave_shares"])})
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
    row = standing(cat, device)
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


# --- what stands -------------------------------------------------------------------------------------------------------


def standing(cat: Catalogue, device: str) -> Row:
    """The row of a device, as if there were one where nothing was ever wished."""
    return cat.row("SELECT * FROM device_config WHERE device = ?", device) or {"device": device, **_NEVER}


def document(cat: Catalogue, device: str) -> dict[str, Any]:
    """What is wished of a device now."""
    found: dict[str, Any] = json.loads(standing(cat, device)["document"])
    return found


def show(cat: Catalogue, device: str) -> Row:
    """Wish and report of a device: version, document, state, what differs.

    Raises:
        NotFound: no such device.
    """
    fleet.get(cat, device)
    row = standing(cat, device)
    reported = json.loads(row["reported"])
    return {
        "device": device,
        "tags": tags_of(cat, device),
        "version": row["version"],
        "document": json.loads(row["document"]),
        "state": state_of(row["version"], reported),
        "in_force": reported.get("in_force", 0),
        "faults": list(reported.get("faults", ())),
        "differs": list(reported.get("differs", ())),
        "campaign_faults": dict(reported.get("campaign_faults", {})),
        "reported_at": row["reported_at"],
    }


def reported_of(cat: Catalogue, device: str) -> dict[str, Any]:
    """The newest report of a device by field name, {} for none."""
    found: dict[str, Any] = json.loads(standing(cat, device)["reported"])
    return found


def state_of(version: int, reported: Mapping[str, Any]) -> str:
    """none, unknown (the device holds a wish that this catalogue knows nothing of), waiting (it has not answered to this version), or
    what it says: trial, in_force, refused, fell_back."""
    if version == 0:
        return "unknown" if reported.get("config_version", 0) else "none"
    return str(reported.get("state", "waiting")) if reported.get("config_version", 0) >= version else "waiting"


def document_in_force(cat: Catalogue, device: str) -> dict[str, Any]:
    """The document that the device says it runs with, as far as the history knows it; {} for agent.toml alone."""
    version = show(cat, device)["in_force"]
    text = cat.value("SELECT document FROM config_history WHERE device = ? AND version = ? ORDER BY id DESC", device, version)
    return {} if text is None else dict(json.loads(text))


def history(cat: Catalogue, device: str, limit: int = 50) -> list[Row]:
    """Every wish of a device, newest first, `document` decoded.

    Raises:
        NotFound: no such device.
    """
    fleet.get(cat, device)
    rows = cat.rows("SELECT * FROM config_history WHERE device = ? ORDER BY id DESC LIMIT ?", device, limit)
    return [{**row, "document": json.loads(row["document"])} for row in rows]


def wishes(cat: Catalogue) -> dict[str, tuple[int, Mapping[str, Any], int]]:
    """Device -> version, document, campaigns' version, of all that were ever wished anything."""
    rows = cat.rows("SELECT device, version, document, campaigns_version FROM device_config")
    return {row["device"]: (row["version"], _parsed(row["document"]), row["campaigns_version"]) for row in rows}


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Mapping[str, Any]:
    """Devices share documents, and delivery looks twice a second. Treat it as frozen."""
    found: dict[str, Any] = json.loads(text)
    return found


def states(cat: Catalogue) -> dict[str, int]:
    """State of the newest wish -> active devices, of those that were ever wished something."""
    found: dict[str, int] = {}
    rows = cat.rows(
        "SELECT version, reported FROM device_config JOIN device ON device.id = device_config.device "
        "WHERE device.state = 'active' AND version > 0"
    )
    for row in rows:
        state = state_of(row["version"], json.loads(row["reported"]))
        found[state] = found.get(state, 0) + 1
    return found


def bump_campaigns(cat: Catalogue, device: str) -> int:
    """The device's shares of campaigns are said anew; returns under which version."""
    cat.execute(
        "INSERT INTO device_config (device, campaigns_version) VALUES (?, 1) "
        "ON CONFLICT (device) DO UPDATE SET campaigns_version = campaigns_version + 1",
        device,
    )
    version: int = cat.value("SELECT campaigns_version FROM device_config WHERE device = ?", device)
    return version


def record(cat: Catalogue, device: str, reported: Reported) -> bool:
    """Note what a device made of its wish; returns whether that is news. Campaigns are noted by `campaigns.record`."""
    if max(reported.config_version, reported.campaigns_version) > _MOST_VERSIONS:
        return False  # no device comes by such a number honestly, and one more would not fit a column
    text = json.dumps(_kept(reported), sort_keys=True)
    with cat.transaction():
        row = standing(cat, device)
        if row["reported"] == text and row["reported_at"] is not None:
            return False
        before = json.loads(row["reported"])
        # The catalogue is older than the device (it was restored): what it wishes must count as newer there. One that was built
        # again knows of no wish, and must not take away what it has forgotten.
        is_older = 0 < row["version"] < reported.config_version
        version = reported.config_version + 1 if is_older else row["version"]
        campaigns_version = max(
            row["campaigns_version"],
            reported.campaigns_version + 1 if reported.campaigns_version > row["campaigns_version"] else 0,
        )
        cat.execute(
            "INSERT INTO device_config (device, version, campaigns_version, reported, reported_at) VALUES (?1, ?2, ?3, ?4, ?5) "
            "ON CONFLICT (device) DO UPDATE SET version = ?2, campaigns_version = ?3, reported = ?4, reported_at = ?5",
            device,
            version,
            campaigns_version,
            text,
            utc_now(),
        )
        if (before.get("config_version"), before.get("state")) != (reported.config_version, reported.state):
            kept = _kept(reported)
            why = {key: kept[key] for key in ("config_version", "in_force", "faults")}
            cat.log(device, f"configuration {kept['state'].replace('_', ' ')}", device, why)
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


def _kept(reported: Reported) -> dict[str, Any]:
    """The report as it is kept: no more than an honest device says."""
    return {
        "config_version": reported.config_version,
        "in_force": reported.in_force,
        "state": reported.state[:20],
        "digest": reported.digest[:32].hex(),
        "faults": [fault[:300] for fault in reported.faults[:_MOST_FAULTS]],
        "differs": [path[:300] for path in reported.differs[:_MOST_FAULTS]],
        "campaigns_version": reported.campaigns_version,
        "campaigns": {name[:63]: list(taken) for name, taken in list(reported.campaigns.items())[:_MOST_FAULTS]},
        "campaign_faults": {name[:63]: why[:300] for name, why in list(reported.campaign_faults.items())[:_MOST_FAULTS]},
    }


def after_restore(cat: Catalogue, by: int) -> None:
    """Every wish counts as newer than what its device may hold; what waited in changes is not carried on by itself."""
    cat.execute("UPDATE device_config SET version = version + ? WHERE version > 0", by)
    cat.execute("UPDATE device_config SET campaigns_version = campaigns_version + ? WHERE campaigns_version > 0", by)
    cat.execute("UPDATE config_change SET state = 'paused' WHERE state = 'running'")
