"""The pages that say whether choosing frames pays, and which labels somebody should look at again.

In: requests that `auth.py` let through. Out: HTML, of the frames that the asking person may see.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from bowerbird_server.batches.yield_report import yield_report
from bowerbird_server.catalogue import second_looks
from bowerbird_server.web.pages import render
from bowerbird_server.web.stores import catalogue, principal_of

router = APIRouter()


@router.get("/selection")
def selection_page(request: Request) -> Response:
    return render(request, "selection.html", **yield_report(catalogue(request)))


@router.get("/second-looks")
def second_looks_page(request: Request) -> Response:
    return render(request, "second_looks.html", looks=second_looks.open_for(catalogue(request), principal_of(request).name))
