"""Rows of the fault table: ingest and what it is given. It may die anywhere, its disk may be full, and messages may be anything."""

from __future__ import annotations

import dataclasses
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import cbor2
import pytest

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.broker.mqtt_session import MqttSession
from bowerbird_server.catalogue import Catalogue
from bowerbird_server.catalogue.records import HEADERS_MAGIC, decode_headers
from bowerbird_server.ingest.ingest import DiskMarks
from bowerbird_server.ingest.share import Share
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.fault_device import Promises, captured
from bowerbird_testing.fault_rows import row
from bowerbird_testing.fault_site import FaultSite
from bowerbird_testing.mqtt_device import MqttDevice, wait_for_ingest, wait_until
from bowerbird_testing.packet_link import PUBLISH, PacketLink, kind_of
from bowerbird_testing.small_disk import fill_with_other_data, small_disk
from bowerbird_testing.uploading_device import UploadingDevice, drain
from bowerbird_wire.codec import encode_frame
from bowerbird_wire.messages import FrameMessage

pytestmark = pytest.mark.broker


def killed_after(point: str, site: FaultSite) -> None:
    """Three groups of one run end in SIGKILL at this point; each time another process takes over."""
    with site.ingest_process():
        wait_for_ingest(site.address)
    site.fill(150)
    with site.device_process(end_when_empty=True, frames=0) as device:
        for group in (1, 2, 1):
            with site.ingest_process(point, group) as dying:
                dying.join(60)
                assert dying.exitcode == -signal.SIGKILL
        with site.ingest_process():
            device.join(60)
            assert device.exitcode == 0
    assert site.check()["rows"] == 150


@row("ingest_killed_after_receive")
def test_ingest_killed_after_receive(site: FaultSite) -> None:
    killed_after("receive", site)


@row("ingest_killed_after_blob")
def test_ingest_killed_after_blob(site: FaultSite) -> None:
    killed_after("blob", site)


@row("ingest_killed_after_row")
def test_ingest_killed_after_row(site: FaultSite) -> None:
    killed_after("row", site)


@row("ingest_killed_after_commit")
def test_ingest_killed_after_commit(site: FaultSite) -> None:
    killed_after("commit", site)


@row("ingest_killed_after_receipt")
def test_ingest_killed_after_receipt(site: FaultSite) -> None:
    killed_after("receipt", site)


@row("shared_subscription_worker_dies_with_32_unacknowledged")
def test_shared_subscription_worker_dies_with_32_unacknowledged(tmp_path: Path, start_broker: Callable[..., Mosquitto]) -> None:
    """What it held is kept in its session, and comes to it again; nobody sends a frame twice."""
    site = FaultSite(tmp_path / "site", start_broker(settings=["max_inflight_messages 64"]))
    for number in (1, 2):
        session = MqttSession(site.address, Share(number, 2).client_id, Share(number, 2).filters("+"))
        session.start()
        wait_until(lambda session=session: not session.events.empty(), "a connection")  # type: ignore[misc]
        with MqttDevice(site.address, "after-subscribe"):
            pass
        session.stop()
    frames = [captured(number) for number in range(120)]
    with MqttDevice(site.address, "cam-01") as sender:  # so many at once: without the device's own window
        for header, image in frames:
            sender.publish("bowerbird/v1/demo/up/cam-01/frame", encode_frame(FrameMessage(header, image)))
    site.fill(120)
    with site.ingest_process(worker=1, workers=2), site.ingest_process("receive", 1, 2, 2) as dying:
        dying.join(30)
        assert dying.exitcode == -signal.SIGKILL
        assert int(site.held.read_text()) == 32
        with site.ingest_process(worker=2, workers=2):
            wait_until(lambda: rows(site) == 120, "every frame, without anybody sending it again", 60)
            with site.device() as device:
                drain(device)
    assert site.check()["rows"] == 120


def rows(site: FaultSite) -> int:
    with Catalogue(site.folder.catalogue) as cat:
        return int(cat.value("SELECT count(*) FROM frame"))


def dead_letters(site: FaultSite) -> set[str]:
    with Catalogue(site.folder.catalogue) as cat:
        return {str(found["code"]) for found in cat.rows("SELECT code FROM dead_letter WHERE topic NOT LIKE '%/probe/%'")}


def poison_between_good_ones(site: FaultSite, poison: list[bytes]) -> None:
    """A device sends its frames while somebody publishes poison in its name; every good frame arrives, nothing else does."""
    site.fill(30)
    with site.serving(), MqttDevice(site.address, "saboteur") as saboteur:
        topic = "bowerbird/v1/demo/up/cam-01/frame"
        for payload in poison:
            saboteur.publish(topic, payload)
        with site.device() as device:
            device.run(lambda: device.spool.ledger().committed >= 5)
            for payload in poison:
                saboteur.publish(topic, payload)
            drain(device)
    assert site.check()["rows"] == 30


def message(number: int) -> bytes:
    return encode_frame(FrameMessage(*captured(9000 + number)))


@row("poison_bad_magic")
def test_poison_bad_magic(site: FaultSite) -> None:
    poison_between_good_ones(site, [b"BWRX" + message(1)[4:], b"", b"\x00" * 5000, message(2)[1:]])
    assert dead_letters(site) == {"bad_message", "bad_length"}


@row("poison_lying_lengths")
def test_poison_lying_lengths(site: FaultSite) -> None:
    good = message(1)
    lies = [struct.pack(">4sBI", b"BWRB", 1, length) + good[9:] for length in (0, 1, 100, len(good), 2**31, 2**32 - 1)]
    poison_between_good_ones(site, [*lies, good[:200], good[:8]])
    assert dead_letters(site) <= {"bad_message", "bad_length", "digest_mismatch"}
    assert "bad_length" in dead_letters(site)


