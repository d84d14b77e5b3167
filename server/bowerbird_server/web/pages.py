"""The pages people look at: dashboard, frames, models, review. Small scripts in `static/` keep them fresh; logging in is in `login.py`.

In: requests that `auth.py` let through. Out: HTML from `templates/`, escaped by default, without inline script or style.
"""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.templating import Jinja2Templates
from markupsafe import Markup

from bowerbird_server.access.roles import Principal
from bowerbird_server.broker.refusals import Refused, recent
from bowerbird_server.catalogue import Catalogue, audit, batches, fetches, frames, identity, judged, labels, overview
from bowerbird_server.catalogue.sessions import Session
from bowerbird_server.config import load_config
from bowerbird_server.fleet.held_back import held_back
from bowerbird_server.ingest.device_limits import DeviceLimit, OverLimit
from bowerbird_server.labelling.boxes import PRELABEL_CONFIDENCE
from bowerbird_server.web.auth import csrf_matches, error_answer
from bowerbird_server.web.permissions import NEEDS
from bowerbird_server.web.shapes import fetch_shapes, frame_detail, frame_shape, label_shape
from bowerbird_server.web.spending import Spent, spent
from bowerbird_server.web.stores import Stores, catalogue, principal_of, whole_catalogue
from bowerbird_server.web.why import strategy_rows

router = APIRouter()
_templates = Jinja2Templates(directory=Path(__file__).parent / "templates")
_FRAMES_A_PAGE = 48
ALARMS_SHOWN = timedelta(days=7)  # at the dashboard; all are at /devices


def _size(count: Any) -> str:
    value = float(count or 0)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def _when(text: str | None) -> Markup:
    """A UTC time in full for programs, short for people; the script shows how long ago it was."""
    if not text:
        return Markup("–")
    moment = datetime.fromisoformat(text)
    return Markup('<time datetime="{}">{}</time>').format(text, f"{moment:%Y-%m-%d %H:%M:%S}")


def _short(digest: str | None) -> str:
    return (digest or "")[:10] or "–"


