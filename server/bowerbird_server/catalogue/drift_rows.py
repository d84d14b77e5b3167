"""Hours, verdicts and episodes of drift in the catalogue.

In: hours as devices count them, verdicts of `drift/verdicts.py`. Out: rows, the hours of a camera again, boosts that hold now, marked
slices. It judges nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from bowerbird_server.catalogue.core import Catalogue, Row, new_id, utc_now, utc_text
from bowerbird_server.catalogue.fleet import camera_id, touch_camera
from bowerbird_server.drift.verdicts import CLASSES, Distance, Hour, Verdict, together
from bowerbird_wire.histograms import BINS, HOUR_MS, CameraHour, unpack, unpack_classes
from bowerbird_wire.messages import Boost
from bowerbird_wire.topics import check_name

KEPT_DAYS = 60.0
_LATEST_MS = 253_370_764_800_000
_MOST_FAULTS = 8


@dataclasses.dataclass(frozen=True)
class Series:
    """Whose hours are compared with each other: one camera, one model, one lowest score."""

    camera: str
    model: str
    floor: int


def record(cat: Catalogue, device: str, hour: CameraHour) -> tuple[Series, int]:
    """Keep an hour, or the newer counts of one; returns its series and the begin of the hour, UTC milliseconds.

    An hour whose clock was not set counts as the hour of its arrival.

    Raises:
        WireError: histograms that are none, or a camera whose name is none.
    """
    counts: dict[str, Any] = {name: list(unpack(getattr(hour, name), bins)) for name, bins in BINS.items()}
    counts[CLASSES] = {str(i): n for i, n in unpack_classes(hour.classes).items()}
    at_ms = min(max(hour.from_ms, 0), _LATEST_MS)
    if not hour.clock_ok:
        at_ms = int(datetime.now(tz=UTC).timestamp() * 1000)
    at_ms -= at_ms % HOUR_MS
    check_name(hour.camera, "camera")
    series = Series(camera_id(device, hour.camera), hour.model[:8].hex(), min(max(hour.floor, 0), 100))
    with cat.transaction(durable=False):
        touch_camera(cat, device, hour.camera)
        cat.execute(
            "INSERT INTO camera_hour (camera, model, floor, from_ms, hour, frames, counts, unwell, clock_ok, received_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (camera, model, floor, from_ms) DO UPDATE SET "
            "frames = excluded.frames, counts = excluded.counts, unwell = excluded.unwell WHERE excluded.frames >= frames",
            *dataclasses.astuple(series),
            hour.from_ms,
            utc_text(at_ms),
            max(0, hour.frames),
            json.dumps(counts),
            json.dumps({what[:40]: max(0, n) for what, n in list(hour.unwell.items())[:_MOST_FAULTS]}),
            int(hour.clock_ok),
            utc_now(),
        )
    return series, at_ms


def hour_of(cat: Catalogue, series: Series, at_ms: int) -> Hour:
    """All parts of an hour together."""
    rows = cat.rows(
        "SELECT * FROM camera_hour WHERE camera = ? AND model = ? AND floor = ? AND hour = ?",
        *dataclasses.astuple(series),
        utc_text(at_ms),
    )
    return dataclasses.replace(together([_hour(row) for row in rows]), at_ms=at_ms)


def reference(cat: Catalogue, series: Series) -> list[Hour]:
    """The hours that count as normal, oldest first."""
    rows = cat.rows(
        "SELECT camera_hour.* FROM camera_hour JOIN drift_hour USING (camera, model, floor, hour) "
        "WHERE camera = ? AND model = ? AND floor = ? AND is_reference = 1 ORDER BY hour, from_ms",
        *dataclasses.astuple(series),
    )
    parts: dict[str, list[Hour]] = {}
    for row in rows:
        parts.setdefault(row["hour"], []).append(_hour(row))
    return [together(hours) for hours in parts.values()]


def first_at_ms(cat: Catalogue, series: Series) -> int:
    """Begin of the series' first hour."""
    text = cat.value(
        "SELECT min(hour) FROM camera_hour WHERE camera = ? AND model = ? AND floor = ?", *dataclasses.astuple(series)
    )
    return 0 if text is None else _ms(text)


