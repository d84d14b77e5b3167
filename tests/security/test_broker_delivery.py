"""What anybody can do at the server's own broker, by what is *delivered*: a SUBACK is granted even where nothing ever comes.

Each row is one attack or one fault. `sentinel` messages come behind what must not arrive, so that absence is not just lateness.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from bowerbird_server.broker.address import BrokerAddress
from bowerbird_server.broker.embedded import MAX_PACKET_BYTES, EmbeddedBroker, find_program
from bowerbird_server.broker.kick import SOCKET_NAME, Kicker
from bowerbird_server.broker.rules import probe_topic_of
from bowerbird_server.errors import BadInput, Conflict, EnvironmentFault
from bowerbird_server.identity.authority import Authority
from bowerbird_testing.free_client import FreeClient
from bowerbird_testing.mqtt_device import wait_until
from bowerbird_testing.tls_broker import WATCHER, TlsBroker, device_certificate
from bowerbird_wire import tls_faults
from bowerbird_wire.topics import DOWN, LOCAL, UP, CreditTopic, FrameTopic, ReceiptTopic, StatusTopic

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_program("mosquitto") is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]

DEVICES = {"cam-01": "demo", "cam-02": "demo", "far-01": "other"}
NOT_AUTHORIZED = 135
OWN_FRAME = str(FrameTopic("demo", "cam-01"))
OWN_RECEIPT = str(ReceiptTopic("demo", "cam-01"))
TLS_1_2 = ssl.TLSVersion.TLSv1_2


@pytest.fixture
def site(tmp_path: Path, authority: Path) -> Iterator[TlsBroker]:
    with TlsBroker(tmp_path, DEVICES, authority=authority) as running:
        yield running


@pytest.fixture
def server(site: TlsBroker) -> Iterator[FreeClient]:
    """A process of the server, which hears everything of every site."""
    with FreeClient(site.server, WATCHER) as client:
        assert client.subscribe("bowerbird/#") == 1
        yield client


def sentinel(sender: FreeClient, topic: str, *hearers: FreeClient) -> None:
    """Return once every hearer has what was sent last."""
    word = f"sentinel {time.monotonic_ns()}".encode()
    assert sender.publish(topic, word) < 128
    for hearer in hearers:
        wait_until(lambda hearer=hearer: word in hearer.payloads(), "what was sent last")


def without_sentinels(client: FreeClient) -> list[tuple[str, bytes]]:
    return [(topic, payload) for topic, payload in client.heard.messages if not payload.startswith(b"sentinel")]


# -- one device and another


def test_device_reads_what_is_for_another(site: TlsBroker, server: FreeClient) -> None:
    """By every filter that could match, shared ones and the broker's own topics included; live and retained."""
    for kind in DOWN:
        server.publish(str(kind("demo", "cam-02")), b"kept", retain=True)
        server.publish(str(kind("other", "far-01")), b"kept", retain=True)
    server.publish(str(CreditTopic("other")), b"kept", retain=True)
    with FreeClient(site.address("cam-01"), "cam-01") as spy:
        for text in (
            "#",
            "+/#",
            "$SYS/#",
            "bowerbird/#",
            "bowerbird/v1/+/down/+/+",
            "bowerbird/v1/demo/down/cam-02/+",
            "bowerbird/v1/other/#",
            "bowerbird/v1/other/all/credit",
            "bowerbird/v1/demo/up/+/frame",
            "bowerbird/v1/demo/local/#",
            "$share/x/bowerbird/v1/demo/up/+/frame",
            "$share/ingest/#",
            "bowerbird-rules/#",
            OWN_RECEIPT,
        ):
            spy.subscribe(text)
        for kind in UP:
            server.publish(str(kind("demo", "cam-02")), b"live")
        for kind in DOWN:
            server.publish(str(kind("demo", "cam-02")), b"live")
        for kind in LOCAL:
            server.publish(str(kind("demo", "cam-02", "gate")), b"live")
        sentinel(server, OWN_RECEIPT, spy)
        assert without_sentinels(spy) == []


