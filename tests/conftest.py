"""Fixtures that several suites share. Suites with their own needs have a conftest.py beside their tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bowerbird_server.identity.authority import Authority
from bowerbird_testing.attack_table import is_attack
from bowerbird_testing.broker import Mosquitto, mosquitto_path


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
    """Groups that pytest-xdist does not honour make each worker run what they share: that costs minutes and looks like nothing."""
    if config.getoption("loadgroup", False):
        astray = [item.nodeid for item in items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid]
        if astray:
            raise pytest.UsageError(
                f"pytest-xdist does not see the groups of {len(astray)} tests ({astray[0]}); its version does not go with this pytest"
            )
