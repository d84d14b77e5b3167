"""The claim listener: an HTTPS server of its own process that can answer a claim and a renewal, say who its CA is, and nothing else.

In: connections from anybody. Out: answers of `claims.py` as JSON; what is wrong is told in the same few bytes whoever asks. A
connection carries one request and lives for seconds: a handshake, a request and an answer each have their time, bodies are at most
16 KiB, and only so many connections are held. It has no pages, no sessions and no cookies, and no token is ever in an address or in
its log.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from bowerbird_server.errors import EnvironmentFault, ServerError
from bowerbird_server.identity.authority import Authority
from bowerbird_server.identity.claims import Outcome
from bowerbird_server.identity.limits import Rate, RateLimit
from bowerbird_wire.claim import (
    BUSY,
    CA_PATH,
    CLAIM_PATH,
    MAX_BODY_BYTES,
    REFUSED,
    RENEW_PATH,
    TOO_MANY,
    UNUSABLE,
    Answer,
    ClaimError,
    ClaimRequest,
    RenewRequest,
    from_json,
    to_json,
)

log = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
CONNECTION_S = 60.0  # another CA may take half of it to sign
REQUEST_S = 8.0
MAX_CONNECTIONS = 256
MAX_HEADER_BYTES = 8 * 1024
REQUESTS_OF_ONE = Rate(burst=600, per_s=20)  # hundreds of boards may stand behind one address
REFUSED_OF_ONE = Rate(burst=20, per_s=0.1)
REFUSED_OF_ALL = Rate(burst=500, per_s=5)
_STATUS = {"active": 200, "pending": 202, TOO_MANY: 429, UNUSABLE: 400, BUSY: 503}
_NEW_CERTIFICATE_S = 24 * 3600.0
_LOOK_EVERY_S = 1.0

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Decide = Callable[[ClaimRequest | RenewRequest], Outcome]


class ClaimApp:
    """The ASGI application.

    Args:
        decide: answers a request; called in one thread of its own, one request after the other.
        ca_pem: the root certificate, told to whoever asks: it is public, and who knows its pin can tell it from another.
        clock_s: monotonic seconds, for the limits.
    """

    def __init__(self, decide: Decide, ca_pem: bytes = b"", *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._decide, self._clock_s = decide, clock_s
        self._ca = Answer("ca", ca=ca_pem.decode())
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="claims")
        self._asked, self._refused, self._refused_all = (
            RateLimit(REQUESTS_OF_ONE),
            RateLimit(REFUSED_OF_ONE),
            RateLimit(REFUSED_OF_ALL),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        kind = {CLAIM_PATH: ClaimRequest, RENEW_PATH: RenewRequest}.get(scope["path"])
        is_ca = scope["path"] == CA_PATH
        if (kind is None and not is_ca) or scope["method"] != "POST" or scope.get("query_string"):
            await _send(send, 404, Answer(UNUSABLE))
            return
        client = scope.get("client") or ("", 0)
        if is_ca:
            is_let = self._asked.take(str(client[0]), self._clock_s())
            await _send(
                send, 200 if is_let else _STATUS[TOO_MANY], self._ca if is_let else Answer(TOO_MANY, retry_after_s=30.0)
            )
            return
        answer = await self._answer(str(client[0]), cast("type[ClaimRequest] | type[RenewRequest]", kind), receive)
        await _send(send, _STATUS.get(answer.state, 403), answer)

    async def _answer(self, address: str, kind: type[ClaimRequest] | type[RenewRequest], receive: Receive) -> Answer:
        now_s = self._clock_s()
        if not (
            self._asked.take(address, now_s)
            and self._refused.has_room(address, now_s)
            and self._refused_all.has_room("", now_s)
        ):
            return Answer(TOO_MANY, retry_after_s=30.0)
        try:
            body = await asyncio.wait_for(_body(receive), REQUEST_S)
            request: ClaimRequest | RenewRequest
            request = from_json(ClaimRequest, body) if kind is ClaimRequest else from_json(RenewRequest, body)
        except (ClaimError, TimeoutError):
            self._count_refused(address, now_s)
            return Answer(UNUSABLE)
        try:
            outcome = await asyncio.get_running_loop().run_in_executor(self._thread, self._decide, request)
        except ServerError as error:
            log.error("a claim cannot be answered: %s", error)
            return Answer(BUSY, retry_after_s=30.0)
        except Exception:  # a fault of ours that somebody may have looked for: it costs them what a bad token costs
            log.exception("a claim could not be judged")
            self._count_refused(address, now_s)
            return Answer(UNUSABLE)
        if outcome.answer.state not in ("active", "pending"):
            log.info("%s from %s: %s", kind.__name__, address, outcome.answer.state)
        if outcome.answer.state == REFUSED:
            self._count_refused(address, now_s)
        return outcome.answer

    def _count_refused(self, address: str, now_s: float) -> None:
        self._refused.take(address, now_s)
        self._refused_all.take("", now_s)


async def _body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClaimError("the connection ended")
        body += bytes(message.get("body", b""))
        if len(body) > MAX_BODY_BYTES:
            raise ClaimError("too long")
        if not message.get("more_body"):
            return body


async def _send(send: Send, status: int, answer: Answer) -> None:
    body = to_json(answer)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"cache-control", b"no-store")]})
    await send({"type": "http.response.body", "body": body})


class _Protocol(H11Protocol):
    """uvicorn's, with an end to every connection, and with a limit to how many there are."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # narrower than asyncio's
        super().connection_made(transport)
        self._deadlines = [
            self.loop.call_later(CONNECTION_S, transport.abort),
            self.loop.call_later(REQUEST_S, self._abort_unless_asked),
        ]
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for deadline in self._deadlines:
            deadline.cancel()
        super().connection_lost(exc)

    def _abort_unless_asked(self) -> None:
        if self.cycle is None:
            self.transport.abort()


