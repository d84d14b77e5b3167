"""A server that only takes frames and sends receipts, over a real broker: what the upload needs of the ingest and nothing else.

In: the broker's address. Out: receipts; `committed` counts how often each frame arrived. It can be told to stay silent or to refuse. It
verifies every message as the real ingest does and keeps what it has committed in memory.
"""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from bowerbird_wire.codec import decode_frame, encode
from bowerbird_wire.messages import Receipt, Refusal
from bowerbird_wire.topics import FrameTopic, ReceiptTopic


class ReceiptServer:
    """Runs from `with` to its end, reconnecting when the broker dies.

    Args:
        silent: takes frames and sends no receipts, as when the receipts are lost.
        refuse: frame ids that it refuses with code `bad_image`.
    """

    def __init__(self, host: str, port: int, site: str = "demo", username: str = "", password: str = "") -> None:
        self.site = site
        self.committed: Counter[str] = Counter()
        self.faults: list[str] = []
        self.silent = False
        self.refuse: set[str] = set()
        self.ready = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="receipt-server", protocol=mqtt.MQTTv5)
        if username:
            self._client.username_pw_set(username, password)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(FrameTopic.filter(site), qos=1)
        self._client.on_subscribe = lambda *_: self.ready.set()
        self._client.on_message = self._on_message
        self._address = (host, port)

    def __enter__(self) -> ReceiptServer:
        self._client.connect(*self._address)
        self._client.loop_start()
        if not self.ready.wait(15):
            raise TimeoutError("the broker did not answer the receipt server")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        try:
            device = FrameTopic.parse(message.topic).device
            frame_id = decode_frame(message.payload).header.frame_id
        except ValueError as error:
            self.faults.append(str(error))
            return
        if frame_id in self.refuse:
            receipt = Receipt(refused=(Refusal(frame_id, "bad_image"),))
        else:
            self.committed[frame_id] += 1
            receipt = Receipt(committed=(frame_id,))
        if not self.silent:
            client.publish(str(ReceiptTopic(self.site, device)), encode(receipt), qos=1)
