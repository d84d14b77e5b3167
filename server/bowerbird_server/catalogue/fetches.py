"""What was asked of devices beyond the frames that they sent: originals and surroundings, what they answered, and what has come.

In: wishes of people, answers of devices. Out: rows, the `Fetch` messages that are still to be said, linked frames. A wish stays open
until its device has answered, however long that is offline; the same wish again is the same row. It talks to no broker; `delivery.py`
does.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime

from bowerbird_server.catalogue import frames
from bowerbird_server.catalogue.core import Catalogue, Row, utc_now
from bowerbird_server.catalogue.references import REFERENCE
from bowerbird_server.errors import BadInput, Conflict
from bowerbird_wire.linked import AROUND, KINDS, MAX_AROUND_S, ORIGINAL
from bowerbird_wire.messages import Fetch, FetchAnswer

REQUEST_BYTES = 16
ANSWERS = ("sent", "refused", "gone")


def ask(cat: Catalogue, frame: str, kind: str, actor: str, *, seconds: float = 0.0) -> Row:
    """Ask a frame's device for its original, or for the frames around it; asking again after an answer opens the wish anew.

    Raises:
        NotFound: there is no such frame.
        BadInput: no such kind, or too many seconds.
        Conflict: the frame is deleted, came from no device, or is as the camera gave it.
    """
    row = frames.get(cat, frame)
    if kind not in KINDS:
        raise BadInput(f"{kind[:40]!r} cannot be fetched; ask for {' or '.join(KINDS)}")
    if kind == AROUND and not 0 < seconds <= MAX_AROUND_S:
        raise BadInput(f"around {seconds:g} s is out of range; give more than 0 and at most {MAX_AROUND_S:g} seconds")
    if row["device"] is None or row["state"] == "deleted":
        raise Conflict(
            f"frame {frame[:12]} {'is deleted' if row['device'] else 'was imported'}; there is no device to ask for it"
        )
    if row["arm"] == "fetched":
        raise Conflict(f"frame {frame[:12]} was fetched itself; ask for more of the frame that it belongs to")
    if kind == ORIGINAL and (row["width"], row["height"]) == (row["source_width"], row["source_height"]):
        raise Conflict(f"frame {frame[:12]} has the camera's own size already; there is no larger original")
    seconds = float(seconds) if kind == AROUND else 0.0
    identity = hashlib.sha256(f"{frame}/{kind}/{seconds:g}".encode()).hexdigest()[: 2 * REQUEST_BYTES]
    with cat.transaction():
        state = cat.value("SELECT state FROM fetch WHERE id = ?", identity)
        if state is None:
            cat.insert(
                "fetch",
                {
                    "id": identity,
                    "frame": frame,
                    "device": row["device"],
                    "kind": kind,
                    "seconds": seconds,
                    "asked_at": utc_now(),
                    "asked_by": actor,
                    "state": "asked",
                },
            )
        elif state in ("refused", "gone"):
            cat.execute(
                "UPDATE fetch SET state = 'asked', code = '', detail = '', asked_at = ?, asked_by = ? WHERE id = ?",
                utc_now(),
                actor,
                identity,
            )
        if state in (None, "refused", "gone"):
            cat.log(actor, f"frame {kind} asked for", frame, {"seconds": seconds} if seconds else {})
    return next(one for one in of_frame(cat, frame) if one["id"] == identity)


def open_wishes(cat: Catalogue) -> dict[str, list[Fetch]]:
    """Device -> what it has not answered yet, the oldest first; of active devices only."""
    found: dict[str, list[Fetch]] = {}
    for row in cat.rows(
        "SELECT fetch.*, frame.captured_at, camera.name AS camera_name FROM fetch JOIN frame ON frame.id = fetch.frame "
        "JOIN device ON device.id = fetch.device LEFT JOIN camera ON camera.id = frame.camera "
        "WHERE fetch.state = 'asked' AND device.state = 'active' AND frame.state <> 'deleted' ORDER BY fetch.asked_at"
    ):
        at_ms = round(datetime.fromisoformat(row["captured_at"]).timestamp() * 1000)
        where = {"cam": row["camera_name"], "t": at_ms}
        fetch = Fetch(bytes.fromhex(row["id"]), bytes.fromhex(row["frame"]), row["kind"], row["seconds"], where)
        found.setdefault(row["device"], []).append(fetch)
    return found


def record_answer(cat: Catalogue, device: str, answer: FetchAnswer) -> bool:
    """Note what a device says about a wish; False when it is none of its wishes."""
    if answer.state not in ANSWERS or len(answer.request) != REQUEST_BYTES:
        return False
    coming = json.dumps([frame.hex() for frame in answer.frames[:1000]])
    return (
        cat.execute(
            "UPDATE fetch SET state = ?, code = ?, detail = ?, frames = ?, answered_at = ? WHERE id = ? AND device = ?",
            answer.state,
            answer.code[:40],
            answer.detail[:300],
            coming,
            utc_now(),
            answer.request.hex(),
            device,
        )
        > 0
    )


def lost(cat: Catalogue, frame: str) -> None:
    """A frame that was on its way left the spool of its device: a wish of which nothing can come any more is `gone`."""
    cat.execute(
        "UPDATE fetch SET state = 'gone', detail = 'it left the spool of its device before it was sent' WHERE state = 'sent' "
        "AND EXISTS (SELECT 1 FROM json_each(fetch.frames) WHERE value = ?) "
        "AND NOT EXISTS (SELECT 1 FROM json_each(fetch.frames) JOIN frame ON frame.id = value)",
        frame,
    )


def of_frame(cat: Catalogue, frame: str) -> list[Row]:
    """The wishes about a frame, oldest first, each with how many of its frames are on their way and how many have come."""
    rows = cat.rows(
        "SELECT fetch.*, (SELECT count(*) FROM json_each(fetch.frames) JOIN frame ON frame.id = value) AS arrived "
        "FROM fetch WHERE frame = ? ORDER BY asked_at",
        frame,
    )
    return [{**row, "frames": len(json.loads(row["frames"])), "state": _shown(row)} for row in rows]


def _shown(row: Row) -> str:
    coming = len(json.loads(row["frames"]))
    return "arrived" if row["state"] == "sent" and coming and row["arrived"] >= coming else str(row["state"])


def linked(cat: Catalogue, frame: str) -> list[Row]:
    """The frames that were fetched of a frame and are not deleted, by kind and time; each with `kind`."""
    return cat.rows(
        "SELECT frame.*, linked_frame.kind FROM linked_frame JOIN frame ON frame.id = linked_frame.frame "
        "WHERE linked_frame.of_frame = ? AND kind <> ? AND frame.state <> 'deleted' "
        "ORDER BY linked_frame.kind DESC, frame.captured_at",
        frame,
        REFERENCE,
    )


def parent(cat: Catalogue, frame: str) -> Row | None:
    """`of_frame` and `kind` of a frame that was fetched or came as a reference; None for any other."""
    return cat.row("SELECT of_frame, kind FROM linked_frame WHERE frame = ?", frame)


def with_linked(cat: Catalogue, ids: list[str]) -> list[str]:
    """Frames with those that belong to them: what is deleted is deleted with its original, its surroundings and its references, and
    with what belongs to those."""
    found = cat.rows(
        "WITH RECURSIVE belongs(frame) AS (SELECT frame FROM linked_frame WHERE of_frame IN (SELECT value FROM json_each(?)) "
        "UNION SELECT linked_frame.frame FROM linked_frame JOIN belongs ON linked_frame.of_frame = belongs.frame) "
        "SELECT frame FROM belongs",
        json.dumps(ids),
    )
    return list(dict.fromkeys([*ids, *(row["frame"] for row in found)]))


def live_linked(cat: Catalogue, ids: list[str]) -> list[Row]:
    """Rows `id` of the frames that belong to these, near or far, and are not deleted."""
    belong = [frame for frame in with_linked(cat, ids) if frame not in set(ids)]
    return cat.rows(
        "SELECT id FROM frame WHERE state <> 'deleted' AND id IN (SELECT value FROM json_each(?)) ORDER BY id",
        json.dumps(belong),
    )
