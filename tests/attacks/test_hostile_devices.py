"""What one device with a good certificate can do to the server's processes by well-formed messages: nothing to anybody else.

Frames and parts are in `integration/test_ingest.py` and `test_chunks.py`; here is what delivery reads.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cbor2
import pytest
from fastapi.testclient import TestClient

from bowerbird_server.catalogue import Catalogue, fleet, rollouts
from bowerbird_server.fleet.delivery import Delivery
from bowerbird_server.fleet.offers import BlockQueue
from bowerbird_server.scheduler import _has_sent_all
from bowerbird_server.site import Site
from bowerbird_server.web.app import create_app
from bowerbird_testing.frame_messages import frame_message
from bowerbird_testing.lived_in_site import arrived, ingest_of
from bowerbird_wire.codec import _fields, encode, encode_frame, frame_id_of
from bowerbird_wire.messages import BlockRequest, FetchAnswer, Health, Message, Report, Reported, Status, Tombstones
from bowerbird_wire.topics import (
    AgentReportTopic,
    BlockRequestTopic,
    ChunkTopic,
    DeviceTopic,
    FetchAnswerTopic,
    FrameTopic,
    HealthTopic,
    OfferTopic,
    ReferenceTopic,
    ReportedTopic,
    ReportTopic,
    StatusTopic,
    TombstonesTopic,
)

BIG = 2**63 - 1


class Published:
    """A publisher that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        self.messages.append((topic, payload))
        return True


@pytest.fixture
def cat(tmp_path: Path) -> Iterator[Catalogue]:
    with Catalogue(tmp_path / "catalogue.db") as opened:
        for name in ("cam-01", "cam-02"):
            fleet.add_device(opened, name, "demo", "test")
        fleet.set_frames_total(opened, "cam-01", 10)
        yield opened


@pytest.fixture
def published() -> Published:
    return Published()


@pytest.fixture
def delivery(cat: Catalogue, published: Published, tmp_path: Path) -> Delivery:
    return Delivery(cat, BlockQueue(tmp_path / "repository"), published, lambda job, device: job)


def hostile_messages() -> list[tuple[type[DeviceTopic], bytes]]:
    health = {"v": 1, "boot": "b", "t": 1, "sp": {}, "ev": {}, "cm": {}}
    extras: dict[str, object] = {
        "mixed-keys": {1: 1, "a": 2},
        "bytes-keys": {b"k": b"v"},
        "tuple-keys": {(1, 2): 3},
        "deep": _deep(300),
        "huge": 2**80,
        "nan": float("nan"),
        "simple": cbor2.CBORSimpleValue(99),
        "undefined": cbor2.undefined,
    }
    found = [(HealthTopic, cbor2.dumps({**health, key: value})) for key, value in extras.items()]
    found += [(HealthTopic, cbor2.dumps({**health, "identity": value})) for value in extras.values()]
    found += [(StatusTopic, cbor2.dumps({"v": 1, "s": "online", "identity": value})) for value in extras.values()]
    found += [(StatusTopic, cbor2.dumps({"v": 1, "s": "online", **{key: value}})) for key, value in extras.items()]
    texts = ("\0", "\ud7ff", "x" * 900_000, "a\nWARNING forged line", "\x1b[2J")
    found += [(HealthTopic, encode(Health("b", number, frames_seen=number, bytes_sent=number))) for number in (BIG, -BIG - 1)]
    found += [(HealthTopic, encode(Health("b", 1, desired_version=number))) for number in (BIG, BIG - 1, -1)]
    found += [(HealthTopic, encode(Health(text, 1, text, cameras={text: text}, spool={text: BIG}))) for text in texts]
    found += [(ReportTopic, encode(Report(text, text, text, code=text, detail=text, at_ms=BIG))) for text in texts]
    found += [(StatusTopic, encode(Status(text, text, text, text, BIG))) for text in texts]
    found += [(StatusTopic, encode(Status("online", text, text, text, -BIG))) for text in texts]
    found += [
        (BlockRequestTopic, encode(BlockRequest(path, first, count, size)))
        for path in ("metadata/timestamp.json", "../x", "x" * 900_000)
        for first, count, size in ((BIG, BIG, BIG), (-1, -1, -1), (BIG, 1, 1024), (0, BIG, 131_072))
    ]
    return found + every_field_wrong()


