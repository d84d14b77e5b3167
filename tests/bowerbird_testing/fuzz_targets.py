"""Every parser of foreign bytes as a function of bytes, for whatever feeds it: a corpus, Hypothesis, atheris.

In: bytes. Out: nothing, or one of the errors that the parser promises; anything else is a finding. A target also asserts what must hold
of a value that was accepted, so that it finds more than crashes. Nothing here opens a socket; those that read files get them below
a temporary folder.
"""

from __future__ import annotations

import base64
import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bowerbird_models.errors import ModelError
from bowerbird_wire.errors import WireError

Parse = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """`refusals` are what the parser promises to raise."""

    parse: Parse
    refusals: tuple[type[Exception], ...]

    def try_bytes(self, data: bytes) -> bool:
        """Whether the parser accepted; whatever it did not promise goes through."""
        try:
            self.parse(data)
        except self.refusals:
            return False
        return True


def targets() -> Mapping[str, Target]:
    """By name, which is that of its folder in the corpus."""
    from bowerbird_testing.fuzz_device_targets import device_targets
    from bowerbird_testing.fuzz_site_targets import site_targets

    return {**_wire(), **_identity(), **_models(), **_server(), **device_targets(), **site_targets()}


# -- what crosses the broker


def _message(name: str) -> Parse:
    from bowerbird_wire import messages
    from bowerbird_wire.codec import decode, encode

    kind = getattr(messages, name)

    def parse(data: bytes) -> object:
        message = decode(kind, data)
        return decode(kind, encode(message))  # what is kept can be sent on

    return parse


def _wire() -> dict[str, Target]:
    from bowerbird_wire.codec import decode, decode_frame, encode, encode_frame, encode_reference, verify_reference
    from bowerbird_wire.messages import Chunk, Offer
    from bowerbird_wire.transfer import Receiving, block_count, check_chunk, from_bitmap

    def frame(data: bytes) -> object:
        message = decode_frame(data)
        assert decode_frame(encode_frame(message)).image == message.image
        return message

    def reference(data: bytes) -> object:
        header = verify_reference(data)
        assert verify_reference(encode_reference(header)) == header
        return header

    def chunk(data: bytes) -> object:
        found = decode(Chunk, data)
        check_chunk(found)
        receiving = Receiving(found.total_bytes)
        receiving.add(found.first_block, block_count(len(found.data)))
        assert from_bitmap(receiving.bitmap(), block_count(found.total_bytes))
        return found

    def offer(data: bytes) -> object:
        from bowerbird_server.ingest.incoming import _checked_offer

        return encode(_checked_offer(decode(Offer, data)))

    def topics(data: bytes) -> object:
        from bowerbird_wire.topics import CreditTopic, parse_topic

        text = data.decode(errors="replace")
        try:
            topic: object = parse_topic(text)
        except WireError:
            topic = CreditTopic.parse(text)
        assert str(topic) == text
        assert not set(text) & set("+#$\0\n")
        return topic

    def local_detections(data: bytes) -> object:
        from bowerbird_wire.local_detections import from_json

        return from_json(data)

    def histograms(data: bytes) -> object:
        from bowerbird_wire.histograms import BINS, Histograms, unpack, unpack_classes

        hours = decode(Histograms, data).hours
        for hour in hours:
            for name, bins in BINS.items():
                assert len(unpack(getattr(hour, name), bins)) == bins
            assert all(count > 0 for count in unpack_classes(hour.classes).values())
        return hours

    names = (
        "Receipt",
        "Credit",
        "Status",
        "Health",
        "Desired",
        "Job",
        "Report",
        "BlockRequest",
        "Block",
        "Reported",
        "Tombstones",
        "FetchAnswer",
    )
    plain = {"".join(f"-{c.lower()}" if c.isupper() else c for c in name).strip("-"): _message(name) for name in names}
    own = {
        "frame": frame,
        "reference": reference,
        "chunk": chunk,
        "offer": offer,
        "topics": topics,
        "local-detections": local_detections,
        "histograms": histograms,
    }
    return {name: Target(parse, (WireError,)) for name, parse in {**plain, **own}.items()}


# -- who somebody is


