"""The JSON API for administrators: who did what, and who was shown which frame.

In: requests that `auth.py` let through. Out: rows of the audit log and of sights. Accounts and tokens are made on the command line.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request

from bowerbird_server.catalogue import audit
from bowerbird_server.catalogue.core import Row
from bowerbird_server.web import api_types as t
from bowerbird_server.web.api import Limit, new_router
from bowerbird_server.web.stores import catalogue

router = new_router()

Name = Annotated[str | None, Query(max_length=200)]


@router.get("/audit", response_model=t.AuditEvents, summary="The event log with origins and digests, newest first")
def list_audit(request: Request, actor: Name = None, subject: Name = None, since: Name = None, limit: Limit = 100) -> Row:
    return {"items": audit.events(catalogue(request), actor=actor, subject=subject, since=since, limit=limit)}


@router.get("/sights", response_model=t.Sights, summary="Who was shown which frame, newest first")
def list_sights(request: Request, person: Name = None, frame: Name = None, limit: Limit = 100) -> Row:
    return {"items": audit.sights(catalogue(request), person=person, frame=frame, limit=limit)}
