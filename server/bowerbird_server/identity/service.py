"""The process behind `bowerbird claims`: the listener, with everything that it needs of a site.

In: the data folder. Out: answered claims; an active device's access rules are at the broker before its answer leaves, so that it
may connect at once. It knows no other duty.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from bowerbird_server.catalogue import fleet
from bowerbird_server.config import ServerConfig
from bowerbird_server.errors import ServerError
from bowerbird_server.fleet.provision import refresh_access
from bowerbird_server.identity.authority import Authority
from bowerbird_server.identity.claims import Claims, Outcome
from bowerbird_server.identity.issuer import CommandIssuer, Issuer, OwnIssuer
from bowerbird_server.identity.listener import ClaimApp, ListenerAddress, serve
from bowerbird_server.identity.place import listener_address, names_of
from bowerbird_server.layout import DataFolder
from bowerbird_server.site import Site
from bowerbird_wire.claim import ClaimRequest, RenewRequest


def issuer_of(config: ServerConfig, authority: Authority) -> Issuer:
    """Who signs for devices here."""
    if config.identity.issuer_command:
        return CommandIssuer(tuple(config.identity.issuer_command), Path(config.identity.issuer_ca))
    return OwnIssuer(authority)


def verifier_of(config: ServerConfig, folder: DataFolder) -> Callable[[x509.Certificate], bool]:
    """Tells whether a certificate is of whoever signs for devices here; asked anew each time, since an authority may be added."""

    def verifies(leaf: x509.Certificate) -> bool:
        try:
            return issuer_of(config, Authority.open(folder.identity)).verifies(leaf)
        except ServerError:
            return False

    return verifies


@dataclass
class Deciding:
    """Answers requests in one thread, which opens the site at the first of them."""

    data: Path
    config: Path | None = None
    _site: Site | None = None
    _granted: set[str] = field(default_factory=set)

    def __call__(self, request: ClaimRequest | RenewRequest) -> Outcome:
        """One request."""
        if self._site is None:
            self._site = Site.open(self.data, self.config, make=False)
        site = self._site
        # Opened anew, since an issuing authority may have been added.
        authority = Authority.open(site.folder.identity)
        claims = Claims(site.catalogue, issuer_of(site.config, authority), authority.root_pem, site=site.config.site)
        outcome = claims.claim(request) if isinstance(request, ClaimRequest) else claims.renew(request)
        is_new = outcome.answer.state == "active" and outcome.answer.device not in self._granted
        # Also when a certificate is given again: the broker may not have taken the rules in the first time.
        if is_new or (outcome.access_changed and outcome.answer.state != "active"):
            refresh_access(site)
            self._granted = set(fleet.active_devices(site.catalogue))
        return outcome


def run(data: Path, config: Path | None, stop: threading.Event) -> None:
    """Answer claims until `stop`."""
    with Site.open(data, config, make=False) as site:
        folder, chosen, address = site.folder, site.config, listener_address(site)

    def where() -> ListenerAddress:
        return ListenerAddress(address.host, address.port, names_of(folder, chosen))

    root_pem = Authority.open(folder.identity).root_pem
    serve(ClaimApp(Deciding(data, config), root_pem), where, lambda: Authority.open(folder.identity), stop)
