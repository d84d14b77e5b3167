"""Campaigns and each device's share of them.

In: operators' wishes, `Reported` messages, frames that came in. Out: rows, events, and the campaigns that each device should hold.
How a quota is divided is `campaign_shares.py`'s business; it publishes nothing (`delivery.py` does).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from bowerbird_server.catalogue import classes, device_config, device_groups, fleet
from bowerbird_server.catalogue.core import Catalogue, Row, utc_now, utc_text
from bowerbird_server.errors import BadInput, Conflict, NotFound
from bowerbird_server.fleet.campaign_shares import Holder, divide
from bowerbird_wire.messages import Campaign, Reported

ACTOR = "delivery"
_LEAST_BYTES = 10_000  # of a quota: below that no frame fits
_MOST_FRAMES = 1_000_000


@dataclass(frozen=True)
class Condition:
    """What is looked for; see `bowerbird_wire.messages.Campaign`."""

    class_name: str = ""
    at_least: float = 0.25
    below: float | None = None
    count_min: int = 1
    count_max: int | None = None
    cameras: tuple[str, ...] = ()
    hours: tuple[str, ...] = ()
    gap_s: float = 1.0


def start(
    cat: Catalogue,
    *,
    frames: int,
    size_bytes: int,
    until: datetime,
    condition: Condition,
    actor: str,
    devices: Sequence[str] = (),
    site: str | None = None,
    tagged: str | None = None,
    everyone: bool = False,
) -> str:
    """Begin a campaign; a running server divides it among the devices.

    Raises:
        BadInput: numbers that make no sense, an end that is over, a class that nobody knows.
        NotFound: no such device or group.
    """
    faults = _faults(cat, frames, size_bytes, until, condition)
    if faults:
        raise BadInput("the campaign cannot begin: " + "; ".join(faults))
    device_groups.resolve(cat, devices, site=site, tagged=tagged, everyone=everyone)
    identity = f"c{secrets.token_hex(4)}"
    scope = {"devices": sorted(set(devices)), "site": site, "tag": tagged, "all": everyone}
    with cat.transaction():
        cat.insert(
            "campaign",
            {
                "id": identity,
                "at": utc_now(),
                "actor": actor,
                "scope": json.dumps(scope, sort_keys=True),
                "condition": json.dumps(asdict(condition), sort_keys=True),
                "frames": frames,
                "bytes": size_bytes,
                "until": utc_text(until.timestamp() * 1000),
                "state": "running",
            },
        )
        why = {
            "frames": frames,
            "bytes": size_bytes,
            "until": until.isoformat(),
            "scope": scope,
            "condition": asdict(condition),
        }
        cat.log(actor, "campaign started", identity, why)
    return identity


def _faults(cat: Catalogue, frames: int, size_bytes: int, until: datetime, condition: Condition) -> list[str]:
    faults = []
    if not 1 <= frames <= _MOST_FRAMES:
        faults.append(f"frames is {frames}; it must be 1 to {_MOST_FRAMES}")
    if size_bytes < _LEAST_BYTES:
        faults.append(f"bytes is {size_bytes}; it must be at least {_LEAST_BYTES}")
    if until <= datetime.now(UTC):
        faults.append(f"its end, {until.isoformat()}, is over")
    if not 0 <= condition.at_least <= 1:
        faults.append(f"at-least is {condition.at_least}; it must be 0 to 1")
    if condition.below is not None and not condition.at_least < condition.below <= 1:
        faults.append(f"below is {condition.below}; it must be above at-least ({condition.at_least}) and at most 1")
    if condition.count_min < 0 or (condition.count_max is not None and condition.count_max < condition.count_min):
        faults.append("the counts must not be negative, and the most not below the least")
    if not 0 <= condition.gap_s <= 86_400:
        faults.append(f"gap is {condition.gap_s}; it must be 0 to 86400 seconds")
    known = classes.class_names(cat)
    if condition.class_name and known and condition.class_name not in known:
        faults.append(f"there is no class {condition.class_name!r}; there are {', '.join(known)[:300]}")
    return faults


def get(cat: Catalogue, identity: str) -> Row:
    """A campaign with its progress and `shares`; the beginning of the id is enough where it is unique.

    Raises:
        NotFound: no such campaign.
    """
    found = cat.starting_with("campaign", "id", identity)
    if len(found) != 1:
        raise NotFound(f"no campaign {identity[:80]!r}; `bowerbird campaigns list` shows all")
    shares = cat.rows("SELECT * FROM campaign_share WHERE campaign = ? ORDER BY device", found[0]["id"])
    return {**_decoded(cat, found[0]), "shares": shares}


def list_campaigns(cat: Catalogue, limit: int = 100) -> list[Row]:
    """The newest first, each with its progress."""
    return [_decoded(cat, row) for row in cat.rows("SELECT * FROM campaign ORDER BY at DESC, id LIMIT ?", limit)]


def stop(cat: Catalogue, identity: str, actor: str) -> None:
    """End a campaign before its time; frames that were taken are kept and still come.

    Raises:
        NotFound: no such campaign.
        Conflict: it does not run.
    """
    with cat.transaction():
        row = get(cat, identity)
        if row["state"] != "running":
            raise Conflict(f"campaign {row['id']} is {row['state']} already")
        _end(cat, row["id"], "stopped", actor)


def wished(cat: Catalogue) -> dict[str, tuple[Campaign, ...]]:
    """Device -> the campaigns that it should hold, its share of each."""
    found: dict[str, list[Campaign]] = {}
    rows = cat.rows(
        "SELECT campaign_share.*, campaign.condition, campaign.until FROM campaign_share "
        "JOIN campaign ON campaign.id = campaign_share.campaign WHERE campaign.state = 'running' ORDER BY campaign.at, campaign.id"
    )
    for row in rows:
        until_ms = int(datetime.fromisoformat(row["until"]).timestamp() * 1000)
        plain = json.loads(row["condition"])
        plain |= {key: tuple(plain[key]) for key in ("cameras", "hours")}
        found.setdefault(row["device"], []).append(Campaign(row["campaign"], row["frames"], row["bytes"], until_ms, **plain))
    return {device: tuple(campaigns) for device, campaigns in found.items()}


def record(cat: Catalogue, device: str, reported: Reported) -> None:
    """Note what a device has taken, and that it holds the shares it was told."""
    with cat.transaction():
        for campaign, (frames, size) in reported.campaigns.items():
            cat.execute(
                # A device that says more than it was ever given would hold up the whole fleet's quota.
                "UPDATE campaign_share SET frames_taken = min(frames_held, max(frames_taken, ?3)), "
                "bytes_taken = min(bytes_held, max(bytes_taken, ?4)) WHERE campaign = ?1 AND device = ?2",
                campaign,
                device,
                frames,
                size,
            )
        cat.execute(
            "UPDATE campaign_share SET acked = 1, frames_held = max(frames, frames_taken), bytes_held = max(bytes, bytes_taken) "
            "WHERE device = ? AND version <= ?",
            device,
            reported.campaigns_version,
        )


def advance(cat: Catalogue, *, turn: bool = False) -> list[str]:
    """End what is over and divide what runs; returns the devices that are told something new.

    Args:
        turn: idle devices get a turn (`campaign_shares.divide`).
    """
    told: set[str] = set()
    now = utc_now()
    for row in cat.rows("SELECT * FROM campaign WHERE state = 'running' ORDER BY at, id"):
        with cat.transaction():
            received, _ = _received(cat, row["id"])
            if row["until"] <= now or received >= row["frames"]:
                told |= _end(cat, row["id"], "finished" if received >= row["frames"] else "expired", ACTOR)
            else:
                told |= _divide(cat, row, turn=turn)
    return sorted(told)


def _divide(cat: Catalogue, row: Row, *, turn: bool) -> set[str]:
    scope = json.loads(row["scope"])
    try:
        devices = device_groups.resolve(cat, scope["devices"], site=scope["site"], tagged=scope["tag"], everyone=scope["all"])
    except NotFound:  # all retired by now, or one of those named
        active = fleet.active_devices(cat)
        devices = [device for device in scope["devices"] if device in active]
    shares = {share["device"]: share for share in cat.rows("SELECT * FROM campaign_share WHERE campaign = ?", row["id"])}
    for device in devices:
        if device not in shares:
            cat.insert("campaign_share", {"campaign": row["id"], "device": device, "acked": 1})
            shares[device] = {**dict.fromkeys(_COLUMNS, 0), "device": device, "acked": 1}
    # Devices out of reach keep what they hold: it may still come.
    average = max(1, row["bytes"] // row["frames"])
    new: dict[str, dict[str, int]] = {}
    for what, unit, low in (("frames", 1, 0), ("bytes", 2 * average, average)):
        holders = [_holder(share, what) for share in shares.values()]
        for device, share in divide(row[what], holders, unit=unit, low=low, turn=turn).items():
            if device in devices:
                new.setdefault(device, {})[what] = share
    for device, changed in new.items():
        before = shares[device]
        version = device_config.bump_campaigns(cat, device)
        values = {what: changed.get(what, before[what]) for what in ("frames", "bytes")}
        gave = {what: int(values[what] < before[what]) if what in changed else before[f"{what}_gave"] for what in values}
        cat.execute(
            "UPDATE campaign_share SET version = ?, acked = 0, frames = ?, frames_held = max(frames_held, ?), frames_gave = ?, "
            "bytes = ?, bytes_held = max(bytes_held, ?), bytes_gave = ? WHERE campaign = ? AND device = ?",
            version,
            values["frames"],
            values["frames"],
            gave["frames"],
            values["bytes"],
            values["bytes"],
            gave["bytes"],
            row["id"],
            device,
        )
    return set(new)


_COLUMNS = (
    "version",
    "acked",
    *(f"{what}{part}" for what in ("frames", "bytes") for part in ("", "_held", "_taken", "_gave")),
)


def _holder(share: Mapping[str, Any], what: str) -> Holder:
    return Holder(
        share["device"],
        share[what],
        share[f"{what}_held"],
        share[f"{what}_taken"],
        bool(share["acked"]),
        bool(share[f"{what}_gave"]),
    )


def _end(cat: Catalogue, identity: str, state: str, actor: str) -> set[str]:
    received, size = _received(cat, identity)
    cat.execute("UPDATE campaign SET state = ?, ended_at = ? WHERE id = ?", state, utc_now(), identity)
    cat.log(actor, f"campaign {state}", identity, {"frames": received, "bytes": size})
    devices = {row["device"] for row in cat.rows("SELECT device FROM campaign_share WHERE campaign = ?", identity)}
    for device in devices:
        device_config.bump_campaigns(cat, device)
    return devices


def _received(cat: Catalogue, identity: str) -> tuple[int, int]:
    """Frames and bytes of images that came in for a campaign."""
    # The id's letters have no meaning to GLOB; the frame's reason is the campaign, alone or followed by others.
    row = cat.row(
        "SELECT count(*) AS n, coalesce(sum(bytes), 0) AS size FROM frame WHERE arm = 'campaign' AND "
        "(reason = ?1 OR reason GLOB ?1 || ',*')",
        f"campaign:{identity}",
    )
    return (0, 0) if row is None else (row["n"], row["size"])


def _decoded(cat: Catalogue, row: Row) -> Row:
    received, size = _received(cat, row["id"])
    return {
        **row,
        "scope": json.loads(row["scope"]),
        "condition": json.loads(row["condition"]),
        "frames_received": received,
        "bytes_received": size,
    }


def after_restore(cat: Catalogue) -> None:
    """How much was given to devices after the backup is not known here: a campaign that ran is over."""
    for row in cat.rows("SELECT id FROM campaign WHERE state = 'running'"):
        _end(cat, row["id"], "stopped", "restore")
