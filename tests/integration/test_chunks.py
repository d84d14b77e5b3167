"""Parts of frames at the server: kept on a real disk, whole over a real broker, and nothing hostile gets further than a refusal."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bowerbird_agent.storing.thumbnail import thumbnail
from bowerbird_server.broker.embedded import BrokerAddress
from bowerbird_server.catalogue import Catalogue, fleet, frames
from bowerbird_server.ingest import ingest
from bowerbird_server.ingest.chunks import ChunkStore, NotTheMessage, TransferKey
from bowerbird_server.layout import DataFolder
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.frame_messages import frame_message, jpeg
from bowerbird_testing.mqtt_device import MqttDevice, wait_for_ingest, wait_until
from bowerbird_wire.codec import encode, encode_frame
from bowerbird_wire.messages import Chunk, FrameMessage, Offer, Receipt
from bowerbird_wire.thumbnail import THUMBNAIL_BYTES
from bowerbird_wire.topics import ChunkTopic, OfferTopic
from bowerbird_wire.transfer import BLOCK_BYTES, block_count, from_bitmap, run_bytes, transfer_id

CHUNKS, OFFERS = str(ChunkTopic("demo", "cam-01")), str(OfferTopic("demo", "cam-01"))


def chunks_of(message: bytes, blocks: int = 3) -> list[Chunk]:
    """A message in chunks of so many blocks."""
    return [
        Chunk(transfer_id(message), len(message), first, message[first * BLOCK_BYTES : (first + blocks) * BLOCK_BYTES])
        for first in range(0, block_count(len(message)), blocks)
    ]


def key_of(message: bytes, device: str = "cam-01") -> TransferKey:
    return TransferKey(device, transfer_id(message), len(message))


# -- the store


def test_parts_outlive_the_process_and_make_the_message_whole(tmp_path: Path) -> None:
    message = random.Random(1).randbytes(50_000)
    parts = chunks_of(message)
    random.Random(2).shuffle(parts)
    for chunk in parts[:-1]:
        ChunkStore(tmp_path).put([("cam-01", chunk)])  # a new process each time
        assert ChunkStore(tmp_path).whole(key_of(message)) is None
    store = ChunkStore(tmp_path)
    store.put([("cam-01", parts[-1])])
    assert store.whole(key_of(message)) == message
    store.drop(key_of(message))
    assert store.bitmap(key_of(message)) == b""
    store.drop(key_of(message))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_overlapping_and_repeated_chunks_take_no_more_room_than_the_message(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = ChunkStore(tmp_path_factory.mktemp("parts"))
    message = random.Random(3).randbytes(data.draw(st.integers(1, 12 * BLOCK_BYTES)))
    count = block_count(len(message))
    expected: set[int] = set()
    for first in data.draw(st.lists(st.integers(0, count - 1), max_size=12)):
        blocks = data.draw(st.integers(1, count - first))
        at, size = first * BLOCK_BYTES, run_bytes(len(message), first, blocks)
        store.put([("cam-01", Chunk(transfer_id(message), len(message), first, message[at : at + size]))])
        expected |= set(range(first, first + blocks))
    assert from_bitmap(store.bitmap(key_of(message)), count) == expected
    stored = sum(file.stat().st_size for file in store.root.rglob("*-*") if file.is_file())
    assert stored <= len(message)
    assert store.whole(key_of(message)) == (message if len(expected) == count else None)


def test_a_device_can_neither_see_nor_spoil_the_parts_of_another(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path)
    message = random.Random(1).randbytes(20_000)
    wrong = [Chunk(c.transfer, c.total_bytes, c.first_block, bytes(len(c.data))) for c in chunks_of(message)]
    store.put([("cam-02", chunk) for chunk in wrong] + [("cam-01", chunk) for chunk in chunks_of(message)])
    assert store.whole(key_of(message)) == message
    with pytest.raises(NotTheMessage):
        store.whole(key_of(message, "cam-02"))
    assert store.bitmap(key_of(message, "cam-02")) == b"", "what is whole and wrong is given up"


def test_a_devices_oldest_parts_give_way_and_nobody_elses(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, max_device_bytes=100_000, max_device_transfers=3)
    messages = [random.Random(n).randbytes(30_000) for n in range(6)]
    store.put([("cam-02", chunk) for chunk in chunks_of(messages[0])])
    for number, message in enumerate(messages):
        store.put([("cam-01", chunks_of(message)[0])])
        os.utime(tmp_path / "cam-01" / key_of(message).folder, (number, number))
    here = [bool(store.bitmap(key_of(message))) for message in messages]
    assert here == [False, False, False, True, True, True]
    assert store.whole(key_of(messages[0], "cam-02")) == messages[0]


def test_parts_that_nobody_completes_are_swept_away_after_their_time(tmp_path: Path) -> None:
    message, other = random.Random(1).randbytes(30_000), random.Random(2).randbytes(30_000)
    ChunkStore(tmp_path).put([("cam-01", chunks_of(message)[0])])
    os.utime(tmp_path / "cam-01" / key_of(message).folder, (1000, 1000))
    ChunkStore(tmp_path).put([("cam-02", chunks_of(other)[0])])
    assert ChunkStore(tmp_path).bitmap(key_of(message)) == b""
    assert ChunkStore(tmp_path).bitmap(key_of(other, "cam-02")) != b""


def test_a_part_cut_short_on_the_disk_is_asked_for_again(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path)
    message = random.Random(1).randbytes(30_000)
    store.put([("cam-01", chunk) for chunk in chunks_of(message)])
    part = next(path for path in tmp_path.rglob("3-*") if path.is_file())
    part.write_bytes(part.read_bytes()[:100])
    assert store.whole(key_of(message)) is None
    assert from_bitmap(store.bitmap(key_of(message)), 8) == {0, 1, 2, 6, 7}


# -- over a broker


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path / "data").make()
    with Catalogue(made.catalogue) as cat:
        fleet.add_device(cat, "cam-01", "demo", "test")
    return made


@pytest.fixture
def device(folder: DataFolder, broker: Mosquitto) -> Iterator[MqttDevice]:
    """A device beside a running ingest."""
    address = BrokerAddress(broker.host, broker.port)
    stop = threading.Event()
    thread = threading.Thread(target=ingest.run, args=(folder, address, stop))
    thread.start()
    try:
        wait_for_ingest(address)
        with MqttDevice(address, "cam-01") as connected:
            yield connected
    finally:
        stop.set()
        thread.join(20)


def large(sequence: int = 0, **changes: object) -> FrameMessage:
    return frame_message(sequence=sequence, image=jpeg(sequence, 320, 240), width=320, height=240, **changes)


def answers(device: MqttDevice) -> list[Receipt]:
    return [receipt for receipt in device.receipts() if receipt.wanted or receipt.refused or receipt.committed]


@pytest.mark.broker
def test_a_frame_in_chunks_becomes_a_row_like_any_other(folder: DataFolder, device: MqttDevice) -> None:
    sent = large()
    parts = chunks_of(encode_frame(sent))
    assert len(parts) > 5
    for chunk in [*parts[::-1], *parts[:2]]:
        device.publish(CHUNKS, encode(chunk))
    wait_until(lambda: device.committed() == [sent.header.frame_id], "one receipt")
    with Catalogue(folder.catalogue) as cat:
        assert frames.get(cat, sent.header.frame_id)["bytes"] == len(sent.image)


@pytest.mark.broker
def test_a_question_is_answered_by_what_is_here(folder: DataFolder, device: MqttDevice) -> None:
    sent = large()
    message = encode_frame(sent)
    parts = chunks_of(message)
    offer = Offer(bytes.fromhex(sent.header.frame_id), transfer_id(message), len(message))

    def ask() -> Receipt:
        before = len(answers(device))
        device.publish(OFFERS, encode(offer))
        wait_until(lambda: len(answers(device)) > before, "an answer")
        return answers(device)[-1]

    assert ask().wanted[0].have == b""
    device.publish(CHUNKS, encode(parts[1]))
    want = ask().wanted[0]
    assert want.frame == offer.frame
    assert from_bitmap(want.have, block_count(len(message))) == {3, 4, 5}
    for chunk in parts:
        device.publish(CHUNKS, encode(chunk))
    wait_until(lambda: sent.header.frame_id in device.committed(), "a receipt")
    assert ask().committed == (sent.header.frame_id,)
    with Catalogue(folder.catalogue) as cat:
        frames.change_state(cat, [sent.header.frame_id], "deleted", "test")
    assert ask().refused[0].code == "deleted"


@pytest.mark.broker
def test_parts_that_were_complete_when_the_last_process_died_are_committed_when_asked(
    folder: DataFolder, device: MqttDevice
) -> None:
    sent = large()
    message = encode_frame(sent)
    ChunkStore(folder.parts).put([("cam-01", chunk) for chunk in chunks_of(message)])
    device.publish(OFFERS, encode(Offer(bytes.fromhex(sent.header.frame_id), transfer_id(message), len(message))))
    wait_until(lambda: device.committed() == [sent.header.frame_id], "a receipt")


@pytest.mark.broker
def test_hostile_parts_get_a_code_and_the_good_frame_behind_them_arrives(folder: DataFolder, device: MqttDevice) -> None:
    name = bytes(range(16))
    poison = [
        (CHUNKS, b"junk", "bad_message"),
        (CHUNKS, encode(Chunk(b"short", 10, 0, bytes(10))), "bad_length"),
        (CHUNKS, encode(Chunk(name, 2**40, 0, bytes(BLOCK_BYTES))), "bad_length"),
        (CHUNKS, encode(Chunk(name, 10, 0, b"")), "bad_length"),
        (CHUNKS, encode(Chunk(name, 9000, 7, bytes(BLOCK_BYTES))), "bad_block"),
        (CHUNKS, encode(Chunk(name, 9000, -1, bytes(BLOCK_BYTES))), "bad_block"),
        (CHUNKS, encode(Chunk(name, 9000, 0, bytes(5000))), "bad_block"),
        (OFFERS, encode(Offer(b"short")), "bad_length"),
        (OFFERS, encode(Offer(bytes(32), b"short", 9)), "bad_message"),
        (OFFERS, encode(Offer(bytes(32), name, 2**40)), "bad_message"),
        (OFFERS, encode(Offer(bytes(32), thumbnail=b"tiny")), "bad_length"),
    ]
    for topic, payload, _ in poison:
        device.publish(topic, payload)
    good = large(5)
    for chunk in chunks_of(encode_frame(good)):
        device.publish(CHUNKS, encode(chunk))
    wait_until(lambda: good.header.frame_id in device.committed(), "a receipt for the good frame")
    refused = [refusal for receipt in device.receipts() for refusal in receipt.refused]
    assert [refusal.code for refusal in refused] == [code for _, _, code in poison]
    assert refused[4].transfer == name
    wait_until(lambda: not any(path.is_file() for path in folder.parts.rglob("*")), "nothing left behind")


@pytest.mark.broker
def test_parts_that_are_not_their_message_are_asked_for_once_more_and_then_refused(device: MqttDevice) -> None:
    wrong = Chunk(bytes(range(16)), 5, 0, b"wrong")
    device.publish(CHUNKS, encode(wrong))
    wait_until(lambda: any(receipt.wanted for receipt in device.receipts()), "a want")
    assert device.receipts()[-1].wanted[0].transfer == wrong.transfer
    device.publish(CHUNKS, encode(wrong))
    wait_until(lambda: any(receipt.refused for receipt in device.receipts()), "a refusal")
    refusal = device.receipts()[-1].refused[0]
    assert (refusal.code, refusal.transfer) == ("digest_mismatch", wrong.transfer)


@pytest.mark.broker
def test_an_unknown_device_may_leave_no_parts(folder: DataFolder, broker: Mosquitto, device: MqttDevice) -> None:
    with MqttDevice(BrokerAddress(broker.host, broker.port), "stranger") as stranger:
        stranger.publish(str(ChunkTopic("demo", "stranger")), encode(chunks_of(encode_frame(large()))[0]))
        wait_until(lambda: bool(stranger.receipts()), "a refusal")
        assert stranger.receipts()[0].refused[0].code == "unknown_device"
    assert not (folder.parts / "stranger").exists()


def picture(*, spot: bool = False, noise: int = 0) -> bytes:
    """A scene as JPEG, perhaps with a small bright object in it."""
    image = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 255, (480, 640, 3), dtype=np.uint8), (0, 0), 20)
    if spot:
        image[200:216, 300:316] = 255
    noisy = image.astype(np.int16) + np.random.default_rng(2 + noise).integers(-noise, noise + 1, image.shape)
    return bytes(cv2.imencode(".jpg", np.clip(noisy, 0, 255).astype(np.uint8))[1])


@pytest.mark.broker
def test_a_frame_that_looks_like_one_that_is_here_is_refused_before_it_is_sent(folder: DataFolder, device: MqttDevice) -> None:
    sent = frame_message(image=picture(noise=3), width=640, height=480)
    first, again, other = (thumbnail(picture(noise=3)), thumbnail(picture(noise=5)), thumbnail(picture(spot=True, noise=3)))
    assert len(first) == THUMBNAIL_BYTES

    def ask(frame: bytes, luma: bytes) -> Receipt:
        before = len(answers(device))
        device.publish(OFFERS, encode(Offer(frame, thumbnail=luma)))
        wait_until(lambda: len(answers(device)) > before, "an answer")
        return answers(device)[-1]

    assert ask(bytes.fromhex(sent.header.frame_id), first).wanted
    assert ask(b"\1" * 32, again).wanted, "the first one is not here yet"
    device.send_frame(sent)
    wait_until(lambda: sent.header.frame_id in device.committed(), "a receipt")
    refused = ask(b"\2" * 32, again).refused
    assert (refused[0].frame_id, refused[0].code) == ("02" * 32, "near_duplicate")
    assert ask(b"\3" * 32, other).wanted, "a small new object makes another picture"
    with Catalogue(folder.catalogue) as cat:
        frames.change_state(cat, [sent.header.frame_id], "deleted", "test")
        assert cat.value("SELECT count(*) FROM thumbnail WHERE frame = ?", sent.header.frame_id) == 0
    assert ask(b"\4" * 32, again).wanted, "what a deleted frame looked like is forgotten"
