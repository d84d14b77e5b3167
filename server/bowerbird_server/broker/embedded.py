"""The MQTT broker that is started for you: mosquitto if it is installed, else the `iotcore` wheel.

In: the folder `broker/` of the data folder, which devices there are, the site's authority. Out: configuration, certificates,
access rules and the command line that runs the broker; `supervisor.py` runs it. mosquitto takes client certificates only; names
on the deny list have no rules, and their sessions are ended. The broker keeps nothing: receipts make its disk needless, and
what is retained is published again on every connect. It starts no broker itself and decides nothing about who is trusted.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from bowerbird_server.broker.address import BrokerAddress, write_private
from bowerbird_server.broker.certificates import BrokerCertificates, hosts_for
from bowerbird_server.broker.config import MAX_PACKET_BYTES, MosquittoFiles, mosquitto_config
from bowerbird_server.broker.iotcore_files import read_passwords, rumqttd_config, write_passwords
from bowerbird_server.broker.kick import SOCKET_NAME, Kicker, KickLogin
from bowerbird_server.broker.rules import SERVER_USER, AccessRules, access_rules, probe_topic_of, read_devices, read_readers
from bowerbird_server.errors import BadInput, Conflict, EnvironmentFault
from bowerbird_server.identity.authority import is_reserved, random_service_name
from bowerbird_wire.errors import TopicError
from bowerbird_wire.topics import check_name

__all__ = ["MAX_PACKET_BYTES", "SERVER_USER", "BrokerAddress", "EmbeddedBroker", "access_rules", "find_program"]

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SERVICES = ("bowerbird-ingest", "bowerbird-delivery")
# Debian keeps mosquitto in /usr/sbin, which is not on the PATH of every user.
_EXTRA_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
_SOCKET_PATH_BYTES = 100  # a unix socket's path has fewer than 108


def find_program(name: str) -> str | None:
    """The path of `mosquitto` or one of its tools, None when it is not installed."""
    places = os.pathsep.join((os.defpath, *_EXTRA_PLACES))
    return shutil.which(name) or shutil.which(name, path=places)


class EmbeddedBroker:
    """A broker of our own below `folder`.

    Args:
        folder: for configuration, certificates and `broker.json`; mode 0700.
        host: where it listens; loopback unless told otherwise.
        port: None keeps the port of last time, or finds a free one.
        program: `mosquitto` or `iotcore`; None takes the first that is installed.
        authority: the folder of the site's authority; beside `folder` by default.
        names: host names and addresses under which devices reach it, beside `host`.
        device_ca: PEM file of another CA that signs for devices; None where the site's own does.

    Raises:
        EnvironmentFault: neither is installed, or iotcore would have to listen beyond loopback (it has no access rules).
    """

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        program: str | None = None,
        authority: Path | None = None,
        names: Collection[str] = (),
        device_ca: Path | None = None,
    ) -> None:
        self.folder = folder
        self.host = host
        self._port = port
        self._names = tuple(names)
        self.program = program or _choose_program()
        self.certificates = BrokerCertificates(folder, authority or folder.parent / "identity", device_ca)
        if self.program == "iotcore" and host not in LOOPBACK:
            raise EnvironmentFault(
                f"the built-in broker cannot listen on {host}: it has no access rules. Install mosquitto (apt-get install "
                "mosquitto), or name an external broker by its URL."
            )

    @property
    def takes_certificates(self) -> bool:
        """Whether devices log in by certificate; iotcore takes passwords."""
        return self.program == "mosquitto"

    @property
    def config_path(self) -> Path:
        """The broker's configuration; written by `prepare`."""
        return self.folder / ("mosquitto.conf" if self.program == "mosquitto" else "rumqttd.toml")

    @property
    def address_path(self) -> Path:
        """`broker.json`: the server's own address, for commands that come later."""
        return self.folder / "broker.json"

    @property
    def rules_path(self) -> Path:
        """The access rules."""
        return self.folder / "acl"

    @property
    def denied_path(self) -> Path:
        """The deny list: a name a line."""
        return self.folder / "denied"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "broker.pid"

    # -- configuration

    def prepare(
        self,
        devices: Mapping[str, str],
        *,
        clients: Iterable[str] = SERVICES,
        afresh: bool = False,
        exact: bool = False,
        now: datetime | None = None,
    ) -> BrokerAddress:
        """Write everything the broker reads; port and names stay what they were. A running broker goes by it when this returns.

        Returns:
            The server's own address.

        Args:
            devices: name -> site, all active devices.
            clients: client ids of the server's processes that need a certificate.
            afresh: new certificates for `clients`, as when a process starts.
            exact: `devices` is the whole truth, as when the server starts; else a device that another process added meanwhile stays.
            now: aware time; the clock's by default.

        Raises:
            EnvironmentFault: a program is missing, the authority cannot sign, or the folder is not writable.
        """
        before = self._rules_text()
        with self._changing():
            address = self._prepare(devices, clients=clients, afresh=afresh, exact=exact, now=now)
        if self._rules_text() != before:
            self._reload_and_wait()
        return address

    def _prepare(
        self,
        devices: Mapping[str, str],
        readers: Mapping[str, str] | None = None,
        *,
        clients: Iterable[str] = (),
        afresh: bool = False,
        exact: bool = False,
        now: datetime | None = None,
    ) -> BrokerAddress:
        old = BrokerAddress.load(self.address_path) if self.address_path.is_file() else None
        self._port = self._port or (old.port if old else _free_port(self.host))
        rules = self._rules_text()
        denied = self.denied()
        kept = {} if exact else {name: site for name, site in read_devices(rules).items() if name not in denied}
        readers = {name: site for name, site in {**read_readers(rules), **(readers or {})}.items() if name not in denied}
        allowed = {name: site for name, site in {**kept, **devices}.items() if name not in denied}
        if self.program == "iotcore":
            return self._prepare_iotcore(old, allowed, readers)
        now = now or datetime.now(tz=UTC)
        self.certificates.keep_server(hosts_for(self.host, (*self._names, *self.known_as())), now)
        self.certificates.keep_services(clients, now, afresh=afresh)
        login = KickLogin.load(self.folder) or self._make_kick_login()
        write_private(self.config_path, mosquitto_config(self.host, self._port, self._files()))
        write_private(self.rules_path, AccessRules(allowed, readers, self.certificates.names(), login.name).text())
        address = BrokerAddress(
            "127.0.0.1" if self.host == "0.0.0.0" else self.host,  # noqa: S104 - compared with, not bound to
            self._port,
            tls=True,
            ca_file=str(self.certificates.ca_file),
            certificate=str(self.certificates.services),
        )
        address.save(self.address_path)
        return address

    def _prepare_iotcore(
        self, old: BrokerAddress | None, devices: Mapping[str, str], readers: Mapping[str, str]
    ) -> BrokerAddress:
        assert self._port is not None  # noqa: S101 - for the type checker
        known = read_passwords(self.folder)
        password = old.password if old and old.password else secrets.token_urlsafe(24)
        address = BrokerAddress(self.host, self._port, SERVER_USER, password)
        address.save(self.address_path)
        if known.get(SERVER_USER) != password:
            known = {**known, SERVER_USER: password}
            write_passwords(self.folder, known)
        write_private(
            self.rules_path,
            access_rules(
                {name: site for name, site in devices.items() if name in known},
                readers={name: site for name, site in readers.items() if name in known},
            ),
        )
        write_private(self.config_path, rumqttd_config(self.host, self._port, known))
        return address

    def known_as(self) -> list[str]:
        """Names and addresses that devices were given for this broker; its certificate holds them."""
        with suppress(FileNotFoundError):
            return (self.folder / "names").read_text().split()
        return []

    def be_known_as(self, name: str, devices: Mapping[str, str]) -> None:
        """Have the broker's certificate hold another name, at once.

        Raises:
            BadInput: it is neither a host name nor an address.
        """
        hosts_for(self.host, [name])
        with self._changing():
            if self.program == "mosquitto" and name not in hosts_for(self.host, (*self._names, *self.known_as())):
                write_private(self.folder / "names", "".join(f"{each}\n" for each in sorted({*self.known_as(), name})))
                self._prepare(devices)
        self.reload()

    # -- who may

    def add_device(self, name: str, devices: Mapping[str, str]) -> str | None:
        """Let a device in, which a running broker knows when this returns.

        Args:
            name: of the device, in `devices`.
            devices: name -> site, all active devices, the new one included.

        Returns:
            Its password with iotcore, which stores it in clear; None where certificates count.

        Raises:
            BadInput, Conflict: the name cannot be a device's.
        """
        self._check_name(name, "device")
        if name in self.readers():
            raise Conflict(f"{name} is a reader at the broker; choose another name")
        with self._changing():
            self._admit(name)
            password = self._new_password(name)
            self._prepare(devices)
        self._reload_and_wait()
        return password

    def add_reader(self, name: str, site: str, devices: Mapping[str, str]) -> str | None:
        """Let another program of a site read the detections of its cameras; as `add_device`.

        Args:
            devices: name -> site, all active devices.

        Raises:
            BadInput, Conflict: the name cannot be one, or is taken by a device or the server.
        """
        self._check_name(name, "reader")
        if name in devices or name in read_devices(self._rules_text()):
            raise Conflict(f"{name} is a device, or the server itself; a reader needs a name of its own")
        with self._changing():
            self._admit(name)
            password = self._new_password(name)
            self._prepare(devices, {name: site})
        self._reload_and_wait()
        return password

    def readers(self) -> dict[str, str]:
        """The programs that may read detections: name -> site."""
        return read_readers(self._rules_text())

    def remove_device(self, name: str, devices: Mapping[str, str]) -> None:
        """Keep a device, or a reader, out: no rules, and its session ended with all that waits for it.

        Returns only when a running broker has done so; while none runs, the deny list is what the next one starts with.

        Args:
            devices: those that remain.

        Raises:
            EnvironmentFault: the broker runs and does not do it; the deny list stands nevertheless.
        """
        with self._changing():
            write_private(self.denied_path, "".join(f"{each}\n" for each in sorted({*self.denied(), name})))
            if self.program == "iotcore":
                known = read_passwords(self.folder)
                known.pop(name, None)
                write_passwords(self.folder, known)
            self._prepare({device: site for device, site in devices.items() if device != name})
        if self._reload_and_wait() and self.program == "mosquitto":
            Kicker(self.folder).end(name)

    def denied(self) -> set[str]:
        """The deny list."""
        with suppress(FileNotFoundError):
            return set(self.denied_path.read_text().split())
        return set()

    def _admit(self, name: str) -> None:
        denied = self.denied()
        if name in denied:
            write_private(self.denied_path, "".join(f"{each}\n" for each in sorted(denied - {name})))

    def _check_name(self, name: str, what: str) -> None:
        try:
            check_name(name, what)
        except TopicError as error:
            raise BadInput(str(error)) from error
        if name == SERVER_USER or is_reserved(name):
            raise Conflict(f"{name} is a name of the server's own at the broker; choose another")

    def _new_password(self, name: str) -> str | None:
        if self.program == "mosquitto":
            return None
        password = secrets.token_urlsafe(24)
        write_passwords(self.folder, {**read_passwords(self.folder), name: password})
        return password

    # -- the process

    def upkeep(self, now: datetime) -> bool:
        """Make anew what runs out: the broker's certificate and those of the server's processes; whether the broker had to be told.

        Raises:
            EnvironmentFault: as `prepare`.
        """
        if self.program != "mosquitto":
            return False
        with self._changing():
            hosts = hosts_for(self.host, (*self._names, *self.known_as()))
            changed = self.certificates.keep_server(hosts, now)
            self.certificates.keep_services(self.certificates.client_ids(), now)
        return changed and self.reload()

    def argv(self) -> list[str]:
        """The command line that runs the broker in the foreground."""
        if self.program == "iotcore":
            return [sys.executable, "-m", "bowerbird_server.broker.iotcore_process", str(self.config_path), str(self._pid_file)]
        argv = [find_program("mosquitto") or "mosquitto", "-c", str(self.config_path)]
        if self._files().kick_socket == Path(SOCKET_NAME):
            argv = ["env", f"--chdir={self.folder}", *argv]
        return argv

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
        """Have a running broker read certificates and rules again: mosquitto by SIGHUP, iotcore by ending it, so that its
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

    def _reload_and_wait(self) -> bool:
        """Whether a broker runs, which then goes by the rules on disk."""
        if not self.reload():
            return False
        if self.program == "mosquitto":
            Kicker(self.folder).await_rules(probe_topic_of(self._rules_text()))
        return True

    # -- files

    def _files(self) -> MosquittoFiles:
        path = self.folder / SOCKET_NAME
        return MosquittoFiles(
            ca=self.certificates.clients_ca_file,
            server=self.certificates.server_file,
            rules=self.rules_path,
            pid=self._pid_file,
            kick_socket=path if len(os.fsencode(path)) < _SOCKET_PATH_BYTES else Path(SOCKET_NAME),
            passwords=self.folder / "passwords",
            # Otherwise it becomes `mosquitto`, which may not read this folder.
            runs_as="root" if os.geteuid() == 0 else None,
        )

    def _make_kick_login(self) -> KickLogin:
        login = KickLogin(random_service_name("kick"), secrets.token_urlsafe(24))
        write_private(self.folder / "passwords", f"{login.name}:{self._hash(login.name, login.password)}\n")
        login.save(self.folder)
        return login

    def _hash(self, name: str, password: str) -> str:
        # By file, since a command line can be read by every user of the machine.
        tool = find_program("mosquitto_passwd")
        if tool is None:
            raise EnvironmentFault("mosquitto_passwd is missing beside mosquitto: apt-get install mosquitto")
        scratch = self.folder / f"new-password-{os.getpid()}"
        try:
            write_private(scratch, f"{name}:{password}\n")
            done = subprocess.run([tool, "-U", str(scratch)], capture_output=True, text=True, timeout=30, check=False)
            hashed = scratch.read_text().strip().partition(":")[2]
        except OSError as error:
            raise EnvironmentFault(f"cannot store a broker password in {self.folder}: {error.strerror}") from error
        finally:
            scratch.unlink(missing_ok=True)
        if done.returncode != 0 or not hashed.startswith("$"):
            raise EnvironmentFault(f"mosquitto_passwd could not hash a password: {done.stderr.strip()[:300]}")
        return hashed

    def _rules_text(self) -> str:
        try:
            return self.rules_path.read_text()
        except FileNotFoundError:
            return ""

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One process changes names and rules at a time."""
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
