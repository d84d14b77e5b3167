"""What a group of messages is: whole frames, parts that make frames whole, questions. Before any frame is judged.

In: messages on the frame, chunk and offer topics. Out: `Unpacked`: frame messages (a set of parts that became whole is one), what is
refused, and the answers that a device gets besides. Parts are durable when it returns. It commits no frame and publishes nothing.
"""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bowerbird_server.broker.mqtt_session import Arrived
from bowerbird_server.catalogue import frames, thumbnails
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.ingest.arrival import Rejected
from bowerbird_server.ingest.chunks import ChunkStore, NotTheMessage, TransferKey
from bowerbird_server.ingest.receipts import Receipts
from bowerbird_wire.codec import MAX_FRAME_BYTES, decode
from bowerbird_wire.errors import LengthError, MessageError, TopicError, WireError
from bowerbird_wire.messages import Chunk, Offer, Refusal, Want
from bowerbird_wire.thumbnail import THUMBNAIL_BYTES, difference
from bowerbird_wire.topics import ChunkTopic, DeviceTopic, FrameTopic, OfferTopic, parse_topic
from bowerbird_wire.transfer import TRANSFER_ID_BYTES, check_chunk

log = logging.getLogger(__name__)

# The largest difference of two thumbnails at any place, of 255, at which the second frame adds nothing: the noise of two encodings.
NEAR_DUPLICATE = 4
_FAULTS_KEPT = 1000


@dataclass
class Unpacked:
    """A group, sorted.

    `frames` are messages as on the frame topic, to be judged; `finished` the transfers among them, to be dropped once they are
    answered; `known` the frames that were asked about and are here.
    """

    frames: list[Arrived] = field(default_factory=list)
    rejected: list[tuple[Arrived, Rejected]] = field(default_factory=list)
    finished: list[TransferKey] = field(default_factory=list)
    known: list[tuple[DeviceTopic, str]] = field(default_factory=list)
    refused: list[tuple[DeviceTopic, Refusal]] = field(default_factory=list)
    wanted: list[tuple[DeviceTopic, Want]] = field(default_factory=list)
    held: dict[str, tuple[DeviceTopic, float]] = field(default_factory=dict)  # devices over their limit -> for how long

    def tell(self, receipts: Receipts) -> None:
        """Add the answers to what the devices are told; the frames' own come before."""
        for asker, frame in self.known:
            receipts.committed(asker, frame)
        for asker, refusal in self.refused:
            receipts.refused(asker, refusal)
        for asker, want in self.wanted:
            if asker.device not in self.held:  # it would be told to send what is not taken
                receipts.wanted(asker, want)
        for asker, seconds in self.held.values():
            receipts.hold(asker, seconds)


