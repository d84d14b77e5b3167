"""A server that only takes frames and sends receipts, over a real broker: what the upload needs of the ingest and nothing else.

In: the broker's address. Out: receipts; `committed` counts how often each frame arrived, whole or in parts. It can be told to stay
silent or to refuse. It verifies every message as the real ingest does and keeps what it has committed in memory.
"""

from __future__ import annotations

import ssl
from collections import Counter
from types import TracebackType

import paho.mqtt.client as mqtt

from bowerbird_testing.broker_client import BrokerClient
from bowerbird_testing.parts import Parts
from bowerbird_wire.codec import decode, decode_frame, encode
from bowerbird_wire.messages import Credit, Offer, Receipt, Refusal
from bowerbird_wire.topics import ChunkTopic, CreditTopic, DeviceTopic, FrameTopic, OfferTopic, ReceiptTopic, parse_topic


class ReceiptServer:
    """Runs from `with` to its end, reconnecting when the broker dies.

    Args:
        silent: takes frames and sends no receipts, as when the receipts are lost.
        refuse: frame ids that it refuses with code `bad_image`.
        refuse_offers: frame ids that it refuses with code `near_duplicate` when it is asked.
    """

    def __init__(
        self,
        host: str,
        port: int,
        site: str = "demo",
        username: str = "",
        password: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.site = site
        self.committed: Counter[str] = Counter()
        self.faults: list[str] = []
        self.silent = False
        self.refuse: set[str] = set()
        self.refuse_offers: set[str] = set()
        self.parts = Parts()
        self._client = BrokerClient(
            "receipt-server",
            host,
            port,
            [kind.filter(site) for kind in (FrameTopic, ChunkTopic, OfferTopic)],
            self._on_message,
            username=username,
            password=password,
            tls=tls,
        )

    def __enter__(self) -> ReceiptServer:
        self._client.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.stop()

    def credit(self, bytes_in_flight: int) -> None:
        """Say how much may be on its way."""
        self._client.publish(str(CreditTopic(self.site)), encode(Credit(bytes_in_flight)), retain=True)

    def _on_message(self, client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        try:
            topic = parse_topic(message.topic)
            receipt = self._receipt(topic, message.payload)
        except ValueError as error:
            self.faults.append(str(error))
            return
        if receipt is not None and not self.silent:
            client.publish(str(ReceiptTopic(self.site, topic.device)), encode(receipt), qos=1)

    def _receipt(self, topic: DeviceTopic, payload: bytes) -> Receipt | None:
        if isinstance(topic, OfferTopic):
            frame_id = decode(Offer, payload).frame.hex()
            if frame_id in self.refuse_offers:
                return Receipt(refused=(Refusal(frame_id, "near_duplicate"),))
            return self.parts.answer(payload, committed=frame_id in self.committed)
        whole = self.parts.take(payload) if isinstance(topic, ChunkTopic) else payload
        if whole is None:
            return None
        frame_id = decode_frame(whole).header.frame_id
        if frame_id in self.refuse:
            return Receipt(refused=(Refusal(frame_id, "bad_image"),))
        self.committed[frame_id] += 1
        return Receipt(committed=(frame_id,))