def _identity() -> dict[str, Target]:
    from cryptography import x509

    from bowerbird_agent.errors import AgentError
    from bowerbird_server.identity.authority import common_name, generation_of, is_reserved
    from bowerbird_server.identity.requests import RequestRefused, read_request
    from bowerbird_wire.bundle import Bundle, agent_toml
    from bowerbird_wire.claim import Answer, ClaimRequest, RenewRequest, claim_text, from_json, read_claim_text
    from bowerbird_wire.codec import decode
    from bowerbird_wire.messages import Report

    def claim(data: bytes) -> object:
        found: list[object] = []
        for kind in (ClaimRequest, RenewRequest, Answer):
            try:
                message: Any = from_json(kind, data)  # type: ignore[type-var]
            except WireError:
                continue
            for text in vars(message).values():
                if isinstance(text, str):
                    text.encode()  # what goes into a database and a log
            found.append(message)
        if not found:
            raise WireError("no message at all")
        return found

    def request(data: bytes) -> object:
        return read_request(_as_pem(data, "CERTIFICATE REQUEST")).public_key.curve.name

    def certificate(data: bytes) -> object:
        leaf = x509.load_pem_x509_certificate(_as_pem(data, "CERTIFICATE").encode())
        return is_reserved(common_name(leaf)), generation_of(leaf)

    def bundle(data: bytes) -> object:
        import sys

        if sys.version_info < (3, 11):
            return None
        import tomllib

        found = Bundle.from_text(data.decode(errors="replace"))
        return tomllib.loads(agent_toml(found, "dev-1"))["device"]["id"]

    def text(data: bytes) -> object:
        found = read_claim_text(data.decode(errors="replace"))
        assert read_claim_text(claim_text(*found)) == found
        return found

    def setup(data: bytes) -> object:
        from bowerbird_agent.identity.enrolment import completed

        begun = Bundle("", "token", ["https://127.0.0.1:1"], "", "", "")
        return agent_toml(completed(begun, from_json(Answer, data)), "dev-1")

    def signed_report(data: bytes) -> object:
        from bowerbird_server.identity import report_check

        report = decode(Report, data)
        leaf = report_check._leaf(report.certificate)
        return leaf is not None and report_check._is_signed(leaf, "cam-01", report)

    def broker_log(data: bytes) -> object:
        from datetime import UTC, datetime

        from bowerbird_server.broker.refusals import refusals

        return refusals(data.decode(errors="replace").splitlines(), now=datetime.fromtimestamp(1_795_842_700, tz=UTC))

    return {
        "claim-text": Target(text, (WireError,)),
        "setup": Target(setup, (WireError, AgentError)),
        "signed-report": Target(signed_report, (WireError,)),
        "broker-log": Target(broker_log, ()),
        "claim": Target(claim, (WireError,)),
        "certificate-request": Target(request, (RequestRefused,)),
        "certificate": Target(certificate, (ValueError, x509.InvalidVersion)),
        "bundle": Target(bundle, (WireError,)),
    }


def _as_pem(data: bytes, kind: str) -> str:
    """PEM as it is; anything else is taken for DER, so that a fuzzer need not learn base64."""
    if data.startswith(b"-----"):
        return data.decode(errors="replace")
    body = base64.encodebytes(data).decode()
    return f"-----BEGIN {kind}-----\n{body}-----END {kind}-----\n"


# -- what a model or a release is


def _models() -> dict[str, Target]:
    from securesystemslib.exceptions import StorageError
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

    from bowerbird_models.golden import check_npz, decode_golden
    from bowerbird_models.manifest import ModelManifest, PackageError
    from bowerbird_models.metadata import parse_metadata
    from bowerbird_models.onnx_file import check_self_contained, metadata_entries, output_names
    from bowerbird_models.signing import SigningError, director_keys, releases, signed_at_ms

    def manifest(data: bytes) -> object:
        found = ModelManifest.from_bytes(data)
        assert ModelManifest.from_bytes(found.to_bytes()) == found
        return found

    def npz(data: bytes) -> object:
        check_npz(data)
        return list(decode_golden(data))

    def onnx(data: bytes) -> object:
        check_self_contained(data)
        return metadata_entries(data), output_names(data)

    def onnx_metadata(data: bytes) -> object:
        keys = ("names", "task", "head", "stride", "imgsz", "end2end", "args", "kpt_shape")
        values = data.decode(errors="replace").split("\x1f")
        return parse_metadata(dict(zip(keys, values, strict=False)))

    def tuf(data: bytes) -> object:
        found: Any = Metadata.from_bytes(data).signed
        if isinstance(found, Targets):
            return director_keys(found), releases(found)
        if isinstance(found, Timestamp):
            return signed_at_ms(found)
        assert isinstance(found, Root | Snapshot)
        return found

    out = {
        "manifest": Target(manifest, (PackageError,)),
        "npz": Target(npz, (ValueError, ModelError)),
        "onnx": Target(onnx, (ModelError,)),
        "onnx-metadata": Target(onnx_metadata, (ModelError,)),
        "tuf-metadata": Target(tuf, (RepositoryError, StorageError, SigningError)),
    }
    if importlib.util.find_spec("bowerbird_models.agent_release") is not None:
        from bowerbird_models.agent_release import AgentManifest, read_lock

        out["agent-manifest"] = Target(AgentManifest.from_bytes, (PackageError,))
        out["agent-lock"] = Target(read_lock, (PackageError,))
    return out


