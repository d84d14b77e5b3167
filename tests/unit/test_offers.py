"""Blocks by turns and within a rate; no path leads out of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from bowerbird_server.fleet.offers import MAX_WAITING_PER_DEVICE, BlockQueue
from bowerbird_wire.messages import BlockRequest

NAME = f"targets/models/{'a' * 64}/{'b' * 64}.model.onnx"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "secret.json").write_text("secret")
    file = tmp_path / "repository" / NAME
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(range(256)) * 40)
    (file.parent / f"{'c' * 64}.model.pt").write_bytes(b"weights")
    return tmp_path / "repository"


def request(first: int = 0, blocks: int = 64, path: str = NAME) -> BlockRequest:
    return BlockRequest(path, first, blocks, 1024)


def test_the_blocks_make_the_file(repository: Path) -> None:
    """All of them, in order, and then nothing is left waiting."""
    queue = BlockQueue(repository)
    queue.ask("demo", "cam-01", request())
    blocks = [due.block for due in queue.due(0.0)]
    assert b"".join(block.data for block in blocks) == (repository / NAME).read_bytes()
    assert len(queue) == 0


def test_devices_take_turns(repository: Path) -> None:
    """A device that asks for much does not make the next one wait."""
    queue = BlockQueue(repository)
    queue.ask("demo", "cam-01", request())
    queue.ask("demo", "cam-02", request(blocks=2))
    assert [due.device for due in queue.due(0.0)][:4] == ["cam-01", "cam-02", "cam-01", "cam-02"]


def test_the_rate_is_kept_over_time(repository: Path) -> None:
    """After the burst no more than the rate allows, whatever is asked."""
    queue = BlockQueue(repository, rate_bytes_s=1000, burst_bytes=2000)
    sent = 0
    for second in range(20):
        queue.ask("demo", "cam-01", request(first=second % 2))
        sent += sum(len(due.block.data) for due in queue.due(float(second)))
    assert 10_000 < sent <= 2000 + 19 * 1000 + 1124


def test_a_flood_of_requests_is_bounded(repository: Path) -> None:
    """The oldest go; the same request is not queued twice."""
    queue = BlockQueue(repository)
    for first in range(100):
        queue.ask("demo", "cam-01", request(first=first))
        queue.ask("demo", "cam-01", request(first=first))
    assert len(queue) == MAX_WAITING_PER_DEVICE


@pytest.mark.parametrize(
    "path",
    [
        "../secret.json",
        "metadata/../../secret.json",
        "/etc/passwd",
        f"targets/models/{'a' * 64}/{'c' * 64}.model.pt",
        "targets/models/../../../secret.json",
        f"{NAME}\n",
        "",
    ],
)
def test_no_path_leads_out_or_to_weights(repository: Path, path: str) -> None:
    """Each gets one block with an error and no data."""
    queue = BlockQueue(repository)
    queue.ask("demo", "cam-01", request(path=path))
    (due,) = queue.due(0.0)
    assert (due.block.error, due.block.data) == ("not_found", b"")
