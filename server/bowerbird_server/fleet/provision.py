"""Making a device known, and the folder that turns a bare board into that device.

In: a name, and what its cameras are. Out: a catalogue row, and a folder with `agent.toml`, the bundle to enrol with and the trusted
root, mode 0700, to be copied to the device. Brokers that know no certificates get a password in the bundle's place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bowerbird_server.broker.address import BrokerAddress, write_private
from bowerbird_server.broker.embedded import EmbeddedBroker
from bowerbird_server.catalogue import fleet, identity, rollouts
from bowerbird_server.catalogue.record_keeping import keep_records
from bowerbird_server.config import BrokerConfig
from bowerbird_server.errors import BadInput, Conflict, NotFound
from bowerbird_server.identity.authority import is_reserved
from bowerbird_server.identity.invitations import Wanted, invite
from bowerbird_server.identity.states import Happening
from bowerbird_server.releases.registry import open_repository
from bowerbird_server.site import Site
from bowerbird_wire.bundle import Bundle, agent_toml
from bowerbird_wire.errors import TopicError
from bowerbird_wire.topics import check_name

BUNDLE_NAME = "bundle.json"
EXAMPLE_CAMERA: Mapping[str, Any] = {"name": "gate", "source": "rtsp://192.0.2.10/stream1", "pace": "realtime"}


def broker_of(site: Site) -> EmbeddedBroker | None:
    """The embedded broker, or None where the configuration names one of the operator's own."""
    config = site.config.broker
    if config.url:
        return None
    return EmbeddedBroker(site.folder.broker, host=config.host, names=config.names, device_ca=device_ca_of(site))


def device_ca_of(site: Site) -> Path | None:
    """The certificates of the CA that signs for devices in place of the site's own, None where that does."""
    named = site.config.identity.issuer_ca
    return Path(named) if named else None


def server_address(site: Site, *clients: str) -> BrokerAddress:
    """Where the server's processes meet the broker, prepared if it is our own.

    Args:
        clients: client ids of this process, which get a new certificate each.
    """
    broker = broker_of(site)
    if broker is not None:
        devices = fleet.active_devices(site.catalogue)
        return broker.prepare(devices, clients=clients, afresh=True) if clients else broker.prepare(devices)
    return external_address(site.config.broker)


def external_address(config: BrokerConfig) -> BrokerAddress:
    """A broker of the operator's own.

    Raises:
        BadInput: a file that the configuration names cannot be read.
    """
    address = BrokerAddress.from_url(config.url)
    password = address.password
    if config.password_file:
        path = Path(config.password_file)
        try:
            password = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise BadInput(f"broker.password_file {path} cannot be read: {error.strerror}") from error
    for key, name in (("ca_file", config.ca_file), ("certificate", config.certificate)):
        if name and not Path(name).exists():
            raise BadInput(f"broker.{key} {name} does not exist; check the path")
    return replace(address, password=password, ca_file=config.ca_file, certificate=config.certificate)


def check_device_name(name: str) -> None:
    """Raises BadInput when a name cannot stand in a topic."""
    try:
        check_name(name, "device")
    except TopicError as error:
        raise BadInput(str(error)) from error


def uses_certificates(site: Site) -> bool:
    """Whether devices log in by certificate; otherwise by a password, as with the loopback broker or one of the operator's own."""
    broker = broker_of(site)
    return broker.takes_certificates if broker is not None else site.config.broker.url.startswith("mqtts://")


def refresh_access(site: Site) -> None:
    """Make the broker go by the catalogue: active devices are let in, all others are shut out and their sessions ended.

    Raises:
        EnvironmentFault: the broker runs and does not do it.
    """
    broker = broker_of(site)
    if broker is None:
        return
    active = fleet.active_devices(site.catalogue)
    denied = broker.denied()
    for name in fleet.shut_out(site.catalogue):
        if name not in denied:
            broker.remove_device(name, active)
    for name in sorted(denied & active.keys()):
        broker.add_device(name, active)
    broker.prepare(active)


