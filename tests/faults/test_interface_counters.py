"""What a device says that it has sent and received, against the counters of its own network interface."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bowerbird_testing.broker import Mosquitto, free_port
from bowerbird_testing.network_namespace import Namespace, NoNamespace
from bowerbird_testing.receipt_server import ReceiptServer
from bowerbird_testing.tls_broker import TlsBroker

pytestmark = pytest.mark.broker

MOST_ABOVE = 1.05
# What beginning and end of a connection may be counted too high, in bytes: which segments are acknowledged together is the kernel's
# choice. Less than a hundredth of an idle day; only a test of half a minute notices.
A_CONNECTION = {"plain": 600, "tls": 1000}
SERVER = "receipt-server"


@dataclass(frozen=True)
class Broker:
    """Where a device in the namespace finds its broker, who answers it there, and the files that TLS needs."""

    port: int
    receipts: ReceiptServer
    files: list[str] = field(default_factory=list)


@pytest.fixture
def plain(start_broker: Callable[..., Mosquitto]) -> Callable[[str], Broker]:
    """A broker without TLS that also listens in the namespace."""

    def start(host: str) -> Broker:
        port = free_port()
        broker = start_broker(settings=[f"listener {port} {host}"])
        return Broker(port, ReceiptServer(broker.host, broker.port))

    return start


@pytest.fixture
def tls(tmp_path: Path, authority: Path) -> Iterator[Callable[[str], Broker]]:
    """The server's own broker, with a certificate for each end."""
    with ExitStack() as running:

        def start(host: str) -> Broker:
            site = TlsBroker(tmp_path / "broker", {"cam-01": "demo"}, authority=authority, host=host, clients=(SERVER,))
            running.enter_context(site)
            server, device = site.server, site.address("cam-01")
            context = server.tls_context(SERVER)
            return Broker(
                device.port, ReceiptServer(host, server.port, tls=context), [str(device.ca_file), str(device.certificate)]
            )

        yield start


@pytest.mark.parametrize("speaking", ["plain", "tls"])
@pytest.mark.parametrize(
    ("rate_kbit", "frames", "image_bytes", "idle_s"),
    [
        pytest.param(None, 60, 60_000, 0, id="fat_link_large_frames"),
        pytest.param(None, 200, 2_000, 0, id="fat_link_small_frames"),
        pytest.param(256, 6, 60_000, 0, id="thin_link"),
        pytest.param(None, 0, 0, 22, id="idle_but_for_keep_alives"),
    ],
)
def test_our_count_is_never_below_the_interface_s_and_at_most_five_percent_above(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    rate_kbit: int | None,
    frames: int,
    image_bytes: int,
    idle_s: int,
    speaking: str,
) -> None:
    try:
        with Namespace(rate_kbit=rate_kbit) as namespace:
            broker = request.getfixturevalue(speaking)(namespace.host)
            with broker.receipts as server:
                script = ["-m", "bowerbird_testing.counting_device", str(tmp_path / "spool"), namespace.host, str(broker.port)]
                argv = [*namespace.prefix, sys.executable, *script, str(frames), str(image_bytes), str(idle_s), *broker.files]
                before = namespace.counters()
                done = subprocess.run(
                    argv, capture_output=True, text=True, check=False, timeout=120, cwd=Path(__file__).parents[1]
                )
                assert done.returncode == 0, done.stderr[-3000:]
                time.sleep(0.5)  # the last segments of the connection
                after = namespace.counters()
                assert len(server.committed) == frames
    except NoNamespace as why:
        pytest.skip(str(why))
    ours = json.loads(done.stdout.splitlines()[-1])
    sent, received = after[0] - before[0], after[1] - before[1]
    print(f"interface {sent} + {received}, ours {ours}")
    assert sent <= ours["sent"], (sent, ours)
    assert received <= ours["received"], (received, ours)
    both = sent + received
    assert ours["sent"] + ours["received"] <= max(MOST_ABOVE * both, both + A_CONNECTION[speaking]), (both, ours)
