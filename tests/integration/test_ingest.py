"""Ingest against a real broker and a real catalogue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.broker.embedded import BrokerAddress
from bowerbird_server.catalogue import Catalogue, fleet, frames
from bowerbird_server.catalogue.records import HeaderRecord, decode_headers
from bowerbird_server.errors import EnvironmentFault
from bowerbird_server.ingest import ingest
from bowerbird_server.layout import DataFolder
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.frame_messages import frame_message, jpeg
from bowerbird_testing.mqtt_device import MqttDevice, wait_for_ingest, wait_until
from bowerbird_wire.codec import encode_frame
from bowerbird_wire.topics import FrameTopic

pytestmark = pytest.mark.broker


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path / "data").make()
    with Catalogue(made.catalogue) as cat:
        fleet.add_device(cat, "cam-01", "demo", "test")
    return made


@pytest.fixture
def address(broker: Mosquitto) -> BrokerAddress:
    return BrokerAddress(broker.host, broker.port)


@pytest.fixture
def running(folder: DataFolder, address: BrokerAddress) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=ingest.run, args=(folder, address, stop))
    thread.start()
    wait_for_ingest(address)
    yield
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def device(address: BrokerAddress) -> Iterator[MqttDevice]:
    with MqttDevice(address, "cam-01") as connected:
        yield connected


@pytest.mark.usefixtures("running")
def test_a_frame_becomes_blob_row_and_receipt(folder: DataFolder, device: MqttDevice) -> None:
    """The receipt comes only when the image, its header and the row are there."""
    sent = frame_message(sequence=7)
    device.send_frame(sent)
    wait_until(lambda: sent.header.frame_id in device.committed(), "a receipt")
    with Catalogue(folder.catalogue) as cat:
        row = frames.get(cat, sent.header.frame_id)
    assert (row["device"], row["camera"], row["state"]) == ("cam-01", "cam-01/gate", "received")
    assert (row["width"], row["height"], row["source_width"], row["source_height"]) == (64, 48, 128, 96)
    assert row["scene"] == "cam-01/gate@2023-11-14T22:13"
    assert row["detections"][0]["class_name"] == "bird"
    blobs = LocalBlobs(folder.blobs)
    assert blobs.read(row["blob"]) == sent.image
    (record,) = [blobs.read(digest) for digest in blobs.digests() if digest != row["blob"]]
    assert decode_headers(record) == HeaderRecord(row["received_at"], (("demo", sent.header, len(sent.image)),))


@pytest.mark.usefixtures("running")
def test_duplicates_make_one_row(folder: DataFolder, device: MqttDevice) -> None:
    """Ten frames, each sent three times, and one more: eleven rows."""
    sent = [frame_message(sequence=n) for n in range(10)]
    for _ in range(3):
        for message in sent:
            device.send_frame(message)
    last = frame_message(sequence=10)
    device.send_frame(last)
    wait_until(lambda: last.header.frame_id in device.committed(), "receipts")
    assert set(device.committed()) == {m.header.frame_id for m in [*sent, last]}
    with Catalogue(folder.catalogue) as cat:
        assert cat.value("SELECT count(*) FROM frame") == 11


def _poison() -> list[tuple[bytes, str]]:
    good = frame_message()
    encoded = encode_frame(good)
    bomb = jpeg(1).replace(b"\x00\x30\x00\x40", b"\xff\xff\xff\xff", 1)  # the same bytes, declared 65535 x 65535
    return [
        (b"", "bad_length"),
        (b"JUNK" + encoded[4:], "bad_message"),
        (encoded[:4] + b"\x09" + encoded[5:], "unknown_version"),
        (encoded[:5] + b"\xff\xff\xff\xff" + encoded[9:], "bad_length"),
        (encoded[:-1] + b"!", "digest_mismatch"),
        (encode_frame(replace(good, header=replace(good.header, frame_id="0" * 64))), "digest_mismatch"),
        (encode_frame(frame_message(device="cam-02")), "bad_message"),
        (encode_frame(frame_message(camera="../etc")), "bad_topic"),
        (encode_frame(frame_message(image=b"not a picture")), "bad_image"),
        (encode_frame(frame_message(width=65)), "bad_image"),
        (encode_frame(frame_message(image=bomb, width=65535, height=65535)), "bad_image"),
        (encode_frame(frame_message(inclusion_probability=1.5)), "bad_message"),
        (encode_frame(frame_message(arm="explore", inclusion_probability=0.0)), "bad_message"),
    ]


@pytest.mark.usefixtures("running")
def test_poison_is_refused_and_the_good_frame_behind_it_arrives(folder: DataFolder, device: MqttDevice) -> None:
    """Every hostile message gets its code; none of them stops or enters the store."""
    poison = _poison()
    for payload, _ in poison:
        device.publish(str(FrameTopic("demo", "cam-01")), payload)
    good = frame_message(sequence=99)
    device.send_frame(good)
    wait_until(lambda: good.header.frame_id in device.committed(), "a receipt for the good frame")
    codes = [refusal.code for receipt in device.receipts() for refusal in receipt.refused]
    assert codes == [code for _, code in poison]
    with Catalogue(folder.catalogue) as cat:
        assert cat.value("SELECT count(*) FROM frame") == 1
        assert cat.value("SELECT count(*) FROM dead_letter WHERE topic NOT LIKE '%probe%'") == len(poison)
    assert LocalBlobs(folder.blobs).verify(good.header.image_sha256)
    assert len(list(LocalBlobs(folder.blobs).digests())) == 2, "the image and the record of its header, nothing else"


@pytest.mark.usefixtures("running")
def test_a_deleted_frame_does_not_come_back(folder: DataFolder, device: MqttDevice) -> None:
    """A frame deleted at the server is refused as `deleted` when its device sends it again."""
    sent = frame_message()
    device.send_frame(sent)
    wait_until(lambda: bool(device.committed()), "a receipt")
    with Catalogue(folder.catalogue) as cat:
        frames.change_state(cat, [sent.header.frame_id], "deleted", "test")
    LocalBlobs(folder.blobs).delete(sent.header.image_sha256)
    device.send_frame(sent)
    wait_until(lambda: device.refused() == {sent.header.frame_id: "deleted"}, "a refusal")
    assert not LocalBlobs(folder.blobs).exists(sent.header.image_sha256)


@pytest.mark.usefixtures("running")
def test_an_unknown_device_is_told_so(address: BrokerAddress) -> None:
    """The refusal carries the frame's id, so that the device knows which of its frames it is."""
    with MqttDevice(address, "stranger") as stranger:
        sent = frame_message(device="stranger")
        stranger.send_frame(sent)
        wait_until(lambda: stranger.refused() == {sent.header.frame_id: "unknown_device"}, "a refusal")


