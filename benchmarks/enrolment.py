"""Seconds a device to enrol a fleet in one run: the whole claim over HTTPS, from the board's key to its durable identity.

    python benchmarks/enrolment.py [--quick] [--devices N] [--folder DIR]

In: nothing; it makes a site, an invitation for each device, and runs the claim listener as a process of its own. Out: per device and in
all, and the figure as a last line of JSON: seconds a device, one after the other from one process (goal: at most 0.12, so that 500
are in within a minute). A baseline in the same run says what of it is the machine's: bare TLS handshakes with the same listener.
No broker runs; its rules are written for every device all the same. `--quick` enrols 50.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from figure import report

from bowerbird_agent.identity.enrolment import enrol
from bowerbird_server.catalogue import fleet
from bowerbird_server.fleet.provision import broker_table
from bowerbird_server.identity.authority import Authority
from bowerbird_server.identity.invitations import Invitation, Wanted, invite
from bowerbird_server.identity.listener import ListenerAddress
from bowerbird_server.identity.place import listener_address
from bowerbird_server.site import Site

GOAL_S = 0.12
DEVICES, QUICK_DEVICES = 500, 50


@contextmanager
def listening(data: Path, address: ListenerAddress) -> Iterator[None]:
    """`bowerbird claims` as a process."""
    process = subprocess.Popen([sys.executable, "-m", "bowerbird_server.cli", "claims", "--data", str(data)])
    try:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError), socket.create_connection((address.host, address.port), timeout=1):
                break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


def invitations(site: Site, number: int) -> list[Invitation]:
    """One for each board."""
    table = broker_table(site)
    camera = {"name": "gate", "source": "synthetic:?seed=1"}
    return [
        invite(site, Wanted(f"SN-{n}", f"SN-{n}", cameras=(camera,)), broker=table, tables={}, actor="benchmark")
        for n in range(number)
    ]


def handshakes(address: ListenerAddress, ca_pem: bytes, number: int) -> list[float]:
    """Seconds of bare TLS connections."""
    context = ssl.create_default_context(cadata=ca_pem.decode())
    took = []
    for _ in range(number):
        began_s = time.perf_counter()
        with (
            socket.create_connection((address.host, address.port)) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1"),
        ):
            took.append(time.perf_counter() - began_s)
    return took


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--devices", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    number = options.devices or (QUICK_DEVICES if options.quick else DEVICES)
    with tempfile.TemporaryDirectory(prefix="bowerbird-enrolment-", dir=options.folder) as folder:
        root = Path(folder)
        (root / "data").mkdir()
        (root / "data" / "bowerbird.toml").write_text('[signing]\nmode = "automatic"\n')
        with Site.open(root / "data") as site:
            began_s = time.perf_counter()
            invited = invitations(site, number)
            inviting_s = time.perf_counter() - began_s
            address = listener_address(site)
            took: list[float] = []
            with listening(root / "data", address):
                bare = handshakes(address, Authority.open(site.folder.identity).root_pem, min(number, 100))
                for n, invitation in enumerate(invited):
                    board = root / "boards" / str(n)
                    board.mkdir(parents=True)
                    began_s = time.perf_counter()
                    # The folder may lie in memory: what is measured includes its fsyncs, wherever it lies.
                    enrol(invitation.bundle, board / "agent.toml", version="benchmark", in_memory_ok=True)
                    took.append(time.perf_counter() - began_s)
                    if (n + 1) % 50 == 0:
                        print(f"{n + 1:4} enrolled, the last 50 in {sum(took[-50:]):5.1f} s", flush=True)
            active = len(fleet.active_devices(site.catalogue))
    value = sum(took) / number
    details = {
        "devices": number,
        "active": active,
        "seconds_in_all": round(sum(took), 2),
        "median_s": round(statistics.median(took), 4),
        "p99_s": round(sorted(took)[int(0.99 * (number - 1))], 4),
        "first_50_s": round(statistics.mean(took[:50]), 4),
        "last_50_s": round(statistics.mean(took[-50:]), 4),
        "inviting_s_each": round(inviting_s / number, 4),
        "bare_handshake_s": round(statistics.median(bare), 4),
        "over_a_bare_handshake": round(statistics.median(took) / statistics.median(bare), 1),
    }
    return report("enrolment", value, GOAL_S, "s a device", at_least=False, details=details, also=active == number)


if __name__ == "__main__":
    sys.exit(main())