@row("poison_digest_mismatch")
def test_poison_digest_mismatch(site: FaultSite) -> None:
    """Also the id of a good frame over another image: it must not take the good frame's place."""
    header, image = captured(0)  # the first frame that the device itself has
    flipped = bytes([*image[:-1], image[-1] ^ 1])
    forged = encode_frame(FrameMessage(dataclasses.replace(header, sequence=77), image))
    poison_between_good_ones(site, [encode_frame(FrameMessage(header, flipped)), forged, message(1)[:-1]])
    assert dead_letters(site) == {"digest_mismatch"}


class Garbling:
    """A rule of a link: the last bit of the first so many frame messages turns on the way."""

    def __init__(self, messages: int) -> None:
        self.left = messages

    def __call__(self, packet: bytes) -> list[bytes]:
        """The packet, perhaps with another image than it had."""
        if self.left and kind_of(packet) == PUBLISH and b"/cam-01/frame" in packet[:80]:
            self.left -= 1
            return [bytes([*packet[:-1], packet[-1] ^ 1])]
        return [packet]


def test_a_frame_that_was_garbled_on_its_way_is_sent_again(site: FaultSite) -> None:
    """The server refuses what it got; what the device holds is whole, so the refusal is not the end of it."""
    site.fill(20)
    with (
        site.serving(),
        PacketLink(site.broker.host, site.broker.port, up=Garbling(5)) as link,
        site.device(host=link.host, port=link.port) as device,
    ):
        drain(device)
        assert not device.spool.ledger().refused
    assert site.check()["rows"] == 20


def test_a_server_that_never_gets_a_frame_whole_is_believed_in_the_end(site: FaultSite) -> None:
    site.fill(1)
    with (
        site.serving(),
        PacketLink(site.broker.host, site.broker.port, up=Garbling(100)) as link,
        site.device(host=link.host, port=link.port) as device,
    ):
        drain(device)
        assert dict(device.spool.ledger().refused) == {"digest_mismatch": 1}
    assert site.check()["refused"] == 1


@row("poison_unknown_version")
def test_poison_unknown_version(site: FaultSite) -> None:
    good = message(1)
    (length,) = struct.unpack_from(">I", good, 5)
    header = cbor2.dumps({**cbor2.loads(good[9 : 9 + length]), "v": 2})
    tomorrow = struct.pack(">4sBI", b"BWRB", 1, len(header)) + header + good[9 + length :]
    poison_between_good_ones(site, [good[:4] + b"\x02" + good[5:], tomorrow])
    assert dead_letters(site) == {"unknown_version"}


@row("poison_image_bombs")
def test_poison_image_bombs(site: FaultSite) -> None:
    """They are refused from the first bytes of the picture; the device deletes and counts them."""
    site.fill(5, first=500, size=3000, side=40_000)
    site.fill(30)
    with site.serving(), site.device() as device:
        drain(device)
        assert dict(device.spool.ledger().refused) == {"bad_image": 5}
    numbers = site.check()
    assert (numbers["refused"], numbers["rows"]) == (5, 30)


@row("mixed_header_versions")
def test_mixed_header_versions(site: FaultSite) -> None:
    """Keys that this server does not know are in its records, for the day on which it does."""
    site.fill(10, extra={"zoom": 2.5, "gps": [1.0, 2.0]})
    site.fill(10, first=100, clock_ok=False, boot_id="b", strategy_scores={"margin": 0.2})
    site.fill(10, first=200, score=0.0)
    with site.serving(), site.device() as device:
        drain(device)
    assert site.check()["rows"] == 30
    blobs = LocalBlobs(site.folder.blobs)
    records = [data for digest in blobs.digests() if (data := blobs.read(digest)).startswith(HEADERS_MAGIC)]
    headers = [header for data in records for _, header, _ in decode_headers(data).frames]
    assert sum(dict(header.extra) == {"zoom": 2.5, "gps": [1.0, 2.0]} for header in headers) == 10
    assert sum(not header.clock_ok for header in headers) == 10


@row("slow_consumer")
def test_slow_consumer(site: FaultSite) -> None:
    """What has no receipt is bounded on the device, so the broker holds no more than that."""
    site.fill(200)
    most = 0

    def is_through(device: UploadingDevice) -> bool:
        nonlocal most
        counts = device.spool.counts()
        most = max(most, counts["sent"] + counts["in_doubt"])
        return sum(counts.values()) == 0

    with site.serving(passed=lambda point: time.sleep(0.3 if point == "receive" else 0.0)), site.device() as device:
        device.run(lambda: is_through(device), timeout_s=60)
        assert most <= 32
    assert site.check()["rows"] == 200


@row("server_disk_full")
def test_server_disk_full(tmp_path: Path, broker: Mosquitto) -> None:
    """Without marks, so that the disk itself says no: nothing is acknowledged, and the frames wait in the spool."""
    with small_disk(tmp_path / "site" / "data", "8m"):
        site = FaultSite(tmp_path / "site", broker)
        site.fill(20)
        promises = Promises(site.promises())
        with site.serving(marks=DiskMarks(0, 0)), site.device() as device:
            drain(device)
            other = fill_with_other_data(site.folder.root)
            for number in range(100, 130):
                assert promises.put(device.spool, *captured(number, size=20_000))
            until_s = time.monotonic() + 3.0
            device.run(lambda: time.monotonic() > until_s)
            before = device.spool.ledger().committed
            other.unlink()
            assert before < 50
            drain(device)
        promises.close()
        assert site.check()["rows"] == 50
