"""Makes the corpus of the fuzzers: a few good inputs of every kind, and some that once were findings or near ones.

`python -m bowerbird_testing.fuzz_seeds` in `tests/` adds what is missing below `tests/fuzz/corpus`; files that are there stay. Keys and
signatures in it are made at random, so a second run in an empty folder gives other bytes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from bowerbird_models.manifest import canonical_json
from bowerbird_models.package import build_package
from bowerbird_server.identity.authority import Authority
from bowerbird_testing.claimant import make_request
from bowerbird_testing.fuzz import CORPUS
from bowerbird_testing.tiny_yolo import write_tiny_yolo
from bowerbird_testing.update_server import UpdateServer
from bowerbird_wire.bundle import Bundle
from bowerbird_wire.claim import SETUP, Answer, ClaimRequest, RenewRequest, claim_text, to_json
from bowerbird_wire.codec import encode
from bowerbird_wire.local_detections import DetectionsMessage, LocalDetection
from bowerbird_wire.local_detections import to_json as detections_json
from bowerbird_wire.messages import Report
from bowerbird_wire.report_proof import report_bytes

GOLDEN = Path(__file__).parents[1] / "unit" / "golden"
_CBOR = {
    "deep": b"\x81" * 900 + b"\xf6",
    "cyclic": b"\xa2avav\xd8\x1c\x81\xd8\x1d\x00",
    "mixed-keys": b"\xa3avaxax\xa2\x01\x01aa\x02",
    "huge-length": b"\xa1av\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",
    "tagged": b"\xa2av\x01ad\xd8\x24\x58\x03a:b",
}


def _pictures() -> dict[str, bytes]:
    picture = np.full((24, 32, 3), 90, np.uint8)
    found = {ending: cv2.imencode(f".{ending}", picture)[1].tobytes() for ending in ("jpg", "png", "webp")}
    bomb = found["png"][:16] + struct.pack(">II", 60_000, 60_000) + found["png"][24:]
    page = found["jpg"][:2] + b"\xff\xfe\x00\x1f<script>alert(1)</script>----" + found["jpg"][2:]
    turned = (
        b"\xff\xd8\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0" + found["jpg"][2:]
    )
    return {**found, "bomb": bomb, "polyglot": page, "turned": turned, "cut": found["jpg"][:40]}


def _models() -> dict[str, dict[str, bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        onnx = write_tiny_yolo(Path(folder) / "tiny.onnx")
        package = build_package(Path(folder) / "package", onnx, created_at="2026-01-01T00:00:00.000Z")
        server = UpdateServer()
        server.publish(package)
        manifest = (package.dir / "manifest.json").read_bytes()
        plain = json.loads(manifest)
        outside = canonical_json(
            {**plain, "files": {**plain["files"], "x": {"name": "../a.onnx", "sha256": "0" * 64, "bytes": 1}}}
        )
        tuf = {Path(path).name: content for path, content in server.files.items() if path.startswith("metadata/")}
        return {
            "manifest": {"good": manifest, "traversal": outside, "not-a-number": b'{"schema":NaN}', "deep": b"[" * 3000},
            "npz": {"good": (package.dir / "golden.npz").read_bytes()},
            "onnx": {"good": onnx.read_bytes(), "lies": b"\x3a\xff\xff\xff\xff\x0f", "nested": b"\x3a\x04\x0a\x02\x2a\x00"},
            "tuf-metadata": {**tuf, "deep": b'{"signed":' + b"[" * 3000},
        }


def _der(leaf: bytes) -> bytes:
    from cryptography import x509

    return x509.load_pem_x509_certificate(leaf).public_bytes(Encoding.DER)


def _of_version(leaf: bytes, version: int, other: int) -> bytes:
    """A certificate that says another version of X.509."""
    return _der(leaf).replace(bytes([0xA0, 3, 2, 1, version]), bytes([0xA0, 3, 2, 1, other]), 1)


def _request_of_version(pem: str, version: int) -> bytes:
    from cryptography import x509

    der = bytearray(x509.load_pem_x509_csr(pem.encode()).public_bytes(Encoding.DER))
    at = der.index(b"\x02\x01\x00")
    der[at + 2] = version
    return bytes(der)


def _identity() -> dict[str, dict[str, bytes]]:
    key = ec.generate_private_key(ec.SECP256R1())
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority.open(Path(folder) / "identity")
        from datetime import UTC, datetime

        leaf = authority.device_certificate("cam-01", key.public_key(), generation=3, now=datetime.now(tz=UTC))
        server = authority.chain_pem
        bundle = Bundle(
            "demo", "token", ["https://127.0.0.1:8443"], authority.root_pem.decode(), authority.pin, "2026-01-01", "gate"
        )
    from cryptography import x509

    request = make_request(key)
    text = bundle.to_text()
    return {
        "certificate-request": {
            "good": request.encode(),
            "der": x509.load_pem_x509_csr(request.encode()).public_bytes(Encoding.DER),
            "version": _request_of_version(request, 1),
            "reserved": make_request(key, name="svc-1").encode(),
            "authority": make_request(key, extensions=[x509.BasicConstraints(ca=True, path_length=None)]).encode(),
        },
        "certificate": {"leaf": leaf, "authority": server, "version": _of_version(leaf, 2, 1), "der": _der(leaf)},
        "claim": {
            "claim": to_json(ClaimRequest("token", request, "SN-1", "0.1.0")),
            "renewal": to_json(RenewRequest(leaf.decode(), request, "AAAA")),
            "answer": (GOLDEN / "answer.bin").read_bytes()[:0] or b'{"state":"active","generation":1,"retry_after_s":1.5}',
            "surrogate": b'{"token":"t","request":"r","serial":"\\ud800"}',
            "nan": b'{"state":"x","retry_after_s":NaN,"generation":%s}' % (b"9" * 5000),
        },
        "claim-text": {
            "good": claim_text("https://127.0.0.1:8443", "a" * 32, bundle.pin).encode(),
            "empty": b"bowerbird:###",
            "surrogate": b"bowerbird:https://\xed\xa0\x80#" + b"a" * 32 + b"#" + b"0" * 64,
        },
        "setup": {
            "good": to_json(_answer(json.loads(text))),
            "tables": to_json(_answer({**json.loads(text), "tables": {"broker": 5, "a b]\n[x": {"k\n": 1}}})),
            "nothing": b'{"state":"active","extra":{}}',
            "null": b'{"state":"active","extra":{"setup":{"claim_urls":null,"trusted_root":0,"tables":[],"cameras":{}}}}',
        },
        "signed-report": {"good": encode(_signed_report(key, leaf)), "bare": encode(Report("j", "trial", "")), **_CBOR},
        "broker-log": {
            "good": b"1795842614: New connection from 192.0.2.1:5 on port 8883.\n"
            b"1795842615: OpenSSL Error[0]: error:0A000418:SSL routines::tlsv1 alert unknown ca\n",
            "year": b"99999999999: OpenSSL Error[0]: error:0A000418:SSL routines::tlsv1 alert unknown ca",
        },
        "bundle": {
            "good": text.encode(),
            "number": json.dumps({**json.loads(text), "claim_urls": 5}).encode(),
            "tables": json.dumps({**json.loads(text), "tables": {"broker": 5, "a b]\n[x": {"k\n": 1}}}).encode(),
        },
    }


def _answer(bundle: dict[str, Any]) -> Answer:
    """What the claim listener says to a board that has no bundle."""
    told = {name: bundle[name] for name in ("claim_urls", "trusted_root", "cameras")}
    tables = bundle["tables"] or {"broker": {"host": "127.0.0.1", "port": 8883}}
    return Answer("active", device="dev-1", site="demo", generation=1, extra={SETUP: {**told, "tables": tables}})


def _signed_report(key: ec.EllipticCurvePrivateKey, leaf: bytes) -> Report:
    report = Report("job", "committed", "a" * 64, at_ms=1000, certificate=_der(leaf))
    return replace(report, signature=key.sign(report_bytes("cam-01", report), ec.ECDSA(hashes.SHA256())))


def _releases() -> dict[str, dict[str, bytes]]:
    """Of the agent, where this version has them."""
    if importlib.util.find_spec("bowerbird_models.agent_release") is None:
        return {}
    from bowerbird_models.agent_release import LOCK
    from bowerbird_server.agent_archive import pack
    from bowerbird_testing.agent_releases import make_release

    with tempfile.TemporaryDirectory() as folder:
        release = make_release(Path(folder) / "release")
        archive = pack(release, Path(folder)).read_bytes()
        manifest, lock = ((release.dir / name).read_bytes() for name in ("manifest.json", LOCK))
    return {
        "agent-manifest": {"good": manifest, "nan": b'{"schema":NaN}', "deep": b"[" * 3000},
        "agent-lock": {
            "good": lock,
            "path": b"x @ file:///etc/passwd\n",
            "option": b"--index-url http://x\n",
            "bytes": b"\xff\xfe",
        },
        "agent-archive": {
            "good": archive,
            "cut": archive[: len(archive) // 2],
            "outside": archive.replace(b"manifest.json", b"../nifest.json", 1),
        },
    }


def _labels() -> dict[str, dict[str, bytes]]:
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}
    coco = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "car"}], "annotations": [row]}
    huge = json.dumps({**coco, "annotations": [{**row, "bbox": [10**400, 0, 1, 1]}]}).encode()
    return {
        "yolo-labels": {
            "boxes": b"0 0.5 0.5 0.1 0.2\n1 .1 .1 .1 .1\n",
            "polygon": b"0 .1 .1 .2 .1 .2 .2\n",
            "text": b"a b\n",
            "nan": b"nan 0 0 0 0",
        },
        "data-yaml": {
            "good": b"names: {0: person, 1: car}\n",
            "list": b"nc: 2\nnames: [person, car]\n",
            "deep": b"[" * 500,
            "digits": b"names: [" + b"9" * 5000 + b"]",
            "date": b"names: [2001-99-99]",
            "aliases": b"a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\n",
        },
        "coco": {
            "good": json.dumps(coco).encode(),
            "deep": b"[" * 3000,
            "digits": b'{"images": [' + b"9" * 5000 + b"]}",
            "huge": huge,
            "nan": json.dumps({**coco, "annotations": [{**row, "bbox": [float("nan"), 0, 1, 1]}]}).encode(),
        },
    }


def seeds() -> Mapping[str, Mapping[str, bytes]]:
    """Inputs by target and name."""
    out: dict[str, dict[str, bytes]] = {}
    for name in (
        "receipt",
        "credit",
        "status",
        "desired",
        "job",
        "report",
        "health",
        "block-request",
        "block",
        "chunk",
        "offer",
    ):
        out[name] = {path.stem: path.read_bytes() for path in sorted(GOLDEN.glob(f"{name}*.bin"))} | _CBOR
    frame = (GOLDEN / "frame.bin").read_bytes()
    lies = frame[:5] + b"\xff\xff\xff\xff" + frame[9:]
    out["frame"] = {"good": frame, "lies": lies, "cut": frame[:-10]}
    out["arrival"] = out["frame"] | {
        f"picture-{name}": _frame_of(data) for name, data in _pictures().items() if len(data) < 2000
    }
    out["topics"] = {
        "frame": b"bowerbird/v1/demo/up/cam-01/frame",
        "credit": b"bowerbird/v1/demo/all/credit",
        "local": b"bowerbird/v1/demo/local/cam-01/gate/detections",
        "wildcard": b"bowerbird/v1/demo/up/+/frame",
        "share": b"$share/x/bowerbird/v1/demo/up/cam-01/frame",
        "nul": b"bowerbird/v1/demo/up/cam\0/frame",
    }
    detection = LocalDetection("car", 0.5, (1.0, 2.0, 3.0, 4.0))
    message = DetectionsMessage("gate", 1, 1_790_000_000_000, True, "ab" * 32, 640, 360, (detection,))
    out["local-detections"] = {"good": detections_json(message), "deep": b"[" * 3000}
    names = "{0: 'person', 1: 'car'}"
    out["onnx-metadata"] = {
        "good": "\x1f".join((names, "detect", "Detect", "32", "[640, 640]", "False", "{'nms': True}")).encode(),
        "pose": "\x1f".join((names, "pose", "Pose", "32", "640", "True", "", "[17, 3]")).encode(),
        "code": b"__import__('os').system('x')",
        "escape": b"{0: '\\N{BULLET}\\ud83d\\ude00'}",
    }
    out["image"] = _pictures()
    return {**out, "image-metadata": out["image"], **_models(), **_identity(), **_labels(), **_releases()}


def _frame_of(image: bytes) -> bytes:
    from dataclasses import replace

    from bowerbird_wire.codec import decode_frame, encode_frame, frame_id_of
    from bowerbird_wire.messages import FrameMessage

    header = decode_frame((GOLDEN / "frame.bin").read_bytes()).header
    header = replace(header, image_sha256=hashlib.sha256(image).hexdigest(), width=32, height=24)
    return encode_frame(FrameMessage(replace(header, frame_id=frame_id_of(header)), image))


def main() -> None:
    """Write what is missing."""
    for target, inputs in seeds().items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            if not (folder / name).exists():
                (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
