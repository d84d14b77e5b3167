"""Erase wishes on the device: obeyed once and for good, through restarts and failures, and answered by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bowerbird_agent.errors import SpoolFault
from bowerbird_agent.health.counters import Counters
from bowerbird_agent.spool.spool import FrameState, Spool
from bowerbird_agent.storing.erasing import Erasing
from bowerbird_agent.storing.storing import StoreFrame, StoringThread
from bowerbird_testing.frame_messages import START_MS, frame_message
from bowerbird_wire.messages import EraseWish, FrameMessage, Receipt

MINUTE = EraseWish("w1", "gate", START_MS + 1000, START_MS + 1999)  # frames 10 to 19


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool", max_bytes=10_000_000)
    yield spool
    spool.close()


def put(spool: Spool, numbers: range, camera: str = "gate", state: str = "new") -> list[FrameMessage]:
    messages = [frame_message(sequence=n, camera=camera) for n in numbers]
    for message in messages:
        spool.put(message.header, message.image, state)  # type: ignore[arg-type]
    return messages


def files(spool: Spool) -> set[str]:
    return {path.stem for path in (spool.root / "frames").iterdir()}


def test_frames_of_the_interval_go_in_every_state_and_no_other_does(spool: Spool) -> None:
    messages = put(spool, range(8, 14)) + put(spool, range(14, 22), state="candidate") + put(spool, range(10, 12), "yard")
    ids = [message.header.frame_id for message in messages]
    spool.mark_sent(ids[2])
    spool.mark_sent(ids[3])
    spool.mark_in_doubt([ids[3]])
    erasing = Erasing(spool, [spool])
    assert erasing.obey([MINUTE])
    assert erasing.done == {"w1": 10}
    left = {ids[0], ids[1], ids[12], ids[13], ids[14], ids[15]}
    assert files(spool) == left
    assert spool.ledger().refused == {"erased": 10}
    ledger = spool.ledger()
    assert ledger.spooled == ledger.settled + sum(ledger.in_spool.values())


def test_a_named_frame_goes_without_an_interval(spool: Spool) -> None:
    messages = put(spool, range(3))
    erasing = Erasing(spool, [spool])
    erasing.obey([EraseWish("w2", frames=(messages[1].header.frame_id,))])
    assert files(spool) == {messages[0].header.frame_id, messages[2].header.frame_id}


def test_a_wish_without_a_camera_is_for_all_of_them(spool: Spool) -> None:
    put(spool, range(10, 12))
    put(spool, range(10, 12), "yard")
    Erasing(spool, [spool]).obey([EraseWish("w3", "", MINUTE.from_ms, MINUTE.to_ms)])
    assert files(spool) == set()


def test_a_frame_that_comes_late_from_the_encoder_is_not_stored_and_is_counted(spool: Spool) -> None:
    erasing = Erasing(spool, [spool])
    erasing.obey([MINUTE])
    storing = StoringThread(spool, Counters(), None, forgotten=erasing)  # type: ignore[arg-type]
    for n in (12, 30):
        message = frame_message(sequence=n)
        storing.submit(StoreFrame(message.header, message.image))
    storing.drain()
    assert files(spool) == {frame_message(sequence=30).header.frame_id}
    assert erasing.done == {"w1": 1}


def test_an_erased_frame_cannot_be_put_back(spool: Spool) -> None:
    (message,) = put(spool, range(12, 13))
    Erasing(spool, [spool]).obey([MINUTE])
    assert not spool.put(message.header, message.image)
    assert not files(spool)


def test_the_servers_late_receipt_for_an_erased_frame_changes_nothing(spool: Spool) -> None:
    (message,) = put(spool, range(12, 13))
    spool.mark_sent(message.header.frame_id)
    Erasing(spool, [spool]).obey([MINUTE])
    spool.receipt(Receipt(committed=(message.header.frame_id,)))
    assert spool.ledger().refused == {"erased": 1}
    assert spool.ledger().committed == 0


def test_a_wish_survives_a_restart_done_or_not(spool: Spool) -> None:
    class Refusing:
        def erase(self, _wish: EraseWish) -> int:
            raise SpoolFault("read-only")

    put(spool, range(10, 13))
    first = Erasing(spool, [Refusing()])
    first.obey([MINUTE])
    assert first.done == {}
    second = Erasing(spool, [spool])
    assert second.covers(frame_message(sequence=15).header), "known before the server has said it again"
    second.go_on()
    assert second.done == {"w1": 3}
    assert Erasing(spool, [spool]).done == {"w1": 3}


def test_the_same_wish_again_does_nothing_and_keeps_its_answer(spool: Spool) -> None:
    put(spool, range(10, 13))
    erasing = Erasing(spool, [spool])
    erasing.obey([MINUTE])
    assert not erasing.obey([MINUTE])
    assert erasing.done == {"w1": 3}


def test_a_wish_that_the_server_takes_back_is_forgotten(spool: Spool) -> None:
    erasing = Erasing(spool, [spool])
    erasing.obey([MINUTE])
    erasing.obey([])
    assert erasing.done == {}
    assert not erasing.covers(frame_message(sequence=15).header)
    assert spool.note("erasing") == ""


def test_a_note_that_is_damaged_does_not_stop_the_agent(spool: Spool) -> None:
    spool.set_note("erasing", '{"wishes": [["w1"]]}')
    assert Erasing(spool, [spool]).done == {}


def test_frames_that_are_too_old_are_given_up_and_counted_and_those_without_a_clock_stay(spool: Spool) -> None:
    old = put(spool, range(5)) + put(spool, range(5, 8), state="candidate")
    clockless = frame_message(sequence=99, captured_at_ms=5000)
    spool.put(clockless.header, clockless.image, "new")
    young = put(spool, range(100, 103))
    gone = spool.expire(START_MS + 5000, not_before_ms=1_600_000_000_000)
    assert gone == len(old)
    assert files(spool) == {clockless.header.frame_id, *(message.header.frame_id for message in young)}
    assert sum(spool.evicted().values()) == 8
    assert all(reason.startswith("too_old.") for reason in spool.evicted())
    assert spool.counts()[FrameState.CANDIDATE.value] == 0
