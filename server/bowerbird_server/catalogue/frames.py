"""Frames in the catalogue: what arrives becomes rows once, and a frame's state changes in one place.

In: verified headers whose images are already durable blobs. Out: which of them are new, rows, pages of rows. It stores no image
and decides neither what is labelled next nor which split a scene belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bowerbird_server.catalogue import references
from bowerbird_server.catalogue.core import Catalogue, Row, utc_now, utc_text
from bowerbird_server.catalogue.fleet import camera_id, touch_camera
from bowerbird_server.errors import BadInput, Conflict, NotFound
from bowerbird_wire.codec import frame_id
from bowerbird_wire.linked import FETCHED, link_of
from bowerbird_wire.messages import FrameHeader

SCENE_SECONDS = 60

# to -> the states it may be reached from
ALLOWED_FROM: Mapping[str, frozenset[str]] = {
    "received": frozenset({"queued"}),  # a batch is withdrawn
    "queued": frozenset({"received", "in_review"}),  # back to the queue when a reviewer goes away
    "in_review": frozenset({"queued"}),
    "labelled": frozenset({"received", "queued", "in_review", "rejected"}),
    "rejected": frozenset({"received", "queued", "in_review", "labelled"}),
    "deleted": frozenset({"received", "queued", "in_review", "labelled", "rejected"}),
}
STATES = tuple(ALLOWED_FROM)
_SORTED_JSON = json.JSONEncoder(sort_keys=True)


@dataclass(frozen=True)
class ArrivedFrame:
    """A verified header and the size in bytes of its image, which is already a durable blob; 0 for a reference, which brings none."""

    header: FrameHeader
    image_bytes: int

    @property
    def is_reference(self) -> bool:
        """Whether its picture is its twin's."""
        return self.image_bytes == 0


@dataclass(frozen=True)
class Added:
    """Ids by what became of them: `new` got a row, `known` had one already, `deleted` were deleted here and stay so.

    `without_twin` are references whose twin is not here or cannot stand in for them: they got no row.
    """

    new: tuple[str, ...]
    known: tuple[str, ...]
    deleted: tuple[str, ...]
    without_twin: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """Rows and the key to ask for the next page with; None on the last page."""

    rows: tuple[Row, ...]
    after: str | None


def scene_of(camera: str, captured_at_ms: int) -> str:
    """The scene of a frame: its camera and the minute (UTC) it was captured in, e.g. `cam-01/gate@2026-11-22T19:45`."""
    start_ms = captured_at_ms // (SCENE_SECONDS * 1000) * SCENE_SECONDS * 1000
    return f"{camera}@{utc_text(start_ms)[:16]}"


def add_frames(
    cat: Catalogue, arrived: Sequence[ArrivedFrame], *, received_at: str | None = None, refuse_erased: bool = True
) -> Added:
    """Rows for frames of known devices, in one transaction; the same frame again changes nothing.

    Args:
        received_at: UTC ISO text; now by default.
        refuse_erased: frames that somebody has asked to be forgotten count as deleted; a rebuild, which puts back their rows to
            say so, turns it off.

    Raises:
        sqlite3.IntegrityError: a device is not in the catalogue (the caller has asked `fleet.active_devices`).
    """
    received_at = received_at or utc_now()
    # Of a frame that came both ways the whole one counts.
    by_id = {frame.header.frame_id: frame for frame in sorted(arrived, key=lambda frame: not frame.is_reference)}
    with cat.transaction():
        states = states_of(cat, by_id)
        if refuse_erased:
            states |= dict.fromkeys(erased(cat, [frame.header for frame in arrived], states), "deleted")
        new = {identity: frame for identity, frame in by_id.items() if identity not in states}
        twins = references.twins(cat, [frame.header for frame in new.values() if frame.is_reference])
        alone = tuple(identity for identity, frame in new.items() if frame.is_reference and identity not in twins)
        new = {identity: frame for identity, frame in new.items() if identity not in alone}
        cameras = {(frame.header.device, frame.header.camera) for frame in new.values()}
        camera_ids = {names: touch_camera(cat, *names) for names in sorted(cameras)}
        cat.insert_many(
            "frame",
            [
                _frame_row(frame, camera_ids[frame.header.device, frame.header.camera], received_at, twins.get(identity))
                for identity, frame in new.items()
            ],
        )
        links = {identity: link for identity, frame in new.items() if (link := link_of(frame.header)) is not None}
        cat.insert_many(
            "linked_frame",
            [{"frame": identity, "of_frame": link.of, "kind": link.kind} for identity, link in links.items()]
            + [{"frame": frame, "of_frame": twin["id"], "kind": references.REFERENCE} for frame, twin in twins.items()],
        )
        cat.insert_many("detection", [row for frame in new.values() for row in _detection_rows(frame.header)])
        cat.insert_many("redaction", [row for f in new.values() if not f.is_reference for row in _redaction_rows(f.header)])
        covered = [row for frame, twin in twins.items() for row in references.redactions_of_twin(cat, frame, twin["id"])]
        cat.insert_many("redaction", covered)
    known = [identity for identity, state in states.items() if state != "deleted"]
    return Added(tuple(new), tuple(known), tuple(states.keys() - set(known)), alone)