def every_field_wrong() -> list[tuple[type[DeviceTopic], bytes]]:
    """Each message that delivery reads, with each of its keys set to what it should not be."""
    plain: dict[object, object] = {int: 1, str: "a", bytes: b"x" * 32, float: 1.0, bool: True}
    kinds: list[tuple[type[DeviceTopic], type[Message]]] = [
        (StatusTopic, Status),
        (HealthTopic, Health),
        (ReportTopic, Report),
        (AgentReportTopic, Report),
        (ReportedTopic, Reported),
        (TombstonesTopic, Tombstones),
        (FetchAnswerTopic, FetchAnswer),
        (BlockRequestTopic, BlockRequest),
    ]
    values: list[object] = [BIG, -BIG, 0, "", "x" * 5000, "a\nb\x1b", "\0", b"", b"x" * 31, None, True, 1.5, float("nan")]
    values += [[], [[]], {}, {1: 1, "a": 2}, {"x": BIG}, {"x": -1}, {"x": "y"}, ["x"], [b"x" * 32], [BIG], [["a", BIG]]]
    found = []
    for topic, kind in kinds:
        required = {
            each.key: plain.get(each.type, [] if "tuple" in str(each.type) else {})
            for each in _fields(kind)
            if each.required and each.key
        }
        for each in _fields(kind):
            for value in values:
                found.append((topic, cbor2.dumps({"v": kind.VERSION, **required, each.key or "later": value})))
    return found


