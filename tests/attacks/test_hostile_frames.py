"""Frames that mean no good, by the rules alone: names of others, parts that lie, pictures that are two things at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from bowerbird_server.broker.mqtt_session import Arrived
from bowerbird_server.catalogue import fleet, frames
from bowerbird_server.ingest.arrival import Accepted, Rejected, judge
from bowerbird_server.ingest.chunks import ChunkStore, NotTheMessage, TransferKey
from bowerbird_server.site import Site
from bowerbird_server.web.app import create_app
from bowerbird_testing.frame_messages import audit_message, frame_message, jpeg, reference_to
from bowerbird_testing.lived_in_site import arrived, ingest_of
from bowerbird_wire.codec import encode_frame, encode_reference
from bowerbird_wire.messages import Chunk
from bowerbird_wire.transfer import BLOCK_BYTES, transfer_id

TOPIC = "bowerbird/v1/demo/up/cam-01/frame"
DEVICES = {"cam-01": "demo", "cam-02": "demo"}
PAGE = b"<html><script>fetch('/api/v1/users')</script></html>"


def test_a_frame_in_another_devices_name_is_refused() -> None:
    """The topic is what the broker let through; the header is what anybody may write."""
    assert isinstance(judge(TOPIC, encode_frame(frame_message("cam-01")), DEVICES), Accepted)
    verdict = judge(TOPIC, encode_frame(frame_message("cam-02")), DEVICES)
    assert isinstance(verdict, Rejected)
    assert verdict.code == "bad_message"


@pytest.mark.parametrize(
    "place", [TOPIC.replace("demo", "other"), TOPIC.replace("cam-01", "ghost"), TOPIC + "/x", "$SYS/x", ""]
)
def test_a_frame_at_another_place_is_refused(place: str) -> None:
    """Another site, a device that is none, no topic at all."""
    assert isinstance(judge(place, encode_frame(frame_message("cam-01")), DEVICES), Rejected)


def test_parts_that_are_not_what_they_were_announced_as_make_nothing(tmp_path: Path) -> None:
    """A transfer is named by the digest of its message; other content under that name is given up."""
    message = encode_frame(frame_message("cam-01"))
    store, name = ChunkStore(tmp_path), transfer_id(message)
    other = bytes(len(message))
    for first in range(0, len(message), BLOCK_BYTES):
        store.put([("cam-01", Chunk(name, len(message), first // BLOCK_BYTES, other[first : first + BLOCK_BYTES]))])
    key = TransferKey("cam-01", name, len(message))
    with pytest.raises(NotTheMessage):
        store.whole(key)
    assert store.bitmap(key) == b""


def test_a_reference_in_another_devices_name_is_refused() -> None:
    twin = audit_message(1, device="cam-02")
    place = TOPIC.replace("/frame", "/reference")
    assert isinstance(judge(place, encode_reference(reference_to(audit_message(1), 2).header), DEVICES), Accepted)
    verdict = judge(place, encode_reference(reference_to(twin, 2).header), DEVICES)
    assert isinstance(verdict, Rejected)
    assert verdict.code == "bad_message"


@pytest.mark.parametrize("owner", [{"device": "cam-02"}, {"camera": "yard"}], ids=["device", "camera"])
def test_a_reference_shows_no_picture_of_another_device_or_camera(tmp_path: Path, owner: dict[str, str]) -> None:
    """A device that knows another's frame id would otherwise have that picture stand for one of its own."""
    theirs = audit_message(1, **owner)
    with Site.open(tmp_path / "data") as site:
        for device in DEVICES:
            fleet.add_device(site.catalogue, device, "site", "test")
        ingest = ingest_of(site)
        ingest.take([arrived(theirs)])
        ours = reference_to(theirs, 2, device="cam-01", camera="gate").header
        ingest.take([Arrived(1, "bowerbird/v1/site/up/cam-01/reference", encode_reference(ours), 2, 1)])
        assert frames.state_of(site.catalogue, ours.frame_id) is None


@pytest.mark.parametrize(
    "polyglot",
    [
        jpeg(1) + PAGE,
        jpeg(1)[:2] + b"\xff\xfe" + (len(PAGE) + 2).to_bytes(2, "big") + PAGE + jpeg(1)[2:],
        jpeg(1) + b"PK\x05\x06" + bytes(18),
    ],
    ids=["page-behind", "page-in-a-comment", "archive-behind"],
)
def test_a_picture_that_is_also_a_page_is_shown_as_a_picture(tmp_path: Path, polyglot: bytes) -> None:
    """It may be taken, since its pixels are good; a browser is told what it is and not to look for anything else in it."""
    message = frame_message("cam-01", image=polyglot)
    with Site.open(tmp_path / "data") as site:
        fleet.add_device(site.catalogue, "cam-01", "site", "test")
        ingest_of(site).take([arrived(message)])
        web = TestClient(create_app(site.folder, "token-of-sixteen-letters"), base_url="http://127.0.0.1")
        bearer = {"Authorization": "Bearer token-of-sixteen-letters"}
        answer = web.get(f"/api/v1/frames/{message.header.frame_id}/image", headers=bearer)
    assert answer.content == polyglot
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
