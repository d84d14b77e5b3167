"""The MQTT broker: its address, and one that is started for you (mosquitto if it is installed, else the `iotcore` wheel).

In: the folder `broker/` of the data folder, and which devices there are. Out: configuration, hashed passwords, access rules derived
from the topic types, and the command line that runs the broker; `supervisor.py` runs it. The broker keeps nothing: receipts make
its disk needless, and what is retained is published again on every connect. It does not start processes itself.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bowerbird_server.errors import BadInput, Conflict, EnvironmentFault
from bowerbird_wire.codec import MAX_FRAME_BYTES
from bowerbird_wire.errors import TopicError
from bowerbird_wire.topics import DOWN, LOCAL, ROOT, UP, VERSION, CreditTopic, FrameTopic, check_name

SERVER_USER = "bowerbird-server"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MAX_PACKET_BYTES = MAX_FRAME_BYTES + 64 * 1024  # a frame message, its topic and its properties
# Debian keeps mosquitto in /usr/sbin, which is not on the PATH of every user.
_EXTRA_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


@dataclass(frozen=True)
class BrokerAddress:
    """Where the broker is and who we are there."""

    host: str
    port: int
    username: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False

    @classmethod
    def from_url(cls, url: str) -> BrokerAddress:
        """`mqtt://user:password@host:1883` or `mqtts://...:8883`; user and password may be percent-encoded.

        Raises:
            BadInput: another scheme, or no host.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise BadInput(f"broker URL: {error}; write mqtt://user:password@host:1883") from error
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise BadInput("a broker URL is mqtt://user:password@host:1883, or mqtts:// for TLS")
        tls = parts.scheme == "mqtts"
        return cls(
            parts.hostname, port or (8883 if tls else 1883), unquote(parts.username or ""), unquote(parts.password or ""), tls
        )

    def save(self, path: Path) -> None:
        """Write as JSON, mode 0600."""
        _write_private(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> BrokerAddress:
        """What `save` wrote; other keys of the file are left alone.

        Raises:
            EnvironmentFault: the file is missing or damaged.
        """
        try:
            plain = json.loads(path.read_text())
            return cls(plain["host"], int(plain["port"]), plain["username"], plain["password"], bool(plain.get("tls")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EnvironmentFault(
                f"no usable broker address in {path}: run `bowerbird serve` once, or name a broker by its URL"
            ) from error


def find_program(name: str) -> str | None:
    """The path of `mosquitto` or one of its tools, None when it is not installed."""
    places = os.pathsep.join((os.defpath, *_EXTRA_PLACES))
    return shutil.which(name) or shutil.which(name, path=places)


def access_rules(
    devices: Mapping[str, str], server_user: str = SERVER_USER, *, readers: Mapping[str, str] | None = None
) -> str:
    """mosquitto's ACL: the server may do all below our tree, a device publish its own `up` and
    `local` leaves and read its own `down` leaves.

    Args:
        devices: name -> site.
        readers: other programs of a site, which read what its devices tell it (`local` leaves) and nothing else; name -> site.
    """
    lines = [f"user {server_user}", f"topic readwrite {ROOT}/{VERSION}/#"]
    for device, site in sorted(devices.items()):
        lines += ["", f"user {device}"]
        lines += [f"topic write {kind(site, device)}" for kind in UP]
        lines += [f"topic write {kind.of_device(site, device)}" for kind in LOCAL]
        lines += [f"topic read {kind(site, device)}" for kind in DOWN]
        lines.append(f"topic read {CreditTopic(site)}")
    for reader, site in sorted((readers or {}).items()):
        lines += ["", f"user {reader}"]
        lines += [f"topic read {kind.filter(site)}" for kind in LOCAL]
    return "\n".join(lines) + "\n"


class EmbeddedBroker:
    """A broker of our own below `folder`.

    Args:
        folder: for configuration, passwords and `broker.json`; mode 0700.
        host: where it listens; loopback unless told otherwise.
        port: None keeps the port of last time, or finds a free one.
        program: `mosquitto` or `iotcore`; None takes the first that is installed.

    Raises:
        EnvironmentFault: neither is installed, or iotcore would have to listen beyond loopback (it has no access rules).
    """

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", port: int | None = None, program: str | None = None) -> None:
        self.folder = folder
        self.host = host
        self._port = port
        self.program = program or _choose_program()
        if self.program == "iotcore" and host not in LOOPBACK:
            raise EnvironmentFault(
                f"the built-in broker cannot listen on {host}: it has no access rules. Install mosquitto (apt-get install "
                "mosquitto), or name an external broker by its URL."
            )

    @property
    def config_path(self) -> Path:
        """The broker's configuration; written by `prepare`."""
        return self.folder / ("mosquitto.conf" if self.program == "mosquitto" else "rumqttd.toml")

    @property
    def address_path(self) -> Path:
        """`broker.json`: the server's own address, for commands that come later."""
        return self.folder / "broker.json"

    @property
    def _passwords(self) -> Path:
        return self.folder / ("passwords" if self.program == "mosquitto" else "passwords.json")

    @property
    def _pid_file(self) -> Path:
        return self.folder / "broker.pid"

    def prepare(self, devices: Mapping[str, str]) -> BrokerAddress:
        """Write everything the broker reads; port and passwords stay what they were. Returns the server's own address.

        Args:
            devices: name -> site, all active devices. Those without a password can log in only after `add_device`.

        Raises:
            EnvironmentFault: `mosquitto_passwd` is missing or fails, or the folder is not writable.
        """
        with self._changing():
            return self._prepare(devices)

    def _prepare(self, devices: Mapping[str, str], readers: Mapping[str, str] | None = None) -> BrokerAddress:
        old = BrokerAddress.load(self.address_path) if self.address_path.is_file() else None
        port = self._port or (old.port if old else _free_port(self.host))
        password = old.password if old else secrets.token_urlsafe(24)
        address = BrokerAddress(self.host, port, SERVER_USER, password)
        address.save(self.address_path)
        self._port = port
        known = self._read_passwords()
        if SERVER_USER not in known:
            self._store_password(SERVER_USER, password)
        # Another process may have added a device since the caller asked the catalogue: who has a password keeps its rules.
        others = {device: site for device, site in self._read_rules().items() if device in known}
        readers = {reader: site for reader, site in {**self._read_readers(), **(readers or {})}.items() if reader in known}
        self._write_config({**others, **devices}, readers)
        return address

    def add_device(self, name: str, devices: Mapping[str, str]) -> str:
        """A password for a new device, or a new one for an old device, which `reload` makes known to a running broker.

        Args:
            name: of the device, in `devices`.
            devices: name -> site, all active devices, the new one included.

        Returns:
            The password. It is stored only as a hash (in clear with iotcore, which knows no hashes).
        """
        try:
            check_name(name, "device")
        except TopicError as error:
            raise BadInput(str(error)) from error
        if name == SERVER_USER:
            raise Conflict(f"{name} is the server's own name at the broker; choose another")
        password = secrets.token_urlsafe(24)
        with self._changing():
            self._store_password(name, password)
            self._prepare(devices)
        self.reload()
        return password

    def add_reader(self, name: str, site: str, devices: Mapping[str, str]) -> str:
        """A password for another program of a site, which may read the detections of its cameras; again: a new one.

        Args:
            devices: name -> site, all active devices.

        Raises:
            BadInput, Conflict: the name cannot be one, or is taken by a device or the server.
        """
        try:
            check_name(name, "reader")
        except TopicError as error:
            raise BadInput(str(error)) from error
        if name == SERVER_USER or name in devices or name in self._read_rules():
            raise Conflict(f"{name} is a device, or the server itself; a reader needs a name of its own")
        password = secrets.token_urlsafe(24)
        with self._changing():
            self._store_password(name, password)
            self._prepare(devices, {name: site})
        self.reload()
        return password

    def readers(self) -> dict[str, str]:
        """The programs that may read detections: name -> site."""
        known = self._read_passwords()
        return {reader: site for reader, site in self._read_readers().items() if reader in known}

    def remove_device(self, name: str, devices: Mapping[str, str]) -> None:
        """Forget a device's, or a reader's, password and rules; `devices` are those that remain."""
        with self._changing():
            known = self._read_passwords()
            if known.pop(name, None) is not None:
                self._write_passwords(known)
            self._prepare({device: site for device, site in devices.items() if device != name})
        self.reload()

    def argv(self) -> list[str]:
        """The command line that runs the broker in the foreground."""
        if self.program == "mosquitto":
            return [find_program("mosquitto") or "mosquitto", "-c", str(self.config_path)]
        return [sys.executable, "-m", "bowerbird_server.broker_iotcore", str(self.config_path), str(self._pid_file)]

    def ready(self) -> bool:
        """Whether something accepts connections where the broker should be."""
        try:
            # From the file, since another `EmbeddedBroker` may have prepared this folder.
            address = BrokerAddress.load(self.address_path)
            socket.create_connection((address.host, address.port), timeout=0.5).close()
        except (OSError, EnvironmentFault):
            return False
        return True

    def reload(self) -> bool:
        """Have a running broker read passwords and rules again: mosquitto by SIGHUP, iotcore by ending it, so that its
        supervisor starts it anew. False when it does not run.
        """
        try:
            pid = int(self._pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if str(self.config_path).encode() not in command:  # the number was given to another process since
                return False
            os.kill(pid, signal.SIGHUP if self.program == "mosquitto" else signal.SIGTERM)
        except (OSError, ValueError):
            return False
        return True

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One process changes passwords and rules at a time."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EnvironmentFault(f"cannot write {self.folder}: {error.strerror}. Check space and permissions.") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _read_rules(self) -> dict[str, str]:
        """Devices (name -> site) that the rules on disk know."""
        try:
            lines = (self.folder / "acl").read_text().splitlines()
        except FileNotFoundError:
            return {}
        topics = [line.removeprefix("topic write ") for line in lines if line.endswith(f"/{FrameTopic.LEAF}")]
        return {topic.device: topic.site for topic in map(FrameTopic.parse, topics)}

    def _read_readers(self) -> dict[str, str]:
        """Readers (name -> site) that the rules on disk know: those that read a topic of the cameras."""
        try:
            lines = (self.folder / "acl").read_text().splitlines()
        except FileNotFoundError:
            return {}
        found: dict[str, str] = {}
        user = ""
        for line in lines:
            user = line.removeprefix("user ") if line.startswith("user ") else user
            levels = line.removeprefix("topic read ").split("/")
            if line.startswith("topic read ") and levels[3:4] == [LOCAL[0].DIRECTION]:
                found[user] = levels[2]
        return found

    def _read_passwords(self) -> dict[str, str]:
        try:
            text = self._passwords.read_text()
        except FileNotFoundError:
            return {}
        if self.program == "iotcore":
            return dict(json.loads(text))
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def _write_passwords(self, known: Mapping[str, str]) -> None:
        if self.program == "iotcore":
            _write_private(self._passwords, json.dumps(dict(known)))
        else:
            _write_private(self._passwords, "".join(f"{name}:{value}\n" for name, value in sorted(known.items())))

    def _store_password(self, name: str, password: str) -> None:
        value = self._hash(name, password) if self.program == "mosquitto" else password
        self._write_passwords({**self._read_passwords(), name: value})

    def _hash(self, name: str, password: str) -> str:
        # By file, since a command line can be read by every user of the machine.
        tool = find_program("mosquitto_passwd")
        if tool is None:
            raise EnvironmentFault("mosquitto_passwd is missing beside mosquitto: apt-get install mosquitto")
        scratch = self.folder / f"new-password-{os.getpid()}"
        try:
            _write_private(scratch, f"{name}:{password}\n")
            done = subprocess.run([tool, "-U", str(scratch)], capture_output=True, text=True, timeout=30, check=False)
            hashed = scratch.read_text().strip().partition(":")[2]
        except OSError as error:
            raise EnvironmentFault(f"cannot store a broker password in {self.folder}: {error.strerror}") from error
        finally:
            scratch.unlink(missing_ok=True)
        if done.returncode != 0 or not hashed.startswith("$"):
            raise EnvironmentFault(f"mosquitto_passwd could not hash a password: {done.stderr.strip()[:300]}")
        return hashed

    def _write_config(self, devices: Mapping[str, str], readers: Mapping[str, str]) -> None:
        if self.program == "mosquitto":
            _write_private(self.config_path, self._mosquitto_config())
        _write_private(self.folder / "acl", access_rules(devices, readers=readers))
        if self.program == "iotcore":
            _write_private(self.config_path, self._rumqttd_config())

    def _mosquitto_config(self) -> str:
        lines = [
            f"listener {self._port} {self.host}",
            "allow_anonymous false",
            f"password_file {self._passwords}",
            f"acl_file {self.folder / 'acl'}",
            f"pid_file {self._pid_file}",
            "persistence false",  # end-to-end receipts: a broker needs no state
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
        if os.geteuid() == 0:
            lines.append("user root")  # otherwise it becomes `mosquitto`, which may not read this folder
        return "\n".join(lines) + "\n"

    def _rumqttd_config(self) -> str:
        users = "".join(f"{json.dumps(name)} = {json.dumps(word)}\n" for name, word in sorted(self._read_passwords().items()))
        host = "127.0.0.1" if self.host == "localhost" else self.host
        return f"""id = 0

[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 67108864
max_segment_count = 4

[v5.1]
name = "bowerbird"
listen = {json.dumps(f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}")}
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = {MAX_PACKET_BYTES}
max_inflight_count = 100
dynamic_filters = true

[v5.1.connections.auth]
{users}"""


def _choose_program() -> str:
    if find_program("mosquitto") is not None and find_program("mosquitto_passwd") is not None:
        return "mosquitto"
    if importlib.util.find_spec("iotcore") is not None:
        return "iotcore"
    raise EnvironmentFault(
        "there is no MQTT broker here: install mosquitto (apt-get install mosquitto) or the wheel (pip install iotcore), or name "
        "an external broker by its URL"
    )


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror}. Check space and permissions.") from error
