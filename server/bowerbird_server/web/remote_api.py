"""The JSON API of remote configuration and campaigns, under /api/v1.

In: requests that `auth.py` let through. Out: rows of the catalogue in the shapes below. The rules are in
`catalogue/device_config.py` and `catalogue/campaigns.py`, which the command line uses as well.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field

from bowerbird_server.catalogue import campaigns, config_changes, device_config, device_groups
from bowerbird_server.catalogue.core import Row
from bowerbird_server.errors import BadInput, Conflict
from bowerbird_server.fleet.rollout import Event
from bowerbird_server.web.api import _author as author
from bowerbird_server.web.api import router as api
from bowerbird_server.web.api_types import Finite, _In, _Out
from bowerbird_server.web.stores import catalogue, whole_catalogue

router = APIRouter(prefix=api.prefix, dependencies=api.dependencies, responses=api.responses)

Limit = Annotated[int, Query(ge=1, le=1000, description="Rows at most")]
Name = Annotated[str, Field(max_length=63)]
_EVENTS = {"pause": Event.PAUSE, "resume": Event.RESUME, "abort": Event.ABORT}


class DeviceConfig(_Out):
    """What is wished of a device, and what it made of it."""

    device: str
    tags: list[str]
    version: int
    document: dict[str, Any]
    state: str
    in_force: int
    faults: list[str]
    differs: list[str]
    campaign_faults: dict[str, str]
    reported_at: str | None


class Wish(_Out):
    """One version of a device's document."""

    version: int
    at: str
    actor: str
    change: str | None
    document: dict[str, Any]


class Wishes(_Out):
    items: list[Wish]


class ChangePart(_Out):
    """One device's part in a change."""

    device: str
    wave: int
    state: str
    version: int
    code: str
    detail: str
    updated_at: str


class Change(_Out):
    """A change and how far it has come."""

    id: str
    at: str
    actor: str
    patch: dict[str, Any]
    state: str
    why: dict[str, Any]
    devices: list[ChangePart]


class Changes(_Out):
    items: list[Change]


class Group(_In):
    """Which devices: by name, or of a site, with a tag, or all of them."""

    devices: Annotated[list[Name], Field(default_factory=list, max_length=10_000)]
    site: Name | None = None
    tag: Name | None = None
    all: bool = False


class ChangeIn(Group):
    """Settings to wish, and key paths to wish no longer ("" for all)."""

    set: dict[str, Any] = Field(default_factory=dict)
    unset: Annotated[list[Annotated[str, Field(max_length=200)]], Field(default_factory=list, max_length=100)]
    at_once: bool = False


class ConditionIn(_In):
    """What is looked for: boxes of a class and score, how many, on which cameras, when."""

    class_name: Annotated[str, Field(max_length=200)] = ""
    at_least: Finite = 0.25
    below: Finite | None = None
    count_min: int = 1
    count_max: int | None = None
    cameras: Annotated[list[Name], Field(default_factory=list, max_length=100)]
    hours: Annotated[list[Annotated[str, Field(max_length=30)]], Field(default_factory=list, max_length=24)]
    gap_s: Finite = 1.0


class CampaignIn(Group):
    """A search with its quota for all devices together."""

    frames: int
    bytes: int
    until: datetime
    condition: ConditionIn = Field(default_factory=lambda: ConditionIn.model_validate({}))


class Share(_Out):
    """One device's part: its share, and what it says it has taken."""

    device: str
    frames: int
    frames_taken: int
    bytes: int
    bytes_taken: int


class Campaign(_Out):
    """A search and what has come in."""

    id: str
    at: str
    actor: str
    scope: dict[str, Any]
    condition: dict[str, Any]
    frames: int
    bytes: int
    until: str
    state: str
    ended_at: str | None
    frames_received: int
    bytes_received: int


class CampaignDetail(Campaign):
    shares: list[Share]


class Campaigns(_Out):
    items: list[Campaign]


@router.get("/devices/{device}/config", response_model=DeviceConfig)
def get_config(request: Request, device: str) -> Row:
    return device_config.show(catalogue(request), device)


@router.get("/devices/{device}/config/history", response_model=Wishes)
def get_history(request: Request, device: str, limit: Limit = 50) -> Row:
    return {"items": device_config.history(catalogue(request), device, limit)}


@router.get("/config-changes", response_model=Changes)
def list_changes(request: Request, limit: Limit = 50) -> Row:
    return {"items": config_changes.changes(catalogue(request), limit)}


@router.post("/config-changes", response_model=Change, status_code=201, summary="Wish settings of devices, in waves")
def post_change(request: Request, body: ChangeIn) -> Row:
    cat = catalogue(request)
    if not body.set and not body.unset:
        raise BadInput("nothing to change; give set or unset")
    devices = device_groups.resolve(cat, body.devices, site=body.site, tagged=body.tag, everyone=body.all)
    patch = {"set": body.set, "unset": body.unset}
    identity = config_changes.change(whole_catalogue(request), devices, patch, author(request, None), at_once=body.at_once)
    return config_changes.get_change(cat, identity)


@router.post("/config-changes/{change}/{step}", response_model=Change, summary="Pause, resume or abort a change")
def post_step(request: Request, change: str, step: Literal["pause", "resume", "abort"]) -> Row:
    cat, whole = catalogue(request), whole_catalogue(request)
    seen = config_changes.get_change(cat, change)
    if len(seen["devices"]) != len(config_changes.get_change(whole, seen["id"])["devices"]):
        raise Conflict("this change has devices of other sites too; somebody who is let into all of them can steer it")
    config_changes.move(whole, seen["id"], _EVENTS[step], author(request, None))
    return config_changes.get_change(cat, seen["id"])


@router.get("/campaigns", response_model=Campaigns)
def list_campaigns(request: Request, limit: Limit = 100) -> Row:
    return {"items": campaigns.list_campaigns(catalogue(request), limit)}


@router.get("/campaigns/{campaign}", response_model=CampaignDetail)
def get_campaign(request: Request, campaign: str) -> Row:
    return campaigns.get(catalogue(request), campaign)


@router.post("/campaigns", response_model=CampaignDetail, status_code=201, summary="Look for frames of a kind")
def post_campaign(request: Request, body: CampaignIn) -> Row:
    cat = catalogue(request)
    if body.until.tzinfo is None:
        raise BadInput("until needs its time zone, such as 2026-12-04T18:00:00Z")
    wanted = body.condition.model_dump()
    condition = campaigns.Condition(**{**wanted, "cameras": tuple(wanted["cameras"]), "hours": tuple(wanted["hours"])})
    identity = campaigns.start(
        cat,
        frames=body.frames,
        size_bytes=body.bytes,
        until=body.until,
        condition=condition,
        actor=author(request, None),
        devices=body.devices,
        site=body.site,
        tagged=body.tag,
        everyone=body.all,
    )
    return campaigns.get(cat, identity)


@router.post("/campaigns/{campaign}/stop", response_model=CampaignDetail)
def post_stop(request: Request, campaign: str) -> Row:
    cat = catalogue(request)
    campaigns.stop(cat, campaign, author(request, None))
    return campaigns.get(cat, campaign)