def _deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def test_no_message_of_one_device_stops_the_others(
    delivery: Delivery, cat: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that made the process die would come again after its restart, and again: nobody would be heard of any more."""
    for kind, payload in hostile_messages():
        delivery.received(str(kind("demo", "cam-01")), payload)
        delivery.publish_blocks(1.0)
    delivery.wishes.publish()
    delivery.received(str(HealthTopic("demo", "cam-02")), encode(Health("b", 1, frames_seen=7)))
    assert '"frames_seen": 7' in str(cat.value("SELECT health FROM device WHERE id = 'cam-02'"))
    assert fleet.desired(cat)["cam-01"].version == 1
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
    assert json.loads(cat.value("SELECT health FROM device WHERE id = 'cam-01'"))


# What the agent says beside the fields of its health message, and pages, metrics or the loop read.
SAID = (
    "window",
    "runtime",
    "camera_dropped",
    "dry_run",
    "spent",
    "uplink",
    "tm",
    "guard",
    "config",
    "boost",
    "erased",
    "failures",
)
WRONG: list[object] = [None, "x", 1, 2**2000, 1.5, [], ["x"], [1, 2, 3, 4], [2**2000] * 8, [2**2000] * 10, {}, {"x": None}]
WRONG += [{"round_closed": [1]}, {"strategies": 1}, {"strategies": {"a": [1]}}, {"gate": {"a": 1}}, {"f": 2**2000, "o": -1}]
WRONG += [{"total": [2**2000] * 4, "metered": [2**60, 2**2000, 0, 1]}, {"l": [2**2000] * 8, "s": [2**2000] * 10, "r": 2**2000}]


def test_what_a_device_says_of_itself_stops_neither_pages_nor_metrics_nor_the_loop(tmp_path: Path) -> None:
    """All of it is shown among the other devices: one page, one scrape, one scheduler for the whole site."""
    with Site.open(tmp_path / "data") as site:
        for name in ("cam-01", "cam-02"):
            fleet.add_device(site.catalogue, name, "demo", "test")
        delivery = Delivery(site.catalogue, BlockQueue(tmp_path / "repository"), Published(), lambda job, device: job)
        web = TestClient(
            create_app(site.folder, "token-of-sixteen-letters"), base_url="http://127.0.0.1", raise_server_exceptions=False
        )
        bearer = {"Authorization": "Bearer token-of-sixteen-letters"}
        for value in WRONG:
            said = {"v": 1, "boot": "b", "t": 1, "cm": {"gate": "ok"}, "fps": 1e308, **dict.fromkeys(SAID, value)}
            site.catalogue.execute("UPDATE device SET health = '{}' WHERE id = 'cam-01'")
            delivery.received(str(HealthTopic("demo", "cam-01")), cbor2.dumps(said))
            for path in ("/", "/metrics", "/devices/cam-01/config", "/api/v1/devices"):
                assert web.get(path, headers=bearer).status_code == 200, (path, value)
            device = fleet.get(site.catalogue, "cam-01")
            assert device["health"]["cameras"] == {"gate": "ok"}
            assert _has_sent_all(site, device) in (True, False)


@pytest.mark.parametrize("key", ["v", "z" * 3])
@pytest.mark.parametrize("value", [2**2000, 2**20_000], ids=["beyond-float", "beyond-text"])
def test_a_number_of_any_length_in_a_message_is_an_answer_and_no_crash_of_ingest(tmp_path: Path, key: str, value: int) -> None:
    """As version, as key and as value of a part, an offer, a frame and a reference; the good frame beside it arrives."""
    frame = frame_message("cam-01")
    header = {"v": 1, "id": "0" * 64, "d": "cam-01", "cam": "gate", "n": 1, "t": 1, "w": 1, "h": 1, "sha": "0" * 64}
    hostile = cbor2.dumps({**header, "s": value, value: 1, key: value})
    messages = [
        (
            str(ChunkTopic("demo", "cam-01")),
            cbor2.dumps({"v": 1, "tr": b"x" * 16, "n": 1, "i": 0, "x": b"x", value: 1, key: value}),
        ),
        (str(OfferTopic("demo", "cam-01")), cbor2.dumps({"v": 1, "id": b"x" * 32, value: 1, key: value})),
        *(
            (str(kind("demo", "cam-01")), b"BWRB\x01" + len(hostile).to_bytes(4, "big") + hostile)
            for kind in (FrameTopic, ReferenceTopic)
        ),
    ]
    with Site.open(tmp_path / "data") as site:
        fleet.add_device(site.catalogue, "cam-01", "demo", "test")
        ingest = ingest_of(site)
        good = arrived(frame)
        messages.append((str(FrameTopic("demo", "cam-01")), good.payload))
        ingest.take([replace(good, topic=topic, payload=payload) for topic, payload in messages])
        assert site.catalogue.value("SELECT count(*) FROM frame") == 1
        assert site.catalogue.value("SELECT count(*) FROM dead_letter WHERE code = 'unexpected'") == 0


def test_a_message_that_none_of_our_code_expected_is_dropped_and_told(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next fault of this kind must be a line of the log, not the end of delivery; a catalogue that is locked is no such fault."""
    fault: Exception = TypeError("unexpected")

    def record(*_: object) -> bool:
        raise fault

    monkeypatch.setattr(fleet, "record_health", record)
    topic, payload = str(HealthTopic("demo", "cam-01")), encode(Health("b", 1))
    delivery.received(topic, payload)
    assert "could not be applied" in caplog.text
    fault = sqlite3.OperationalError("database is locked")
    with pytest.raises(sqlite3.OperationalError):
        delivery.received(topic, payload)


def test_a_device_forges_no_line_of_the_log(delivery: Delivery, caplog: pytest.LogCaptureFixture) -> None:
    """What it says is one line and a short one, without signs that steer a terminal."""
    caplog.set_level("DEBUG")
    forged = "ok\n2026-11-28 ERROR everything is lost\x1b[2J" + "x" * 10_000
    health = {"v": 1, "boot": "b", "t": 1}
    said: list[tuple[type[DeviceTopic], bytes]] = [
        (ReportTopic, encode(Report(forged, forged, "", code=forged, detail=forged))),
        (ReportedTopic, encode(Reported(1, 0, forged, faults=(forged, forged)))),
        (HealthTopic, cbor2.dumps({**health, "v": forged})),
        (HealthTopic, cbor2.dumps({**health, "sp": {forged: "x"}})),
        (HealthTopic, cbor2.dumps({**health, "erased": {forged: 1}})),
        (FetchAnswerTopic, encode(FetchAnswer(b"x", forged, code=forged, detail=forged))),
    ]
    for topic, payload in said:
        delivery.received(str(topic("demo", "cam-01")), payload)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) >= 3
    assert all(line.isprintable() and len(line) < 2000 for line in lines)


