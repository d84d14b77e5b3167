"""Who may come in: one token, sessions signed with a key derived from it, and protection of posts that ride on a cookie.

In: the token printed at start, requests. Out: yes or no, and the headers every answer carries. Sessions are HMACs, so that a restart of
the server with the same token does not throw an annotator out in the middle of a frame. It keeps no users.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "bowerbird_session"
CSRF_HEADER = "X-CSRF-Token"
SESSION_S = 7 * 24 * 3600
_LARGEST_BODY_BYTES = 4 * 1024 * 1024
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN_PATHS = frozenset({"/login", "/api/v1/health", "/favicon.ico"})

# Everything comes from this server; nothing inline; nothing may frame it.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Session:
    """A person who has logged in; `csrf_token` must come with every post of theirs."""

    author: str
    csrf_token: str


class Sessions:
    """Makes and checks session cookies.

    Args:
        token: the secret that gives access; at least 16 characters.

    Raises:
        ValueError: the token is too short to be a secret.
    """

    def __init__(self, token: str) -> None:
        if len(token) < 16:
            raise ValueError("the web token must have at least 16 characters")
        self._token = token.encode()
        self._key = hmac.digest(self._token, b"bowerbird session key", "sha256")
        self._ended: set[str] = set()

    def knows(self, token: str) -> bool:
        """Whether this is the token, compared in constant time."""
        return hmac.compare_digest(self._token, token.encode())

    def begin(self, author: str) -> str:
        """A cookie value for a new session."""
        name = base64.urlsafe_b64encode(author.encode()).decode().rstrip("=")
        body = f"{int(time.time()) + SESSION_S}.{secrets.token_urlsafe(18)}.{name}"
        return f"{body}.{self._sign(body)}"

    def session(self, cookie: str | None) -> Session | None:
        """The session of a cookie value, or None when it is forged, expired or ended."""
        body, _, mark = (cookie or "").rpartition(".")
        if not body or not hmac.compare_digest(self._sign(body).encode(), mark.encode()) or cookie in self._ended:
            return None
        try:
            expires, _, name = body.split(".")
            author = base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
            if int(expires) < time.time():
                return None
        except (ValueError, binascii.Error):
            return None
        return Session(author, self._sign("csrf " + body))

    def end(self, cookie: str) -> None:
        """Log out: the cookie is worth nothing any more, as long as this process lives."""
        if len(self._ended) < 10_000 and self.session(cookie):
            self._ended.add(cookie)

    def _sign(self, text: str) -> str:
        return base64.urlsafe_b64encode(hmac.digest(self._key, text.encode(), hashlib.sha256)).decode().rstrip("=")


def error_answer(status: int, code: str, message: str, details: list[str] | None = None) -> JSONResponse:
    """An error as every API answer gives it: a code for programs, and words that say what to do."""
    return JSONResponse({"error": {"code": code, "message": message, "details": details or []}}, status_code=status)


class AccessGate:
    """ASGI middleware: nothing but the login page, its assets and the health check is reached without the token or a session."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app, self._sessions = app, sessions

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
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(HTTPConnection(scope), str(scope["method"]))
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: HTTPConnection, method: str) -> Response | None:
        """The answer to a request that may not pass, or None; leaves author and session in `request.state`."""
        path, unsafe = request.url.path, method not in _SAFE_METHODS
        is_api = path.startswith("/api/") or path == "/metrics"
        if unsafe and (fault := _body_fault(request.headers)):
            return fault
        scheme, _, presented = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and presented:
            if not self._sessions.knows(presented.strip()):
                return error_answer(
                    401, "unauthorized", "this is not the server's token; use the one it printed when it started"
                )
            request.state.session = None
            return None
        if unsafe and not _same_origin(request.headers):
            return error_answer(403, "cross_site", "posts from other sites are refused; open this server's own page")
        session = self._sessions.session(request.cookies.get(COOKIE))
        request.state.session = session
        if path in _OPEN_PATHS or path.startswith("/static/"):
            return None
        if session is None:
            if is_api or unsafe or path.startswith("/fragments/") or path == "/session":
                return error_answer(
                    401,
                    "unauthorized",
                    "log in at /login, or send the header `Authorization: Bearer TOKEN` with the printed token",
                )
            where = path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/login?next={quote(where, safe='')}", status_code=303)
        if unsafe and not _is_form(path) and not csrf_matches(session, request.headers.get(CSRF_HEADER, "")):
            return error_answer(403, "csrf", f"the header {CSRF_HEADER} is missing or stale; reload the page")
        return None


def _is_form(path: str) -> bool:
    """Forms carry the token in a field, which their own routes compare."""
    return path == "/logout" or (path.startswith("/frames/") and path.endswith("/fetch"))


def csrf_matches(session: Session, given: str) -> bool:
    """Whether a post carries its session's token, compared in constant time."""
    return hmac.compare_digest(session.csrf_token.encode(), given.encode())


def safe_next(path: str) -> str:
    """Where to go after the login: a path on this server, else the dashboard."""
    inside = path.startswith("/") and not path.startswith(("//", "/\\")) and not any(ord(letter) < 32 for letter in path)
    return path if inside else "/"


def _same_origin(headers: Headers) -> bool:
    if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        return False
    origin = headers.get("origin")
    # "null" is what browsers send from a page without referrer in a form post; the fetch metadata above has judged those.
    return (
        origin is None or (origin == "null" and "sec-fetch-site" in headers) or urlsplit(origin).netloc == headers.get("host")
    )


def _body_fault(headers: Headers) -> Response | None:
    length = headers.get("content-length")
    if "transfer-encoding" in headers:
        return error_answer(411, "length_required", "send the body with a Content-Length")
    if length is not None and (not length.isdigit() or int(length) > _LARGEST_BODY_BYTES):
        return error_answer(413, "too_large", f"at most {_LARGEST_BODY_BYTES} bytes are taken in one request")
    return None
