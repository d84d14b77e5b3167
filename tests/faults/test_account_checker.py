"""The checker itself: each fault that a row could leave behind, made by hand, must be noticed; else the rows would prove nothing."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from bowerbird_agent.link.link_events import LinkEvent, Published
from bowerbird_agent.spool.index import SpoolIndex
from bowerbird_agent.spool.spool import MIN_SPOOL_BYTES, FrameState, Spool
from bowerbird_server.ingest import ingest
from bowerbird_testing.broker import Mosquitto, mosquitto_path
from bowerbird_testing.fault_device import Promises, captured
from bowerbird_testing.fault_rows import ROWS, chosen, table
from bowerbird_testing.fault_site import Discrepancy, FaultSite
from bowerbird_wire.messages import Receipt

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with ten frames at the server and three in the spool, made once; tests spoil copies."""
    if mosquitto_path() is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    root = tmp_path_factory.mktemp("settled") / "site"
    with Mosquitto(root.parent / "broker") as broker:
        site = FaultSite(root, broker)
        site.fill(10)
        with site.serving(), site.device() as device:
            device.run(lambda: device.spool.ledger().committed == 10)
        site.fill(3, first=100)
    return root


@pytest.fixture
def site(settled: Path, tmp_path: Path) -> FaultSite:
    """A copy to spoil; its broker does not run."""
    shutil.copytree(settled, tmp_path / "site")
    return FaultSite(tmp_path / "site", Mosquitto(tmp_path / "broker"))


def edit(path: Path, *statements: tuple[str, str] | tuple[str]) -> None:
    """Statements with their one value, if they have one."""
    with closing(sqlite3.connect(path)) as db, db:
        for statement, *values in statements:
            db.execute(statement, values)


def test_a_site_without_a_fault_is_found_to_be_one(site: FaultSite) -> None:
    numbers = site.check(drained=False)
    assert {key: numbers[key] for key in ("spooled", "committed", "in_spool", "rows", "accepted")} == {
        "spooled": 13,
        "committed": 10,
        "in_spool": 3,
        "rows": 10,
        "accepted": 13,
    }


def a_frame_file_is_gone(site: FaultSite) -> None:
    next((site.spools["cam-01"] / "frames").glob("*.frame")).unlink()


def a_frame_is_forgotten(site: FaultSite) -> None:
    """As if row, file and count had never been: only the promise remains."""
    file = next((site.spools["cam-01"] / "frames").glob("*.frame"))
    edit(
        site.spools["cam-01"] / "index.db",
        ("DELETE FROM frame WHERE frame_id = ?", file.stem),
        ("UPDATE counter SET value = value - 1 WHERE name = 'spool.spooled'",),
    )
    file.unlink()


def an_eviction_is_not_counted(site: FaultSite) -> None:
    file = next((site.spools["cam-01"] / "frames").glob("*.frame"))
    edit(site.spools["cam-01"] / "index.db", ("DELETE FROM frame WHERE frame_id = ?", file.stem))
    file.unlink()


def a_frame_is_dropped_for_no_good_reason(site: FaultSite) -> None:
    spool = Spool(site.spools["cam-01"], max_bytes=200_000_000)
    spool.drop([spool.frames(FrameState.NEW)[0].frame_id], "file_missing")
    spool.close()


def a_receipt_comes_without_a_commit(site: FaultSite) -> None:
    spool = Spool(site.spools["cam-01"], max_bytes=200_000_000)
    spool.receipt(Receipt(committed=(spool.frames(FrameState.NEW)[0].frame_id,)))
    spool.close()


def a_frame_has_two_rows(site: FaultSite) -> None:
    edit(
        site.folder.catalogue,
        ("CREATE TEMP TABLE copy AS SELECT * FROM frame LIMIT 1",),
        ("UPDATE copy SET id = 'twice'",),
        ("INSERT INTO frame SELECT * FROM copy",),
    )


def a_row_is_gone(site: FaultSite) -> None:
    edit(
        site.folder.catalogue,
        ("DELETE FROM detection WHERE frame = (SELECT min(id) FROM frame)",),
        ("DELETE FROM frame WHERE id = (SELECT min(id) FROM frame)",),
    )


def a_blob_is_gone(site: FaultSite) -> None:
    with closing(sqlite3.connect(site.folder.catalogue)) as db:
        blob = db.execute("SELECT blob FROM frame").fetchone()[0]
    (site.folder.blobs / blob[:2] / blob).unlink()


def a_blob_has_a_wrong_bit(site: FaultSite) -> None:
    blob = next(site.folder.blobs.glob("[0-9a-f][0-9a-f]/*"))
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)


def the_header_records_are_gone(site: FaultSite) -> None:
    for blob in site.folder.blobs.glob("[0-9a-f][0-9a-f]/*"):
        if blob.read_bytes().startswith(b"BWRH"):
            blob.unlink()


