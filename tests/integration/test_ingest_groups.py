"""Ingest group by group, on a real disk and a real catalogue, with a session that holds messages instead of a broker."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from pathlib import Path

import pytest

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.broker.mqtt_session import Arrived, Connected, Event
from bowerbird_server.catalogue import Catalogue, fleet, frames
from bowerbird_server.ingest.chunks import ChunkStore
from bowerbird_server.ingest.dead_letters import RING, DeadLetters
from bowerbird_server.ingest.ingest import Ingest
from bowerbird_server.layout import DataFolder
from bowerbird_testing.frame_messages import frame_message
from bowerbird_wire.codec import decode, encode_frame
from bowerbird_wire.messages import Receipt


class HeldSession:
    """A session without a network: what ingest publishes and acknowledges is kept."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.receipts: list[Receipt] = []
        self.acknowledged: list[int] = []

    def publish(self, _topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        self.receipts.append(decode(Receipt, payload))
        return True

    def acknowledge_all(self, group: Sequence[Arrived]) -> bool:
        self.acknowledged += [arrived.mid for arrived in group]
        return True

    def is_current(self, _arrived: Arrived) -> bool:
        return True


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path / "data").make()
    with Catalogue(made.catalogue) as cat:
        fleet.add_device(cat, "cam-01", "demo", "test")
    return made


def arrived(sequence: int) -> Arrived:
    return Arrived(1, "bowerbird/v1/demo/up/cam-01/frame", encode_frame(frame_message(sequence=sequence)), sequence, 1)


def test_while_messages_wait_a_group_is_answered_only_after_the_flush_of_the_next(folder: DataFolder) -> None:
    """Rows are there at once, receipt and acknowledgement when they survive a power cut."""
    session = HeldSession()
    with Catalogue(folder.catalogue) as cat:
        ingest = Ingest(
            cat, LocalBlobs(folder.blobs), DeadLetters(folder.root / "dead-letters"), ChunkStore(folder.parts), session
        )
        session.events.put(Connected(1))  # something waits
        ingest.take([arrived(0), arrived(1)])
        assert frames.count_by_state(cat)["received"] == 2
        assert (session.receipts, session.acknowledged) == ([], [])
        ingest.take([arrived(2)])
        assert session.acknowledged == [0, 1]
        ingest.take([])
        assert session.acknowledged == [0, 1, 2]
        session.events.get()
        ingest.take([arrived(3)])
        assert session.acknowledged == [0, 1, 2, 3], "nothing waits, so it is answered at once"
    assert [len(receipt.committed) for receipt in session.receipts] == [2, 1, 1]


def test_nothing_is_answered_when_its_flush_fails(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group stays unanswered, and is answered once a later flush succeeds."""
    session = HeldSession()
    with Catalogue(folder.catalogue) as cat:
        blobs = LocalBlobs(folder.blobs)
        ingest = Ingest(cat, blobs, DeadLetters(folder.root / "dead-letters"), ChunkStore(folder.parts), session)
        session.events.put(Connected(1))
        ingest.take([arrived(0)])
        with monkeypatch.context() as patched:
            patched.setattr(blobs, "put_many", _fail)
            with pytest.raises(OSError, match="broken disk"):
                ingest.take([arrived(1)])
            with pytest.raises(OSError, match="broken disk"):
                ingest.take([])
        assert session.acknowledged == []
        ingest.take([arrived(1)])
        ingest.take([])
        assert session.acknowledged == [0, 1]


def _fail(*_args: object, **_kwargs: object) -> list[str]:
    raise OSError("broken disk")


def test_dead_letters_are_a_ring(folder: DataFolder) -> None:
    """However much poison comes, the newest messages are kept and all of it is acknowledged."""
    session = HeldSession()
    poison = [Arrived(1, "bowerbird/v1/demo/up/cam-01/frame", b"poison number %d" % n, n, 1) for n in range(RING + 40)]
    with Catalogue(folder.catalogue) as cat:
        ingest = Ingest(
            cat, LocalBlobs(folder.blobs), DeadLetters(folder.root / "dead-letters"), ChunkStore(folder.parts), session
        )
        for start in range(0, len(poison), 32):
            ingest.take(poison[start : start + 32])
        kept = cat.rows("SELECT blob, code FROM dead_letter ORDER BY rowid")
    payloads = LocalBlobs(folder.root / "dead-letters")
    assert session.acknowledged == [message.mid for message in poison]
    assert sorted(payloads.read(row["blob"]) for row in kept) == sorted(message.payload for message in poison[-RING:])
    assert set(payloads.digests()) == {row["blob"] for row in kept}
    assert {row["code"] for row in kept} == {"bad_message"}
    assert len([no for receipt in session.receipts for no in receipt.refused]) == len(poison)
