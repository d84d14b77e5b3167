"""Fixtures that several suites share. Suites with their own needs have a conftest.py beside their tests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from bowerbird_server.identity.authority import Authority
from bowerbird_testing import fault_rows
from bowerbird_testing.attack_table import is_attack
from bowerbird_testing.broker import Mosquitto, mosquitto_path

_SEED = "BOWERBIRD_FAULT_SEED"

# No test is a matter of time: how long an example takes says how busy the machine is.
settings.register_profile("bowerbird", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bowerbird")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which rows of the fault table run, and their seed."""
    parser.addoption(
        "--fault-rows", choices=("all", "third"), default="all", help="all rows of the fault table, or a seeded third"
    )
    parser.addoption(
        "--fault-seed", type=int, help=f"of the rows' draws and of the third; else ${_SEED}, else the day's number"
    )


def pytest_configure(config: pytest.Config) -> None:
    """One seed for all workers of a run, which inherit this environment."""
    given = config.getoption("fault_seed")
    if given is not None:
        os.environ[_SEED] = str(given)
    os.environ.setdefault(_SEED, str(int(time.time() // 86_400)))


def pytest_report_header() -> str:
    """What to give to run the same again."""
    return f"fault seed: {os.environ[_SEED]} (--fault-seed)"


@pytest.fixture(scope="session")
def fault_seed() -> int:
    """The seed of this run."""
    return int(os.environ[_SEED])


@pytest.fixture
def start_broker(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """`start_broker(users=..., acl=..., settings=...)` -> a running mosquitto on a loopback port, stopped after the test."""
    if mosquitto_path() is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    with ExitStack() as running:
        started = 0

        def start(**options: Any) -> Mosquitto:
            nonlocal started
            started += 1
            return running.enter_context(Mosquitto(tmp_path / f"broker-{started}", **options))

        yield start


@pytest.fixture
def broker(start_broker: Callable[..., Mosquitto]) -> Mosquitto:
    """A running mosquitto that lets everybody in."""
    return start_broker()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a certificate authority that all tests of a run share."""
    folder = tmp_path_factory.mktemp("authority") / "identity"
    Authority.open(folder)
    return folder


@pytest.fixture(scope="session")
def first_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache in which the demo keeps first models, shared by all workers of this test run."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if base.name.startswith("popen-") else base) / "first-models"


def pytest_itemcollected(item: pytest.Item) -> None:
    """The tests that the table of attacks names are marked by it, wherever they are."""
    if is_attack(item.nodeid):
        item.add_marker("attack")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the rows of the fault table that are not this run's.

    Groups that pytest-xdist does not honour make each worker run what they share: that costs minutes and looks like nothing.
    """
    if config.getoption("fault_rows") == "third":
        rows = fault_rows.chosen(int(os.environ[_SEED]))
        left_out = [item for item in items if (mark := item.get_closest_marker("fault_row")) and mark.args[0] not in rows]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if config.getoption("loadgroup", False):
        astray = [item.nodeid for item in items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid]
        if astray:
            raise pytest.UsageError(
                f"pytest-xdist does not see the groups of {len(astray)} tests ({astray[0]}); its version does not go with this pytest"
            )
