"""The JSON API under /api/v1: what there is, the labelling queue, and taking labels. The review page and programs use the same.

In: requests that `auth.py` let through. Out: the shapes of `api_types.py`; errors as `{"error": {code, message, details}}`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response, Security
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer

from bowerbird_server import batch as batch_rules
from bowerbird_server.catalogue import batches, classes, frames, overview
from bowerbird_server.catalogue.core import Row
from bowerbird_server.errors import Conflict, NotFound
from bowerbird_server.labelling.backend import Box, submit_label
from bowerbird_server.web import api_types as t
from bowerbird_server.web.auth import Session
from bowerbird_server.web.shapes import frame_detail, frame_shape, queue_item
from bowerbird_server.web.stores import catalogue, stores

# Only so that the OpenAPI description says how to come in; the checking is AccessGate's.
_bearer = HTTPBearer(auto_error=False, description="The token that the server printed at its start")
_errors: dict[int | str, dict[str, Any]] = {
    status: {"model": t.ErrorAnswer, "description": words}
    for status, words in (
        (400, "The request cannot be carried out as it is"),
        (401, "No token, no session"),
        (404, "No such thing"),
        (409, "Not in this state"),
        (422, "The request's fields are malformed"),
    )
}
router = APIRouter(prefix="/api/v1", dependencies=[Security(_bearer)], responses=_errors)

Limit = Annotated[int, Query(ge=1, le=1000, description="Rows at most")]
After = Annotated[str | None, Query(max_length=200, description="`next` of the previous page")]
State = Literal["received", "queued", "in_review", "labelled", "rejected", "deleted"]

_MEDIA_TYPES = {"jpeg": "image/jpeg", "jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


@router.get("/health", response_model=t.Health, summary="Is the web process alive?")
def health(request: Request) -> Row:
    catalogue(request).value("SELECT 1")
    return {"status": "ok"}


@router.get("/summary", response_model=t.Summary)
def summary(request: Request) -> Row:
    return overview.summary(catalogue(request))


@router.get("/devices", response_model=t.Devices)
def list_devices(request: Request) -> Row:
    return {"items": overview.devices(catalogue(request))}


@router.get("/frames", response_model=t.FramePage)
def list_frames(
    request: Request,
    *,
    state: State | None = None,
    device: str | None = None,
    camera: str | None = None,
    scene: str | None = None,
    after: After = None,
    limit: Limit = 100,
) -> Row:
    page = frames.list_frames(
        catalogue(request), state=state, device=device, camera=camera, scene=scene, after=after, limit=limit
    )
    return {"items": [frame_shape(row) for row in page.rows], "next": page.after}


@router.get("/frames/{frame_id}", response_model=t.FrameDetail)
def get_frame(request: Request, frame_id: str) -> Row:
    return frame_detail(catalogue(request), frame_id)


@router.get(
    "/frames/{frame_id}/image",
    response_class=FileResponse,
    responses={200: {"content": {"image/jpeg": {}, "image/png": {}, "image/webp": {}}}, 304: {"description": "Unchanged"}},
)
def get_image(request: Request, frame_id: str) -> Response:
    cat, blobs = stores(request)
    row = frames.get(cat, frame_id)
    if row["state"] == "deleted" or not blobs.exists(row["blob"]):
        raise NotFound(
            f"the image of frame {frame_id[:12]} is gone from the blob store; restore it from a backup of the data folder"
        )
    # The content belongs to the digest for ever, and yet a browser asks again after an hour: an erased picture must not stay in it.
    headers = {"ETag": f'"{row["blob"]}"', "Cache-Control": "private, max-age=3600, immutable"}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if headers["ETag"] in known:
        return Response(status_code=304, headers=headers)
    # A type we do not know is handed out as bytes: what a device sent must never run as a page.
    media_type = _MEDIA_TYPES.get(row["image_format"], "application/octet-stream")
    return FileResponse(blobs.path(row["blob"]), media_type=media_type, headers=headers)


@router.get("/queue", response_model=t.QueuePage, summary="Frames that wait for a label, in the order to label them")
def list_queue(request: Request, after: After = None, limit: Limit = 50) -> Row:
    cat = catalogue(request)
    rows = batches.queue(cat, limit + 1, after=after)
    items = [queue_item(cat, row) for row in rows[:limit]]
    return {
        "items": items,
        "next": batches.queue_key(rows[limit - 1]) if len(rows) > limit else None,
        "length": batches.queue_length(cat),
    }


@router.post("/frames/{frame_id}/open", response_model=t.FrameDetail, summary="Somebody is looking at this queued frame")
def open_frame(request: Request, frame_id: str) -> Row:
    cat = catalogue(request)
    if frames.get(cat, frame_id)["state"] == "queued":
        frames.change_state(cat, [frame_id], "in_review", _author(request, None), {"queued"})
    return frame_detail(cat, frame_id)


@router.post("/frames/{frame_id}/label", response_model=t.LabelTaken, summary="Take a label; a later one corrects it")
def post_label(request: Request, frame_id: str, label: t.LabelIn) -> Row:
    cat, blobs = stores(request)
    revision = submit_label(
        cat,
        blobs,
        frame_id,
        _author(request, label.author),
        label.verdict,
        [Box(box.class_name, box.box_xyxy) for box in label.boxes],
        classes_reviewed=label.classes_reviewed,
        seconds=label.seconds,
        edits=label.edits,
        label_id=label.label_id,
    )
    return {
        "frame": frame_id,
        "revision": revision,
        "state": frames.get(cat, frame_id)["state"],
        "queue": batches.queue_length(cat),
    }


@router.get("/classes", response_model=t.Classes)
def list_classes(request: Request) -> Row:
    return {"items": [{"id": i, "name": name} for i, name in enumerate(classes.class_names(catalogue(request)))]}


@router.post("/classes", response_model=t.Classes, summary="Append classes to the list")
def post_classes(request: Request, body: t.ClassesIn) -> Row:
    classes.add_classes(catalogue(request), body.names, _author(request, None))
    return list_classes(request)


@router.get("/batches", response_model=t.Batches)
def list_batches(request: Request, state: Literal["open", "done"] | None = None, limit: Limit = 100) -> Row:
    return {"items": batches.list_batches(catalogue(request), state=state, limit=limit)}


@router.post("/batches", response_model=t.Batch, status_code=201, summary="Queue received frames for labelling")
def post_batch(request: Request, body: t.BatchIn) -> Row:
    cat = catalogue(request)
    policy = batch_rules.BatchPolicy(min_gap_s=body.min_gap_s)
    batch = batch_rules.build_batch(cat, frames=body.frames, policy=policy, actor=_author(request, None))
    if batch is None:
        raise Conflict("no received frame waits to be queued; wait until devices have sent some, or import frames")
    return batches.progress(cat, batch)


@router.get("/models", response_model=t.Models)
def list_models(request: Request, limit: Limit = 100) -> Row:
    return {"items": overview.models(catalogue(request), limit)}


@router.get("/models/{digest}", response_model=t.ModelDetail)
def get_model(request: Request, digest: str) -> Row:
    return overview.model(catalogue(request), digest)


@router.get("/datasets", response_model=t.Datasets)
def list_datasets(request: Request, limit: Limit = 100) -> Row:
    return {"items": overview.datasets(catalogue(request), limit)}


@router.get("/runs", response_model=t.TrainingRuns)
def list_runs(request: Request, limit: Limit = 100) -> Row:
    return {"items": overview.runs(catalogue(request), limit)}


@router.get("/rollouts", response_model=t.Rollouts)
def list_rollouts(request: Request, limit: Limit = 100) -> Row:
    return {"items": overview.rollouts(catalogue(request), limit)}


@router.get("/events", response_model=t.Events)
def list_events(request: Request, subject: str | None = None, after: After = None, limit: Limit = 100) -> Row:
    rows = overview.events(catalogue(request), limit=limit + 1, after=after, subject=subject)
    return {"items": rows[:limit], "next": rows[limit - 1]["id"] if len(rows) > limit else None}


def _author(request: Request, named: str | None) -> str:
    """A session acts in its own name; a program with the token may name whom it acts for."""
    session: Session | None = request.state.session
    return session.author if session is not None else (named or "api")
