"""What the rows of the fault table share."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.fault_site import FaultSite


@pytest.fixture
def site(tmp_path: Path, broker: Mosquitto) -> FaultSite:
    """A site with one device and nothing running but the broker."""
    return FaultSite(tmp_path / "site", broker)


@pytest.fixture
def dice(request: pytest.FixtureRequest, fault_seed: int) -> random.Random:
    """The draws of one row: of the run's seed and the row's name."""
    return random.Random(f"{fault_seed}/{request.node.name}")
