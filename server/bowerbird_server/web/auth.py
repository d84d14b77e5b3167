"""Who may come in: tokens, sessions, roles, and protection of posts that ride on a cookie.

In: requests, the catalogue's accounts, the table of `permissions.py`. Out: yes or no, `request.state.principal` and `.session`, and the
headers every answer carries. Logging in is in `login.py`; which rows somebody sees is in `catalogue/scope.py`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import sqlite3
import time
from collections.abc import Callable
from urllib.parse import quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bowerbird_server.catalogue import accounts, sessions
from bowerbird_server.catalogue.core import ORIGIN
from bowerbird_server.catalogue.sessions import Ages, Session
from bowerbird_server.errors import EnvironmentFault
from bowerbird_server.web.permissions import needs_of
from bowerbird_server.web.stores import Stores

log = logging.getLogger(__name__)

COOKIE = "bowerbird_session"
CSRF_HEADER = "X-CSRF-Token"
_LARGEST_BODY_BYTES = 4 * 1024 * 1024
_LARGEST_LOGIN_BYTES = 16 * 1024
_BODY_WAIT_S = 30.0
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

# Everything comes from this server; nothing inline; nothing may frame it.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
_ON_TLS = {"Strict-Transport-Security": "max-age=31536000"}


def error_answer(status: int, code: str, message: str, details: list[str] | None = None) -> JSONResponse:
    """An error as every API answer gives it: a code for programs, and words that say what to do."""
    return JSONResponse({"error": {"code": code, "message": message, "details": details or []}}, status_code=status)


class AccessGate:
    """ASGI middleware: nothing but what the table calls open is reached without a token or a session whose role suffices."""

    def __init__(self, app: ASGIApp, stores: Stores, ages: Ages, error_page: Callable[[Request, int, str], Response]) -> None:
        self._app, self._stores, self._ages, self._error_page = app, stores, ages, error_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":  # there is none here; refuse instead of passing by the checks
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {**_HEADERS, **(_ON_TLS if scope["scheme"] == "https" else {})}.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        request, method = HTTPConnection(scope), str(scope["method"])
        request.state.principal = request.state.session = None
        refusal = _body_fault(request, method)
        if refusal is None and not _path(request).startswith("/static/"):
            # The catalogue may be busy, and the loop must not wait for it.
            try:
                refusal = await run_in_threadpool(self._refusal, request, method)
            except (sqlite3.OperationalError, EnvironmentFault) as error:
                log.warning("nobody can be let in: the catalogue cannot be used now: %s", error)
                refusal = error_answer(503, "environment", "the catalogue cannot be used now; try again, and look at the disk")
        principal = request.state.principal
        address = request.client.host if request.client else "unknown"
        ORIGIN.set(f"{address} {principal.credential}" if principal else address)
        await (refusal or self._app)(scope, _bounded(receive), send_with_headers)

    def _refusal(self, request: HTTPConnection, method: str) -> Response | None:
        """The answer to a request that may not pass, or None; leaves principal and session in `request.state`."""
        path, unsafe = _path(request), method not in _SAFE_METHODS
        needs = needs_of(path)
        need = needs.get(method)
        scheme, _, presented = request.headers.get("authorization", "").partition(" ")
        bearer = presented.strip() if scheme.lower() == "bearer" else ""
        if bearer:
            request.state.principal = accounts.principal_of_token(self._stores.open()[0], bearer)
            if request.state.principal is None:
                return error_answer(
                    401, "unauthorized", "this token is unknown, expired or revoked; `bowerbird tokens add` makes one"
                )
        else:
            if unsafe and not _same_origin(request.headers):
                return error_answer(403, "cross_site", "posts from other sites are refused; open this server's own page")
            session = sessions.session(self._stores.open()[0], request.cookies.get(COOKIE, ""), self._ages, time.time())
            if session is not None:
                request.state.session, request.state.principal = session, session.principal
        if need is not None and need.role is None:
            return None
        if request.state.principal is None:
            return _who_are_you(request, unsafe)
        if need is None:  # said only to those inside; a route without a line in the table is nowhere too
            if not needs:
                return self._refuse(request, unsafe, 404, "http", "there is nothing at this address")
            takes = ", ".join(sorted(needs))
            answer = self._refuse(request, unsafe, 405, "http", f"this address takes {takes}")
            answer.headers["Allow"] = takes
            return answer
        session = request.state.session
        if unsafe and session and not _is_form(path) and not csrf_matches(session, request.headers.get(CSRF_HEADER, "")):
            return error_answer(403, "csrf", f"the header {CSRF_HEADER} is missing or stale; reload the page")
        why_not = need.refusal(request.state.principal)
        if not why_not:
            return None
        log.warning("refused %s %s to %s", method, path[:200], request.state.principal.credential)
        return self._refuse(request, unsafe, 403, "forbidden", why_not)

    def _refuse(self, request: HTTPConnection, unsafe: bool, status: int, code: str, message: str) -> Response:
        if unsafe or _is_for_programs(_path(request)):
            return error_answer(status, code, message)
        return self._error_page(Request(request.scope), status, message)


def _is_form(path: str) -> bool:
    """Forms carry the token in a field, which their own routes compare."""
    return path == "/logout" or (path.startswith("/frames/") and path.endswith("/fetch")) or path.startswith("/devices/")


def csrf_matches(session: Session, given: str) -> bool:
    """Whether a post carries its session's token, compared in constant time."""
    return hmac.compare_digest(session.csrf_token.encode(), given.encode())


