"""paho's client with the two things that cost ingest most done at once: reading messages, and acknowledging them.

In: a connection's bytes. Out: each message to `on_publish_packet`, everything else to paho, which also writes, keeps the connection
alive and closes it. It remembers why TLS ended: with TLS 1.3 a refusal comes after the handshake, and paho tells nobody of it.

paho has no public way in between, so `_sock`, `_packet_handle`, `_packet_queue` and a few more are used as they are in 2.1 and 2.2;
`tests/integration/test_mqtt_client.py` fails when they are no longer what they were.
"""

from __future__ import annotations

import ssl
import struct
import time
from collections.abc import Callable, Sequence

import paho.mqtt.client as mqtt
from paho.mqtt.enums import LogLevel, MessageType, MQTTErrorCode
from paho.mqtt.properties import MalformedPacket as PahoMalformedPacket  # type: ignore[attr-defined] # where 2.1 and 2.2 have it

from bowerbird_server.broker.config import MAX_PACKET_BYTES
from bowerbird_server.broker.mqtt_packets import MalformedPacket, PacketStream, Publish, publish_of
from bowerbird_wire.tls_faults import refusal

_READS_A_TURN = 64  # a megabyte of TLS records; then paho has its turn, to write and to keep the connection alive
_PUBLISH, _QOS_2 = int(MessageType.PUBLISH), 0x04
_PUBACK = struct.Struct(">BBH")  # MQTT 5.0, section 3.4: without a reason code it succeeded


class TlsClient(mqtt.Client):
    """One connection, never a second one with the same object.

    `on_publish_packet` gets each message at QoS 0 or 1, in the network thread; without it paho's own `on_message` does.
    """

    tls_fault: ssl.SSLError | None = None
    on_publish_packet: Callable[[Publish], None] | None = None
    _stream: PacketStream | None = None

    def acknowledge(self, mids: Sequence[int]) -> bool:
        """Acknowledge messages at QoS 1 with one write; False without a connection."""
        if self._sock is None:
            return False
        command = int(MessageType.PUBACK)
        packets = b"".join([_PUBACK.pack(command, 2, mid) for mid in mids])
        return self._packet_queue(MessageType.PUBACK, packets, 0, 1) == MQTTErrorCode.MQTT_ERR_SUCCESS

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:  # noqa: ARG002 - paho's own call leaves it out
        """Take all that has come, as far as it is whole packets; paho takes one packet a turn and five reads for it."""
        stream = self._stream = self._stream or PacketStream(MAX_PACKET_BYTES)
        with self._msgtime_mutex:
            self._last_bytes_received = time.monotonic()
        try:
            for _ in range(_READS_A_TURN):
                if self._sock is None:
                    return MQTTErrorCode.MQTT_ERR_NO_CONN
                count: int = self._sock.recv_into(stream.space())  # type: ignore[attr-defined] # paho's type leaves it out
                if count == 0:
                    return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)
                if not stream.received(count):
                    continue
                for first, body in stream.packets():
                    code = self._take(first, body)
                    if code > 0:
                        return self._loop_rc_handle(code)
                    if self._sock is None:
                        return MQTTErrorCode.MQTT_ERR_NO_CONN
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except ssl.SSLWantWriteError:
            self._call_socket_register_write()
        except MalformedPacket as error:
            self._easy_log(LogLevel.MQTT_LOG_ERR, "%s", error)
            return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_PROTOCOL)
        except OSError as error:
            self.tls_fault = self.tls_fault or refusal(error, self._sock)
            self._easy_log(LogLevel.MQTT_LOG_ERR, "failed to receive on socket: %s", error)
            return self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _take(self, first: int, body: memoryview) -> MQTTErrorCode:
        quick = self.on_publish_packet
        if quick is not None and first & 0xF0 == _PUBLISH and first & 0x06 != _QOS_2:
            quick(publish_of(first, body))
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        self._in_packet = {
            "command": first,
            "have_remaining": 1,
            "remaining_count": [],
            "remaining_mult": 1,
            "remaining_length": len(body),
            "packet": bytearray(body),
            "to_process": 0,
            "pos": 0,
        }
        try:
            return self._packet_handle()
        except PahoMalformedPacket as error:
            raise MalformedPacket(str(error)) from error

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            return super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError as error:
            self.tls_fault = self.tls_fault or refusal(error, self._sock)
            raise
