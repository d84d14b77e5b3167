"""The server's own broker, running, with certificates for whoever a test wants to be.

In: a folder, the folder of an authority that a whole test run may share. Out: an `EmbeddedBroker` whose process is started, stopped and
killed, and addresses of devices, of the server, of strangers. It is the real configuration: TLS, certificates, rules, limits.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from bowerbird_server.broker.address import BrokerAddress, write_private
from bowerbird_server.broker.embedded import EmbeddedBroker
from bowerbird_server.identity.authority import Authority, key_pem
from bowerbird_server.supervisor import die_with_parent
from bowerbird_testing.mqtt_device import wait_until

WATCHER = "bowerbird-watcher"  # a process of the server that only tests have


class TlsBroker:
    """A running broker; a context manager.

    Args:
        folder: `broker/` and the certificates go into it.
        devices: who has rules; name -> site.
        authority: folder of the authority; one of its own when left out.
        program: `mosquitto` or `iotcore`, which takes passwords instead.
        clients: processes of the server that only this user has.
        device_ca: of another CA that signs for devices.
        settings: lines of mosquitto.conf that stand in the place of the generated ones, by their first word.
    """

    def __init__(
        self,
        folder: Path,
        devices: Mapping[str, str],
        *,
        authority: Path | None = None,
        program: str = "mosquitto",
        host: str = "127.0.0.1",
        clients: Sequence[str] = (),
        settings: Sequence[str] = (),
        device_ca: Path | None = None,
    ) -> None:
        self.folder = folder
        self.devices = dict(devices)
        self.authority = authority or folder / "identity"
        self.broker = EmbeddedBroker(
            folder / "broker", program=program, authority=self.authority, host=host, device_ca=device_ca
        )
        self.server = self.broker.prepare({}, clients=("bowerbird-ingest", "bowerbird-delivery", WATCHER, *clients))
        self._settings = list(settings)
        self.passwords = {name: self.broker.add_device(name, self.devices) for name in self.devices}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> TlsBroker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def host(self) -> str:
        """Where it is reached."""
        return self.server.host

    @property
    def port(self) -> int:
        """The same over restarts."""
        return self.server.port

    @property
    def log_path(self) -> Path:
        """What the broker wrote."""
        return self.folder / "broker.log"

    def start(self) -> None:
        """Start it and wait until it listens."""
        if self._settings:
            named = {line.split()[0] for line in self._settings}
            lines = self.broker.config_path.read_text().splitlines()
            lines = [*self._settings, *(line for line in lines if line.split()[:1] == [] or line.split()[0] not in named)]
            write_private(self.broker.config_path, "\n".join(lines) + "\n")
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.broker.argv(),
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),  # noqa: PLW1509 - see supervisor.py
            )
        # Another object of the same folder: a supervisor need not be what prepared it.
        again = EmbeddedBroker(self.broker.folder, program=self.broker.program, authority=self.authority)
        wait_until(again.ready, "the broker")

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        """kill -9 and start again."""
        self.kill()
        self.start()

    def address(self, name: str, **life: timedelta) -> BrokerAddress:
        """How a device reaches it: with its certificate, or password where that counts.

        Args:
            life: of the certificate; negative for one that has expired.
        """
        if self.broker.program == "iotcore":
            return replace(self.server, username=name, password=self.passwords[name] or "")
        return replace(self.server, certificate=str(device_certificate(self.folder, self.authority, name, **life)))


def device_certificate(
    folder: Path, authority: Path, name: str, *, life: timedelta = timedelta(days=45), starts_in: timedelta = timedelta(0)
) -> Path:
    """A file with a new key and a device's certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(tz=UTC) + starts_in
    leaf = Authority.open(authority).device_certificate(name, key.public_key(), generation=1, now=now, life=life)
    path = folder / f"{name}-{key.public_key().public_numbers().x % 16**8:08x}.pem"
    write_private(path, key_pem(key) + leaf)
    return path
