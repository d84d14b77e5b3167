"""The JSON API under /api/v1: what there is, the labelling queue, and taking labels. The review page and programs use the same.

In: requests that `auth.py` let through. Out: the shapes of `api_types.py`; errors as `{"error": {code, message, details}}`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer

from bowerbird_server.batches import batch as batch_rules
from bowerbird_server.catalogue import accounts, audit, batches, classes, fetches, fleet, frames, overview, second_looks, unsent
from bowerbird_server.catalogue.core import Row
from bowerbird_server.errors import BadInput, Conflict, NotFound
from bowerbird_server.labelling.backend import prelabels, submit_label
from bowerbird_server.labelling.boxes import PRELABEL_CONFIDENCE, Box, count_edits
from bowerbird_server.web import api_types as t
from bowerbird_server.web.shapes import fetch_shapes, frame_detail, frame_shape, queue_item
from bowerbird_server.web.stores import catalogue, principal_of, stores, whole_catalogue

# Only so that the OpenAPI description says how to come in; the checking is AccessGate's.
_bearer = HTTPBearer(auto_error=False, description="A token of `bowerbird tokens add`")
_errors: dict[int | str, dict[str, Any]] = {
    status: {"model": t.ErrorAnswer, "description": words}
    for status, words in (
        (400, "The request cannot be carried out as it is"),
        (401, "No token, no session"),
        (403, "The role does not suffice"),
        (404, "No such thing"),
        (409, "Not in this state"),
        (422, "The request's fields are malformed"),
    )
}


def new_router() -> APIRouter:
    """A router below /api/v1 whose description says how to come in and what an error looks like."""
    return APIRouter(prefix="/api/v1", dependencies=[Security(_bearer), Depends(_known_parameters)], responses=_errors)


def _known_parameters(request: Request) -> None:
    """A misspelt filter must not be taken for none at all, nor one of two for both."""
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    given = [name for name, _ in request.query_params.multi_items()]
    faults = [(name, f"unknown; known here: {', '.join(sorted(known)) or 'none'}") for name in sorted(set(given) - known)]
    faults += [(name, "given more than once") for name in sorted(known) if given.count(name) > 1]
    if faults:
        raise RequestValidationError([{"loc": ("query", name[:80]), "msg": words} for name, words in faults])


router = new_router()
open_router = APIRouter(prefix="/api/v1")  # what nobody needs a token for

Limit = Annotated[int, Query(ge=1, le=1000, description="Rows at most")]
After = Annotated[str | None, Query(max_length=200, description="`next` of the previous page")]
AfterFrame = Annotated[str | None, Query(max_length=200, pattern=r"^[^~]+~[^~]+$", description="`next` of the previous page")]
AfterQueued = Annotated[
    str | None, Query(max_length=200, pattern=r"^[^~]+~[^~]+~[0-9]{1,9}$", description="`next` of the previous page")
]
State = Literal["received", "queued", "in_review", "labelled", "rejected", "deleted"]

_MEDIA_TYPES = {"jpeg": "image/jpeg", "jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


@open_router.get("/health", response_model=t.Health, summary="Is the web process alive?")
def health(request: Request) -> Row:
    whole_catalogue(request).value("SELECT 1")
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
    after: AfterFrame = None,
    limit: Limit = 100,
) -> Row:
    page = frames.list_frames(
        catalogue(request), state=state, device=device, camera=camera, scene=scene, after=after, limit=limit
    )
    return {"items": [frame_shape(row) for row in page.rows], "next": page.after}


@router.get("/frames/{frame_id}", response_model=t.FrameDetail)
def get_frame(request: Request, frame_id: str) -> Row:
    """To somebody who is asked for a second opinion of their own the label there is is not shown."""
    cat = catalogue(request)
    detail = frame_detail(cat, frame_id)
    if request.state.session is not None and second_looks.is_blind(cat, frame_id, _author(request, None)):
        detail["label"] = None
    return detail


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
    audit.note_sight(whole_catalogue(request), principal_of(request).name, frame_id)
    if headers["ETag"] in known:
        return Response(status_code=304, headers=headers)
    # A type we do not know is handed out as bytes: what a device sent must never run as a page.
    media_type = _MEDIA_TYPES.get(row["image_format"], "application/octet-stream")
    return FileResponse(blobs.path(row["blob"]), media_type=media_type, headers=headers)


@router.get("/queue", response_model=t.QueuePage, summary="Frames that wait for a label, in the order to label them")
def list_queue(request: Request, after: AfterQueued = None, limit: Limit = 50) -> Row:
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
        frames.change_state(whole_catalogue(request), [frame_id], "in_review", _author(request, None), {"queued"})
    return frame_detail(cat, frame_id)


@router.post("/frames/{frame_id}/label", response_model=t.LabelTaken, summary="Take a label; a later one corrects it")
def post_label(request: Request, frame_id: str, label: t.LabelIn) -> Row:
    cat, blobs = stores(request)
    frames.get(cat, frame_id)  # a frame of another site is none
    boxes = [Box(box.class_name, box.box_xyxy) for box in label.boxes]
    edits = label.edits
    if edits is None:  # a program's; without edits no label would say whether choosing pays
        edits = count_edits(prelabels(cat, frame_id, PRELABEL_CONFIDENCE), boxes) if label.verdict == "labelled" else {}
    revision = submit_label(
        whole_catalogue(request),
        blobs,
        frame_id,
        _author(request, label.author),
        label.verdict,
        boxes,
        classes_reviewed=label.classes_reviewed,
        seconds=label.seconds,
        edits=edits,
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
    classes.add_classes(whole_catalogue(request), body.names, _author(request, None))
    return list_classes(request)


@router.get("/batches", response_model=t.Batches)
def list_batches(request: Request, state: Literal["open", "done"] | None = None, limit: Limit = 100) -> Row:
    return {"items": batches.list_batches(catalogue(request), state=state, limit=limit)}


@router.post("/batches", response_model=t.Batch, status_code=201, summary="Queue received frames for labelling")
def post_batch(request: Request, body: t.BatchIn) -> Row:
    cat, blobs = stores(request)
    batch = batch_rules.build_batch(
        whole_catalogue(request),
        frames=body.frames,
        policy=batch_rules.BatchPolicy(min_gap_s=body.min_gap_s),
        actor=_author(request, None),
        among=cat,
        blobs=blobs,
        settings=request.app.state.labelling,
    )
    if batch is None:
        raise Conflict("no received frame waits to be queued; wait until devices have sent some, or import frames")
    return batches.progress(cat, batch)


@router.get("/frames/{frame_id}/fetch", response_model=t.Fetches, summary="What was asked of its device, and what came")
def list_fetches(request: Request, frame_id: str) -> Row:
    cat = catalogue(request)
    frames.get(cat, frame_id)
    return fetch_shapes(cat, frame_id)


@router.post(
    "/frames/{frame_id}/fetch",
    response_model=t.Fetches,
    status_code=201,
    summary="Ask its device for its original or surroundings",
)
def post_fetch(request: Request, frame_id: str, wish: t.FetchIn) -> Row:
    cat = catalogue(request)
    frames.get(cat, frame_id)
    fetches.ask(whole_catalogue(request), frame_id, wish.kind, _author(request, None), seconds=wish.seconds)
    return fetch_shapes(cat, frame_id)


@router.get("/devices/{device}/unsent", response_model=t.Unsent, summary="What the device kept and never sent")
def get_unsent(request: Request, device: str, limit: Limit = 100) -> Row:
    cat = catalogue(request)
    fleet.get(cat, device)
    return {**unsent.of_device(cat, device), "frames": unsent.named(cat, device, limit=limit)}


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
    """A session acts in its own name; a program with a token may name whom it acts for, but for somebody with an account."""
    if request.state.session is None and named:
        if accounts.is_user(whole_catalogue(request), named):
            raise BadInput(f"{named!r} has an account; a program labels in its own name, or in one that is no account's")
        return named
    return principal_of(request).name
