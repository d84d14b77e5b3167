"""The page that says whether choosing frames pays.

In: requests that `auth.py` let through. Out: HTML of `yield_report`, of the frames that the asking person may see.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from bowerbird_server.web.pages import render
from bowerbird_server.web.stores import catalogue
from bowerbird_server.yield_report import yield_report

router = APIRouter()


@router.get("/selection")
def selection_page(request: Request) -> Response:
    return render(request, "selection.html", **yield_report(catalogue(request)))
