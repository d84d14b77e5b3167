"""What a device says that it has sent and received, against the counters of its own network interface."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bowerbird_testing.broker import Mosquitto, free_port
from bowerbird_testing.network_namespace import Namespace, NoNamespace
from bowerbird_testing.receipt_server import ReceiptServer

pytestmark = pytest.mark.broker

MOST_ABOVE = 1.05


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
    tmp_path: Path, start_broker: Callable[..., Mosquitto], rate_kbit: int | None, frames: int, image_bytes: int, idle_s: int
) -> None:
    port = free_port()
    try:
        with Namespace(1, rate_kbit=rate_kbit) as namespace:
            broker = start_broker(settings=[f"listener {port} {namespace.host}"])
            with ReceiptServer(broker.host, broker.port) as server:
                script = ["-m", "bowerbird_testing.counting_device", str(tmp_path / "spool"), namespace.host, str(port)]
                argv = [*namespace.prefix, sys.executable, *script, str(frames), str(image_bytes), str(idle_s)]
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
    # A connection's beginning and end are allowed for with some hundred bytes, which only an idle device notices.
    both = sent + received
    assert ours["sent"] + ours["received"] <= max(MOST_ABOVE * both, both + 600), (both, ours)
