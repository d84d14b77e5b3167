"""What a row of the fault table works with: a data folder, devices with spools and promises, ingest, and the program that checks
them.

In: a folder and a running broker. Out: parts to start and kill, and `check`, which runs `account_checker.py` as a process of its
own and fails with its words. It injects nothing itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bowerbird_agent.spool.spool import Spool
from bowerbird_server.broker.embedded import BrokerAddress
from bowerbird_server.catalogue import Catalogue, fleet
from bowerbird_server.ingest import ingest
from bowerbird_server.layout import DataFolder
from bowerbird_testing import account_checker, fault_processes
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.fault_device import Promises, Work, captured, work
from bowerbird_testing.mqtt_device import wait_for_ingest
from bowerbird_testing.tls_broker import TlsBroker
from bowerbird_testing.uploading_device import UploadingDevice, uploading

SERVER_CLIENTS = ("probe", "server")  # beside ingest; tests speak as them


class Discrepancy(AssertionError):
    """The checker found a frame that is lost, double, or not accounted for."""


def run_checker(cases: Sequence[Mapping[str, Any]], scratch: Path) -> list[dict[str, Any]]:
    """The numbers of each case.

    Raises:
        Discrepancy: with what the checker said.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / "cases.json"
    path.write_text(json.dumps(list(cases)))
    argv = [sys.executable, "-I", str(Path(account_checker.__file__)), str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise Discrepancy(f"exit code {done.returncode}\n{done.stderr[:3000]}\n{done.stdout[-1000:]}")
    numbers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(numbers) == len(cases), done.stdout
    return numbers


class FaultSite:
    """A site of one test.

    Args:
        root: for all its folders.
        broker: where everybody meets; one with TLS knows `SERVER_CLIENTS`.
        devices: their names.
    """

    def __init__(self, root: Path, broker: Mosquitto | TlsBroker, devices: Sequence[str] = ("cam-01",)) -> None:
        self.root, self.broker, self.devices = root, broker, list(devices)
        self.folder = DataFolder(root / "data").make()
        self.spools = {device: root / "spools" / device for device in devices}
        if self.folder.catalogue.exists():
            return  # a site that was there before, or a copy of one
        with Catalogue(self.folder.catalogue) as cat:
            for device in (*devices, "probe"):
                fleet.add_device(cat, device, "demo", "test")

    @property
    def address(self) -> BrokerAddress:
        """The broker's, for processes of the server."""
        if isinstance(self.broker, TlsBroker):
            return self.broker.server
        return BrokerAddress(self.broker.host, self.broker.port)

    def promises(self, device: str = "cam-01") -> Path:
        """The file of what a device's spool has accepted."""
        return self.root / f"{device}.accepted"

    def fill(self, count: int, device: str = "cam-01", *, first: int = 0, **fields: Any) -> list[str]:
        """Frames in a device's spool before it runs; returns their ids."""
        spool, promises = Spool(self.spools[device], max_bytes=200_000_000), Promises(self.promises(device))
        frames = [captured(first + number, device=device, **fields) for number in range(count)]
        for header, image in frames:
            assert promises.put(spool, header, image)
        promises.close()
        spool.close()
        return [header.frame_id for header, _ in frames]

    def order(self, device: str = "cam-01", **changes: Any) -> Work:
        """What a device process is to do."""
        values = {"host": self.broker.host, "port": self.broker.port, **changes}
        return Work(str(self.spools[device]), str(self.promises(device)), device=device, **values)

    # -- parts that run

    @contextmanager
    def device(self, device: str = "cam-01", *, host: str = "", port: int = 0, **settings: Any) -> Iterator[UploadingDevice]:
        """A device in this process, connected to the broker or to a link in front of it."""
        if isinstance(self.broker, TlsBroker):
            own = self.broker.address(device)
            settings.setdefault("tls", lambda: own.tls_context(device))
        with uploading(
            self.spools[device], host or self.broker.host, port or self.broker.port, device=device, **settings
        ) as running:
            yield running

    @contextmanager
    def device_process(self, device: str = "cam-01", **changes: Any) -> Iterator[BaseProcess]:
        """A device as a process to kill."""
        with fault_processes.running(self.root / "logs" / f"{device}.log", work, self.order(device, **changes)) as process:
            yield process

    @contextmanager
    def ingest_process(self, point: str = "-", group: int = 1, worker: int = 1, workers: int = 1) -> Iterator[BaseProcess]:
        """An ingest as a process to kill, or one that kills itself."""
        log = self.root / "logs" / f"ingest-{worker}.log"
        arguments = (str(self.folder.root), self.broker.host, self.broker.port, point, group, worker, workers, str(self.held))
        with fault_processes.running(log, fault_processes.ingest, *arguments) as process:
            yield process

    @property
    def held(self) -> Path:
        """Where an ingest that kills itself says how many messages it held."""
        return self.root / "held"

    @contextmanager
    def serving(self, **options: Any) -> Iterator[None]:
        """An ingest in this process, which has subscribed."""
        stop = threading.Event()
        thread = threading.Thread(target=ingest.run, args=(self.folder, self.address, stop), kwargs=options)
        thread.start()
        try:
            wait_for_ingest(self.address)
            yield
        finally:
            stop.set()
            thread.join(20)

    # -- the end

    def case(self, name: str = "", *, drained: bool = True, may_drop: Mapping[str, int | None] | None = None) -> dict[str, Any]:
        """This site for the checker."""
        devices = [
            {
                "device": device,
                "spool": str(self.spools[device]),
                "accepted": str(self.promises(device)),
                "must_be_empty": drained,
                "may_drop": dict(may_drop or {}),
            }
            for device in self.devices
        ]
        return {
            "name": name or self.root.name,
            "devices": devices,
            "catalogue": str(self.folder.catalogue),
            "blobs": str(self.folder.blobs),
        }

    def check(self, **options: Any) -> dict[str, Any]:
        """The account of all frames, by the separate program; devices must not run.

        Args:
            drained: whether every spool must be empty by now.
            may_drop: reason -> how many frames must have been dropped for it, None for any number; none for other reasons.

        Raises:
            Discrepancy: it does not add up.
        """
        (numbers,) = run_checker([self.case(**options)], self.root / "check")
        return numbers
