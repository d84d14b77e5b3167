"""What the rows of the fault table share."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.fault_site import SERVER_CLIENTS, FaultSite
from bowerbird_testing.tls_broker import TlsBroker


@pytest.fixture
def site(tmp_path: Path, broker: Mosquitto) -> FaultSite:
    """A site with one device and nothing running but the broker."""
    return FaultSite(tmp_path / "site", broker)


@pytest.fixture
def tls_site(tmp_path: Path, authority: Path) -> Iterator[FaultSite]:
    """The same at the server's own broker, with TLS and a certificate for everybody."""
    with TlsBroker(tmp_path / "broker", {"cam-01": "demo"}, authority=authority, clients=SERVER_CLIENTS) as broker:
        yield FaultSite(tmp_path / "site", broker)


@pytest.fixture
def dice(request: pytest.FixtureRequest, fault_seed: int) -> random.Random:
    """The draws of one row: of the run's seed and the row's name."""
    return random.Random(f"{fault_seed}/{request.node.name}")
