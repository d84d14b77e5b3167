"""Frames of the audit that came without a picture of their own: what ingest takes, what becomes of them with their twins."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from bowerbird_server.batches.batch import build_batch
from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.broker.mqtt_session import Arrived, Event
from bowerbird_server.catalogue import audited, batches, fetches, fleet, frames, references
from bowerbird_server.catalogue.classes import add_classes
from bowerbird_server.catalogue.datasets import labelled_frames
from bowerbird_server.catalogue.rebuild import rebuild
from bowerbird_server.catalogue.record_keeping import delete_frames, keep_records
from bowerbird_server.catalogue.verify import verify
from bowerbird_server.config import RetentionConfig
from bowerbird_server.errors import Conflict
from bowerbird_server.ingest.chunks import ChunkStore
from bowerbird_server.ingest.dead_letters import DeadLetters
from bowerbird_server.ingest.device_limits import DeviceLimit, DeviceLimits
from bowerbird_server.ingest.ingest import Ingest
from bowerbird_server.labelling.backend import Box, submit_label
from bowerbird_server.privacy import retention
from bowerbird_server.privacy.erase import erase, named, plan
from bowerbird_server.site import Site
from bowerbird_server.web.app import create_app
from bowerbird_testing.frame_messages import START_MS, audit_message, frame_message, jpeg, reference_to
from bowerbird_wire.codec import decode, encode_frame, encode_reference, frame_id_of
from bowerbird_wire.messages import FrameMessage, Receipt, Redaction, WireDetection
from bowerbird_wire.topics import FrameTopic, ReferenceTopic

BIRD = (1.0, 2.0, 20.0, 30.0)


class Answers:
    """A session that keeps what devices are told."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.receipts: list[Receipt] = []

    def publish(self, _topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        self.receipts.append(decode(Receipt, payload))
        return True

    def acknowledge_all(self, _group: Sequence[Arrived]) -> bool:
        return True

    def is_current(self, _arrived: Arrived) -> bool:
        return True


class Taking:
    """A site whose ingest is handed messages one group at a time."""

    def __init__(self, site: Site, limit: DeviceLimit | None = None) -> None:
        self.site, self.session = site, Answers()
        letters, parts = DeadLetters(site.folder.root / "dead-letters"), ChunkStore(site.folder.parts)
        limits = None if limit is None else DeviceLimits(site.catalogue, limit, lambda: 0.0)
        self.ingest = Ingest(site.catalogue, site.blobs, letters, parts, self.session, limits=limits)

    def whole(self, *messages: FrameMessage) -> Receipt:
        return self.take([(FrameTopic, encode_frame(message)) for message in messages])

    def without(self, *messages: FrameMessage) -> Receipt:
        return self.take([(ReferenceTopic, encode_reference(message.header)) for message in messages])

    def take(self, group: list[tuple[type[FrameTopic | ReferenceTopic], bytes]]) -> Receipt:
        """One group of cam-01; what it is told."""
        self.ingest.take([Arrived(1, str(kind("site", "cam-01")), payload, 1, 1) for kind, payload in group])
        return self.session.receipts[-1]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site.open(tmp_path / "data") as made:
        fleet.add_device(made.catalogue, "cam-01", "site", "test")
        add_classes(made.catalogue, ["bird"], "test")
        yield made


@pytest.fixture
def taking(site: Site) -> Taking:
    return Taking(site)


TWIN = audit_message(1)
LATER = reference_to(TWIN, 700, detections=(WireDetection(BIRD, 0.9, "bird"), WireDetection(BIRD, 0.2, "bird")))


def state(site: Site, message: FrameMessage) -> str | None:
    return frames.state_of(site.catalogue, message.header.frame_id)


def test_a_reference_is_a_row_of_its_own_that_shows_its_twins_picture(site: Site, taking: Taking) -> None:
    taking.whole(TWIN)
    blobs = sorted(site.blobs.digests())
    assert taking.without(LATER).committed == (LATER.header.frame_id,)
    row = frames.get(site.catalogue, LATER.header.frame_id)
    assert (row["blob"], row["bytes"], row["state"]) == (TWIN.header.image_sha256, 0, "rejected")
    assert (row["arm"], row["inclusion_probability"], row["sequence"]) == ("explore", 0.1, 700)
    assert row["captured_at"] > frames.get(site.catalogue, TWIN.header.frame_id)["captured_at"]
    assert [one["score"] for one in row["detections"]] == [0.9, 0.2]
    assert references.twin_of(site.catalogue, LATER.header.frame_id) == TWIN.header.frame_id
    assert len(set(site.blobs.digests()) - set(blobs)) == 1, "the record of its header, and no picture"
    assert not verify(site.catalogue, site.blobs).faults


def test_a_reference_again_and_the_frame_whole_afterwards_change_nothing(site: Site, taking: Taking) -> None:
    taking.whole(TWIN)
    for _ in range(2):
        assert taking.without(LATER, LATER).committed == (LATER.header.frame_id,)
    assert taking.whole(LATER).committed == (LATER.header.frame_id,)
    assert site.catalogue.value("SELECT count(*) FROM frame") == 2
    assert frames.get(site.catalogue, LATER.header.frame_id)["blob"] == TWIN.header.image_sha256


def test_of_a_frame_that_comes_both_ways_at_once_the_whole_one_counts(site: Site, taking: Taking) -> None:
    taking.whole(TWIN)
    whole, reference = (FrameTopic, encode_frame(LATER)), (ReferenceTopic, encode_reference(LATER.header))
    assert taking.take([whole, reference]).committed == (LATER.header.frame_id,)
    assert frames.get(site.catalogue, LATER.header.frame_id)["blob"] == LATER.header.image_sha256
    assert not verify(site.catalogue, site.blobs).faults


def _elsewhere() -> dict[str, FrameMessage]:
    """References to TWIN that it cannot stand in for."""
    return {
        "another camera": reference_to(TWIN, 701, camera="yard"),
        "another size": reference_to(TWIN, 702, width=65),
        "another format": reference_to(TWIN, 703, image_format="png"),
        "a frame that never came": reference_to(audit_message(2), 704),
        "a frame that the policy chose": reference_to(frame_message(sequence=3), 705),
        "a reference": reference_to(LATER, 706),
    }


@pytest.mark.parametrize("why", list(_elsewhere()))
def test_a_reference_without_a_twin_that_can_stand_in_is_asked_for_whole_and_then_taken(
    site: Site, taking: Taking, why: str
) -> None:
    taking.whole(TWIN, frame_message(sequence=3))
    taking.without(LATER)
    lonely = _elsewhere()[why]
    answer = taking.without(lonely)
    assert [want.frame.hex() for want in answer.wanted] == [lonely.header.frame_id]
    assert (answer.committed, answer.refused, state(site, lonely)) == ((), (), None)
    if lonely.header.width == 64 and lonely.header.image_format == "jpeg":
        assert taking.whole(lonely).committed == (lonely.header.frame_id,)
        assert frames.get(site.catalogue, lonely.header.frame_id)["state"] == "received"


def test_a_reference_to_a_frame_that_is_erased_before_it_comes_is_asked_for_whole(site: Site, taking: Taking) -> None:
    taking.whole(TWIN)
    erase(site, plan(site, named([TWIN.header.frame_id])), "test", "asked by the owner")
    assert [want.frame.hex() for want in taking.without(LATER).wanted] == [LATER.header.frame_id]
    assert taking.whole(LATER).committed == (LATER.header.frame_id,)
    assert frames.get(site.catalogue, LATER.header.frame_id)["blob"] == LATER.header.image_sha256


def test_a_twin_that_is_erased_while_its_reference_is_being_stored_is_noticed_in_the_transaction(
    site: Site, taking: Taking
) -> None:
    taking.whole(TWIN)

    def erase_now(point: str) -> None:
        if point == "blob":
            delete_frames(site.catalogue, site.blobs, [TWIN.header.frame_id], "test", "asked")

    letters, parts = DeadLetters(site.folder.root / "dead-letters"), ChunkStore(site.folder.parts)
    taking.ingest = Ingest(site.catalogue, site.blobs, letters, parts, taking.session, passed=erase_now)
    answer = taking.without(LATER)
    assert [want.frame.hex() for want in answer.wanted] == [LATER.header.frame_id]
    assert (answer.committed, state(site, LATER)) == ((), None)


def test_a_picture_that_a_restored_backup_lacks_is_sent_again_with_the_next_frame(site: Site, taking: Taking) -> None:
    taking.whole(TWIN)
    site.blobs.delete(TWIN.header.image_sha256)
    assert taking.without(LATER).wanted
    assert taking.whole(LATER).committed == (LATER.header.frame_id,)


@pytest.mark.parametrize("erased", ["the twin", "the reference"])
def test_erasing_either_erases_both_and_the_picture(site: Site, taking: Taking, erased: str) -> None:
    """What a reference shows is its twin's picture, so a request for one is a request for the other."""
    taking.whole(TWIN)
    taking.without(LATER)
    one = TWIN if erased == "the twin" else LATER
    erase(site, plan(site, named([one.header.frame_id])), "test", "asked by the owner")
    assert (state(site, TWIN), state(site, LATER)) == ("deleted", "deleted")
    assert not site.blobs.exists(TWIN.header.image_sha256)
    assert site.catalogue.value("SELECT count(*) FROM detection") == 0
    assert taking.without(LATER).refused[0].code == "deleted"
    assert taking.whole(LATER).refused[0].code == "deleted"


def test_a_reference_that_comes_while_its_twin_is_being_deleted_is_deleted_too(site: Site, taking: Taking) -> None:
    taking.whole(TWIN)

    class Meanwhile(LocalBlobs):
        """Between the look for what belongs to a frame and the deletion, another process takes a reference in."""

        def put_many(self, *args: Any, **options: Any) -> list[str]:
            assert taking.without(LATER).committed
            return super().put_many(*args, **options)

    deleted = delete_frames(site.catalogue, Meanwhile(site.folder.blobs), [TWIN.header.frame_id], "test", "asked")
    assert (deleted.frames, deleted.images) == (2, 1)
    assert (state(site, LATER), site.blobs.exists(TWIN.header.image_sha256)) == ("deleted", False)


def test_a_reference_captured_in_an_erased_interval_is_refused(site: Site, taking: Taking) -> None:
    taking.whole(TWIN)
    at_ms = LATER.header.captured_at_ms
    erase(site, plan(site, replace(named([]), from_ms=at_ms, to_ms=at_ms)), "test", "asked")
    assert taking.without(LATER).refused[0].code == "deleted"
    assert (state(site, TWIN), site.blobs.exists(TWIN.header.image_sha256)) == ("received", True)


def test_deleting_a_reference_alone_leaves_its_twin_the_picture(site: Site, taking: Taking) -> None:
    taking.whole(TWIN)
    taking.without(LATER)
    assert delete_frames(site.catalogue, site.blobs, [LATER.header.frame_id], "test", "asked").images == 0
    assert (state(site, TWIN), site.blobs.exists(TWIN.header.image_sha256)) == ("received", True)


def test_what_was_fetched_of_a_reference_goes_with_its_twin(site: Site, taking: Taking) -> None:
    taking.whole(TWIN)
    taking.without(LATER)
    original = frame_message(sequence=700, arm="fetched", image=jpeg(5), extra={"original_of": LATER.header.frame_id})
    assert taking.whole(original).committed
    assert [row["kind"] for row in fetches.linked(site.catalogue, LATER.header.frame_id)] == ["original"]
    assert fetches.linked(site.catalogue, TWIN.header.frame_id) == []
    deleted = delete_frames(site.catalogue, site.blobs, [TWIN.header.frame_id], "test", "asked")
    assert (deleted.frames, deleted.images) == (3, 2)


def test_a_reference_is_kept_as_long_as_its_twin_and_no_longer(site: Site, taking: Taking) -> None:
    taking.whole(TWIN)
    taking.without(LATER)
    limits = RetentionConfig(unlabelled_days=30, rejected_days=1)
    site = replace(site, config=site.config.model_copy(update={"retention": limits}))
    born = datetime.fromtimestamp(START_MS / 1000, UTC)
    assert retention.apply(site, born + timedelta(days=29)) == {}
    assert retention.apply(site, born + timedelta(days=31)) == {"retention: unlabelled for 30 days": 2}
    assert (state(site, LATER), site.blobs.exists(TWIN.header.image_sha256)) == ("deleted", False)


def test_both_frames_pages_say_how_they_belong_together(site: Site, taking: Taking) -> None:
    taking.whole(TWIN)
    taking.without(LATER)
    web = TestClient(create_app(site.folder, "token-of-sixteen-letters"), base_url="http://127.0.0.1")
    bearer = {"Authorization": "Bearer token-of-sixteen-letters"}
    twin, later = (web.get(f"/frames/{message.header.frame_id}", headers=bearer).text for message in (TWIN, LATER))
    assert "Nothing was different in 1 later frames" in twin
    assert "a reference: nothing was different here" in later
    assert f'href="/frames/{TWIN.header.frame_id}"' in later
    image = web.get(f"/api/v1/frames/{LATER.header.frame_id}/image", headers=bearer)
    assert image.content == TWIN.image
    more = web.get(f"/api/v1/frames/{LATER.header.frame_id}/fetch", headers=bearer).json()
    assert more["parent"] == {"of_frame": TWIN.header.frame_id, "kind": "reference"}


def test_nobody_is_asked_about_a_reference_and_nothing_trains_on_it(site: Site, taking: Taking) -> None:
    taking.whole(TWIN)
    taking.without(LATER, reference_to(TWIN, 701), reference_to(TWIN, 702))
    assert batches.candidate_count(site.catalogue) == 1
    batch = build_batch(site.catalogue, frames=10, actor="test", blobs=site.blobs)
    assert batch is not None
    assert batches.batch_frames(site.catalogue, batch) == [TWIN.header.frame_id]
    submit_label(site.catalogue, site.blobs, TWIN.header.frame_id, "anna", "labelled", [Box("bird", BIRD)])
    with pytest.raises(Conflict, match=f"{TWIN.header.frame_id[:12]}; label that one"):
        submit_label(site.catalogue, site.blobs, LATER.header.frame_id, "anna", "labelled", [])
    assert [frame.frame for frame in labelled_frames(site.catalogue)] == [TWIN.header.frame_id]


def test_estimates_hold_a_references_own_detections_against_its_twins_label(site: Site, taking: Taking) -> None:
    """The model saw the bird in the reference and missed it in the twin: one of two, weighted by how rarely each was taken."""
    taking.whole(replace(TWIN, header=replace(TWIN.header, detections=())))
    taking.without(reference_to(TWIN, 700, inclusion_probability=0.3, detections=(WireDetection(BIRD, 0.9, "bird"),)))
    found, missing = audited.audit(site.catalogue)
    assert (len(found), len(missing)) == (0, 2), "nothing is known before the twin has a label"
    submit_label(site.catalogue, site.blobs, TWIN.header.frame_id, "anna", "labelled", [Box("bird", BIRD)])
    found, missing = audited.audit(site.catalogue)
    assert (len(found), len(missing)) == (2, 0)
    (row,) = [row for row in audited.metrics(site.catalogue, period="all") if row["camera"] == "cam-01/gate"]
    assert row["recall"]["value"] == pytest.approx((1 / 0.3) / (1 / 0.3 + 1 / 0.1))
    assert row["frames_seen"] == pytest.approx(1 / 0.3 + 1 / 0.1)


def test_what_is_covered_in_a_reference_is_what_is_covered_in_its_twins_picture(site: Site, taking: Taking) -> None:
    covered = Redaction((0.0, 0.0, 30.0, 40.0), "person")
    twin = audit_message(1, redacted=(covered,))
    taking.whole(twin)
    taking.without(reference_to(twin, 700, redacted=(Redaction((50.0, 0.0, 60.0, 9.0), "person"),)))
    (row,) = frames.redactions(site.catalogue, reference_to(twin, 700).header.frame_id)
    assert (row["left"], row["right"]) == (0.0, 30.0)


def test_the_devices_daily_limit_counts_references_as_frames(site: Site) -> None:
    taking = Taking(site, DeviceLimit(frames_per_day=2))
    taking.whole(TWIN)
    assert taking.without(LATER).committed
    held = taking.without(reference_to(TWIN, 701))
    assert (held.committed, held.wanted) == ((), ())
    assert held.hold_s > 0


def test_a_rebuilt_catalogue_has_its_references_whichever_record_is_read_first(site: Site, taking: Taking) -> None:
    gone, covered = audit_message(50), audit_message(51, redacted=(Redaction((0.0, 0.0, 30.0, 40.0), "person"),))
    taking.whole(TWIN, gone, covered)
    taking.without(LATER, reference_to(gone, 701), reference_to(covered, 702))
    submit_label(site.catalogue, site.blobs, TWIN.header.frame_id, "anna", "labelled", [Box("bird", BIRD)])
    delete_frames(site.catalogue, site.blobs, [gone.header.frame_id], "test", "asked")
    keep_records(site.catalogue, site.blobs)
    tables = ("frame", "detection", "linked_frame", "redaction")
    before = {table: sorted(map(str, site.catalogue.db[table].rows)) for table in tables}
    site.catalogue.close()
    result = rebuild(site.folder.catalogue, site.blobs, "test")
    assert (result.lost, result.damaged_records) == ((), ())
    with Site.open(site.folder.root) as again:
        assert {table: sorted(map(str, again.catalogue.db[table].rows)) for table in tables} == before
        assert not verify(again.catalogue, again.blobs).faults


def test_a_reference_whose_twin_was_lost_is_named_as_lost_by_a_rebuild(site: Site, taking: Taking) -> None:
    taking.whole(TWIN)
    taking.without(LATER)
    site.blobs.delete(TWIN.header.image_sha256)
    site.catalogue.close()
    lost = rebuild(site.folder.catalogue, site.blobs, "test").lost
    assert [text.partition(":")[0] for text in lost] == [f"frame {m.header.frame_id[:12]}" for m in (TWIN, LATER)]


def test_a_reference_that_is_none_is_refused(taking: Taking) -> None:
    taking.whole(TWIN)
    good = LATER.header
    poison = {
        "bad_length": encode_frame(LATER),
        "bad_message": encode_reference(replace(good, twin="")),
        "digest_mismatch": encode_reference(replace(good, frame_id="0" * 64)),
        "bad_topic": encode_reference(reference_to(TWIN, 9, camera="../etc").header),
    }
    for code, payload in poison.items():
        assert [no.code for no in taking.take([(ReferenceTopic, payload)]).refused] == [code]
    policy = reference_to(TWIN, 9, arm="policy").header
    themselves = replace(good, twin=good.frame_id)
    other = reference_to(TWIN, 9, device="cam-02").header
    for header in (policy, themselves, other):
        assert [no.code for no in taking.without(FrameMessage(header, b"")).refused] == ["bad_message"]


def test_a_reference_cannot_have_somebody_elses_blob_deleted(site: Site, taking: Taking) -> None:
    """The digest that it claims for its own picture is unverified: whatever it names stays."""
    taking.whole(TWIN)
    model = site.blobs.put(b"a model, say")
    claimed = replace(LATER.header, image_sha256=model)
    claimed = replace(claimed, frame_id=frame_id_of(claimed))

    def erase_now(point: str) -> None:
        if point == "blob":
            at_ms = claimed.captured_at_ms
            erase(site, plan(site, replace(named([]), from_ms=at_ms, to_ms=at_ms)), "test", "asked")

    letters, parts = DeadLetters(site.folder.root / "dead-letters"), ChunkStore(site.folder.parts)
    taking.ingest = Ingest(site.catalogue, site.blobs, letters, parts, taking.session, passed=erase_now)
    assert taking.without(FrameMessage(claimed, b"")).refused[0].code == "deleted"
    assert site.blobs.exists(model)
