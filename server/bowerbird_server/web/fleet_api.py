"""Who belongs to the fleet, over the web: devices with their states and certificates, alarms; approve, suspend, resume, retire.

In: requests that `auth.py` let through. Out: rows and pages; a step is at the broker before its answer leaves. What may follow on what
is `identity/states.py`, as for the command line. It invites nobody: a token is shown once, at the server.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from bowerbird_server.catalogue import fleet, identity, overview
from bowerbird_server.catalogue.core import Row
from bowerbird_server.catalogue.record_keeping import keep_records
from bowerbird_server.catalogue.sessions import Session
from bowerbird_server.config import load_config
from bowerbird_server.errors import BadInput
from bowerbird_server.fleet.provision import refresh_access
from bowerbird_server.identity.states import Happening
from bowerbird_server.site import Site
from bowerbird_server.web import api_types as t
from bowerbird_server.web.api import Limit, new_router
from bowerbird_server.web.auth import csrf_matches, error_answer
from bowerbird_server.web.pages import render
from bowerbird_server.web.stores import Stores, catalogue, principal_of

router = new_router()
page_router = APIRouter()

Step = Literal["approve", "suspend", "resume", "retire"]
_HAPPENINGS = {
    "approve": Happening.APPROVED,
    "suspend": Happening.SUSPENDED,
    "resume": Happening.RESUMED,
    "retire": Happening.RETIRED,
}
# What a page offers by state; anything else is refused by the rules all the same.
OFFERED = {"pending": ("approve", "retire"), "active": ("suspend", "retire"), "suspended": ("resume", "retire"), "retired": ()}


@router.get("/alarms", response_model=t.Alarms, summary="What a person should look at, newest first")
def list_alarms(request: Request, limit: Limit = 50) -> Row:
    return {"items": identity.alarms(catalogue(request), limit=limit)}


@router.post("/devices/{device}/approve", response_model=t.Device, summary="Let a board in that waits")
def approve(request: Request, device: str, body: t.DeviceApproval) -> Row:
    return _stepped(request, device, "approve", body.why, body.replaces)


@router.post("/devices/{device}/suspend", response_model=t.Device, summary="Shut a device out for now")
def suspend(request: Request, device: str, body: t.DeviceStep) -> Row:
    return _stepped(request, device, "suspend", body.why)


@router.post("/devices/{device}/resume", response_model=t.Device, summary="Let a suspended device in again")
def resume(request: Request, device: str, body: t.DeviceStep) -> Row:
    return _stepped(request, device, "resume", body.why)


@router.post("/devices/{device}/retire", response_model=t.Device, summary="Shut a device out for good; its frames stay")
def retire(request: Request, device: str, body: t.DeviceStep) -> Row:
    return _stepped(request, device, "retire", body.why)


def _stepped(request: Request, device: str, step: Step, why: str, replaces: str | None = None) -> Row:
    take_step(request, device, step, principal_of(request).name, why, replaces)
    return next(row for row in overview.devices(catalogue(request)) if row["id"] == device)


def take_step(request: Request, device: str, step: Step, actor: str, why: str = "", replaces: str | None = None) -> None:
    """Change a device's state, and have the broker go by it.

    Raises:
        NotFound: no such device, or one of another site.
        Conflict: that cannot happen to a device in its state.
        BadInput: `replaces` without an approval, or text that is none.
        EnvironmentFault: the state is changed, and the broker does not follow.
    """
    seen = catalogue(request)
    for name in filter(None, (device, replaces)):
        fleet.get(seen, name)
    if replaces and step != "approve":
        raise BadInput("only who is approved replaces another device; leave `replaces` out")
    if not why.isprintable():
        raise BadInput("the reason must be one line of printable characters")
    held: Stores = request.app.state.stores
    whole, blobs = held.open()
    with whole.transaction():
        if replaces:
            identity.replace(whole, replaces, device, actor)
        identity.change_state(whole, device, _HAPPENINGS[step], actor, f"replaces {replaces}" if replaces else why)
    site = Site(held.folder, request.app.state.config or load_config(held.folder.root, None), whole, blobs)
    keep_records(whole, blobs)
    refresh_access(site)


@page_router.get("/devices")
def devices_page(request: Request) -> Response:
    cat = catalogue(request)
    rows = overview.devices(cat)
    waiting = [row["id"] for row in rows if row["state"] == "pending"]
    return render(
        request,
        "devices.html",
        devices=sorted(rows, key=lambda row: (row["state"] != "pending", row["state"] == "retired", row["id"])),
        offered=OFFERED,
        alarms=identity.alarms(cat, limit=50),
        replaceable=[row["id"] for row in rows if row["state"] in ("active", "suspended")] if waiting else [],
    )


@page_router.post("/devices/{device}/{step}")
def step_form(
    request: Request,
    device: str,
    step: Step,
    why: Annotated[str, Form(max_length=200)] = "",
    replaces: Annotated[str, Form(max_length=63)] = "",
    csrf_token: Annotated[str, Form()] = "",
) -> Response:
    session: Session | None = request.state.session
    if session is None or not csrf_matches(session, csrf_token):
        return error_answer(403, "csrf", "reload the page and ask again")
    take_step(request, device, step, session.author, why, replaces or None)
    return RedirectResponse("/devices", status_code=303)