def _frame_row(frame: ArrivedFrame, camera: str, received_at: str, twin: Row | None) -> Row:
    header = frame.header
    return {
        "id": header.frame_id,
        "blob": header.image_sha256 if twin is None else twin["blob"],
        "image_format": header.image_format,
        "bytes": frame.image_bytes,
        "width": header.width,
        "height": header.height,
        "source_width": header.source_width or header.width,
        "source_height": header.source_height or header.height,
        "device": header.device,
        "camera": camera,
        "sequence": header.sequence,
        "captured_at": utc_text(header.captured_at_ms),
        "clock_ok": int(header.clock_ok),
        "received_at": received_at,
        "model": header.model_digest,
        "arm": header.arm,
        "reason": ",".join(header.reasons),
        "score": header.score,
        "strategy_scores": _SORTED_JSON.encode(dict(header.strategy_scores)),
        "inclusion_probability": header.inclusion_probability,
        "scene": scene_of(camera, header.captured_at_ms),
        "state": "received" if twin is None else references.SET_ASIDE,
    }


def _detection_rows(header: FrameHeader) -> list[Row]:
    return [
        {
            "frame": header.frame_id,
            "position": position,
            "left": detection.box_xyxy[0],
            "top": detection.box_xyxy[1],
            "right": detection.box_xyxy[2],
            "bottom": detection.box_xyxy[3],
            "score": detection.score,
            "class_name": detection.class_name,
        }
        for position, detection in enumerate(header.detections)
    ]


def _redaction_rows(header: FrameHeader) -> list[Row]:
    return [
        {
            "frame": header.frame_id,
            "position": position,
            "left": region.box_xyxy[0],
            "top": region.box_xyxy[1],
            "right": region.box_xyxy[2],
            "bottom": region.box_xyxy[3],
            "class_name": region.class_name,
            "method": region.method,
        }
        for position, region in enumerate(header.redacted)
    ]


def erased(cat: Catalogue, headers: Sequence[FrameHeader], known: Collection[str] = ()) -> list[str]:
    """The frames of `headers` that somebody has asked to be forgotten before they came, by device, camera and time of capture.

    Args:
        known: ids that need no answer.
    """
    rules = cat.rows("SELECT device, camera, from_ms, to_ms FROM erasure WHERE to_ms >= from_ms")
    return [
        header.frame_id
        for header in headers
        if header.frame_id not in known
        and any(
            rule["device"] in ("", header.device)
            and rule["camera"] in ("", camera_id(header.device, header.camera))
            and rule["from_ms"] <= header.captured_at_ms <= rule["to_ms"]
            for rule in rules
        )
    ]


def forget_content(cat: Catalogue, frame: str) -> None:
    """Rows that say what a deleted frame showed. Its labels stay: data set versions name them."""
    for table in ("thumbnail", "look", "detection", "redaction"):
        cat.execute(f"DELETE FROM {table} WHERE frame = ?", frame)  # noqa: S608 - constants


def redactions(cat: Catalogue, frame: str) -> list[Row]:
    """What the device covered: rows `left top right bottom class_name method`, pixels of the stored image."""
    return cat.rows(
        'SELECT position, "left", top, "right", bottom, class_name, method FROM redaction WHERE frame = ? ORDER BY position',
        frame,
    )