def a_waiting_frame_has_a_wrong_bit(site: FaultSite) -> None:
    file = next((site.spools["cam-01"] / "frames").glob("*.frame"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


SPOILT: dict[Callable[[FaultSite], None], str] = {
    a_frame_file_is_gone: "a row in the index and no file",
    a_frame_is_forgotten: "1 accepted frames are lost",
    an_eviction_is_not_counted: "13 frames were spooled and 12 are accounted for",
    a_frame_is_dropped_for_no_good_reason: "1 frames were dropped as file_missing, not 0",
    a_receipt_comes_without_a_commit: "was deleted as committed and the server does not have it",
    a_frame_has_two_rows: "has 2 rows",
    a_row_is_gone: "was deleted as committed and the server does not have it",
    a_blob_is_gone: "has None bytes",
    a_blob_has_a_wrong_bit: "does not have its digest",
    the_header_records_are_gone: "no header record",
    a_waiting_frame_has_a_wrong_bit: "an image that is not the one of its header",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_the_checker_notices_when(spoil: Callable[[FaultSite], None], site: FaultSite) -> None:
    spoil(site)
    with pytest.raises(Discrepancy, match=SPOILT[spoil]):
        site.check(drained=False)


def test_the_checker_notices_frames_that_wait_where_all_should_be_through(site: FaultSite) -> None:
    with pytest.raises(Discrepancy, match="3 frames are still in the spool"):
        site.check(drained=True)


def test_the_checker_notices_a_receipt_that_was_sent_before_the_commit(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weakened ingest: it answers, and the rows never come."""
    monkeypatch.setattr(ingest.frames, "add_frames", lambda *_a, **_o: ingest.frames.Added((), (), ()))
    site = FaultSite(tmp_path / "site", broker)
    site.fill(3)
    with site.serving(), site.device() as device:
        device.run(lambda: device.spool.ledger().committed == 3)
    with pytest.raises(Discrepancy, match="the server does not have it"):
        site.check()


def test_the_checker_notices_a_device_that_trusts_the_brokers_acknowledgement(tmp_path: Path, broker: Mosquitto) -> None:
    """A weakened agent: it deletes what the broker has taken. The broker dies with it."""
    site = FaultSite(tmp_path / "site", broker)
    with site.serving():
        pass  # the session stands, and the broker keeps frames for it
    site.fill(5)
    with site.device() as device:

        def trusting(event: LinkEvent, now_s: float) -> None:
            if isinstance(event, Published) and (frame_id := device.runner._tokens.get(event.token)):
                device.spool.receipt(Receipt(committed=(frame_id,)))
            handle(event, now_s)

        handle = device.runner.handle
        device.runner.handle = trusting  # type: ignore[assignment, method-assign]
        device.run(lambda: device.spool.ledger().committed == 5)
    broker.restart()
    with site.serving(), pytest.raises(Discrepancy, match="the server does not have it"):
        site.check()


def test_the_checker_notices_a_spool_that_does_not_count_what_it_evicts(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weakened spool: evictions leave no trace but the missing frame."""
    count = SpoolIndex.count

    def forgetful(self: SpoolIndex, deltas: Mapping[str, int]) -> None:
        count(self, {name: delta for name, delta in deltas.items() if not name.startswith("spool.evicted")})

    monkeypatch.setattr(SpoolIndex, "count", forgetful)
    site = FaultSite(tmp_path / "site", broker)
    spool, promises = Spool(site.spools["cam-01"], max_bytes=MIN_SPOOL_BYTES), Promises(site.promises())
    for number in range(20):
        promises.put(spool, *captured(number, size=100_000, score=number / 20))
    promises.close()
    spool.close()
    with pytest.raises(Discrepancy, match="frames were spooled and"):
        site.check(drained=False)


def test_every_row_has_one_test_of_its_name_and_every_such_test_a_row() -> None:
    found: list[str] = []
    for path in Path(__file__).parent.glob("test_rows_*.py"):
        text = path.read_text()
        named = re.findall(r'\brow\("(\w+)"\)', text)
        for name in named:
            assert path.name == ROWS[name].file, f"{name} is in {path.name}"
            assert f"def test_{name}(" in text, f"{name} has no test of its name"
        found += named
    assert sorted(found) == sorted(ROWS)


def test_three_seeds_in_a_row_choose_every_row_and_each_about_a_third() -> None:
    assert chosen(7) | chosen(8) | chosen(9) == set(ROWS)
    assert all(abs(len(chosen(seed)) - len(ROWS) / 3) < 1 for seed in range(3))
    assert chosen(7) == chosen(10)


def test_the_document_shows_the_table_as_it_is() -> None:
    assert table() in (ROOT / "docs" / "faults.md").read_text("utf-8")
