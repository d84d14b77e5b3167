"""Drift and accuracy in the field for the web: the JSON API and the page.

In: requests that `auth.py` let through. Out: rows of the catalogue. The rules are in `drift/verdicts.py` and `field_metrics.py`, which
the command line uses as well; it changes nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from bowerbird_server.catalogue import audited, drift_rows
from bowerbird_server.catalogue.core import Row
from bowerbird_server.web.api import router as api
from bowerbird_server.web.api_types import _Out
from bowerbird_server.web.pages import render
from bowerbird_server.web.stores import catalogue

router = APIRouter(prefix=api.prefix, dependencies=api.dependencies, responses=api.responses)
page_router = APIRouter()

Limit = Annotated[int, Query(ge=1, le=1000, description="Rows at most")]
CameraId = Annotated[str | None, Query(max_length=200, description="device/name; all by default")]


class Episode(_Out):
    """A time in which a camera showed something else than before."""

    id: str
    camera: str
    model: str
    cause: str
    found_at: str
    since: str
    until: str
    closed_at: str | None
    why_closed: str
    distances: dict[str, Any]
    boost_until_ms: int
    boost_factor: float
    far: list[str]
    slice: str


class Episodes(_Out):
    items: list[Episode]


class Rate(_Out):
    """A rate with its 95 % interval; `least` and `most`: if all that is missing were wrong, or right."""

    value: float | None
    low: float
    high: float
    least: float
    most: float


class FieldRow(_Out):
    """One camera ("" for all) in one period ("" for ever)."""

    camera: str
    begin: str
    precision: Rate
    recall: Rate
    frames: int
    scenes: int
    missing: int
    missing_share: float
    frames_seen: float


class Field(_Out):
    items: list[FieldRow]


@router.get("/drift", response_model=Episodes)
def get_drift(request: Request, limit: Limit = 100) -> Row:
    return {"items": drift_rows.episodes(catalogue(request), limit=limit)}


@router.get("/field", response_model=Field)
def get_field(
    request: Request,
    by: Literal["day", "week", "all"] = "week",
    camera: CameraId = None,
    model: Annotated[str | None, Query(max_length=64, pattern="^[0-9a-f]*$", description="Beginning of a digest")] = None,
) -> Row:
    return {"items": audited.metrics(catalogue(request), period=by, camera=camera, model=model)}


@page_router.get("/field")
def field_page(request: Request) -> Response:
    cat = catalogue(request)
    return render(
        request,
        "field.html",
        metrics=[audited.in_words(row) for row in audited.metrics(cat, period="week")[:200]],
        episodes=drift_rows.episodes(cat, limit=50),
        cameras=drift_rows.newest_of_cameras(cat),
    )