def add_imported_frame(
    cat: Catalogue,
    *,
    blob: str,
    image_format: str,
    image_bytes: int,
    width: int,
    height: int,
    captured_at_ms: int,
    sequence: int = 0,
    source: str = "import",
    scene: str | None = None,
) -> tuple[str, bool]:
    """A row for an image that came from a folder instead of a device (device and camera are NULL, arm `import`).

    Args:
        blob: SHA-256 of the image, already in the blob store.
        image_format: `jpeg`, `png` or `webp`.
        image_bytes: size of the encoded image.
        width: of the image, in pixels.
        height: of the image, in pixels.
        captured_at_ms: UTC milliseconds since the epoch; the file's own time when nothing better is known.
        sequence: number within the source.
        source: where it came from; becomes the reason and part of the scene.
        scene: the scene it belongs to; by default `import/<source>` and the minute of capture.

    Returns:
        The frame's id, and whether it is new. Importing the same image again (by content) changes nothing.
    """
    identity = frame_id(image_sha256=blob, device="import", camera="import", sequence=0, captured_at_ms=0)
    row = {
        "id": identity,
        "blob": blob,
        "image_format": image_format,
        "bytes": image_bytes,
        "width": width,
        "height": height,
        "source_width": width,
        "source_height": height,
        "device": None,
        "camera": None,
        "sequence": sequence,
        "captured_at": utc_text(captured_at_ms),
        "received_at": utc_now(),
        "arm": "import",
        "reason": source,
        "scene": scene or scene_of(f"import/{source}", captured_at_ms),
        "state": "received",
    }
    return identity, cat.insert("frame", row, ignore=True)


def change_state(cat: Catalogue, ids: Iterable[str], to: str, actor: str, allowed_from: Collection[str] | None = None) -> int:
    """The one place where a frame's state changes; all of `ids` or none, with an event for each.

    Args:
        ids: frame ids; those already in state `to` are left as they are.
        to: the new state.
        actor: who does it, for the event log.
        allowed_from: narrower than `ALLOWED_FROM[to]`, e.g. only `received` frames may be queued by a batch.

    Returns:
        How many frames changed.

    Raises:
        BadInput: `to` is no state.
        NotFound: a frame is not in the catalogue.
        Conflict: a frame is in a state from which this is not allowed.
    """
    if to not in ALLOWED_FROM:
        raise BadInput(f"{to!r} is not a frame state; use one of {', '.join(STATES)}")
    allowed = ALLOWED_FROM[to] if allowed_from is None else frozenset(allowed_from) & ALLOWED_FROM[to]
    changed = 0
    with cat.transaction():
        for identity in ids:
            state = cat.value("SELECT state FROM frame WHERE id = ?", identity)
            if state is None:
                raise NotFound(f"no frame {identity[:12]} in the catalogue; `bowerbird frames list` shows what there is")
            if state == to:
                continue
            if state not in allowed:
                raise Conflict(f"frame {identity[:12]} is {state}; it cannot become {to} from there")
            cat.execute("UPDATE frame SET state = ? WHERE id = ?", to, identity)
            if to == "deleted":  # what a deleted picture looked like and showed goes with it
                forget_content(cat, identity)
            cat.log(actor, f"frame {to}", identity, {"from": state})
            changed += 1
    return changed


def get(cat: Catalogue, frame: str) -> Row:
    """A frame's row with its detections under `detections` (list of rows, most confident first as the device sent them).

    Raises:
        NotFound: there is no such frame.
    """
    row = cat.row("SELECT * FROM frame WHERE id = ?", frame)
    if row is None:
        stones = cat.rows("SELECT * FROM tombstone WHERE frame = ? LIMIT 1", frame)
        raise NotFound(
            _never_sent(stones[0])
            if stones
            else f"no frame {frame[:12]} in the catalogue; `bowerbird frames list` shows what there is"
        )
    return {**row, "detections": detections(cat, frame), "redactions": redactions(cat, frame)}


def _never_sent(stone: Row) -> str:
    """Why a frame is not here that its device kept and named when it gave it up."""
    what, _, why = stone["why"].partition(":")
    arm = {"explore": "at random", "policy": "by the policy", "fetched": "because somebody asked for it"}.get(stone["arm"], "")
    name = stone["frame"][:12]
    return (
        f"frame {name} of {stone['device']}/{stone['camera']} ({stone['captured_at']}) was kept {arm} and never sent: its device "
        f"{what} it ({why.replace('_', ' ')}). `bowerbird-agent explain {name}` there says more while it is recent"
    )


def find(cat: Catalogue, beginning: str) -> Row:
    """As `get`, for the first characters of a frame's id, as lists show them.

    Raises:
        NotFound: there is no such frame, or more than one.
    """
    found = cat.starting_with("frame", "id", beginning)
    stones = [] if found else cat.starting_with("tombstone", "frame", beginning)
    if len(stones) == 1:
        raise NotFound(_never_sent(stones[0]))
    if len(found) != 1:
        count = len(found) or "no"
        raise NotFound(f"{count} frames start with {beginning[:64]!r}; `bowerbird frames list` shows what there is")
    return get(cat, found[0]["id"])


def blobs_of(cat: Catalogue) -> list[Row]:
    """The id and the blob of every frame, for checks."""
    return cat.rows("SELECT id, blob FROM frame ORDER BY id")


