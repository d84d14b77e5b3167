"""Devices and cameras in the catalogue: who exists, what each last said, and what is wanted of it.

In: messages that devices sent, an operator's wishes. Out: rows, and the `Desired` message that a device should hold. It talks to
no broker; `delivery.py` does.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from bowerbird_server.catalogue import erasures
from bowerbird_server.catalogue.core import Catalogue, Row, utc_now, utc_text
from bowerbird_server.errors import BadInput, Conflict, NotFound
from bowerbird_server.fleet.device_trouble import trouble_of
from bowerbird_wire.errors import TopicError
from bowerbird_wire.messages import Desired, Health, Report, Status
from bowerbird_wire.topics import check_name

HEALTH_BUCKET_S = 10  # the history keeps the newest message of each bucket
HEALTH_FULL_HISTORY_H = 24  # and after this only the newest of each hour
_MOST_VERSIONS = 2**53  # no site says its wishes so often; a device that claims to hold a later one lies
_DEEPEST = 16
# What a health message says beside its own fields, and pages, metrics and the loop look up by key: nothing but a table will do.
_TABLES = ("window", "runtime", "camera_dropped", "dry_run", "spent", "uplink", "tm")


def camera_id(device: str, camera: str) -> str:
    """The catalogue's id of a camera, `device/camera`."""
    return f"{device}/{camera}"


def add_device(cat: Catalogue, device: str, site: str, actor: str) -> Row:
    """A new device.

    Raises:
        BadInput: the device's or the site's name cannot stand in a topic.
        Conflict: there is a device of that name.
    """
    try:
        check_name(device, "device")
        check_name(site, "site")
    except TopicError as error:
        raise BadInput(str(error)) from error
    with cat.transaction():
        if not cat.insert("device", {"id": device, "site": site, "created_at": utc_now()}, ignore=True):
            raise Conflict(f"there is already a device {device!r}; choose another name or retire it first")
        cat.log(actor, "device added", device, {"site": site})
    return get(cat, device)


def get(cat: Catalogue, device: str) -> Row:
    """A device's row, `health` as a dictionary by field name.

    Raises:
        NotFound: there is no such device.
    """
    row = cat.row("SELECT * FROM device WHERE id = ?", device)
    if row is None:
        raise NotFound(f"no device {device[:80]!r}; `bowerbird devices list` shows all, `bowerbird devices add` makes one")
    return {**row, "health": json.loads(row["health"])}


def list_devices(cat: Catalogue, *, site: str | None = None, now: datetime | None = None) -> list[Row]:
    """All devices by name, each with `health` as a dictionary, `cameras` as a list of names, `certificate_until` and
    `certificate_from` (None without one) and
    `trouble`, a sentence or nothing.
    """
    rows = cat.rows(
        "SELECT device.*, (SELECT not_after FROM certificate WHERE certificate.device = device.id ORDER BY generation DESC LIMIT 1) "
        "AS certificate_until, (SELECT issued_at FROM certificate WHERE certificate.device = device.id "
        "ORDER BY generation DESC LIMIT 1) AS certificate_from FROM device WHERE ?1 IS NULL OR site = ?1 ORDER BY id",
        site,
    )
    cameras: dict[str, list[str]] = {}
    for camera in cat.rows("SELECT device, name FROM camera ORDER BY name"):
        cameras.setdefault(camera["device"], []).append(camera["name"])
    now = now or datetime.now(tz=UTC)
    return [
        {**row, "health": json.loads(row["health"]), "cameras": cameras.get(row["id"], []), "trouble": trouble_of(row, now)}
        for row in rows
    ]


def active_devices(cat: Catalogue) -> dict[str, str]:
    """The devices whose messages are taken: name -> site."""
    return {row["id"]: row["site"] for row in cat.rows("SELECT id, site FROM device WHERE state = 'active'")}


def expected_devices(cat: Catalogue) -> dict[str, str]:
    """Active devices, and those that are to become so: name -> site."""
    return {row["id"]: row["site"] for row in cat.rows("SELECT id, site FROM device WHERE state IN ('active', 'pending')")}


