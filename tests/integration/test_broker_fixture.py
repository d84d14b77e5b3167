"""The broker that integration tests use behaves as a broker that is killed and comes back."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from bowerbird_testing.broker import BrokerNotStarted, Mosquitto

pytestmark = pytest.mark.broker


def test_a_killed_broker_comes_back_on_the_same_port(broker: Mosquitto) -> None:
    port, pid = broker.port, broker.pid
    broker.kill()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((broker.host, port), timeout=2)
    broker.start()
    assert broker.port == port
    assert broker.pid != pid
    socket.create_connection((broker.host, port), timeout=2).close()


def test_a_taken_port_that_was_asked_for_is_an_error_with_the_log(
    broker: Mosquitto, start_broker: Callable[..., Mosquitto]
) -> None:
    with pytest.raises(BrokerNotStarted, match="in use"):
        start_broker(port=broker.port)