def note_verdict(cat: Catalogue, series: Series, at_ms: int, verdict: Verdict, *, is_reference: bool) -> None:
    """What was said of an hour, in the place of what was said of it before."""
    distances = {name: dataclasses.asdict(distance) for name, distance in verdict.distances.items()}
    cat.execute(
        "INSERT OR REPLACE INTO drift_hour (camera, model, floor, hour, state, cause, distances, is_reference) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        *dataclasses.astuple(series),
        utc_text(at_ms),
        verdict.state,
        verdict.cause[:40],
        json.dumps(distances),
        int(is_reference),
    )


def newest_states(cat: Catalogue, series: Series, after: str, limit: int) -> list[tuple[str, str]]:
    """(hour, state) of the newest judged hours after a time, oldest first."""
    rows = cat.rows(
        "SELECT hour, state FROM drift_hour WHERE camera = ? AND model = ? AND floor = ? AND hour > ? "
        "AND state IN ('stable', 'drifted') ORDER BY hour DESC LIMIT ?",
        *dataclasses.astuple(series),
        after,
        limit,
    )
    return [(row["hour"], row["state"]) for row in reversed(rows)]


def open_drift(cat: Catalogue, camera: str, model: str) -> Row | None:
    """The episode that is under way."""
    return cat.row("SELECT * FROM drift WHERE camera = ? AND model = ? AND closed_at IS NULL", camera, model)


def last_closed(cat: Catalogue, camera: str, model: str) -> str:
    """Until which hour episodes of the past reach; hours before it begin none."""
    return str(
        cat.value("SELECT max(until) FROM drift WHERE camera = ? AND model = ? AND closed_at IS NOT NULL", camera, model) or ""
    )


def open_episode(
    cat: Catalogue, series: Series, verdict: Verdict, since: str, until: str, *, boost_until_ms: int, factor: float
) -> str:
    """A new episode with its event; returns its id."""
    identity = new_id()
    distances = {name: dataclasses.asdict(distance) for name, distance in verdict.distances.items()}
    cat.insert(
        "drift",
        {
            "id": identity,
            "camera": series.camera,
            "model": series.model,
            "cause": verdict.cause,
            "found_at": utc_now(),
            "since": since,
            "until": until,
            "distances": json.dumps(distances),
            "boost_until_ms": boost_until_ms,
            "boost_factor": factor,
        },
    )
    far = sorted(name for name, distance in verdict.distances.items() if distance.is_far)
    device = series.camera.partition("/")[0]
    cat.log(
        "drift",
        "drift found",
        device,
        {
            "camera": series.camera,
            "cause": verdict.cause,
            "since": since,
            "in": far,
            "boost_until": utc_text(boost_until_ms),
            "boost_factor": factor,
            "slice": slice_name(identity),
        },
    )
    return identity


def extend_episode(cat: Catalogue, identity: str, until: str) -> None:
    """The episode reaches to this hour."""
    cat.execute("UPDATE drift SET until = max(until, ?) WHERE id = ?", until, identity)


def close_episodes(cat: Catalogue, camera: str, why: str, *, model: str | None = None, but_model: str | None = None) -> int:
    """End what is under way at a camera: of one model, or of every other; returns how many."""
    rows = cat.rows(
        "SELECT id, since, until FROM drift WHERE camera = ?1 AND closed_at IS NULL AND (?2 IS NULL OR model = ?2) "
        "AND (?3 IS NULL OR model != ?3)",
        camera,
        model,
        but_model,
    )
    for row in rows:
        cat.execute("UPDATE drift SET closed_at = ?, why_closed = ? WHERE id = ?", utc_now(), why, row["id"])
        device = camera.partition("/")[0]
        cat.log(
            "drift", "drift over", device, {"camera": camera, "why": why, "since": row["since"], "slice": slice_name(row["id"])}
        )
    return len(rows)