def test_a_frame_forges_no_line_of_the_log_of_ingest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever of a header is told when it is refused."""
    caplog.set_level("DEBUG")
    forged = "ok\n2026-11-28 ERROR everything is lost\x1b[2J"
    good = frame_message("cam-01")
    wrong = {"frame_id": "\nERROR lost", "camera": forged, "arm": forged, "image_format": forged, "device": forged}
    hostile = [replace(good, header=replace(good.header, **{name: value})) for name, value in wrong.items()]
    with Site.open(tmp_path / "data") as site:
        fleet.add_device(site.catalogue, "cam-01", "site", "test")
        for message in hostile:
            header = message.header
            whole = header if "\n" in header.frame_id else replace(header, frame_id=frame_id_of(header))
            payload = encode_frame(replace(message, header=whole))
            ingest_of(site).take([replace(arrived(good), payload=payload)])
        assert site.catalogue.value("SELECT count(*) FROM dead_letter") == len(hostile)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("bowerbird")]
    assert len(lines) >= len(hostile)
    assert [line for line in lines if not line.isprintable()] == []


def test_a_response_topic_aims_nothing(delivery: Delivery, published: Published, tmp_path: Path) -> None:
    """An answer goes to the device in the topic of the question, whatever else the message says about where."""
    aimed = cbor2.dumps(
        {"v": 1, "p": "metadata/timestamp.json", "response_topic": "bowerbird/v1/demo/down/cam-02/job", "dev": "cam-02"}
    )
    delivery.received(str(BlockRequestTopic("demo", "cam-01")), aimed)
    published.messages.clear()
    delivery.publish_blocks(1.0)
    assert [topic for topic, _ in published.messages] == ["bowerbird/v1/demo/down/cam-01/blocks"]


@pytest.mark.parametrize("kind", [StatusTopic, HealthTopic, ReportTopic, BlockRequestTopic])
def test_who_is_no_active_device_is_not_heard(
    delivery: Delivery, cat: Catalogue, published: Published, kind: type[DeviceTopic]
) -> None:
    """Whatever the broker let through: unknown, of another site, suspended."""
    cat.execute("UPDATE device SET state = 'suspended' WHERE id = 'cam-02'")
    before = cat.rows("SELECT * FROM device")
    messages: dict[type[DeviceTopic], Message] = {
        StatusTopic: Status("online"),
        HealthTopic: Health("b", 1, frames_seen=7),
        ReportTopic: Report("job", "committed", "ab" * 32),
        BlockRequestTopic: BlockRequest("metadata/timestamp.json"),
    }
    for site, device in (("demo", "ghost"), ("other", "cam-01"), ("demo", "cam-02")):
        delivery.received(str(kind(site, device)), encode(messages[kind]))
    delivery.publish_blocks(1.0)
    assert cat.rows("SELECT * FROM device") == before
    assert [topic for topic, _ in published.messages if topic.endswith("/blocks")] == []


def test_a_report_about_another_devices_job_changes_nothing(delivery: Delivery, cat: Catalogue) -> None:
    """Forged or overheard; the job's own device is heard."""
    model = {"digest": "a" * 64, "created_at": "2026-01-01", "origin": "imported", "state": "champion", "onnx_sha256": "b" * 64}
    cat.insert("model", {**model, "manifest": "{}", "class_names": "[]", "release": 1})
    rollouts.start_rollout(cat, "a" * 64, 1, ["cam-01"], "test")
    rollouts.advance(cat)
    job = str(cat.value("SELECT job FROM execution WHERE device = 'cam-01'"))
    report = encode(Report(job, "committed", "a" * 64))
    state = "SELECT state FROM execution WHERE device = 'cam-01'"
    before = cat.value(state)
    delivery.received(str(ReportTopic("demo", "cam-02")), report)
    assert cat.value(state) == before != "succeeded"
    delivery.received(str(ReportTopic("demo", "cam-01")), report)
    assert cat.value(state) == "succeeded"