def broker_table(site: Site, host: str | None = None) -> dict[str, Any]:
    """The `broker` table of a device's agent.toml, as far as it is the same for all.

    Args:
        host: the server's name or address as devices see it, when it is not the one that the server uses; from now on its
            certificates hold it.
    """
    address = server_address(site)
    broker = broker_of(site)
    if host and broker is not None:
        broker.be_known_as(host, fleet.active_devices(site.catalogue))
    names = site.config.broker.names
    return {"host": host or (names[0] if names else address.host), "port": address.port}


def add_device(
    site: Site,
    name: str,
    *,
    actor: str,
    cameras: list[Mapping[str, Any]] | None = None,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
    broker_host: str | None = None,
    password: str | None = None,
) -> Path:
    """Make a device known and write its folder: agent.toml and the bundle to enrol with; for a known device, another bundle.

    The private key is made on the board. Where the broker knows only passwords, the folder holds one instead of a bundle.

    Args:
        name: 1 to 63 of a-z, 0-9 and '-'.
        cameras: `[[cameras]]` tables; an example to edit when there are none.
        tables: further tables of agent.toml, e.g. `{"selection": {...}}`.
        broker_host: the server's address as devices see it, when it is not the one that the server uses.
        password: of the device at an external broker that knows no certificates; our own broker makes one.

    Returns:
        The folder to copy to the device.

    Raises:
        BadInput: the name cannot stand in a topic or is the server's, or an external broker's password is missing.
        Conflict: the device is retired or suspended.
    """
    check_device_name(name)
    if is_reserved(name):
        raise BadInput(f"{name} is reserved for the server itself; choose another name")
    certificates = uses_certificates(site) and password is None
    broker = broker_of(site)
    if broker is None and password is None and not certificates:
        raise BadInput("the broker is your own: make the device a user there and give its password with --password-file")
    _make_known(site, name, actor, active=not certificates)
    table = broker_table(site, broker_host)
    if not certificates:
        if broker is not None:
            password = broker.add_device(name, fleet.active_devices(site.catalogue))
        tls = broker is None and site.config.broker.url.startswith("mqtts://")
        table |= {"tls": tls, "username": name, "password_file": "password"}
    folder = site.folder.devices / name
    folder.mkdir(mode=0o700, exist_ok=True)
    shown = cameras or [EXAMPLE_CAMERA]
    if certificates:
        invited = invite(
            site, Wanted(name, device=name, cameras=shown), broker=table, tables=tables or {}, actor=actor, host=broker_host
        )
        bundle = invited.bundle
        write_private(folder / BUNDLE_NAME, bundle.to_text().encode())
    else:
        bundle = Bundle(site.config.site, "", [""], "", "", "", tables={"broker": table, **(tables or {})}, cameras=shown)
        bundle = replace(bundle, trusted_root=open_repository(site).trusted_root().decode())
        write_private(folder / "password", f"{password}\n".encode())
    write_private(folder / "root.json", bundle.trusted_root.encode())
    write_private(folder / "agent.toml", agent_toml(bundle, name).encode())
    return folder


def _make_known(site: Site, name: str, actor: str, *, active: bool) -> None:
    try:
        state = fleet.get(site.catalogue, name)["state"]
    except NotFound:
        if active:
            fleet.add_device(site.catalogue, name, site.config.site, actor)
            rollouts.join(site.catalogue, name)
        else:
            identity.add_pending(site.catalogue, name, site=site.config.site, label=name, serial="", actor=actor)
        if site.config.loop.collect:
            # Rounds say what is wanted: without a word the device would send the best of its first window unasked.
            fleet.set_frames_total(site.catalogue, name, 0, actor)
        keep_records(site.catalogue, site.blobs)
        return
    if state in ("retired", "suspended"):
        raise Conflict(
            f"{name} is {state}; "
            + (
                f"`bowerbird devices resume {name}` first"
                if state == "suspended"
                else "a retired device's name is not given again"
            )
        )
    if state == "pending" and active:
        identity.change_state(site.catalogue, name, Happening.APPROVED, actor)
