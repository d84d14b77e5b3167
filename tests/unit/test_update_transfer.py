"""Which blocks a transfer asks for, and which it believes."""

from __future__ import annotations

import random

import pytest
from tuf.api.exceptions import DownloadHTTPError, DownloadLengthMismatchError

from bowerbird_agent.updates.fetcher import BLOCK_BYTES, MAX_WINDOW, Transfer
from bowerbird_wire.messages import Block

PATH = "targets/models/x/y.onnx"


def block(at: int, total: int, **changes: object) -> Block:
    length = min(BLOCK_BYTES, total - at * BLOCK_BYTES)
    values: dict[str, object] = {
        "path": PATH, "index": at, "block_bytes": BLOCK_BYTES, "total_bytes": total, "data": bytes(max(0, length)), **changes,
    }  # fmt: skip
    return Block(**values)  # type: ignore[arg-type]  # one table for fields of several types


def asked(transfer: Transfer, now_s: float) -> list[int]:
    return [i for request in transfer.wanted(now_s) for i in range(request.first_block, request.first_block + request.blocks)]


def test_the_first_request_learns_the_length_and_then_a_window_is_in_flight() -> None:
    transfer = Transfer(PATH, 10**7)
    assert asked(transfer, 0.0) == [0]
    assert asked(transfer, 0.1) == []
    assert transfer.take(block(0, 20 * BLOCK_BYTES), 0.2)
    assert asked(transfer, 0.2) == [1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(5))
def test_any_mix_of_loss_doubling_and_reordering_ends_with_every_block(seed: int) -> None:
    chance = random.Random(seed)
    transfer, now_s, total = Transfer(PATH, 10**8), 0.0, 37 * BLOCK_BYTES + 11
    largest = 0
    while not transfer.is_done:
        now_s += 0.5
        indices = [i for i in asked(transfer, now_s) if chance.random() > 0.3]
        largest = max(largest, len(transfer._in_flight))
        indices += [i for i in indices if chance.random() < 0.3]
        chance.shuffle(indices)
        for index in indices:
            transfer.take(block(index, total), now_s)
        assert now_s < 2000
    assert transfer.have == set(range(38))
    assert largest <= MAX_WINDOW


def test_silence_makes_the_window_smaller_and_the_wait_longer() -> None:
    transfer = Transfer(PATH, 10**7, quiet_s=3.0)
    transfer.wanted(0.0)
    transfer.take(block(0, 20 * BLOCK_BYTES), 0.0)
    assert len(asked(transfer, 0.0)) == 4
    assert asked(transfer, 2.9) == []
    assert len(asked(transfer, 3.1)) == 2
    assert asked(transfer, 9.0) == []
    assert len(asked(transfer, 9.2)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "targets/other"},
        {"block_bytes": 1024},
        {"index": 20},
        {"index": -1},
        {"data": b"short"},
        {"data": bytes(BLOCK_BYTES + 1)},
        {"total_bytes": 19 * BLOCK_BYTES},
        {"error": "busy"},
    ],
)
def test_a_block_that_does_not_fit_is_not_believed(changes: dict[str, object]) -> None:
    transfer = Transfer(PATH, 10**7)
    transfer.wanted(0.0)
    transfer.take(block(0, 20 * BLOCK_BYTES), 0.0)
    assert not transfer.take(block(1, 20 * BLOCK_BYTES, **changes), 0.0)
    assert transfer.have == {0}


def test_a_file_that_is_not_there_and_one_that_is_too_long_end_the_transfer() -> None:
    with pytest.raises(DownloadHTTPError):
        Transfer(PATH, 100).take(block(0, 0, data=b"", error="not_found"), 0.0)
    with pytest.raises(DownloadLengthMismatchError):
        Transfer(PATH, 100).take(block(0, 101), 0.0)


def test_an_empty_file_is_one_empty_block() -> None:
    transfer = Transfer(PATH, 100)
    assert transfer.take(block(0, 0, data=b""), 0.0)
    assert transfer.is_done


def test_after_a_broken_link_what_was_in_flight_is_asked_for_again() -> None:
    transfer = Transfer(PATH, 100)
    assert asked(transfer, 0.0) == [0]
    transfer.link_lost()
    assert asked(transfer, 0.1) == [0]