def _number(value: Any, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "–"


def _words(value: Any) -> str:
    return str(value).replace("_", " ").replace(".", " ")


def _spent(extra: Any) -> Spent:
    return spent(extra if isinstance(extra, dict) else {}, _size)


def _evaluations(metrics: Any) -> list[tuple[str, dict[str, Any]]]:
    """The evaluations in a model's metrics: one on its own, or several by name."""
    if not isinstance(metrics, dict):
        return []
    if "map50_95" in metrics:
        return [("", metrics)]
    return [(name, value) for name, value in metrics.items() if isinstance(value, dict) and "map50_95" in value]


_templates.env.filters.update(evaluations=_evaluations, spent=_spent)
_templates.env.filters.update(size=_size, when=_when, short=_short, number=_number, words=_words)
_templates.env.globals["prelabel_confidence"] = PRELABEL_CONFIDENCE


def render(request: Request, name: str, http_status: int = 200, **context: Any) -> Response:
    """A page from its template, with the session of whoever asks."""
    session: Session | None = getattr(request.state, "session", None)
    may = _may(getattr(request.state, "principal", None))
    return _templates.TemplateResponse(request, name, {"session": session, "may": may, **context}, status_code=http_status)


def _may(principal: Principal | None) -> dict[str, bool]:
    """What pages offer to somebody: whatever they could not do is not shown to them."""
    asked = {
        "label": "/api/v1/frames/{frame_id}/label",
        "add_classes": "/api/v1/classes",
        "devices": "/api/v1/devices/{device}/approve",
    }
    return {name: principal is not None and not NEEDS["POST", path].refusal(principal) for name, path in asked.items()}


def error_page(request: Request, status: int, message: str) -> Response:
    """A page that says what went wrong and what to do."""
    return render(request, "error.html", status, status=status, message=message)


def _dashboard(request: Request) -> dict[str, Any]:
    cat = catalogue(request)
    models = overview.models(cat, 12)
    return {
        "summary": overview.summary(cat),
        "devices": overview.devices(cat),
        "batches": batches.list_batches(cat, state="open", limit=5),
        "runs": overview.runs(cat, 6),
        "models": models,
        "champion": next((model for model in models if model["state"] == "champion"), None),
        "datasets": overview.datasets(cat, 6),
        "rollouts": overview.rollouts(cat, 4),
        "events": overview.events(cat, limit=15, each_frame=False),
        "fallen_back": judged.fallen_back(cat),
        "refused": refused_at_the_broker(request),
        "held": _held_back(request, cat),
        "alarms": identity.alarms(cat, limit=5, since=datetime.now(tz=UTC) - ALARMS_SHOWN),
    }


def _held_back(request: Request, cat: Catalogue) -> list[str]:
    """Why devices keep their frames; of the devices that somebody may see."""
    held: Stores = request.app.state.stores
    config = request.app.state.config or load_config(held.folder.root)
    free_bytes = shutil.disk_usage(held.folder.blobs).free
    over: OverLimit = request.app.state.over_limit
    devices = over.devices(cat, DeviceLimit.of(config.ingest), principal_of(request).sites)
    return held_back(config.ingest, free_bytes, devices)


def refused_at_the_broker(request: Request) -> list[Refused]:
    """Who did not come in there; for those who are let in everywhere, since whose they are nobody knows."""
    held: Stores = request.app.state.stores
    if not principal_of(request).sites.everywhere:
        return []
    return recent(held.folder.logs / "broker.log", now=datetime.now(tz=UTC))


@router.get("/")
def dashboard(request: Request) -> Response:
    return render(request, "dashboard.html", **_dashboard(request))


@router.get("/fragments/dashboard")
def dashboard_fragment(request: Request) -> Response:
    return render(request, "_dashboard.html", **_dashboard(request))


@router.get("/frames")
def frames_page(
    request: Request,
    *,
    state: str = "",
    device: str = "",
    camera: str = "",
    scene: str = "",
    after: str = "",
) -> Response:
    cat = catalogue(request)
    wanted = {"state": state, "device": device, "camera": camera, "scene": scene}
    page = frames.list_frames(
        cat, **{key: value or None for key, value in wanted.items()}, after=after or None, limit=_FRAMES_A_PAGE
    )
    return render(
        request,
        "frames.html",
        frames=[frame_shape(row) for row in page.rows],
        next=page.after,
        wanted={key: value for key, value in wanted.items() if value},
        counts=frames.count_by_state(cat),
        devices=[row["id"] for row in overview.devices(cat)],
        first_page=not after,
    )


@router.get("/frames/{frame_id}")
def frame_page(request: Request, frame_id: str) -> Response:
    cat = catalogue(request)
    frame = frame_detail(cat, frame_id)
    audit.note_sight(whole_catalogue(request), principal_of(request).name, frame_id)
    return render(
        request,
        "frame.html",
        frame=frame,
        strategies=strategy_rows(frame),
        fetched=fetch_shapes(cat, frame_id),
        labels=[label_shape(row) for row in reversed(labels.labels_of(cat, frame_id))],
        events=overview.events(cat, subject=frame_id, limit=30),
    )


@router.post("/frames/{frame_id}/fetch")
def fetch_more(
    request: Request,
    frame_id: str,
    kind: Annotated[str, Form(max_length=20)],
    seconds: Annotated[float, Form()] = 3.0,
    csrf_token: Annotated[str, Form()] = "",
) -> Response:
    session: Session | None = request.state.session
    if session is None or not csrf_matches(session, csrf_token):
        return error_answer(403, "csrf", "reload the page and ask again")
    frames.get(catalogue(request), frame_id)  # of somebody's own sites, or there is none
    fetches.ask(whole_catalogue(request), frame_id, kind, session.author, seconds=seconds)
    return RedirectResponse(f"/frames/{frame_id}", status_code=303)


@router.get("/models/{digest}")
def model_page(request: Request, digest: str) -> Response:
    cat = catalogue(request)
    model = overview.model(cat, digest)
    parent = overview.model(cat, model["parent"]) if model["parent"] else None
    return render(
        request,
        "model.html",
        model=model,
        parent=parent,
        verdict_text=json.dumps(model["verdict"], indent=2, sort_keys=True),
        events=overview.events(cat, subject=model["digest"], limit=30),
    )


@router.get("/review")
def review_page(request: Request) -> Response:
    return render(request, "review.html")
