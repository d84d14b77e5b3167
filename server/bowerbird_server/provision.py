"""Making a device known, and the folder that turns a bare board into that device.

In: a name, and what its cameras are. Out: a catalogue row, a password at the broker, and a folder with `agent.toml`, the password
and the trusted root, mode 0700, to be copied to the device. Certificates take the password's place in a later release.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bowerbird_server.broker import EmbeddedBroker
from bowerbird_server.broker_address import BrokerAddress
from bowerbird_server.catalogue import fleet
from bowerbird_server.config import BrokerConfig
from bowerbird_server.errors import BadInput
from bowerbird_server.record_keeping import keep_records
from bowerbird_server.registry import open_repository
from bowerbird_server.site import Site
from bowerbird_wire.errors import TopicError
from bowerbird_wire.topics import check_name

EXAMPLE_CAMERA: Mapping[str, Any] = {"name": "gate", "source": "rtsp://192.0.2.10/stream1", "pace": "realtime"}


def broker_of(site: Site) -> EmbeddedBroker | None:
    """The embedded broker, or None where the configuration names one of the operator's own."""
    config = site.config.broker
    return None if config.url else EmbeddedBroker(site.folder.broker, host=config.host, names=config.names)


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
    """Make a device known and write its folder; for a known device, a new password and a new folder.

    Args:
        name: 1 to 63 of a-z, 0-9 and '-'.
        cameras: `[[cameras]]` tables; an example to edit when there are none.
        tables: further tables of agent.toml, e.g. `{"selection": {...}}`.
        broker_host: the broker's address as devices see it, when it is not the one that the server uses.
        password: of the device at an external broker; our own broker makes one.

    Returns:
        The folder to copy to the device.

    Raises:
        BadInput: the name cannot stand in a topic, or an external broker's password is missing.
    """
    check_device_name(name)
    broker = broker_of(site)
    if broker is None and password is None:
        raise BadInput("the broker is your own: make the device a user there and give its password with --password-file")
    known = fleet.active_devices(site.catalogue)
    if name not in known:
        fleet.add_device(site.catalogue, name, site.config.site, actor)
        if site.config.loop.collect:
            # Rounds say what is wanted: without a word the device would send the best of its first window unasked.
            fleet.set_frames_total(site.catalogue, name, 0, actor)
        keep_records(site.catalogue, site.blobs)
        known = fleet.active_devices(site.catalogue)
    address = server_address(site)
    if broker is not None:
        password = broker.add_device(name, known)
    folder = site.folder.devices / name
    folder.mkdir(mode=0o700, exist_ok=True)
    _write_private(folder / "password", f"{password}\n".encode())
    _write_private(folder / "root.json", open_repository(site).trusted_root())
    content: dict[str, Any] = {
        "device": {"id": name, "site": site.config.site, "state_dir": "state"},
        "broker": {
            "host": broker_host or address.host,
            "port": address.port,
            "username": name,
            "password_file": "password",
        },
        "update": {"trusted_root": "root.json"},
        **(tables or {}),
    }
    text = "".join(_table(key, table) for key, table in content.items())
    text += "".join(_table("cameras", camera, many=True) for camera in (cameras or [EXAMPLE_CAMERA]))
    _write_private(folder / "agent.toml", text.encode())
    return folder


def _table(name: str, values: Mapping[str, Any], *, many: bool = False) -> str:
    head = f"[[{name}]]" if many else f"[{name}]"
    nested = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    lines = [head, *(f"{key} = {_toml(value)}" for key, value in values.items() if key not in nested), ""]
    text = "\n".join(lines) + "\n"
    return text + "".join(_table(f"{name}.{key}", value) for key, value in nested.items())


def _toml(value: Any) -> str:
    """A TOML literal; JSON's text, number, boolean and list forms are also TOML's."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _write_private(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