def test_device_writes_as_another(site: TlsBroker, server: FreeClient) -> None:
    """As another device, as the server, for another site, outside the tree; what is its own arrives."""
    forbidden = [
        *(str(kind("demo", "cam-02")) for kind in UP + DOWN),
        *(str(kind("demo", "cam-01")) for kind in DOWN),
        *(str(kind("other", "cam-01")) for kind in UP),
        *(str(kind("other", "far-01")) for kind in UP),
        *(str(kind("demo", "cam-02", "gate")) for kind in LOCAL),
        str(CreditTopic("demo")),
        "bowerbird/v1/demo/up/cam-01/frame/more",
        "bowerbird/v2/demo/up/cam-01/frame",
        "bowerbird/v1/demo/up/cam-01",
        "anything",
    ]
    own = [*(str(kind("demo", "cam-01")) for kind in UP), *(str(kind("demo", "cam-01", "gate")) for kind in LOCAL)]
    with FreeClient(site.address("cam-01"), "cam-01") as thief:
        assert [thief.publish(topic, b"forged", retain=True) for topic in forbidden] == [NOT_AUTHORIZED] * len(forbidden)
        for topic in own:
            assert thief.publish(topic, b"own") == 0
        sentinel(thief, OWN_FRAME, server)
    assert sorted(without_sentinels(server)) == sorted((topic, b"own") for topic in own)


def test_device_leaves_a_will_for_another(site: TlsBroker, server: FreeClient) -> None:
    """Its own is published when it vanishes, another's is not."""
    with FreeClient(site.address("cam-01"), "cam-01", will=str(StatusTopic("demo", "cam-02"))) as liar:
        liar.vanish()
    with FreeClient(site.address("cam-01"), "cam-01", will=str(StatusTopic("demo", "cam-01"))) as honest:
        honest.vanish()
    wait_until(lambda: bool(server.heard.messages), "the honest will")
    assert server.heard.messages == [(str(StatusTopic("demo", "cam-01")), b"will")]


def test_device_retains_for_those_who_come_later(site: TlsBroker, server: FreeClient) -> None:
    """Nothing forged waits in the broker."""
    with FreeClient(site.address("cam-01"), "cam-01") as thief:
        for topic in (str(CreditTopic("demo")), *(str(kind("demo", "cam-02")) for kind in DOWN)):
            thief.publish(topic, b"forged", retain=True)
    with FreeClient(site.address("cam-02"), "cam-02") as later:
        for kind in DOWN:
            later.subscribe(str(kind("demo", "cam-02")))
        later.subscribe(str(CreditTopic("demo")))
        sentinel(server, str(ReceiptTopic("demo", "cam-02")), later)
        assert without_sentinels(later) == []


# -- who connects


def test_device_takes_the_client_id_of_another(site: TlsBroker, server: FreeClient) -> None:
    """The id is that of its certificate whatever it says: the other's connection stands and its messages stay its own."""
    with FreeClient(site.address("cam-02"), "cam-02") as victim:
        victim.subscribe(str(ReceiptTopic("demo", "cam-02")))
        with FreeClient(site.address("cam-01"), "cam-02", clean=False) as thief:
            assert thief.heard.accepted
            assert not thief.heard.session_present
            sentinel(server, str(ReceiptTopic("demo", "cam-02")), victim)
            assert thief.heard.messages == []
            assert not victim.over


def test_device_takes_the_session_of_the_server(site: TlsBroker, server: FreeClient) -> None:
    """Its client ids can be read in the code, its names cannot be guessed."""
    for client_id in ("bowerbird-ingest", "bowerbird-delivery", WATCHER, *site.broker.certificates.names()):
        with FreeClient(site.address("cam-01"), client_id) as thief:
            sentinel(thief, OWN_FRAME, server)
    assert not server.over


def test_user_name_and_password_beside_a_certificate(site: TlsBroker, server: FreeClient) -> None:
    """Another name in CONNECT changes nothing."""
    claim = replace(site.address("cam-01"), username=site.broker.certificates.names()[0], password="anything")
    with FreeClient(claim, "cam-01") as thief:
        assert thief.publish(str(FrameTopic("demo", "cam-02")), b"forged") == NOT_AUTHORIZED
        sentinel(thief, OWN_FRAME, server)
    assert without_sentinels(server) == []


def test_a_name_equal_to_a_privileged_one_cannot_be_had(site: TlsBroker, tmp_path: Path) -> None:
    """The authority signs none of the server's names for a device, and the broker gives none of them rights of a device."""
    for name in (*site.broker.certificates.names(), "svc-new", "SVC-new", "bowerbird-server"):
        with pytest.raises(BadInput):
            device_certificate(tmp_path, site.authority, name)
        with pytest.raises((BadInput, Conflict)):
            site.broker.add_device(name, {**DEVICES, name: "demo"})


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_3, TLS_1_2], ids=["tls-1.3", "tls-1.2"])
def test_no_certificate(site: TlsBroker, newest: ssl.TLSVersion) -> None:
    with FreeClient(replace(site.server, certificate=""), "cam-01", tls_max=newest) as stranger:
        assert (stranger.heard.accepted, stranger.heard.tls) == (False, tls_faults.NO_CERTIFICATE)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_3, TLS_1_2], ids=["tls-1.3", "tls-1.2"])