def state_of(cat: Catalogue, frame: str) -> str | None:
    """A frame's state, None when the catalogue does not know it."""
    state: str | None = cat.value("SELECT state FROM frame WHERE id = ?", frame)
    return state


def states_of(cat: Catalogue, frames: Iterable[str]) -> dict[str, str]:
    """State by id, of those of `frames` that the catalogue knows, in their order; also of those deleted before they ever came."""
    wanted = list(frames)
    found = cat.connection.execute(
        "SELECT frame, 'deleted' FROM deletion WHERE frame IN (SELECT value FROM json_each(?1)) "
        "UNION ALL SELECT id, state FROM frame WHERE id IN (SELECT value FROM json_each(?1))",
        (json.dumps(wanted),),
    )
    states: dict[str, str] = dict(found.fetchall())
    return {identity: states[identity] for identity in wanted if identity in states}


def blobs_of_deleted(cat: Catalogue) -> list[str]:
    """The images of deleted frames."""
    return [row["blob"] for row in cat.rows("SELECT DISTINCT blob FROM frame WHERE state = 'deleted'")]


def without_live_frame(cat: Catalogue, blobs: Iterable[str]) -> list[str]:
    """Those of `blobs` that no frame needs any more: all that show them are deleted."""
    found = cat.connection.execute(
        "SELECT value FROM json_each(?) WHERE NOT EXISTS "
        "(SELECT 1 FROM frame WHERE frame.blob = value AND frame.state <> 'deleted')",
        (json.dumps(list(blobs)),),
    )
    return [blob for (blob,) in found.fetchall()]


def ages(cat: Catalogue) -> Iterator[Row]:
    """Rows `id state captured_at received_at clock_ok judged_at held_out` of all frames that are not deleted, the oldest first.

    References are left out as long as their twins are here: they go with them.
    """
    yield from cat.db.query(
        "SELECT frame.id, frame.state, captured_at, received_at, clock_ok, label_newest.created_at AS judged_at, "
        "coalesce(scene_split.split, '') = 'holdout' AS held_out FROM frame "
        "LEFT JOIN label_newest ON label_newest.frame = frame.id LEFT JOIN scene_split ON scene_split.scene = frame.scene "
        "WHERE frame.state <> 'deleted' AND NOT EXISTS (SELECT 1 FROM linked_frame JOIN frame AS twin ON twin.id = of_frame "
        "WHERE linked_frame.frame = frame.id AND kind = ? AND twin.state <> 'deleted') ORDER BY frame.received_at, frame.id",
        (references.REFERENCE,),
    )


def detections(cat: Catalogue, frame: str) -> list[Row]:
    """What the device's model saw: rows `left top right bottom score class_name`, pixels of the stored image."""
    return cat.rows(
        'SELECT position, "left", top, "right", bottom, score, class_name FROM detection WHERE frame = ? ORDER BY position',
        frame,
    )


def list_frames(
    cat: Catalogue,
    *,
    state: str | None = None,
    device: str | None = None,
    camera: str | None = None,
    scene: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> Page:
    """Frames newest first, a page at a time; a page stays right while frames arrive, since it starts at a key, not at a count.

    Args:
        after: `Page.after` of the page before.
        limit: rows a page, 1 to 1000.

    Raises:
        BadInput: `after` is not a key that a page gave.
    """
    limit = max(1, min(limit, 1000))
    conditions: list[str] = []
    params: list[object] = []
    for column, value in (("state", state), ("device", device), ("camera", camera), ("scene", scene)):
        if value is not None:
            conditions.append(f"{column} = ?")
            params.append(value)
    if after is not None:
        received_at, separator, identity = after.partition("~")
        if not separator:
            raise BadInput(f"{after[:80]!r} is not a page key; use the `after` value of the previous page")
        conditions.append("(received_at, id) < (?, ?)")
        params += [received_at, identity]
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    # Column names are the constants above; values are bound.
    query = f"SELECT * FROM frame {where} ORDER BY received_at DESC, id DESC LIMIT ?"  # noqa: S608 - no input in the text
    rows = cat.rows(query, *params, limit + 1)
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(tuple(rows), f"{rows[-1]['received_at']}~{rows[-1]['id']}" if more else None)


def count_by_state(cat: Catalogue, *, device: str | None = None) -> dict[str, int]:
    """Frames in each state, zeros included; frames that were fetched are no part of what devices chose and are not counted."""
    counts = dict.fromkeys(STATES, 0)
    for row in cat.rows(
        "SELECT state, count(*) AS n FROM frame WHERE arm <> ?2 AND (?1 IS NULL OR device = ?1) GROUP BY state", device, FETCHED
    ):
        counts[row["state"]] = row["n"]
    return counts
