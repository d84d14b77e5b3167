"""Where claims are answered: address, port and names, kept from one start to the next, since devices renew there.

In: the configuration and what an earlier start chose. Out: `ListenerAddress` and its URLs; `claims.json` in the identity's folder.
"""

from __future__ import annotations

import json
import socket
from contextlib import suppress

from bowerbird_models.durable import write_durably
from bowerbird_server.config import ServerConfig
from bowerbird_server.errors import EnvironmentFault
from bowerbird_server.identity.listener import ListenerAddress
from bowerbird_server.layout import DataFolder
from bowerbird_server.site import Site
from bowerbird_server.web.endpoint import is_free

_NAME = "claims.json"
_ANY = {"0.0.0.0", "::", ""}  # noqa: S104 - compared, not bound


def names_of(folder: DataFolder, config: ServerConfig) -> list[str]:
    """How devices reach this server, best first: what the operator says, what a device was ever told, the address that is bound."""
    host = config.identity.host or config.broker.host
    told: list[str] = []
    with suppress(OSError):
        told = (folder.broker / "names").read_text().split()
    bound = [socket.gethostname(), "localhost", "127.0.0.1"] if host in _ANY else [host]
    loopback = ["localhost", "127.0.0.1"] if host in {"127.0.0.1", "::1", "localhost"} else []
    return list(dict.fromkeys([*config.broker.names, *told, *bound, *loopback]))


def listener_address(site: Site) -> ListenerAddress:
    """The address for this start: the configured port, else that of the last start, else a free one.

    Raises:
        EnvironmentFault: none of them can be bound.
    """
    host = site.config.identity.host or site.config.broker.host
    path = site.folder.identity / _NAME
    try:
        last = int(json.loads(path.read_text())["port"])
    except (OSError, ValueError, KeyError, TypeError):
        last = 0
    port = site.config.identity.port or last or _free_port(host)
    address = ListenerAddress(host, port, names_of(site.folder, site.config))
    if port != last:
        write_durably(path, (json.dumps({"host": host, "port": port}) + "\n").encode(), mode=0o600)
    return address


def check_port(site: Site) -> None:
    """Devices know the port, so another program on it is told at once.

    Raises:
        EnvironmentFault: the port is taken.
    """
    address = listener_address(site)
    if not is_free(address.host, address.port):
        raise EnvironmentFault(
            f"port {address.port} of the claim listener is taken by another program, and devices renew there; stop that program "
            f"(`ss -ltnp 'sport = :{address.port}'` shows it) and start again"
        )


def claim_urls(site: Site, first: str | None = None) -> list[str]:
    """The listener's URLs as devices see them.

    Args:
        first: a name or address that the operator named for these devices.
    """
    address = listener_address(site)
    names = list(dict.fromkeys([*([first] if first else []), *address.names]))
    return [f"https://{f'[{name}]' if ':' in name else name}:{address.port}" for name in names]


def _free_port(host: str) -> int:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise EnvironmentFault(
            f"cannot listen on {host}: {error.strerror}; set identity.host to an address of this machine"
        ) from error