def test_a_full_disk_stops_acknowledging_and_loses_nothing(
    folder: DataFolder, address: BrokerAddress, device: MqttDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While there is no space no receipt goes out; with space again every frame is committed once."""
    full = threading.Event()
    real = LocalBlobs.put_many

    def put_many(self: LocalBlobs, *args: Any, **kwargs: Any) -> list[str]:
        if full.is_set():
            raise EnvironmentFault("the disk is full")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LocalBlobs, "put_many", put_many)
    monkeypatch.setattr(ingest, "FULL_RETRY_S", 0.05)
    stop = threading.Event()
    tried = threading.Event()
    thread = threading.Thread(
        target=ingest.run,
        args=(folder, address, stop),
        kwargs={"passed": lambda point: tried.set() if point == "receive" else None},
    )
    thread.start()
    try:
        wait_for_ingest(address)
        tried.clear()
        full.set()
        sent = [frame_message(sequence=n) for n in range(40)]
        for message in sent:
            device.send_frame(message)
        assert tried.wait(20)
        assert device.receipts() == []
        full.clear()
        wait_until(lambda: set(device.committed()) == {m.header.frame_id for m in sent}, "all receipts")
    finally:
        stop.set()
        thread.join(20)
    with Catalogue(folder.catalogue) as cat:
        assert cat.value("SELECT count(*) FROM frame") == 40


def test_between_the_disk_marks_what_has_stopped_stays_stopped(
    folder: DataFolder, address: BrokerAddress, device: MqttDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the high-water mark nothing is taken; only above the low-water mark it goes on, and every frame is there."""
    free, looked = [1000], threading.Event()

    def free_bytes(_self: LocalBlobs) -> int:
        looked.set()
        return free[0]

    def look_twice() -> None:
        for _ in range(2):
            looked.clear()
            assert looked.wait(20)

    monkeypatch.setattr(LocalBlobs, "free_bytes", free_bytes)
    monkeypatch.setattr(ingest, "FULL_RETRY_S", 0.05)
    stop = threading.Event()
    thread = threading.Thread(target=ingest.run, args=(folder, address, stop), kwargs={"marks": ingest.DiskMarks(200, 300)})
    thread.start()
    try:
        wait_for_ingest(address)
        sent = [frame_message(sequence=n) for n in range(40)]
        free[0] = 199
        for message in sent:
            device.send_frame(message)
        look_twice()
        free[0] = 299
        look_twice()
        assert device.receipts() == []
        free[0] = 300
        wait_until(lambda: set(device.committed()) == {m.header.frame_id for m in sent}, "all receipts")
    finally:
        stop.set()
        thread.join(20)
    with Catalogue(folder.catalogue) as cat:
        assert frames.count_by_state(cat)["received"] == 40


def test_frames_wait_at_the_broker_for_an_ingest_that_is_down(
    folder: DataFolder, address: BrokerAddress, device: MqttDevice
) -> None:
    """The session outlives the process: what was sent in between is there when it comes back."""

    def run_ingest(until: Callable[[], bool]) -> None:
        stop = threading.Event()
        thread = threading.Thread(target=ingest.run, args=(folder, address, stop))
        thread.start()
        wait_until(until, "frames")
        stop.set()
        thread.join(20)

    run_ingest(lambda: wait_for_ingest(address) is None)
    sent = frame_message()
    device.send_frame(sent)
    assert device.receipts() == []
    run_ingest(lambda: sent.header.frame_id in device.committed())