def test_certificate_of_another_ca(site: TlsBroker, tmp_path: Path, newest: ssl.TLSVersion) -> None:
    """With the name of a device that has rights here."""
    file = device_certificate(tmp_path, tmp_path / "another", "cam-01")
    with FreeClient(replace(site.server, certificate=str(file)), "cam-01", tls_max=newest) as stranger:
        assert (stranger.heard.accepted, stranger.heard.tls) == (False, tls_faults.REFUSED_CA)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_3, TLS_1_2], ids=["tls-1.3", "tls-1.2"])
def test_expired_certificate(site: TlsBroker, newest: ssl.TLSVersion) -> None:
    with FreeClient(site.address("cam-01", life=timedelta(seconds=-5)), "cam-01", tls_max=newest) as late:
        assert (late.heard.accepted, late.heard.tls) == (False, tls_faults.REFUSED_EXPIRED)


def test_certificate_that_is_not_valid_yet(site: TlsBroker) -> None:
    early = site.address("cam-01", life=timedelta(days=9), starts_in=timedelta(days=3))
    with FreeClient(early, "cam-01") as device:
        assert (device.heard.accepted, device.heard.tls) == (False, tls_faults.REFUSED)


def test_a_servers_certificate_shown_by_a_client(site: TlsBroker) -> None:
    """It is for servers; whoever stole it gains nothing."""
    with FreeClient(replace(site.server, certificate=str(site.broker.certificates.server_file)), "cam-01") as thief:
        assert (thief.heard.accepted, thief.heard.tls) == (False, tls_faults.REFUSED)


def test_a_broker_of_another_ca_and_of_another_name(site: TlsBroker, tmp_path: Path) -> None:
    """The client hangs up before it says a word."""
    (tmp_path / "other.pem").write_bytes(Authority.open(tmp_path / "another").root_pem)
    address = site.address("cam-01")
    with FreeClient(replace(address, ca_file=str(tmp_path / "other.pem")), "cam-01") as device:
        assert (device.heard.accepted, device.heard.tls) == (False, tls_faults.WRONG_CA)
    with FreeClient(replace(address, host="127.0.0.2"), "cam-01") as device:
        assert not device.heard.accepted  # nobody listens there
    site.broker.certificates.server_file.write_bytes(_for_another_host(site))
    site.restart()
    with FreeClient(address, "cam-01") as device:
        assert (device.heard.accepted, device.heard.tls) == (False, tls_faults.WRONG_HOST)


def _for_another_host(site: TlsBroker) -> bytes:
    return Authority.open(site.authority).server_certificate(["elsewhere.example"], now=datetime.now(tz=UTC))


