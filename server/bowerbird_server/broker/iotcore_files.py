"""What the `iotcore` broker reads: passwords in clear and rumqttd's configuration. It is for demos on loopback only: it has
neither access rules nor TLS here.

In: the broker's folder, names. Out: `passwords.json` and the text of `rumqttd.toml`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from bowerbird_server.broker.address import write_private
from bowerbird_server.broker.config import MAX_PACKET_BYTES

PASSWORDS_NAME = "passwords.json"


def read_passwords(folder: Path) -> dict[str, str]:
    """Name -> password."""
    try:
        return dict(json.loads((folder / PASSWORDS_NAME).read_text()))
    except FileNotFoundError:
        return {}


def write_passwords(folder: Path, known: Mapping[str, str]) -> None:
    """Keep them, mode 0600."""
    write_private(folder / PASSWORDS_NAME, json.dumps(dict(known)))


def rumqttd_config(host: str, port: int, passwords: Mapping[str, str]) -> str:
    """The text of rumqttd.toml."""
    users = "".join(f"{json.dumps(name)} = {json.dumps(word)}\n" for name, word in sorted(passwords.items()))
    host = "127.0.0.1" if host == "localhost" else host
    return f"""id = 0

[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 67108864
max_segment_count = 4

[v5.1]
name = "bowerbird"
listen = {json.dumps(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")}
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = {MAX_PACKET_BYTES}
max_inflight_count = 100
dynamic_filters = true

[v5.1.connections.auth]
{users}"""
