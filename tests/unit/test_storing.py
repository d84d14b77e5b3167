"""The spool thread beside a spool that is full: it tells, once, and counts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bowerbird_agent.health import counters as names
from bowerbird_agent.health.counters import Counters
from bowerbird_agent.spool.room import INDEX_RESERVE_BYTES
from bowerbird_agent.spool.spool import Spool
from bowerbird_agent.storing.storing import StoreFrame, StoringThread
from bowerbird_testing.frame_messages import frame_message


def test_a_full_spool_is_told_once_while_frames_come_in_and_are_turned_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bad and good frames take turns, so that storing succeeds between two refusals."""
    caplog.set_level(logging.DEBUG)
    spool = Spool(tmp_path / "spool", max_bytes=2 * INDEX_RESERVE_BYTES)
    counters = Counters()
    storing = StoringThread(spool, counters, None)
    for number in range(160):
        score = 0.01 if number % 2 else 0.5 + number / 1000
        message = frame_message(sequence=number, score=score, image=bytes([number]) * 20_000)
        storing.submit(StoreFrame(message.header, message.image))
        storing.drain()
    assert counters.value(names.STORE_REFUSED) > 10
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1
    assert "max_bytes" in told[0]
    spool.close()