def shut_out(cat: Catalogue) -> list[str]:
    """The devices that were let in once and are not now."""
    return [row["id"] for row in cat.rows("SELECT id FROM device WHERE state IN ('suspended', 'retired') ORDER BY id")]


def touch_camera(cat: Catalogue, device: str, camera: str) -> str:
    """The id of a device's camera, with a row when it is new.

    Raises:
        sqlite3.IntegrityError: there is no such device.
    """
    identity = camera_id(device, camera)
    if cat.value("SELECT 1 FROM camera WHERE id = ?", identity) is None:
        # A board that replaces another stands in its place: what its cameras show goes on where theirs ended.
        replaced = cat.value(
            "SELECT camera.place FROM camera JOIN device ON camera.device = device.replaces WHERE device.id = ? AND name = ?",
            device,
            camera,
        )
        cat.insert("camera", {"id": identity, "device": device, "name": camera, "place": replaced or identity})
    return identity


def record_status(cat: Catalogue, device: str, status: Status) -> bool:
    """Note a device's presence; an event is logged when it changes. False when the device is unknown."""
    online = int(status.state == "online")
    with cat.transaction():
        before = cat.row("SELECT online, boot_id FROM device WHERE id = ?", device)
        if before is None:
            return False
        # The will knows only that the device is gone: what it says of model and version is as old as the connection.
        cat.execute(
            "UPDATE device SET online = ?, status_at = ?, boot_id = iif(? = '', boot_id, ?), agent_version = iif(? = '', "
            "agent_version, ?), model_digest = iif(? = '' OR ? = 0, model_digest, ?) WHERE id = ?",
            online,
            utc_now(),
            *(status.boot_id,) * 2,
            *(status.agent_version,) * 2,
            status.model_digest,
            online,
            status.model_digest,
            device,
        )
        if before["online"] != online or (online and before["boot_id"] != status.boot_id):
            cat.log(device, f"device {'online' if online else 'offline'}", device, {"boot_id": status.boot_id})
    return True


def mark_absent(cat: Catalogue, present: Collection[str]) -> list[str]:
    """Set every device offline that is called online and not `present`; returns their names."""
    with cat.transaction():
        gone = [row["id"] for row in cat.rows("SELECT id FROM device WHERE online = 1 ORDER BY id") if row["id"] not in present]
        for device in gone:
            cat.execute("UPDATE device SET online = 0 WHERE id = ?", device)
            cat.log("delivery", "device offline", device, {"why": "not connected since this server was"})
    return gone


def record_health(cat: Catalogue, device: str, health: Health) -> bool:
    """Keep a device's newest counters and one row a bucket for the history. False when the device is unknown."""
    now = utc_now()
    counters = json.dumps(_counters(health), sort_keys=True)
    with cat.transaction():
        version = cat.value("SELECT desired_version FROM device WHERE id = ?", device)
        if version is None:
            return False
        if 0 < version < health.desired_version < _MOST_VERSIONS:
            # The catalogue is older than the device (it was restored): say the wish again with a version that counts there.
            cat.execute("UPDATE device SET desired_version = ? WHERE id = ?", health.desired_version + 1, device)
        cat.execute(
            "UPDATE device SET health = ?, health_at = ?, model_digest = ? WHERE id = ?",
            counters,
            now,
            health.model_digest,
            device,
        )
        epoch_s = datetime.now(tz=UTC).timestamp() // HEALTH_BUCKET_S * HEALTH_BUCKET_S
        cat.execute(
            "INSERT INTO health (id, device, at, counters) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET at = excluded.at, counters = excluded.counters",
            f"{device}@{utc_text(epoch_s * 1000)}",
            device,
            now,
            counters,
        )
    return True


def _counters(health: Health) -> dict[str, Any]:
    """A health message by field name, with what cannot be read left out: one device must not spoil a page that shows them all."""
    plain: dict[str, Any] = _plain(health)
    extra: dict[str, Any] = plain["extra"]
    for name in _TABLES:
        if not isinstance(extra.get(name, {}), dict):
            del extra[name]
    if not isinstance(extra.get("dry_run", {}).get("strategies", {}), dict):
        del extra["dry_run"]
    return plain


