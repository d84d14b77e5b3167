"""What is wished of each device's configuration, and what the device made of it.

In: `Reported` messages; wishes are written by `config_changes.py`. Out: rows, and what each device should hold. It publishes nothing
(`delivery.py` does).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from bowerbird_server.catalogue import device_groups, fleet
from bowerbird_server.catalogue.core import Catalogue, Row, utc_now
from bowerbird_wire.messages import Reported

_MOST_VERSIONS = 2**53
_MOST_FAULTS = 32
_NEVER: Mapping[str, Any] = {
    "version": 0,
    "document": "{}",
    "campaigns_version": 0,
    "reported": "{}",
    "reported_at": None,
}


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
        "tags": device_groups.tags_of(cat, device),
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
