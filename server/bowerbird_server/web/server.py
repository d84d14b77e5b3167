"""The process that serves the web: uvicorn with limits, TLS with certificates that may change under it, and anchors of the audit log.

In: the site's folder and configuration, where to listen. Out: answers until a signal comes. What is answered is in `web/`. It trusts
`X-Forwarded-…` headers of configured proxies only, and lets nobody hold a connection without asking for something.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from bowerbird_server.access.anchors import keep_noting
from bowerbird_server.access.oidc import Provider
from bowerbird_server.access.private_files import read_private
from bowerbird_server.catalogue.sessions import Ages
from bowerbird_server.config import LabellingConfig, ServerConfig, WebConfig
from bowerbird_server.errors import ServerError
from bowerbird_server.layout import DataFolder
from bowerbird_server.web.app import create_app
from bowerbird_server.web.certificate import Certificate, certificate_of
from bowerbird_server.web.endpoint import WebEndpoint

log = logging.getLogger(__name__)

HEADER_WAIT_S = 10.0
MOST_CONNECTIONS = 400
MOST_OF_ONE_ADDRESS = 100
_LARGEST_HEADERS_BYTES = 32 * 1024
_FAILED_LOGIN_DELAY_S = 0.5
_LOOK_EVERY_S = 3600.0


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 whose requests have to come in time, and whose peers have so many connections each."""

    proxies: ClassVar[frozenset[str]] = frozenset()
    _held: ClassVar[Counter[str]] = Counter()
    _too_slow: asyncio.TimerHandle | None = None
    _address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as the class above has it
        """Count the peer's connections; one too many is closed unheard."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._held[self._address] += 1
        if self._held[self._address] > MOST_OF_ONE_ADDRESS and self._address not in self.proxies:
            transport.abort()
            return
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        self._held[self._address] -= 1
        if self._held[self._address] <= 0:
            del self._held[self._address]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes that make no request yet do not buy more time."""
        super().data_received(data)
        if not getattr(self.cycle, "response_complete", True):
            self._stop_waiting()
        elif self._too_slow is None:
            self._wait_for_request()

    def _wait_for_request(self) -> None:
        self._too_slow = self.loop.call_later(HEADER_WAIT_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._too_slow is not None:
            self._too_slow.cancel()
            self._too_slow = None


def run(folder: DataFolder, endpoint: WebEndpoint, config: ServerConfig) -> None:
    """Serve until SIGTERM or SIGINT, which uvicorn takes itself.

    Raises:
        EnvironmentFault: a key can be read by others, or the certificate cannot be used.
    """
    web = config.web.model_copy(update={"host": endpoint.host})
    certificate = certificate_of(folder, web, now=datetime.now(UTC))
    approval_is_manual = config.rollout.approval == "manual"
    oidc = config.oidc
    provider = None
    if oidc.issuer:
        secret = read_private(Path(oidc.client_secret_file)).strip() if oidc.client_secret_file else ""
        provider = Provider(oidc, secret)
    server = make_server(
        folder,
        endpoint,
        web,
        certificate,
        approval_is_manual=approval_is_manual,
        oidc=provider,
        labelling=config.labelling,
        config=config,
    )
    stop = threading.Event()
    noting = (folder.catalogue, folder.audit_anchors, stop)
    threads = [threading.Thread(target=keep_noting, args=noting, name="anchors", daemon=True)]
    if certificate is not None:
        fresh = (folder, web, certificate, server, stop)
        threads.append(threading.Thread(target=_keep_fresh, args=fresh, name="certificate", daemon=True))
    for thread in threads:
        thread.start()
    try:
        server.run()
    finally:
        stop.set()


def make_server(
    folder: DataFolder,
    endpoint: WebEndpoint,
    web: WebConfig,
    certificate: Certificate | None,
    *,
    approval_is_manual: bool = False,
    oidc: Provider | None = None,
    labelling: LabellingConfig | None = None,
    config: ServerConfig | None = None,
) -> uvicorn.Server:
    """The server with its limits, ready to `run`."""
    BoundedProtocol.proxies = frozenset(web.proxies)
    files: dict[str, Any] = {}
    if certificate is not None:
        files = {"ssl_certfile": str(certificate.chain), "ssl_keyfile": str(certificate.key)}
    settings = uvicorn.Config(
        create_app(
            folder,
            ages=Ages(web.session_idle_h * 3600, web.session_max_h * 3600),
            failed_login_delay_s=_FAILED_LOGIN_DELAY_S,
            approval_is_manual=approval_is_manual,
            oidc=oidc,
            labelling=labelling,
            config=config,
        ),
        host=endpoint.host,
        port=endpoint.port,
        log_level="warning",
        server_header=False,
        proxy_headers=bool(web.proxies),
        forwarded_allow_ips=web.proxies,
        http=BoundedProtocol,
        ws="none",
        limit_concurrency=MOST_CONNECTIONS,
        h11_max_incomplete_event_size=_LARGEST_HEADERS_BYTES,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
        **files,
    )
    settings.load()
    if settings.ssl is not None:
        settings.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return uvicorn.Server(settings)


def _keep_fresh(
    folder: DataFolder, web: WebConfig, certificate: Certificate, server: uvicorn.Server, stop: threading.Event
) -> None:
    """New handshakes get a certificate that was renewed, by us or by whoever writes the files."""
    loaded = certificate.changed_at()
    while not stop.wait(_LOOK_EVERY_S):
        try:
            certificate_of(folder, web, now=datetime.now(UTC))
            changed = certificate.changed_at()
            if changed != loaded and server.config.ssl is not None:
                server.config.ssl.load_cert_chain(certificate.chain, certificate.key)
                loaded = changed
                log.info("the certificate of the pages was renewed")
        except (OSError, ServerError) as error:
            log.warning("the certificate of the pages cannot be renewed, the old one goes on: %s", error)