def note_new_camera(cat: Catalogue, camera: str, *, boost_until_ms: int, factor: float) -> bool:
    """A camera whose hours were never heard of is explored more from now on; False for one that is known.

    One in the place of a known camera (a board was replaced) is none that is new.
    """
    if cat.value("SELECT 1 FROM new_camera WHERE camera = ?", camera) is not None:
        return False
    is_new = (
        cat.value(
            "SELECT 1 FROM new_camera JOIN camera ON camera.id = new_camera.camera "
            "WHERE camera.place = (SELECT place FROM camera WHERE id = ?)",
            camera,
        )
        is None
    )
    until_ms = boost_until_ms if is_new else 0
    cat.insert(
        "new_camera",
        {"camera": camera, "found_at": utc_now(), "boost_until_ms": until_ms, "boost_factor": factor if until_ms else 1},
    )
    if until_ms:
        details = {"camera": camera, "boost_until": utc_text(until_ms), "boost_factor": factor}
        cat.log("drift", "new camera", camera.partition("/")[0], details)
    return bool(until_ms)


_BOOSTED = """SELECT camera, boost_until_ms, boost_factor FROM drift
UNION ALL SELECT camera, boost_until_ms, boost_factor FROM new_camera"""


def boosts(cat: Catalogue, now_ms: int) -> dict[str, Boost]:
    """Device -> what is wished of it now because cameras of it have drifted or are new, each with its own end."""
    rows = cat.rows(
        "SELECT camera.device, camera.name, max(boost_until_ms) AS until_ms, max(boost_factor) AS factor "  # noqa: S608 - constants
        f"FROM ({_BOOSTED}) JOIN camera ON camera.id = camera WHERE boost_until_ms > ? AND boost_factor > 1 "
        "GROUP BY camera.id ORDER BY camera.name",
        now_ms,
    )
    cameras: dict[str, dict[str, int]] = {}
    factors: dict[str, float] = {}
    for row in rows:
        cameras.setdefault(row["device"], {})[row["name"]] = row["until_ms"]
        factors[row["device"]] = max(row["factor"], factors.get(row["device"], 1.0))
    return {device: Boost(max(ends.values()), factors[device], ends) for device, ends in cameras.items()}


def were_boosted(cat: Catalogue) -> set[str]:
    """The devices that were ever told to explore more: their retained wish has to say so when it is over."""
    rows = cat.rows(
        f"SELECT DISTINCT camera.device FROM ({_BOOSTED}) JOIN camera ON camera.id = camera WHERE boost_factor > 1"  # noqa: S608 - constants
    )
    return {row["device"] for row in rows}


def stop_boost(cat: Catalogue, device: str, actor: str) -> int:
    """End the boosts of a device's cameras now; returns how many there were."""
    now_ms = int(datetime.now(tz=UTC).timestamp() * 1000)
    with cat.transaction():
        count = sum(
            cat.execute(
                f"UPDATE {table} SET boost_until_ms = ?1 WHERE boost_until_ms > ?1 "  # noqa: S608 - constants
                "AND camera IN (SELECT id FROM camera WHERE device = ?2)",
                now_ms,
                device,
            )
            for table in ("drift", "new_camera")
        )
        if count:
            cat.log(actor, "drift boost stopped", device, {})
    return count


def episodes(cat: Catalogue, *, device: str | None = None, limit: int = 100) -> list[Row]:
    """Episodes, newest first, `distances` decoded, each with its `slice`, `far`, the histograms that began it, and `boosted_until`."""
    rows = cat.rows(
        "SELECT drift.* FROM drift JOIN camera ON camera.id = drift.camera WHERE ?1 IS NULL OR camera.device = ?1 "
        "ORDER BY drift.id DESC LIMIT ?2",
        device,
        limit,
    )
    found = []
    for row in rows:
        distances = json.loads(row["distances"])
        far = sorted(name for name, distance in distances.items() if Distance(**distance).is_far)
        boosted_until = utc_text(row["boost_until_ms"]) if row["boost_until_ms"] else None
        found.append(
            {**row, "distances": distances, "far": far, "slice": slice_name(row["id"]), "boosted_until": boosted_until}
        )
    return found