def _plain(value: Any, depth: int = 0) -> Any:
    """What JSON can say of a value that a device made up: CBOR has keys of any kind, numbers that are none, and no bottom."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name), depth + 1) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping | list | tuple) and depth > _DEEPEST:
        return None
    if isinstance(value, Mapping):
        return {_text(key) or "": _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else None
    return value if value is None or isinstance(value, str) else _text(value)


def _text(value: Any) -> str | None:
    try:
        return str(value)
    except (ValueError, RecursionError):  # holds a number that is too long to be written
        return None


def thin_health(cat: Catalogue) -> int:
    """Leave one row an hour of history older than a day; returns how many rows went."""
    horizon = datetime.now(tz=UTC) - timedelta(hours=HEALTH_FULL_HISTORY_H)
    return cat.execute(
        "DELETE FROM health WHERE at < ?1 AND id NOT IN "
        "(SELECT id FROM (SELECT id, max(at) FROM health WHERE at < ?1 GROUP BY device, substr(at, 1, 13)))",
        utc_text(horizon.timestamp() * 1000),
    )


def health_history(cat: Catalogue, device: str, *, since: str = "", limit: int = 1000) -> list[Row]:
    """Rows `at`, `counters` (dictionary by field name of `Health`), oldest first, the newest `limit` of them."""
    rows = cat.rows(
        "SELECT at, counters FROM health WHERE device = ? AND at >= ? ORDER BY at DESC LIMIT ?", device, since, limit
    )
    return [{"at": row["at"], "counters": json.loads(row["counters"])} for row in reversed(rows)]


def record_running_model(cat: Catalogue, device: str, report: Report) -> bool:
    """Note which model a device says it runs, unless a later report has said so already. False when the device is unknown."""
    with cat.transaction():
        newest_ms = cat.value("SELECT reported_at_ms FROM device WHERE id = ?", device)
        if newest_ms is None:
            return False
        if report.at_ms < newest_ms:
            return True  # late, or somebody's copy
        cat.execute(
            "UPDATE device SET reported_at_ms = ?, model_digest = iif(? = '', model_digest, ?) WHERE id = ?",
            report.at_ms,
            *(report.running_digest,) * 2,
            device,
        )
    return True


def set_frames_total(cat: Catalogue, device: str, total: int | None, actor: str = "scheduler") -> int:
    """How many frames the device may have sent in all, None for no limit; returns the desired version (bumped on a change).

    Raises:
        NotFound: there is no such device.
        BadInput: a negative number.
    """
    if total is not None and total < 0:
        raise BadInput(f"frames_total of {device} must be 0 or more, or none for no limit")
    with cat.transaction():
        row = get(cat, device)
        version = int(row["desired_version"])
        if version and row["frames_total"] == total:
            return version
        version += 1
        cat.execute("UPDATE device SET frames_total = ?, desired_version = ? WHERE id = ?", total, version, device)
        cat.log(actor, "frames total", device, {"frames_total": total, "version": version})
        return version


def raise_desired_versions(cat: Catalogue, by: int) -> int:
    """After a restore: every wish counts as newer than what its device may hold; returns for how many devices.

    The configuration's and the campaigns' versions are raised by `device_config.after_restore`.
    """
    return cat.execute("UPDATE device SET desired_version = desired_version + ? WHERE desired_version > 0", by)


def desired(cat: Catalogue) -> dict[str, Desired]:
    """What is wanted of each active device; devices that nobody has asked for anything are left out."""
    erase = erasures.wishes(cat)
    rows = cat.rows("SELECT id, desired_version, frames_total FROM device WHERE state = 'active'")
    return {
        row["id"]: Desired(row["desired_version"], row["frames_total"], erase=erase.get(row["id"], ()))
        for row in rows
        if row["desired_version"] > 0 or row["id"] in erase
    }