class Incoming:
    """Sorts groups.

    Args:
        cat: the catalogue, of the calling thread.
        chunks: where parts are kept.
    """

    def __init__(self, cat: Catalogue, chunks: ChunkStore) -> None:
        self._cat = cat
        self._chunks = chunks
        self._faults: OrderedDict[TransferKey, None] = OrderedDict()  # transfers that were once whole and wrong

    def unpack(self, group: Sequence[Arrived], devices: Mapping[str, str]) -> Unpacked:
        """Sort a group.

        Args:
            devices: name -> site of the devices whose messages are taken.

        Raises:
            EnvironmentFault: no space for parts.
        """
        out = Unpacked()
        parts: list[tuple[Arrived, ChunkTopic, Chunk]] = []
        offers: list[tuple[Arrived, OfferTopic, Offer]] = []
        for arrived in group:
            topic = _topic(arrived)
            if not isinstance(topic, ChunkTopic | OfferTopic):
                out.frames.append(arrived)  # or no topic of ours: judging it says so
                continue
            name = b""
            try:
                if devices.get(topic.device) != topic.site:
                    raise _UnknownDevice(f"no device {topic.device!r} of site {topic.site!r}")
                if isinstance(topic, ChunkTopic):
                    chunk = decode(Chunk, arrived.payload)
                    name = chunk.transfer if len(chunk.transfer) == TRANSFER_ID_BYTES else b""
                    check_chunk(chunk)
                    parts.append((arrived, topic, chunk))
                else:
                    offers.append((arrived, topic, _checked_offer(decode(Offer, arrived.payload))))
            except WireError as error:
                out.rejected.append((arrived, _rejected(topic, error, name)))
        self._take_parts(parts, out)
        self._answer(offers, out)
        return out

    def _take_parts(self, parts: Sequence[tuple[Arrived, ChunkTopic, Chunk]], out: Unpacked) -> None:
        if not parts:
            return
        self._chunks.put([(topic.device, chunk) for _, topic, chunk in parts])
        latest = {
            TransferKey(topic.device, chunk.transfer, chunk.total_bytes): (arrived, topic) for arrived, topic, chunk in parts
        }
        for key, (arrived, topic) in latest.items():
            self._finish(key, arrived, topic, out)

    def _finish(self, key: TransferKey, arrived: Arrived, topic: DeviceTopic, out: Unpacked) -> bool:
        """Hand a transfer over if it is whole; whether it was, or was wrong."""
        try:
            message = self._chunks.whole(key)
        except NotTheMessage as error:
            log.warning("device %s: %s", key.device, error)
            if key in self._faults:
                fault = Rejected(FrameTopic(topic.site, topic.device), "", "digest_mismatch", str(error), key.transfer)
                out.rejected.append((arrived, fault))
            else:  # perhaps our own disk: once more from the beginning
                out.wanted.append((topic, Want(transfer=key.transfer)))
            self._faults[key] = None
            while len(self._faults) > _FAULTS_KEPT:
                self._faults.popitem(last=False)
            return True
        if message is None:
            return False
        out.frames.append(replace(arrived, topic=str(FrameTopic(topic.site, topic.device)), payload=message))
        out.finished.append(key)
        return True

    def _answer(self, offers: Sequence[tuple[Arrived, OfferTopic, Offer]], out: Unpacked) -> None:
        states = frames.states_of(self._cat, [offer.frame.hex() for _, _, offer in offers]) if offers else {}
        for arrived, topic, offer in offers:
            frame = offer.frame.hex()
            state = states.get(frame)
            if state == "deleted":
                out.refused.append((topic, Refusal(frame, "deleted", "deleted at the server")))
            elif state is not None:
                out.known.append((topic, frame))
            elif offer.transfer and self._finish_offered(arrived, topic, offer, out):
                continue
            elif offer.thumbnail and (like := self._alike(topic.site, offer.thumbnail)) is not None:
                out.refused.append((topic, Refusal(frame, "near_duplicate", f"looks like frame {like[:12]}")))
            else:
                if offer.thumbnail:
                    thumbnails.keep(self._cat, frame, topic.site, offer.thumbnail)
                have = b""
                if offer.transfer:
                    have = self._chunks.bitmap(TransferKey(topic.device, offer.transfer, offer.total_bytes))
                out.wanted.append((topic, Want(offer.frame, have=have)))

    def _finish_offered(self, arrived: Arrived, topic: OfferTopic, offer: Offer, out: Unpacked) -> bool:
        """All parts may be here and no chunk left to say so: a process died between the last part and the commit."""
        key = TransferKey(topic.device, offer.transfer, offer.total_bytes)
        return key in out.finished or self._finish(key, arrived, topic, out)

    def _alike(self, site: str, luma: bytes) -> str | None:
        """A frame of the site that looks the same."""
        known = thumbnails.of_site(self._cat, site)
        if not known:
            return None
        many = np.frombuffer(b"".join(one for _, one in known), np.uint8).reshape(len(known), THUMBNAIL_BYTES)
        distances = difference(luma, many)
        nearest = int(distances.argmin())
        return known[nearest][0] if distances[nearest] <= NEAR_DUPLICATE else None


class _UnknownDevice(WireError):
    code = "unknown_device"


def _topic(arrived: Arrived) -> DeviceTopic | None:
    try:
        return _parsed(arrived.topic)
    except TopicError:
        return None


_parsed = functools.lru_cache(maxsize=1024)(parse_topic)  # a device publishes all its frames on one topic


def _checked_offer(offer: Offer) -> Offer:
    """An offer whose parts have the sizes that they must have.

    Raises:
        LengthError, MessageError: it is none.
    """
    if len(offer.frame) != 32:
        raise LengthError(f"a frame id has 32 bytes, not {len(offer.frame)}")
    if offer.transfer and (len(offer.transfer) != TRANSFER_ID_BYTES or not 0 < offer.total_bytes <= MAX_FRAME_BYTES):
        raise MessageError(f"no transfer of {offer.total_bytes} bytes has a name of {len(offer.transfer)}")
    if offer.thumbnail and len(offer.thumbnail) != THUMBNAIL_BYTES:
        raise LengthError(f"a thumbnail has {THUMBNAIL_BYTES} bytes, not {len(offer.thumbnail)}")
    return offer


def _rejected(topic: DeviceTopic, error: WireError, transfer: bytes) -> Rejected:
    return Rejected(FrameTopic(topic.site, topic.device), "", error.code, str(error), transfer)
