"""Which frames of a spool go as references: only of the audit, only to what the server has committed and where it takes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bowerbird_agent.link.reference_sending import ReferenceSending
from bowerbird_agent.spool.spool import Spool, SpooledFrame
from bowerbird_agent.storing.encode import Encoded
from bowerbird_agent.storing.fetching import original_of
from bowerbird_testing.frame_messages import audit_message, jpeg, reference_to
from bowerbird_wire.codec import verify_reference
from bowerbird_wire.messages import REFERENCES, Credit, FrameMessage, Receipt

TAKES, TAKES_NOT = Credit(500_000, extra={REFERENCES: True}), Credit(500_000)
TWIN = audit_message(1)
LATER = reference_to(TWIN, 2)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with closing(Spool(tmp_path, max_bytes=100_000_000)) as made:
        yield made


def spooled(spool: Spool, message: FrameMessage) -> SpooledFrame:
    spool.put(message.header, message.image, "new")
    row = spool.frame(message.header.frame_id)
    assert row is not None
    return row


def committed(spool: Spool, message: FrameMessage) -> None:
    spooled(spool, message)
    spool.receipt(Receipt(committed=(message.header.frame_id,)))


def taken_by(spool: Spool) -> ReferenceSending:
    sending = ReferenceSending(spool)
    sending.credit(TAKES)
    return sending


def test_a_reference_weighs_what_its_message_does_and_that_is_the_header(spool: Spool) -> None:
    committed(spool, TWIN)
    sending, row = taken_by(spool), spooled(spool, LATER)
    message = sending.message(row.frame_id)
    assert message is not None
    assert sending.size_of(row) == len(message) == row.message_bytes - len(LATER.image)
    assert verify_reference(message) == LATER.header


def test_a_frame_goes_whole_before_its_twin_is_committed_and_when_it_was_refused(spool: Spool) -> None:
    sending, row = taken_by(spool), spooled(spool, LATER)
    assert sending.size_of(row) == 0
    spooled(spool, TWIN)
    assert sending.size_of(row) == 0, "it waits itself"
    spool.drop([TWIN.header.frame_id], "explore_share")
    assert sending.size_of(row) == 0
    spool.receipt(Receipt(committed=(TWIN.header.frame_id,)))
    assert sending.size_of(row) > 0, "it was sent before it was dropped"


def test_only_frames_of_the_audit_that_name_a_twin_go_as_references(spool: Spool) -> None:
    committed(spool, TWIN)
    sending = taken_by(spool)
    assert sending.size_of(spooled(spool, audit_message(3))) == 0
    assert sending.size_of(spooled(spool, reference_to(TWIN, 4, arm="policy"))) == 0


def test_without_the_servers_word_on_this_connection_frames_go_whole(spool: Spool) -> None:
    committed(spool, TWIN)
    sending, row = ReferenceSending(spool), spooled(spool, LATER)
    assert sending.size_of(row) == 0
    sending.credit(TAKES)
    assert sending.size_of(row) > 0
    sending.credit(TAKES_NOT)
    assert sending.size_of(row) == 0
    sending.credit(TAKES)
    sending.link_up()
    assert sending.size_of(row) == 0
    sending.credit(Credit(500_000, extra={REFERENCES: "yes"}))
    assert sending.size_of(row) == 0


def test_a_broker_whose_rules_are_older_is_tried_once_a_connection(spool: Spool) -> None:
    committed(spool, TWIN)
    sending, row = taken_by(spool), spooled(spool, LATER)
    sending.handed_over(7)
    sending.acknowledged(6, accepted=False)  # a frame's
    assert sending.are_taken
    sending.acknowledged(7, accepted=False)
    sending.credit(TAKES)
    assert sending.size_of(row) == 0
    sending.link_up()
    sending.credit(TAKES)
    assert sending.size_of(row) > 0


def test_what_the_server_has_survives_a_restart_and_nothing_but_its_name_is_kept(tmp_path: Path) -> None:
    with closing(Spool(tmp_path, max_bytes=100_000_000)) as spool:
        committed(spool, TWIN)
    assert not list((tmp_path / "frames").iterdir())
    with closing(Spool(tmp_path, max_bytes=100_000_000)) as again:
        assert taken_by(again).size_of(spooled(again, LATER)) > 0


def test_what_is_forgotten_goes_whole(tmp_path: Path) -> None:
    with closing(Spool(tmp_path, max_bytes=100_000_000, remember=3)) as spool:
        for message in (TWIN, *(audit_message(n) for n in range(10, 13))):
            committed(spool, message)
        assert taken_by(spool).size_of(spooled(spool, LATER)) == 0


def test_what_is_fetched_of_a_reference_is_a_picture_and_goes_whole(spool: Spool) -> None:
    committed(spool, TWIN)
    original = original_of(LATER.header, Encoded(jpeg(5, 128, 96), 128, 96), 95)
    assert original.header.twin == ""
    assert taken_by(spool).size_of(spooled(spool, original)) == 0


def test_a_damaged_frame_goes_as_nothing(spool: Spool, tmp_path: Path) -> None:
    committed(spool, TWIN)
    sending, row = taken_by(spool), spooled(spool, LATER)
    (tmp_path / "frames" / f"{row.frame_id}.frame").write_bytes(b"rust")
    assert sending.size_of(row) == 0
    assert sending.message(row.frame_id) is None
    assert spool.ledger().dropped == {"file_damaged": 1}
