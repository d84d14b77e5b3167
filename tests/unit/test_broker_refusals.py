"""Lines of a broker's log and what they say of those who did not come in."""

from __future__ import annotations

from datetime import UTC, datetime

from bowerbird_server.broker.refusals import refusals

NOW = datetime.fromtimestamp(1_795_842_700, tz=UTC)
CA = "1795842615: OpenSSL Error[0]: error:0A000418:SSL routines::tlsv1 alert unknown ca"


def new(address: str, port: int) -> str:
    return f"1795842614: New connection from {address}:{port} on port 8883."


def test_an_address_is_named_where_only_one_can_be_meant() -> None:
    (one,) = refusals([new("192.0.2.1", 5), CA, "1795842615: Client <unknown> disconnected: Protocol error."], now=NOW)
    assert (one.address, one.count, one.who) == ("192.0.2.1", 1, "somebody at 192.0.2.1")
    (two,) = refusals([new("192.0.2.1", 5), new("192.0.2.2", 6), CA], now=NOW)
    assert (two.address, two.who) == ("", "somebody")


def test_who_has_come_in_is_not_meant() -> None:
    known = "1795842614: New client connected from 192.0.2.1:5 as cam-01 (p5, c1, k30, u'cam-01')."
    (one,) = refusals([new("192.0.2.1", 5), known, new("192.0.2.2", 6), CA], now=NOW)
    assert one.address == "192.0.2.2"


def test_other_lines_and_other_faults_say_nothing() -> None:
    lines = [
        "",
        "no time",
        "1795842614: Client cam-01 closed its connection.",
        CA.replace("unknown ca", "user cancelled"),
        "x" * 9999,
    ]
    assert refusals(lines, now=NOW) == []


def test_an_address_of_version_6_is_one() -> None:
    (one,) = refusals([new("2001:db8::1", 5), CA], now=NOW)
    assert one.address == "2001:db8::1"
