"""The JSON API's way to steer rollouts: start one of a published model, approve, pause, resume, abort.

In: requests that `auth.py` let through. Out: the rollout as it is then. Somebody who is let into some sites only steers the rollouts
whose devices are all theirs. Publishing a model needs a signing key and is the command line's (`bowerbird models publish`).
"""

from __future__ import annotations

from fastapi import Request

from bowerbird_server.catalogue import fleet, overview, rollouts
from bowerbird_server.catalogue.core import Catalogue, Row
from bowerbird_server.errors import Conflict, NotFound
from bowerbird_server.fleet.rollout import Event
from bowerbird_server.web import api_types as t
from bowerbird_server.web.api import new_router
from bowerbird_server.web.stores import catalogue, principal_of, whole_catalogue

router = new_router()


@router.post("/rollouts", response_model=t.Rollout, status_code=201, summary="Offer a published model to devices")
def post_rollout(request: Request, body: t.RolloutIn) -> Row:
    cat, whole = catalogue(request), whole_catalogue(request)
    model = overview.model(cat, body.model)
    if model["release"] is None:
        raise Conflict(f"model {model['digest'][:12]} is not published yet; `bowerbird models publish` signs and publishes it")
    active = fleet.active_devices(cat)
    unknown = sorted(set(body.devices or ()) - active.keys())
    if unknown:
        raise NotFound(f"no active device {', '.join(unknown)[:200]}")
    _check_supersedes_none_of_others(cat, whole)
    actor, manual = principal_of(request).name, request.app.state.approval_is_manual
    devices = sorted(set(body.devices or active))
    identity = rollouts.start_rollout(whole, model["digest"], model["release"], devices, actor, approved=not manual)
    return overview.rollout(cat, identity)


@router.post("/rollouts/{rollout}/approve", response_model=t.Rollout, summary="Let a draft of somebody else begin")
def approve_rollout(request: Request, rollout: str) -> Row:
    principal = principal_of(request)
    identity = _theirs(request, rollout)
    rollouts.approve(whole_catalogue(request), identity, principal.name, principal.credential)
    return overview.rollout(catalogue(request), identity)


@router.post("/rollouts/{rollout}/pause", response_model=t.Rollout, summary="Offer the model to no further device")
def pause_rollout(request: Request, rollout: str) -> Row:
    return _steer(request, rollout, Event.PAUSE)


@router.post("/rollouts/{rollout}/resume", response_model=t.Rollout, summary="Go on, failed devices included")
def resume_rollout(request: Request, rollout: str) -> Row:
    return _steer(request, rollout, Event.RESUME)


@router.post("/rollouts/{rollout}/abort", response_model=t.Rollout, summary="End it; devices that are not done stop")
def abort_rollout(request: Request, rollout: str) -> Row:
    return _steer(request, rollout, Event.ABORT)


def _steer(request: Request, rollout: str, event: Event) -> Row:
    identity = _theirs(request, rollout)
    rollouts.transition(whole_catalogue(request), identity, event, principal_of(request).name)
    return overview.rollout(catalogue(request), identity)


def _theirs(request: Request, rollout: str) -> str:
    """The id of a rollout that this person sees whole.

    Raises:
        NotFound: there is none, or none of theirs.
        Conflict: it has devices of other sites too.
    """
    seen = rollouts.get(catalogue(request), rollout)
    if len(seen["executions"]) != len(rollouts.executions(whole_catalogue(request), seen["id"])):
        raise Conflict("this rollout has devices of other sites too; somebody who is let into all of them can steer it")
    return str(seen["id"])


def _check_supersedes_none_of_others(cat: Catalogue, whole: Catalogue) -> None:
    """A new rollout aborts the open ones before it, which must not be those of other sites."""
    for row in rollouts.running(whole):
        if len(rollouts.executions(cat, row["id"])) != len(rollouts.executions(whole, row["id"])):
            raise Conflict("a rollout to other sites is under way, and a new one would end it; wait until it is over")
