"""The configuration of a mosquitto for this server, as text: for the embedded one, and for one of the operator's own.

In: where it listens and where its files are. Out: lines of mosquitto.conf. TLS 1.2 or newer, a client certificate from
everybody, the user's name and the client id from the certificate, so that nobody can take over another's session. Tried with
mosquitto 2.0.11.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bowerbird_server.errors import BadInput
from bowerbird_wire.codec import MAX_FRAME_BYTES

MAX_PACKET_BYTES = MAX_FRAME_BYTES + 64 * 1024  # a frame message, its topic and its properties
# For TLS 1.2; 1.3 has no weak ones.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True)
class MosquittoFiles:
    """Where the broker finds what it reads; as the broker sees them, which may be inside a container.

    Args:
        kick_socket: of the listener that ends sessions, with `passwords` for its one user; None for a broker that the server cannot
            steer.
        runs_as: the user that it must stay or become; None leaves that to mosquitto.
    """

    ca: Path
    server: Path
    rules: Path
    pid: Path | None = None
    kick_socket: Path | None = None
    passwords: Path | None = None
    runs_as: str | None = None


def mosquitto_config(host: str | None, port: int, files: MosquittoFiles) -> str:
    """The text of mosquitto.conf.

    Args:
        host: to bind; None for every interface.

    Raises:
        BadInput: the broker's socket has a path that a socket cannot have.
    """
    lines = [
        f"acl_file {files.rules}",
        "allow_anonymous false",
        "persistence false",  # end-to-end receipts: a broker needs no state
        "persistent_client_expiration 1h",
        f"max_packet_size {MAX_PACKET_BYTES}",
        "max_inflight_messages 64",
        # What waits for an ingest that is down. Beyond it messages are dropped, and the devices send them again.
        "max_queued_messages 2000",
        "max_queued_bytes 268435456",
        "set_tcp_nodelay true",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
    ]
    if files.passwords is not None:
        lines.append(f"password_file {files.passwords}")
    if files.pid is not None:
        lines.append(f"pid_file {files.pid}")
    if files.runs_as is not None:
        lines.append(f"user {files.runs_as}")
    lines += [
        "",
        f"listener {port} {host}" if host else f"listener {port}",
        f"cafile {files.ca}",
        f"certfile {files.server}",
        f"keyfile {files.server}",
        "tls_version tlsv1.2",  # or newer
        f"ciphers {CIPHERS}",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
    ]
    if files.kick_socket is not None:
        lines += ["", f"listener 0 {files.kick_socket}"]
    bad = [line for line in lines if "\n" in line or "\r" in line]
    if bad:
        raise BadInput(f"a line break in {bad[0]!r} would be another line of mosquitto.conf; choose another path or host")
    return "\n".join(lines) + "\n"
