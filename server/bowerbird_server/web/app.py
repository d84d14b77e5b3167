"""Builds the web application: the gate, the JSON API, the pages, and errors in words.

In: the data folder, and how long sessions last. Out: an ASGI application for uvicorn. Where it listens is the caller's business.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from bowerbird_server.access.oidc import Provider
from bowerbird_server.access.throttle import Throttle
from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.catalogue import Catalogue, accounts
from bowerbird_server.catalogue.sessions import Ages
from bowerbird_server.config import LabellingConfig, ServerConfig
from bowerbird_server.errors import BadInput, Conflict, EnvironmentFault, NotFound, ServerError
from bowerbird_server.ingest.device_limits import OverLimit
from bowerbird_server.layout import DataFolder
from bowerbird_server.web import (
    api,
    api_people,
    api_rollouts,
    api_selection,
    drift_api,
    fleet_api,
    login,
    login_oidc,
    metrics,
    pages,
    remote_api,
    remote_pages,
    selection_page,
)
from bowerbird_server.web.auth import AccessGate, error_answer
from bowerbird_server.web.stores import Stores

log = logging.getLogger(__name__)

STATIC_DIR = Path(__file__).parent / "static"

# The order matters: the first that fits is taken.
_STATUS: tuple[tuple[type[ServerError], int, str], ...] = (
    (NotFound, 404, "not_found"),
    (Conflict, 409, "conflict"),
    (BadInput, 400, "bad_input"),
    (EnvironmentFault, 503, "environment"),
    (ServerError, 500, "server_error"),
)


def create_app(
    folder: DataFolder,
    token: str | None = None,
    *,
    ages: Ages | None = None,
    failed_login_delay_s: float = 0.0,
    approval_is_manual: bool = False,
    oidc: Provider | None = None,
    labelling: LabellingConfig | None = None,
    config: ServerConfig | None = None,
) -> FastAPI:
    """The web application.

    Args:
        folder: the server's data folder.
        token: one that counts as an administrator's from now on; None where the catalogue knows who may come in.
        ages: how long sessions last.
        failed_login_delay_s: how long the answer to a wrong log-in is held back.
        oidc: who else may say who somebody is.
        labelling: how batches are built; None for the defaults.
        config: the site's, for what concerns its broker; None for that of the data folder.
        approval_is_manual: a rollout that is started here waits for somebody else's approval.

    Raises:
        EnvironmentFault: the catalogue or the blob store cannot be opened.
        ValueError: the token is too short.
    """
    # Said now, at the start, instead of at the first request.
    folder.make()
    with Catalogue(folder.catalogue) as cat:
        if token is not None:
            accounts.ensure_administrator_token(cat, token, "given-at-start", "web")
    LocalBlobs(folder.blobs)
    ages = ages or Ages()
    held = Stores(folder)
    app = FastAPI(
        title="Bowerbird",
        summary="Frames that cameras chose, their labels, and the models trained on them.",
        version="1",
        openapi_url="/api/v1/openapi.json",
        # The stock viewers load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
    )
    app.state.stores = held
    app.state.ages, app.state.throttle, app.state.failed_login_delay_s = ages, Throttle(), failed_login_delay_s
    app.state.oidc = oidc
    app.state.labelling = labelling
    app.state.config = config
    app.state.over_limit = OverLimit(time.monotonic)
    app.state.approval_is_manual = approval_is_manual
    for router in (api.open_router, api.router, api_rollouts.router, api_people.router, remote_api.router, drift_api.router):
        app.include_router(router, tags=["v1"])
    app.include_router(fleet_api.router, tags=["v1"])
    app.include_router(api_selection.router, tags=["v1"])
    app.include_router(selection_page.router, include_in_schema=False)
    app.include_router(metrics.router, include_in_schema=False)
    app.include_router(login.router, include_in_schema=False)
    app.include_router(login_oidc.router, include_in_schema=False)
    app.include_router(pages.router, include_in_schema=False)
    app.include_router(remote_pages.router, include_in_schema=False)
    app.include_router(fleet_api.page_router, include_in_schema=False)
    app.include_router(drift_api.page_router, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=STATIC_DIR), name="static")
    app.add_middleware(AccessGate, stores=held, ages=ages, error_page=pages.error_page)
    app.add_exception_handler(ServerError, _server_error)
    app.add_exception_handler(sqlite3.OperationalError, _busy)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _http_error)
    return app


def _answer(request: Request, status: int, code: str, message: str, details: list[str] | None = None) -> Response:
    if request.url.path.startswith("/api/") or request.method != "GET":
        return error_answer(status, code, message, details)
    return pages.error_page(request, status, message)


async def _server_error(request: Request, error: Exception) -> Response:
    status, code = next((status, code) for kind, status, code in _STATUS if isinstance(error, kind))
    if status >= 500:
        log.warning("%s %s: %s", request.method, request.url.path, error)
    return _answer(request, status, code, str(error))


async def _busy(request: Request, error: Exception) -> Response:
    log.warning("%s %s: the catalogue cannot be used now: %s", request.method, request.url.path, error)
    message = f"the catalogue cannot be used now ({error}); try again, and look at the server's disk if it stays so"
    return _answer(request, 503, "environment", message)


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for nothing else; tells the type checker
    faults = [f"{'.'.join(str(part) for part in fault['loc'][1:]) or 'body'}: {fault['msg']}" for fault in error.errors()]
    return _answer(request, 422, "malformed", "correct these fields: " + "; ".join(faults[:20]), faults)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else; tells the type checker
    words = {404: "there is nothing at this address", 405: "this address does not take this method"}
    return _answer(request, error.status_code, "http", words.get(error.status_code, str(error.detail)))
