"""Spool, uploader and link against a real broker and a server that sends receipts: every frame arrives, whatever dies on the way."""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from bowerbird_agent.budget.budget import ByteLimits
from bowerbird_agent.link.link_events import BrokerSettings, LinkDown, LinkEvent, LinkUp, MessageIn
from bowerbird_agent.link.mqtt_link import MqttLink
from bowerbird_agent.spool.spool import Spool
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.frames import make_frame
from bowerbird_testing.receipt_server import ReceiptServer
from bowerbird_testing.uploading_device import UploadingDevice, uploading
from bowerbird_wire.codec import decode, encode
from bowerbird_wire.messages import Desired, Status
from bowerbird_wire.topics import CreditTopic, DesiredTopic, HealthTopic, StatusTopic

pytestmark = pytest.mark.broker


@contextmanager
def device(folder: Path, broker: Mosquitto, limits: ByteLimits | None = None, **settings: object) -> Iterator[UploadingDevice]:
    with uploading(folder, broker.host, broker.port, limits, **settings) as made:
        yield made


def put(spool: Spool, count: int, *, image_bytes: int = 3000, first: int = 0) -> set[str]:
    frames = [make_frame(first + i, image_bytes=image_bytes) for i in range(count)]
    for frame in frames:
        assert spool.put(*frame, state="new")
    return {header.frame_id for header, _ in frames}


def test_every_frame_is_committed_and_then_deleted(tmp_path: Path, broker: Mosquitto) -> None:
    with ReceiptServer(broker.host, broker.port) as server, device(tmp_path / "spool", broker) as agent:
        ids = put(agent.spool, 60)
        agent.run(lambda: agent.spool.ledger().committed == 60)
        assert set(server.committed) == ids
        assert not server.faults
        assert list((tmp_path / "spool" / "frames").iterdir()) == []
        assert agent.spool.ledger().balanced


def test_frames_survive_a_broker_killed_in_mid_flow(tmp_path: Path, broker: Mosquitto) -> None:
    with ReceiptServer(broker.host, broker.port) as server, device(tmp_path / "spool", broker) as agent:
        ids = put(agent.spool, 120, image_bytes=20_000)
        for part in (20, 60):
            agent.run(lambda part=part: agent.spool.ledger().committed >= part)  # type: ignore[misc]  # bound per round
            broker.kill()
            agent.run(lambda: not agent.link.connected)
            broker.start()
        agent.run(lambda: agent.spool.ledger().committed == 120, timeout_s=60)
        assert set(server.committed) == ids
        assert agent.spool.ledger().balanced
        assert sum(isinstance(event, LinkUp) for event in agent.seen) >= 3


def test_lost_receipts_are_asked_for_and_nothing_is_sent_twice(tmp_path: Path, broker: Mosquitto) -> None:
    with ReceiptServer(broker.host, broker.port) as server, device(tmp_path / "spool", broker) as agent:
        server.silent = True
        ids = put(agent.spool, 5)
        agent.run(lambda: set(server.committed) == ids)
        assert agent.spool.ledger().committed == 0, "nothing may be deleted without a receipt"
        server.silent = False
        agent.run(lambda: agent.spool.ledger().committed == 5)
        assert set(server.committed.values()) == {1}
        assert {offer.frame.hex() for offer in server.parts.offers} == ids


def test_a_refused_frame_leaves_the_spool_counted(tmp_path: Path, broker: Mosquitto) -> None:
    with ReceiptServer(broker.host, broker.port) as server, device(tmp_path / "spool", broker) as agent:
        header, image = make_frame(0)
        server.refuse.add(header.frame_id)
        agent.spool.put(header, image, "new")
        agent.run(lambda: agent.spool.ledger().settled == 1)
        assert agent.spool.ledger().refused == {"bad_image": 1}
        assert not agent.spool.put(header, image, "new")


def test_a_frame_above_the_brokers_packet_limit_arrives_in_chunks(
    tmp_path: Path, start_broker: Callable[..., Mosquitto]
) -> None:
    broker = start_broker(settings=["max_packet_size 5000"])
    with ReceiptServer(broker.host, broker.port) as server, device(tmp_path / "spool", broker) as agent:
        ids = put(agent.spool, 2, image_bytes=9000, first=100) | put(agent.spool, 10, image_bytes=2000)
        agent.run(lambda: agent.spool.ledger().committed == 12)
        assert set(server.committed) == ids
        assert server.parts.chunks == 6
        assert not server.faults


def test_the_broker_lowers_its_packet_limit_at_run_time(tmp_path: Path, start_broker: Callable[..., Mosquitto]) -> None:
    broker = start_broker(settings=["max_packet_size 300000"])
    with ReceiptServer(broker.host, broker.port) as server, device(tmp_path / "spool", broker) as agent:
        put(agent.spool, 3, image_bytes=100_000)
        agent.run(lambda: agent.spool.ledger().committed == 3)
        broker.settings = ["max_packet_size 20000"]
        ids = put(agent.spool, 3, image_bytes=100_000, first=10)
        broker.restart()
        agent.run(lambda: agent.spool.ledger().committed == 6, timeout_s=60)
        assert ids <= set(server.committed)