def safe_next(path: str) -> str:
    """Where to go after the login: a path on this server, else the dashboard."""
    inside = path.startswith("/") and not path.startswith(("//", "/\\")) and not any(ord(letter) < 32 for letter in path)
    return path if inside else "/"


def _path(request: HTTPConnection) -> str:
    """What the routes will match; not that of `request.url`, in which an encoded question mark ends the path."""
    return str(request.scope["path"])


def _who_are_you(request: HTTPConnection, unsafe: bool) -> Response:
    path = _path(request)
    if unsafe or _is_for_programs(path):
        return error_answer(401, "unauthorized", "log in at /login, or send the header `Authorization: Bearer TOKEN`")
    where = path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/login?next={quote(where, safe='')}", status_code=303)


def _is_for_programs(path: str) -> bool:
    return path.startswith(("/api/", "/fragments/")) or path in {"/session", "/metrics"}


def _same_origin(headers: Headers) -> bool:
    if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        return False
    origin = headers.get("origin")
    # "null" is what browsers send from a page without referrer in a form post; the fetch metadata above has judged those.
    return (
        origin is None or (origin == "null" and "sec-fetch-site" in headers) or urlsplit(origin).netloc == headers.get("host")
    )


def _body_fault(request: HTTPConnection, method: str) -> Response | None:
    headers = request.headers
    length = headers.get("content-length")
    if "transfer-encoding" in headers:
        return error_answer(411, "length_required", "send the body with a Content-Length")
    most = _LARGEST_LOGIN_BYTES if _path(request) in {"/login", "/logout"} or method in _SAFE_METHODS else _LARGEST_BODY_BYTES
    if length is not None and (not (length.isascii() and length.isdigit()) or int(length[:20]) > most):
        return error_answer(413, "too_large", f"at most {most} bytes are taken in this request")
    return None


def _bounded(receive: Receive) -> Receive:
    """A body that trickles in is not waited for: each piece has to come in time."""
    whole = False

    async def bounded() -> Message:
        nonlocal whole
        if whole:  # what comes now is the end of the connection, which may take as long as the answer
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), _BODY_WAIT_S)
        except TimeoutError:
            return {"type": "http.disconnect"}
        whole = not message.get("more_body", False)
        return message

    return bounded