# -- pictures and labels


class _OneFrame:
    """Stands for the catalogue's search: every name is this frame."""

    def find(self, stem: str, image: Path | None) -> dict[str, Any] | str:
        return {"id": stem, "width": 640, "height": 480} if stem else "no such frame"


def _server() -> dict[str, Target]:
    from bowerbird_server.errors import BadInput
    from bowerbird_server.ingest.image_header import NotAnImage, image_size, is_upright
    from bowerbird_server.labelling import coco_files
    from bowerbird_server.labelling.file_faults import BadLabelFiles
    from bowerbird_server.labelling.yolo_files import read_boxes, read_names

    scratch = Path(tempfile.mkdtemp(prefix="bowerbird-fuzz-"))

    def file_of(data: bytes, name: str) -> Path:
        path = scratch / name
        path.write_bytes(data)
        return path

    def image(data: bytes) -> object:
        size = image_size(data)
        assert size.width * size.height <= 2**26
        return is_upright(data)

    def labels(data: bytes) -> object:
        faults: list[Any] = []
        boxes = read_boxes(file_of(data, "labels.txt"), {0: "person", 1: "car"}, 640, 480, faults)
        for box in boxes:
            left, top, right, bottom = box.box_xyxy
            assert 0 <= left <= right <= 640
            assert 0 <= top <= bottom <= 480
        return [str(fault) for fault in faults]

    def data_yaml(data: bytes) -> object:
        faults: list[Any] = []
        names = read_names(file_of(data, "data.yaml"), faults)
        assert (names is None) == bool(faults)
        return [str(fault) for fault in faults]

    def coco(data: bytes) -> object:
        file = file_of(data, "annotations.json")
        faults: list[Any] = []
        content = coco_files._read_json(file)
        categories = coco_files._categories(file, content, faults)
        images = coco_files._images(file, content, _OneFrame(), faults)  # type: ignore[arg-type]
        boxes: dict[Any, list[Any]] = {key: [] for key in images}
        for annotation in coco_files._list(file, content, "annotations", faults):
            coco_files._take(annotation, categories, images, boxes)
        return [str(fault) for fault in faults]

    def arrival(data: bytes) -> object:
        from bowerbird_server.ingest.arrival import judge

        return [judge(f"bowerbird/v1/demo/up/cam-01/{leaf}", data, {"cam-01": "demo"}) for leaf in ("frame", "reference")]

    out = {
        "image": Target(image, (NotAnImage,)),
        "yolo-labels": Target(labels, ()),
        "data-yaml": Target(data_yaml, ()),
        "coco": Target(coco, (BadLabelFiles,)),
        "arrival": Target(arrival, ()),
    }
    if importlib.util.find_spec("bowerbird_server.releases.agent_archive") is not None:
        from bowerbird_server.releases.agent_archive import unpack

        def archive(data: bytes) -> object:
            with tempfile.TemporaryDirectory(dir=scratch) as place:
                return unpack(file_of(data, "release.tar"), Path(place) / "out")

        out["agent-archive"] = Target(archive, (BadInput,))
    if importlib.util.find_spec("bowerbird_server.ingest.image_metadata") is not None:
        from bowerbird_server.ingest.image_metadata import without_metadata

        def clean(data: bytes) -> object:
            try:
                size = image_size(data)
            except NotAnImage:
                return None
            return without_metadata(data, size.image_format)

        out["image-metadata"] = Target(clean, (NotAnImage, BadInput))
    return out
