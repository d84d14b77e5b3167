"""A mosquitto of the operator's own with the configuration that the embedded one has: files to copy to where it runs.

In: the site's authority, host names, where the files will lie there. Out: a folder with `mosquitto.conf`, `acl`, `ca.pem`,
`server.pem`, and `services/` for the server's processes. The access rules hold for every device of the site without naming any
(`%u` is the name in a certificate), so that the broker need not be told of new ones; devices that are shut out are named as
such.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from pathlib import Path

from bowerbird_server.broker.address import write_private
from bowerbird_server.broker.certificates import BrokerCertificates, hosts_for
from bowerbird_server.broker.config import MosquittoFiles, mosquitto_config
from bowerbird_server.broker.rules import access_rules, pattern_rules
from bowerbird_server.errors import BadInput, EnvironmentFault
from bowerbird_wire.topics import ROOT


def own_rules(site: str, servers: Iterable[str], shut_out: Collection[str] = ()) -> str:
    """The ACL file for one site."""
    parts = [access_rules({}, servers)]
    for name in sorted(shut_out):
        # Denials are looked at first, whatever the patterns grant.
        parts.append(f"user {name}\ntopic deny {ROOT}/#\n")
    return "\n".join([*parts, pattern_rules(site)])


def write_own_broker(
    out: Path,
    *,
    authority: Path,
    site: str,
    names: Sequence[str],
    clients: Iterable[str],
    shut_out: Collection[str] = (),
    at: Path | None = None,
    port: int = 8883,
    device_ca: Path | None = None,
    now: datetime,
) -> Path:
    """Write the folder; again: certificates that run out are made anew, the rest is written as it should be.

    Args:
        names: host names and addresses under which the broker is reached.
        clients: client ids of the server's processes.
        shut_out: devices that were let in once and are not now.
        at: the folder as the broker will see it; `out` by default.
        device_ca: PEM file of another CA that signs for devices; None where the site's own does.

    Returns:
        `out`.

    Raises:
        BadInput: no name.
        EnvironmentFault: a file cannot be written.
    """
    if not names:
        raise BadInput("under which name do devices reach the broker? Give one with --name")
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        out.chmod(0o700)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {out}: {error.strerror}") from error
    made = BrokerCertificates(out, authority, device_ca)
    made.keep_server(hosts_for(names[0], names), now)
    made.keep_services(clients, now)
    place = at or out.resolve()
    files = MosquittoFiles(ca=place / made.clients_ca_file.name, server=place / "server.pem", rules=place / "acl")
    write_private(out / "mosquitto.conf", mosquitto_config(None, port, files))
    write_private(out / "acl", own_rules(site, made.names(), shut_out))
    return out
