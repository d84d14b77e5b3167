"""The pages of remote configuration and campaigns: what is wished of a device, what it made of it, what is looked for.

In: requests that `auth.py` let through. Out: HTML from `templates/`. They show; the command line and the API change.
"""

from __future__ import annotations

import json

from fastapi import APIRouter, Request
from fastapi.responses import Response

from bowerbird_server.catalogue import campaigns, config_changes, device_config, fleet, overview
from bowerbird_server.fleet import device_config as rules
from bowerbird_server.web.pages import render
from bowerbird_server.web.stores import catalogue

router = APIRouter()


@router.get("/devices/{device}/config")
def config_page(request: Request, device: str) -> Response:
    cat = catalogue(request)
    found = device_config.show(cat, device)
    return render(
        request,
        "device_config.html",
        config=found,
        dry_run=fleet.get(cat, device)["health"].get("extra", {}).get("dry_run"),
        settings=[(path, json.dumps(value)) for path, value in rules.flat(found["document"]).items()],
        differing=[
            (path, None if now is None else json.dumps(now), None if wanted is None else json.dumps(wanted))
            for path, (now, wanted) in rules.difference(device_config.document_in_force(cat, device), found["document"]).items()
        ],
        history=[{**row, "shown": json.dumps(row["document"])} for row in device_config.history(cat, device, 20)],
        events=overview.events(cat, subject=device, limit=30),
    )


@router.get("/campaigns")
def campaigns_page(request: Request) -> Response:
    cat = catalogue(request)
    return render(
        request, "campaigns.html", campaigns=campaigns.list_campaigns(cat, 50), changes=config_changes.changes(cat, 20)
    )