def verdicts(cat: Catalogue, camera: str, limit: int = 168) -> list[Row]:
    """The newest hours of a camera, newest first, `distances` decoded and `frames` counted."""
    rows = cat.rows(
        "SELECT drift_hour.*, (SELECT sum(frames) FROM camera_hour parts WHERE parts.camera = drift_hour.camera "
        "AND parts.hour = drift_hour.hour AND parts.model = drift_hour.model AND parts.floor = drift_hour.floor) AS frames "
        "FROM drift_hour WHERE camera = ? ORDER BY hour DESC LIMIT ?",
        camera,
        limit,
    )
    return [{**row, "distances": json.loads(row["distances"])} for row in rows]


def newest_of_cameras(cat: Catalogue) -> list[Row]:
    """The newest verdict of every camera: `camera`, `hour`, `model`, `state`, `cause`."""
    return cat.rows(
        "SELECT camera, hour, model, state, cause FROM drift_hour "
        "WHERE hour = (SELECT max(hour) FROM drift_hour AS other WHERE other.camera = drift_hour.camera) "
        "GROUP BY camera ORDER BY camera"
    )


def slice_name(drift: str) -> str:
    """Name of the slice of an episode's frames, for the gate."""
    return f"drift:{drift.replace('-', '')[:16]}"


def marks(cat: Catalogue) -> list[tuple[str, str, str, str]]:
    """(camera, first hour, last hour, slice) of every episode."""
    rows = cat.rows("SELECT id, camera, since, until FROM drift ORDER BY id")
    return [(row["camera"], row["since"], row["until"], slice_name(row["id"])) for row in rows]


def slices_of(scene: str, marked: Iterable[tuple[str, str, str, str]]) -> tuple[str, ...]:
    """The marked slices that a scene `camera@minute` lies in."""
    camera, _, minute = scene.rpartition("@")
    return tuple(name for of, since, until, name in marked if of == camera and since[:13] <= minute[:13] <= until[:13])


def thin(cat: Catalogue) -> int:
    """Let go of old hours that are nobody's reference any more; returns how many."""
    horizon = utc_text((datetime.now(tz=UTC) - timedelta(days=KEPT_DAYS)).timestamp() * 1000)
    with cat.transaction():
        gone = cat.execute(
            "DELETE FROM camera_hour WHERE received_at < ?1 AND NOT EXISTS (SELECT 1 FROM drift_hour WHERE is_reference = 1 "
            "AND drift_hour.camera = camera_hour.camera AND drift_hour.model = camera_hour.model "
            "AND drift_hour.floor = camera_hour.floor AND drift_hour.hour = camera_hour.hour "
            "AND camera_hour.model = (SELECT model FROM camera_hour AS newest WHERE newest.camera = camera_hour.camera "
            "ORDER BY received_at DESC, newest.rowid DESC LIMIT 1))",
            horizon,
        )
        cat.execute(
            "DELETE FROM drift_hour WHERE NOT EXISTS (SELECT 1 FROM camera_hour WHERE camera_hour.camera = drift_hour.camera "
            "AND camera_hour.hour = drift_hour.hour AND camera_hour.model = drift_hour.model)"
        )
    return gone


def _hour(row: Mapping[str, Any]) -> Hour:
    counts = json.loads(row["counts"])
    classes = {int(i): n for i, n in counts.pop(CLASSES).items()}
    return Hour(
        _ms(row["hour"]),
        row["frames"],
        json.loads(row["unwell"]),
        {name: tuple(values) for name, values in counts.items()},
        classes,
    )


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)