def test_a_packet_limit_below_a_block_does_not_block_the_small_frames(
    tmp_path: Path, start_broker: Callable[..., Mosquitto], caplog: pytest.LogCaptureFixture
) -> None:
    broker = start_broker(settings=["max_packet_size 3000"])
    with ReceiptServer(broker.host, broker.port) as server, device(tmp_path / "spool", broker) as agent:
        large = put(agent.spool, 1, image_bytes=9000, first=100)
        small = put(agent.spool, 10, image_bytes=2000)
        agent.run(lambda: agent.spool.ledger().committed == 10)
        assert set(server.committed) == small
        assert agent.spool.frame(next(iter(large))) is not None, "it stays in the spool"
        assert "at most 3000 bytes; raise its limit" in caplog.text


def test_a_frame_that_the_server_refuses_when_asked_is_never_sent(tmp_path: Path, broker: Mosquitto) -> None:
    """Before anything is known of the link it counts as thin, so a large frame is offered first."""
    with ReceiptServer(broker.host, broker.port) as server, device(tmp_path / "spool", broker) as agent:
        header, image = make_frame(0, image_bytes=100_000)
        server.refuse_offers.add(header.frame_id)
        agent.spool.put(header, image, "new")
        agent.run(lambda: agent.spool.ledger().settled == 1)
        assert agent.spool.ledger().refused == {"near_duplicate": 1}
        assert agent.link.bytes_sent < 2000
        assert server.parts.chunks == 0


def test_without_credit_no_frame_is_sent_and_control_goes_on(tmp_path: Path, broker: Mosquitto) -> None:
    with ReceiptServer(broker.host, broker.port) as server, device(tmp_path / "spool", broker) as agent:
        server.credit(0)
        agent.run(lambda: any(isinstance(e, MessageIn) and isinstance(e.topic, CreditTopic) for e in agent.seen))
        put(agent.spool, 5)
        idle_until = time.monotonic() + 0.5
        agent.run(lambda: time.monotonic() > idle_until)
        assert agent.link.publish(HealthTopic("demo", "cam-01"), b"x") != 0
        assert not server.committed
        server.credit(500_000)
        agent.run(lambda: agent.spool.ledger().committed == 5)


def test_a_receive_maximum_of_four_is_kept_and_all_frames_pass(tmp_path: Path, start_broker: Callable[..., Mosquitto]) -> None:
    broker = start_broker(settings=["max_inflight_messages 4"])
    with ReceiptServer(broker.host, broker.port), device(tmp_path / "spool", broker) as agent:
        put(agent.spool, 40)
        agent.run(lambda: agent.spool.ledger().committed == 40)
        up = next(event for event in agent.seen if isinstance(event, LinkUp))
        assert up.receive_maximum == 4
        assert not any(isinstance(event, LinkDown) for event in agent.seen), "the broker ends connections that exceed it"


def test_a_wrong_password_is_one_warning_that_says_what_to_do(
    tmp_path: Path, start_broker: Callable[..., Mosquitto], caplog: pytest.LogCaptureFixture
) -> None:
    broker = start_broker(users={"cam-01": "right"})
    caplog.set_level(logging.DEBUG, "bowerbird_agent.link.mqtt_link")
    with device(tmp_path / "spool", broker, username="cam-01", password="wrong", max_retry_s=0.1) as agent:
        agent.run(lambda: sum(isinstance(event, LinkDown) for event in agent.seen) >= 3)
        downs = [event for event in agent.seen if isinstance(event, LinkDown)]
        assert all(event.refused for event in downs)
        assert not agent.link.connected
        records = [record for record in caplog.records if "refuses device cam-01" in record.message]
        assert [record.levelno for record in records[:3]] == [logging.WARNING, logging.DEBUG, logging.DEBUG]
        assert "broker.password_file" in records[0].message
        assert "wrong" not in caplog.text, "no secret in the log"


def test_an_absent_broker_is_told_apart_from_a_refusal(tmp_path: Path, broker: Mosquitto) -> None:
    broker.stop()
    with device(tmp_path / "spool", broker) as agent:
        agent.run(lambda: any(isinstance(event, LinkDown) for event in agent.seen))
        down = next(event for event in agent.seen if isinstance(event, LinkDown))
        assert not down.refused
        assert "refused" in down.reason.lower()  # the operating system's word for a closed port
        assert agent.link.publish(HealthTopic("demo", "cam-01"), b"x") == 0


