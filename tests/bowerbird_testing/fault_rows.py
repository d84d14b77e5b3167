"""The table of faults that the suite injects: each row a test, the account of all frames checked after each by another program.

In: nothing. Out: `ROWS`, `row(name)` to mark the test of a row, `chosen` for the seeded third that `make test` runs, and the table of
docs/faults.md (a test holds the two together, and every row against the test that carries its name).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Row:
    """One fault.

    Args:
        does: what is done, for docs/faults.md.
        file: of the test, below tests/faults; the test's name is `test_` and the row's name.
        needs: what else than mosquitto it needs, empty for nothing.
    """

    does: str
    file: str
    needs: str = ""


_BROKER, _INGEST, _LINK = "test_rows_broker.py", "test_rows_ingest.py", "test_rows_link.py"
_DEVICE, _POWER, _FLEET, _SOAK = "test_rows_device.py", "test_rows_power.py", "test_rows_fleet.py", "test_rows_soak.py"
_CC = "a C compiler"
_ROOT = "root, for a small tmpfs"

ROWS: Mapping[str, Row] = {
    "broker_killed_every_few_seconds": Row("kill -9 of the broker, again and again, while a device sends", _BROKER),
    "broker_killed_between_puback_and_delivery": Row(
        "the broker acknowledges frames, delivers none of them and dies; its memory was their only place there", _BROKER
    ),
    "broker_down_for_a_scaled_day": Row(
        "no broker while six times what the spool holds is captured: the worst frames are evicted and counted", _BROKER
    ),
    "broker_lowers_its_packet_limit_at_run_time": Row("300 kB allowed, then 6 kB, with frames of 30 kB waiting", _BROKER),
    "broker_enforces_receive_maximum_4_with_1000_spooled": Row(
        "the broker ends connections that have five packets out", _BROKER
    ),
    "broker_queue_overflows": Row("ingest is away and the broker drops what it has acknowledged, silently", _BROKER),
    "ingest_killed_after_receive": Row("kill -9 of ingest with a group in memory, three times", _INGEST),
    "ingest_killed_after_blob": Row("kill -9 with the images durable and no rows, three times", _INGEST),
    "ingest_killed_after_row": Row("kill -9 inside the transaction, three times", _INGEST),
    "ingest_killed_after_commit": Row("kill -9 with rows and no receipts, three times", _INGEST),
    "ingest_killed_after_receipt": Row(
        "kill -9 with receipts sent and nothing acknowledged to the broker, three times", _INGEST
    ),
    "shared_subscription_worker_dies_with_32_unacknowledged": Row(
        "one of two ingest processes dies holding a full group and is started again", _INGEST
    ),
    "every_message_arrives_three_times": Row("each PUBLISH of the device is repeated twice on the wire", _LINK),
    "messages_arrive_out_of_order": Row("PUBLISH packets overtake each other on the way to the broker", _LINK),
    "silent_partition_short": Row("nothing moves for a second; the connection outlives it", _LINK),
    "silent_partition_long": Row("nothing moves for longer than the watchdog waits; a new connection goes on", _LINK),
    "link_flaps_with_resets_at_128_kbit": Row("RST every 3 s on average at 16 kB/s and 200 ms round trip", _LINK),
    "link_of_9600_bit_and_1500_ms": Row(
        "frames go up at 1.2 kB/s, over TLS; nobody hangs up and a command arrives within 20 s", _LINK
    ),
    "uplink_passes_and_downlink_is_black_holed": Row(
        "the server gets and commits, the device hears nothing; later it asks instead of sending again", _LINK
    ),
    "callback_exception_inside_paho": Row("callbacks raise, and paho's network thread dies of an exception", _LINK),
    "agent_killed_at_random": Row("kill -9 of a device that captures and sends, at random moments", _DEVICE),
    "agent_power_cut_at_each_spool_step": Row(
        "the power goes at each system call that changes the spool; what was not fsynced is gone, names and contents",
        _POWER,
        _CC,
    ),
    "agent_power_cut_in_mid_upload": Row("the same at random moments of a device that captures and sends", _POWER, _CC),
    "spool_index_corrupted": Row("pages of the index are overwritten: it is built again from the files", _DEVICE),
    "spool_file_truncated": Row("frame files are cut short: dropped and counted, the others arrive", _DEVICE),
    "spool_file_bit_flipped": Row("one bit of frame files turns: dropped and counted, the others arrive", _DEVICE),
    "device_disk_full": Row("another program takes the last byte of the spool's disk while frames are sent", _DEVICE, _ROOT),
    "device_disk_turns_read_only": Row("every write of a running device fails with EROFS for a while", _POWER, _CC),
    "server_disk_full": Row("another program takes the last byte of the server's disk, then gives it back", _INGEST, _ROOT),
    "poison_bad_magic": Row("messages that are no frame, between good ones", _INGEST),
    "poison_lying_lengths": Row("headers that are longer than their message, between good ones", _INGEST),
    "poison_digest_mismatch": Row("frames whose image is not the one of their header, between good ones", _INGEST),
    "poison_image_bombs": Row("small files that declare gigapixels, in the device's own spool: refused and counted", _INGEST),
    "poison_unknown_version": Row("frames of a format of tomorrow, between good ones", _INGEST),
    "mixed_header_versions": Row(
        "headers with keys of tomorrow and without the optional ones; both kinds are kept whole", _INGEST
    ),
    "clock_at_1970": Row("the device's clock has never been set", _POWER, _CC),
    "clock_ten_years_ahead": Row("the device's clock is ten years fast", _POWER, _CC),
    "clock_steps_in_mid_flight": Row("the clock jumps by years, both ways, while frames are captured and sent", _POWER, _CC),
    "two_devices_with_one_identity": Row("two devices with one name end each other's connection all the time", _FLEET),
    "access_rules_deny_the_device": Row(
        "the broker takes the connection and denies the frames, then its rules are mended", _FLEET
    ),
    "certificate_expired": Row("the device's certificate is past its end, then the broker's", _FLEET),
    "five_hundred_agents_reconnect_at_once": Row("the broker dies under 500 connected devices", _FLEET),
    "slow_consumer": Row("ingest needs a third of a second for a group while a device has all it can send", _INGEST),
    "seeded_soak_mixes_them": Row("random kills of agents, ingest, broker and delivery over a link that resets", _SOAK),
}


def row(name: str) -> pytest.MarkDecorator:
    """The mark of a row's test.

    Raises:
        KeyError: there is no such row.
    """
    if name not in ROWS:
        raise KeyError(f"no row {name} in the table of faults")
    return pytest.mark.fault_row(name)


def chosen(seed: int) -> frozenset[str]:
    """A third of the rows; three seeds in a row choose them all."""
    return frozenset(name for number, name in enumerate(sorted(ROWS)) if number % 3 == seed % 3)


def table() -> str:
    """The rows as docs/faults.md shows them."""
    lines = ["| Row | What is done | Test | Needs |", "| --- | --- | --- | --- |"]
    lines += [f"| `{name}` | {one.does} | `tests/faults/{one.file}` | {one.needs or '-'} |" for name, one in ROWS.items()]
    return "\n".join(lines)
