"""A device's link over the server's own broker: TLS, its reasons to fail told apart, and a certificate that changes under it."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bowerbird_agent.identity.identity import FOLDER
from bowerbird_agent.link.broker_tls import NoTls, date_fault, make_context
from bowerbird_agent.link.config import BrokerConfig
from bowerbird_agent.link.link_events import DENIED, LinkDown
from bowerbird_server.broker.address import BrokerAddress
from bowerbird_server.broker.embedded import find_program
from bowerbird_server.identity.authority import Authority
from bowerbird_testing.frames import make_frame
from bowerbird_testing.receipt_server import ReceiptServer
from bowerbird_testing.tls_broker import WATCHER, TlsBroker, device_certificate
from bowerbird_testing.uploading_device import UploadingDevice, uploading
from bowerbird_wire import tls_faults

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_program("mosquitto") is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]


@pytest.fixture
def site(tmp_path: Path, authority: Path) -> Iterator[TlsBroker]:
    with TlsBroker(tmp_path, {"cam-01": "demo"}, authority=authority) as running:
        yield running


@contextmanager
def receipts(site: TlsBroker) -> Iterator[ReceiptServer]:
    with ReceiptServer(site.server.host, site.server.port, tls=site.server.tls_context(WATCHER)) as server:
        yield server


@contextmanager
def device(folder: Path, address: BrokerAddress, tls: Callable[[], ssl.SSLContext] | None = None) -> Iterator[UploadingDevice]:
    def context() -> ssl.SSLContext:
        made = address.tls_context("cam-01")
        assert made is not None
        return made

    with uploading(folder, address.host, address.port, tls=tls or context, max_retry_s=0.1) as agent:
        yield agent


def put(agent: UploadingDevice, count: int, *, first: int = 0) -> None:
    for number in range(first, first + count):
        assert agent.spool.put(*make_frame(number), state="new")


def left(agent: UploadingDevice) -> int:
    return sum(agent.spool.ledger().in_spool.values())


def downs(agent: UploadingDevice) -> list[LinkDown]:
    return [event for event in agent.seen if isinstance(event, LinkDown)]


def test_frames_reach_the_server_over_tls(tmp_path: Path, site: TlsBroker) -> None:
    with receipts(site), device(tmp_path / "spool", site.address("cam-01")) as agent:
        put(agent, 10)
        agent.run(lambda: agent.spool.ledger().committed == 10)


def _other_ca(site: TlsBroker, folder: Path) -> BrokerAddress:
    (folder / "other.pem").write_bytes(Authority.open(folder / "another").root_pem)
    return replace(site.address("cam-01"), ca_file=str(folder / "other.pem"))


def _stranger(site: TlsBroker, folder: Path) -> BrokerAddress:
    return replace(site.address("cam-01"), certificate=str(device_certificate(folder, folder / "another", "cam-01")))


FAULTS: dict[str, tuple[Callable[[TlsBroker, Path], BrokerAddress], str, str]] = {
    "ca_of_another_site": (_other_ca, tls_faults.WRONG_CA, "not from the CA that is trusted here"),
    "host_name_that_the_certificate_does_not_have": (
        lambda site, _: replace(site.address("cam-01"), host="127.0.0.2"),
        tls_faults.WRONG_HOST,
        "for another host name",
    ),
    "own_certificate_expired": (
        lambda site, _: site.address("cam-01", life=timedelta(seconds=-5)),
        tls_faults.REFUSED_EXPIRED,
        "certificate shown has expired; renew it",
    ),
    "own_certificate_not_valid_yet": (
        lambda site, _: site.address("cam-01", life=timedelta(days=9), starts_in=timedelta(days=3)),
        tls_faults.REFUSED,
        "not valid yet by its clock",
    ),
    "own_certificate_of_another_ca": (_stranger, tls_faults.REFUSED_CA, "does not know the CA"),
    "no_certificate": (
        lambda site, _: replace(site.address("cam-01"), certificate=""),
        tls_faults.NO_CERTIFICATE,
        "enrol this device",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_why_tls_fails_is_one_clear_warning_and_the_spool_is_kept(
    tmp_path: Path, authority: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    make, code, words = FAULTS[fault]
    caplog.set_level(logging.DEBUG, "bowerbird_agent.link.mqtt_link")
    with TlsBroker(tmp_path, {"cam-01": "demo"}, authority=authority, host="0.0.0.0") as site:  # noqa: S104 - also as 127.0.0.2
        with device(tmp_path / "spool", make(site, tmp_path)) as agent:
            put(agent, 3)
            agent.run(lambda: len(downs(agent)) >= 3)
            assert {down.fault for down in downs(agent)} == {code}
            assert left(agent) == 3
        told = [record for record in caplog.records if words in record.message]
        assert [record.levelno for record in told][:3] == [logging.WARNING, logging.DEBUG, logging.DEBUG]
        assert "frames wait in the spool" in told[0].message


def test_a_brokers_certificate_out_of_its_time_is_told_with_a_look_at_the_clock(tmp_path: Path, site: TlsBroker) -> None:
    """Both ways: expired, and of tomorrow."""
    now = datetime.now(tz=UTC)
    authority = Authority.open(site.authority)
    for code, made in (
        (tls_faults.EXPIRED, authority.server_certificate(["127.0.0.1"], now=now, life=timedelta(seconds=-5))),
        (tls_faults.NOT_YET_VALID, authority.server_certificate(["127.0.0.1"], now=now + timedelta(days=3))),
    ):
        site.broker.certificates.server_file.write_bytes(made)
        site.restart()
        with device(tmp_path / f"spool-{code}", site.address("cam-01")) as agent:
            agent.run(lambda agent=agent: bool(downs(agent)))
            assert (downs(agent)[0].fault, "clock" in downs(agent)[0].reason) == (code, True)


def test_a_suspended_device_is_told_that_it_is_denied_and_goes_on_when_it_is_let_in_again(
    tmp_path: Path, site: TlsBroker
) -> None:
    """The broker accepts connection and subscription of anybody with a certificate; the first publish tells."""
    with receipts(site), device(tmp_path / "spool", site.address("cam-01")) as agent:
        put(agent, 3)
        agent.run(lambda: agent.spool.ledger().committed == 3)
        site.broker.remove_device("cam-01", {})
        put(agent, 2, first=3)
        agent.run(lambda: sum(down.fault == DENIED for down in downs(agent)) >= 2)
        assert left(agent) == 2
        site.broker.add_device("cam-01", {"cam-01": "demo"})
        agent.run(lambda: agent.spool.ledger().committed == 5)


def test_a_renewed_certificate_is_shown_at_the_next_connection(tmp_path: Path, site: TlsBroker) -> None:
    """The device runs on; the old one expires under it, and the broker is restarted."""
    state = tmp_path / "state"
    (state / FOLDER).mkdir(parents=True, mode=0o700)
    (state / FOLDER / "ca.pem").write_bytes(Authority.open(site.authority).root_pem)
    broker = BrokerConfig(site.server.host, site.server.port)

    def generation(number: int, life: timedelta) -> None:
        made = device_certificate(tmp_path, site.authority, "cam-01", life=life)
        made.replace(state / FOLDER / f"{number}.pem")

    generation(1, timedelta(seconds=-5))
    with receipts(site), device(tmp_path / "spool", site.address("cam-01"), lambda: make_context(broker, state)) as agent:
        put(agent, 2)
        agent.run(lambda: any(down.fault == tls_faults.REFUSED_EXPIRED for down in downs(agent)))
        generation(2, timedelta(days=1))
        agent.run(lambda: agent.spool.ledger().committed == 2)


def test_a_device_that_was_never_enrolled_is_told_how(tmp_path: Path) -> None:
    """And one whose clock does not fit its certificate is told so before it tries."""
    broker = BrokerConfig("127.0.0.1")
    assert broker.port == 8883
    with pytest.raises(NoTls, match="bowerbird-agent enrol"):
        make_context(broker, tmp_path)
    (tmp_path / FOLDER).mkdir(mode=0o700)
    device_certificate(tmp_path, tmp_path / "ca", "cam-01").replace(tmp_path / FOLDER / "1.pem")
    for year, word in ((1970, "this clock says 1970"), (2080, "expired")):
        assert word in date_fault(broker, tmp_path, datetime(year, 1, 1, tzinfo=UTC))
    assert date_fault(broker, tmp_path, datetime.now(tz=UTC)) == ""