def test_plain_tcp_and_old_tls(site: TlsBroker) -> None:
    """There is no listener without TLS, and none that speaks less than 1.2."""
    with FreeClient(BrokerAddress(site.server.host, site.server.port), "cam-01") as plain:
        assert not plain.heard.accepted
    config = site.broker.config_path.read_text()
    assert re.findall(r"^listener (\S+)", config, re.MULTILINE) == [str(site.server.port), "0"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection((site.server.host, site.server.port), timeout=5) as raw, pytest.raises(ssl.SSLError):
        context.wrap_socket(raw)


# -- the socket that ends sessions


def test_the_kick_socket_lets_nobody_in_without_its_login_and_gives_no_right(site: TlsBroker, server: FreeClient) -> None:
    """It lies in a folder of mode 0700; its one user can neither publish nor hear anything of ours."""
    assert (site.broker.folder / SOCKET_NAME).is_socket()
    assert site.broker.folder.stat().st_mode & 0o777 == 0o700
    with Kicker(site.broker.folder)._connection("kick-test", clean=True) as (client, _):
        heard: list[bytes] = []
        client.on_message = lambda _c, _d, message: heard.append(bytes(message.payload))
        client.subscribe("#", 1)
        client.publish(OWN_FRAME, b"forged", 1).wait_for_publish(5)
        sentinel(server, str(FrameTopic("demo", "cam-02")), server)
        assert heard == []
    assert without_sentinels(server) == []
    anonymous = mqtt.Client(CallbackAPIVersion.VERSION2, "cam-01", protocol=mqtt.MQTTv5, transport="unix")
    refused: list[bool] = []
    anonymous.on_connect = lambda _c, _d, _f, reason, _p: refused.append(reason.is_failure)
    handle = os.open(site.broker.folder, os.O_RDONLY)
    anonymous.connect(f"/proc/self/fd/{handle}/{SOCKET_NAME}")
    os.close(handle)
    anonymous.loop_start()
    wait_until(lambda: bool(refused), "an answer")
    anonymous.loop_stop()
    assert refused[0], "without a name nobody gets in"
    (site.broker.folder / "kick.json").write_text('{"name": "svc-kick-0", "password": "guessed"}')
    with pytest.raises(EnvironmentFault, match="refuses"), Kicker(site.broker.folder)._connection("cam-01", clean=True):
        pass


# -- revocation


def test_revoked_device_with_live_session(site: TlsBroker, server: FreeClient) -> None:
    """Cut off within five seconds in both directions; the other device notices nothing."""
    with FreeClient(site.address("cam-01"), "cam-01") as revoked, FreeClient(site.address("cam-02"), "cam-02") as other:
        revoked.subscribe(OWN_RECEIPT)
        sentinel(server, OWN_RECEIPT, revoked)
        before_s = time.monotonic()
        site.broker.remove_device("cam-01", {"cam-02": "demo"})
        wait_until(lambda: revoked.over, "the end of the session")
        assert time.monotonic() - before_s < 5.0
        with FreeClient(site.address("cam-01"), "cam-01", will=str(StatusTopic("demo", "cam-01"))) as again:
            assert again.publish(OWN_FRAME, b"after") == NOT_AUTHORIZED
            again.subscribe(OWN_RECEIPT)
            server.publish(OWN_RECEIPT, b"after")
            again.vanish()
        sentinel(other, str(FrameTopic("demo", "cam-02")), server)
        assert [each for each in without_sentinels(server) if "/up/cam-01/" in each[0]] == []
        assert again.heard.messages == []
        assert not other.over
        assert not server.over


def test_revoked_device_with_queued_messages(site: TlsBroker, server: FreeClient) -> None:
    """What waited for it while it was away is gone with its session."""
    address = site.address("cam-01")
    with FreeClient(address, "cam-01", expiry_s=600) as device:
        device.subscribe(OWN_RECEIPT)
        device.vanish()
    for number in range(3):
        assert server.publish(OWN_RECEIPT, b"queued %d" % number) < 128
    site.broker.remove_device("cam-01", {"cam-02": "demo"})
    with FreeClient(address, "cam-01", clean=False, expiry_s=600) as device:
        assert not device.heard.session_present
        device.vanish()
    site.broker.add_device("cam-01", DEVICES)  # even if it is let in again
    with FreeClient(address, "cam-01", clean=False, expiry_s=600) as device:
        device.subscribe(OWN_RECEIPT)
        sentinel(server, OWN_RECEIPT, device)
        assert without_sentinels(device) == []


def test_queued_messages_of_a_device_that_stays_are_delivered(site: TlsBroker, server: FreeClient) -> None:
    """The counterpart of the row above, without which that one could not fail."""
    address = site.address("cam-01")
    with FreeClient(address, "cam-01", expiry_s=600) as device:
        device.subscribe(OWN_RECEIPT)
        device.vanish()
    server.publish(OWN_RECEIPT, b"queued")
    site.broker.remove_device("cam-02", {"cam-01": "demo"})
    with FreeClient(address, "cam-01", clean=False, expiry_s=600) as device:
        wait_until(lambda: b"queued" in device.payloads(), "what waited for it")


def test_revoked_device_stays_out_after_a_restart_and_a_late_catalogue(site: TlsBroker, server: FreeClient) -> None:
    """A process that asked the catalogue before the revocation must not let it in again."""
    site.broker.remove_device("cam-01", {"cam-02": "demo"})
    EmbeddedBroker(site.broker.folder, program="mosquitto", authority=site.authority).prepare(DEVICES)
    site.restart()
    with FreeClient(site.address("cam-01"), "cam-01") as device:
        assert device.publish(OWN_FRAME) == NOT_AUTHORIZED
    site.broker.add_device("cam-01", DEVICES)
    with FreeClient(site.address("cam-01"), "cam-01") as device:
        assert device.publish(OWN_FRAME) < 128


def test_revocation_while_the_broker_is_down_holds_when_it_comes_back(site: TlsBroker) -> None:
    site.kill()
    site.broker.remove_device("cam-01", {"cam-02": "demo"})
    site.start()
    with FreeClient(site.address("cam-01"), "cam-01") as device:
        assert device.publish(OWN_FRAME) == NOT_AUTHORIZED


def test_deny_list_half_written(site: TlsBroker, server: FreeClient) -> None:
    """A process dies in the middle of writing: list and rules are the old ones, whole, and the next change works."""
    site.broker.remove_device("cam-02", {"cam-01": "demo"})
    for name in ("denied", "acl"):
        (site.broker.folder / f".{name}.4242").write_text("user cam-0")
    assert site.broker.denied() == {"cam-02"}
    assert site.broker.reload()
    Kicker(site.broker.folder).await_rules(probe_topic_of(site.broker.rules_path.read_text()))
    with FreeClient(site.address("cam-01"), "cam-01") as device:
        sentinel(device, OWN_FRAME, server)
        site.broker.remove_device("cam-01", {})
        wait_until(lambda: device.over, "the end of the session")
    assert site.broker.denied() == {"cam-01", "cam-02"}


def test_broker_that_does_not_take_the_new_rules_is_told(site: TlsBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deny that is not in force must not look like one: the broker is stopped in its tracks meanwhile."""
    assert site.process is not None
    os.kill(site.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(EnvironmentFault, match="does not"):
            site.broker.remove_device("cam-01", {"cam-02": "demo"})
    finally:
        os.kill(site.process.pid, signal.SIGCONT)
    assert "cam-01" in site.broker.denied()


def test_signal_that_does_not_reach_the_broker_is_told(site: TlsBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs, answers, and goes by the old rules: the revocation must not look done."""
    monkeypatch.setattr(site.broker, "reload", lambda: True)
    with pytest.raises(EnvironmentFault, match="does not go by its new rules"):
        site.broker.remove_device("cam-01", {"cam-02": "demo"})


def test_reload_drops_nobody(site: TlsBroker, server: FreeClient) -> None:
    """Twenty changes of the rules; connections stand, sessions of those who are away are kept."""
    with FreeClient(site.address("cam-02"), "cam-02", expiry_s=600) as away:
        away.subscribe(str(ReceiptTopic("demo", "cam-02")))
        away.vanish()
    with FreeClient(site.address("cam-01"), "cam-01") as device:
        for number in range(20):
            site.broker.add_device(f"new-{number}", {**DEVICES, f"new-{number}": "demo"})
        sentinel(device, OWN_FRAME, server)
        assert not device.over
    with FreeClient(site.address("cam-02"), "cam-02", clean=False, expiry_s=600) as back:
        assert back.heard.session_present


def test_session_open_while_its_certificate_expires(site: TlsBroker, server: FreeClient) -> None:
    """mosquitto lets it go on, which is why revocation never waits for an expiry; a new connection is refused."""
    address = site.address("cam-01", life=timedelta(seconds=2))
    with FreeClient(address, "cam-01") as device:
        assert device.heard.accepted
        wait_until(lambda: _shakes_hands_to_be_refused(address), "the end of the certificate")
        sentinel(device, OWN_FRAME, server)
        site.broker.remove_device("cam-01", {"cam-02": "demo"})
        wait_until(lambda: device.over, "the end of the session")


def _shakes_hands_to_be_refused(address: BrokerAddress) -> bool:
    """Without a word of MQTT, which would take the session over."""
    context = address.tls_context("cam-01")
    assert context is not None
    with (
        socket.create_connection((address.host, address.port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname=address.host) as secure,
    ):
        secure.settimeout(0.2)
        try:
            secure.recv(1)
        except ssl.SSLError as error:
            return "EXPIRED" in (error.reason or "")
        except TimeoutError:
            return False
    return False


# -- limits


def test_packet_limit(site: TlsBroker, server: FreeClient) -> None:
    """The largest frame passes; what is above it ends its sender's connection and reaches nobody."""
    with FreeClient(site.address("cam-01"), "cam-01") as device:
        assert device.publish(OWN_FRAME, b"x" * (MAX_PACKET_BYTES + 1000), timeout_s=20) == -1
    with FreeClient(site.address("cam-01"), "cam-01") as device:
        sentinel(device, OWN_FRAME, server)
    assert without_sentinels(server) == []


def test_queue_limit(site: TlsBroker, server: FreeClient) -> None:
    """Of what waits for a client that is away the newest beyond 2,000 are dropped, so none can fill the broker's memory."""
    with FreeClient(site.address("cam-01"), "cam-01", expiry_s=600) as device:
        device.subscribe(OWN_RECEIPT)
        device.vanish()
    last = None
    for number in range(2_300):
        last = server.client.publish(OWN_RECEIPT, b"%d" % number, 1)
    assert last is not None
    last.wait_for_publish(30)
    with FreeClient(site.address("cam-01"), "cam-01", clean=False) as device:
        wait_until(lambda: len(device.heard.messages) >= 2_000, "what waited")
        sentinel(server, OWN_RECEIPT, device)
        assert 2_000 <= len(without_sentinels(device)) < 2_300