@dataclass(frozen=True)
class ListenerAddress:
    """Where it listens, and the names in its certificate."""

    host: str
    port: int
    names: Sequence[str]


def server_context(authority: Authority, names: Sequence[str], context: ssl.SSLContext | None = None) -> ssl.SSLContext:
    """TLS 1.2 or newer with a fresh certificate for `names`; into `context` when there is one, for the connections to come."""
    context = context or ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    pem = authority.server_certificate(names, now=datetime.now(tz=UTC))
    # The ssl module reads certificates from files only.
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:  # mode 0600
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def serve(
    app: ClaimApp, where: Callable[[], ListenerAddress], authority: Callable[[], Authority], stop: threading.Event
) -> None:
    """Listen until `stop`.

    Args:
        where: the address; asked again for the names, which may become more.
        authority: makes its certificate.

    Raises:
        EnvironmentFault: the address cannot be bound.
    """
    asyncio.run(_serve(app, where, authority, stop))


async def _serve(
    app: ClaimApp, where: Callable[[], ListenerAddress], authority: Callable[[], Authority], stop: threading.Event
) -> None:
    config = uvicorn.Config(
        cast("Any", app),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_keep_alive=1,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    config.load()
    state = ServerState()
    address = where()
    context = server_context(authority(), address.names)
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(
            lambda: _Protocol(config, state, {}, loop),
            address.host,
            address.port,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_S,
            backlog=512,
        )
    except OSError as error:
        raise EnvironmentFault(
            f"cannot listen for claims on {address.host}:{address.port}: {error.strerror}; set identity.host and identity.port"
        ) from error
    log.info("claims are answered on %s:%s", address.host, address.port)
    made_s = looked_s = time.monotonic()
    async with server:
        while not stop.is_set():
            await asyncio.sleep(0.1)
            now_s = time.monotonic()
            if now_s - looked_s < _LOOK_EVERY_S:
                continue
            looked_s, names = now_s, where().names
            if names != address.names or now_s - made_s > _NEW_CERTIFICATE_S:
                made_s, address = now_s, ListenerAddress(address.host, address.port, names)
                server_context(authority(), names, context)