def test_status_is_online_while_connected_and_offline_after_a_kill_or_a_good_bye(tmp_path: Path, broker: Mosquitto) -> None:
    watcher_events: queue.Queue[bytes] = queue.Queue()
    watcher = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    watcher.on_message = lambda _c, _u, message: watcher_events.put(message.payload)
    watcher.connect(broker.host, broker.port)
    watcher.subscribe(StatusTopic.filter("demo"), qos=1)
    watcher.loop_start()
    try:
        with device(tmp_path / "good-bye", broker) as agent:
            agent.run(lambda: agent.link.connected)
            status = decode(Status, watcher_events.get(timeout=10))
            assert (status.state, status.model_digest) == ("online", "m1")
        assert decode(Status, watcher_events.get(timeout=10)).state == "offline"
        with device(tmp_path / "lost", broker) as agent:
            agent.run(lambda: agent.link.connected)
            assert decode(Status, watcher_events.get(timeout=10)).state == "online"
            connection = agent.link._connection
            assert connection is not None
            connection.client.socket().shutdown(socket.SHUT_RDWR)  # dies without a DISCONNECT
            assert decode(Status, watcher_events.get(timeout=10)).state == "offline"
            agent.run(lambda: agent.link.connected)
            assert decode(Status, watcher_events.get(timeout=10)).state == "online"
    finally:
        watcher.loop_stop()


def test_messages_for_the_device_arrive_with_their_topic(tmp_path: Path, broker: Mosquitto) -> None:
    sender = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    sender.connect(broker.host, broker.port)
    sender.loop_start()
    topic = DesiredTopic("demo", "cam-01")
    sender.publish(str(topic), encode(Desired(3, 40)), qos=1, retain=True).wait_for_publish(10)
    try:
        with device(tmp_path / "spool", broker) as agent:
            agent.run(lambda: any(isinstance(event, MessageIn) for event in agent.seen))
            message = next(event for event in agent.seen if isinstance(event, MessageIn))
            assert message.topic == topic
            assert decode(Desired, message.payload) == Desired(3, 40)
    finally:
        sender.loop_stop()


def test_bytes_are_counted_as_the_broker_counts_them(tmp_path: Path, start_broker: Callable[..., Mosquitto]) -> None:
    """The broker's own `$SYS` count of bytes received is the truth; ours may not be below it."""
    broker = start_broker(settings=["sys_interval 1"])
    received: queue.Queue[int] = queue.Queue()
    with ReceiptServer(broker.host, broker.port) as server, device(tmp_path / "spool", broker) as agent:
        server.silent = True  # its receipts would be counted by the broker as well
        ids = put(agent.spool, 12, image_bytes=5000)
        # Frames can be here before the network thread has counted its last write.
        agent.run(lambda: set(server.committed) == ids and agent.link.traffic.sent >= 12 * 5000)
        sent = agent.link.traffic.sent
        watcher = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        watcher.on_message = lambda _c, _u, message: received.put(int(message.payload))
        watcher.connect(broker.host, broker.port)
        watcher.subscribe("$SYS/broker/bytes/received")
        watcher.loop_start()
        try:
            received.get(timeout=10)
            count = received.get(timeout=10)
        finally:
            watcher.loop_stop()
    # The broker also counts the other two clients: some hundred bytes, and four for each PUBACK.
    assert abs(count - agent.link.traffic.sent) < 1500, (count, sent)


def test_the_byte_budget_holds_on_the_wire(tmp_path: Path, broker: Mosquitto) -> None:
    limits = ByteLimits(bytes_per_day=30_000)
    with ReceiptServer(broker.host, broker.port) as server, device(tmp_path / "spool", broker, limits) as agent:
        put(agent.spool, 30, image_bytes=3000)
        agent.run(lambda: agent.spool.ledger().committed >= 7)
        idle_until = time.monotonic() + 1.0
        agent.run(lambda: time.monotonic() > idle_until)
        assert agent.link.bytes_sent <= 30_000
        assert 7 <= len(server.committed) < 10
    with device(tmp_path / "spool", broker, limits) as again:
        idle_until = time.monotonic() + 1.0
        again.run(lambda: time.monotonic() > idle_until)
        assert len(server.committed) < 10, "a restart gives no new budget"


def test_a_connection_on_which_no_byte_moves_is_given_up_and_made_again(tmp_path: Path, broker: Mosquitto) -> None:
    """The broker is frozen, not dead: its sockets stay open and silent."""
    with device(tmp_path / "spool", broker, keepalive_s=60, stall_s=1.0, connect_timeout_s=1.0) as agent:
        agent.run(lambda: agent.link.connected)
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            agent.run(lambda: any(isinstance(e, LinkDown) and "no byte" in e.reason for e in agent.seen))
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        agent.run(lambda: agent.link.connected)


def test_an_exception_in_the_status_callback_does_not_keep_the_device_off_the_air(tmp_path: Path, broker: Mosquitto) -> None:
    def broken() -> Status:
        raise KeyError("model")

    events: queue.Queue[LinkEvent] = queue.Queue()
    link = MqttLink(
        BrokerSettings(broker.host, broker.port), "demo", "cam-01", events, online=broken, offline=Status("offline")
    )
    link.start()
    try:
        assert isinstance(events.get(timeout=10), LinkUp)
    finally:
        link.stop()
