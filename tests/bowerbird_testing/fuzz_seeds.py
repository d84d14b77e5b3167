"""Makes the corpus of the fuzzers: a few good inputs of every kind, and some that once were findings or near ones.

`python -m bowerbird_testing.fuzz_seeds` in `tests/` adds what is missing below `tests/fuzz/corpus`; files that are there stay. Keys and
signatures in it are made at random, so a second run in an empty folder gives other bytes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cbor2
import cv2
import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from joserfc import jwt
from joserfc.jwk import OKPKey

from bowerbird_models.manifest import canonical_json
from bowerbird_models.package import build_package
from bowerbird_models.signing import sign_job
from bowerbird_server.catalogue.records import HEADERS_MAGIC, encode_fact, encode_headers
from bowerbird_server.identity.authority import Authority
from bowerbird_testing.claimant import make_request
from bowerbird_testing.fuzz import CORPUS
from bowerbird_testing.fuzz_device_targets import DEVICE, NOW_MS, director
from bowerbird_testing.tiny_yolo import write_tiny_yolo
from bowerbird_testing.update_server import UpdateServer
from bowerbird_wire.bundle import Bundle
from bowerbird_wire.calibration_table import CalibrationTable, ClassCalibration
from bowerbird_wire.calibration_table import encode as encode_table
from bowerbird_wire.claim import SETUP, Answer, ClaimRequest, RenewRequest, claim_text, to_json
from bowerbird_wire.codec import encode
from bowerbird_wire.fleet_sketch import DIMENSIONS, FleetSketch
from bowerbird_wire.fleet_sketch import encode as encode_sketch
from bowerbird_wire.local_detections import DetectionsMessage, LocalDetection
from bowerbird_wire.local_detections import to_json as detections_json
from bowerbird_wire.messages import Block, Boost, Campaign, Desired, EraseWish, FetchAnswer, Job, Report
from bowerbird_wire.report_proof import report_bytes

GOLDEN = Path(__file__).parents[1] / "unit" / "golden"
_CBOR = {
    "deep": b"\x81" * 900 + b"\xf6",
    "cyclic": b"\xa2avav\xd8\x1c\x81\xd8\x1d\x00",
    "mixed-keys": b"\xa3avaxax\xa2\x01\x01aa\x02",
    "huge-length": b"\xa1av\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",
    "tagged": b"\xa2av\x01ad\xd8\x24\x58\x03a:b",
    "bignum-key": cbor2.dumps({"v": 1, 2**20_000: 1}),
    "bignum-version": cbor2.dumps({"v": 2**20_000}),
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
    from bowerbird_server.releases.agent_archive import pack
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


def _device() -> dict[str, dict[str, bytes]]:
    wished = {
        "selection": {"epsilon": 0.3},
        "budget": {"bytes_per_day": 500_000, "quiet_hours": ["22:00-06:00", "12:00-13:00"]},
        "cameras": {"gate": {"fps": 5, "masks": [[[0.5, 0.5], [1.0, 0.5], [1.0, 1.0]]], "region": [0.0, 0.0, 1.0, 1.0]}},
        "health": {"interval_s": 60},
    }
    campaign = Campaign("c1", 10, 100_000, NOW_MS + 1000, "person", 0.2, 0.6, hours=("08:00-12:00",))
    greedy = {
        "budget": {"bytes_per_day": 2**70, "quiet_hours": []},
        "cameras": {"gate": {"masks": [[[0, 0], [1, 0], [float("nan"), 1]]]}},
    }
    wish = {path.stem: path.read_bytes() for path in sorted(GOLDEN.glob("desired*.bin"))}
    whole = Desired(3, 10, 2, wished, 4, (campaign,), Boost(NOW_MS + 5000), (EraseWish("w", "gate", 0, 5),))
    source = np.random.default_rng(1)
    centres = source.normal(size=(3, DIMENSIONS)).astype(np.float32)
    model = bytes.fromhex("ab" * 8)
    sketch = encode_sketch(FleetSketch(model, 32, centres, np.array([0.1, 0.2, 0.3], np.float32)))
    rising = tuple(number / 10 for number in range(10))
    table = encode_table(CalibrationTable(model, {0: ClassCalibration(rising, 1.1), 700: ClassCalibration(rising, 1.0)}))
    job = sign_job(
        Job("j1", "ab" * 32, 3), director(), device=DEVICE, expires_at=datetime.fromtimestamp(NOW_MS / 1000 + 60, UTC)
    )
    path = "metadata/timestamp.json"
    blocks = [
        Block(path, 0, 32_768, 40_000, b"x" * 32_768),
        Block(path, 1, 32_768, 40_000, b"x" * 7232),
        Block(path, 0, 32_768, -5),
    ]
    one, two, none = (len(packed).to_bytes(2, "big") + packed for packed in map(encode, blocks))
    words = {"code": "", "detail": "fine", "latency_ms": 12.5}
    return {
        "wish": {
            **wish,
            "whole": encode(whole),
            "greedy": encode(Desired(3, config=greedy, config_version=1)),
            "bignum": cbor2.dumps({"v": Desired.VERSION, "n": 1, "bo": {"u": 2**62, "f": 2**2000}}),
        },
        "fleet-sketch": {
            "good": sketch,
            "cut": sketch[:-9],
            **{name: _CBOR[name] for name in ("deep", "cyclic", "huge-length")},
        },
        "calibration-table": {
            "good": table,
            "cut": table[:-3],
            "falling": table[:-10] + table[:-11:-1],
            **{name: _CBOR[name] for name in ("deep", "cyclic", "huge-length")},
        },
        "signed-job": {"good": encode(job), "bare": (GOLDEN / "job.bin").read_bytes()},
        "transfer": {"whole": two, "negative": none + two, "huge": one[:9]},
        "selftest-output": {
            "good": json.dumps(words).encode(),
            "deep": b"[" * 3000,
            "huge": b'{"code": "", "detail": "", "latency_ms": 1' + b"0" * 400 + b"}",
        },
        "mot": {
            "good": b"1,1,10,20,30,40,1,-1,-1,-1\n2,1,12,20,30,40,0\n",
            "numbers": b"1,1,nan,20,30,inf,1\n1,1e400,1,1,1,1\n",
            "digits": b"9" * 5000 + b",1,1,1,1,1\n",
        },
    }


def _wheel(*members: tuple[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _site() -> dict[str, dict[str, bytes]]:
    frame = (GOLDEN / "frame.bin").read_bytes()
    header = frame[9 : 9 + int.from_bytes(frame[5:9], "big")]
    metadata = ("a-1.0.dist-info/METADATA", b"Name: a\nVersion: 1.0\n" + b"x" * 300)
    wheel = _wheel(metadata)
    inside = wheel.index(b"METADATA") + 12
    by = {"at": "2026-01-01", "actor": "a", "why": "w"}
    lines: list[object] = [
        {"kind": "erasure", "id": "e1", **by, "device": None, "camera": None, "from_ms": 0, "to_ms": 5, "frames": "[]"},
        {"kind": "frame", "frame": "0" * 64, "blob": "", **by, "erasure": "e1"},
        {"kind": "device", "id": "cam-01 x", "device": "cam-01", "state": "retired", "site": "demo", "at": "2026-01-01"},
    ]
    log = "".join(json.dumps(line) + "\n" for line in lines).encode()
    manifest = {
        "kind": "bowerbird backup 1",
        "made_at": "2026-01-01",
        "site": "demo",
        "with_keys": False,
        "files": {"catalogue.db": "0" * 64},
    }
    outside = {**manifest, "files": {"../../etc/cron.d/x": "0" * 64}}
    key = OKPKey.import_key(
        {
            "kty": "OKP",
            "crv": "Ed25519",
            "kid": "one",
            "x": "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w",
            "d": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE",
        }
    )
    claims = {
        "iss": "https://id.example",
        "aud": "bowerbird",
        "sub": "42",
        "nonce": "nonce-of-the-corpus",
        "iat": 1_799_999_990,
    }
    claims |= {"exp": 1_800_000_600, "email": "Ada@example.org", "email_verified": True}
    token = jwt.encode({"alg": "Ed25519", "kid": "one"}, claims, key, algorithms=["Ed25519"])
    keys = json.dumps({"keys": [key.as_dict(private=False)]}).encode()
    signed = json.dumps({"access_token": "a", "id_token": token}).encode()
    plain = {"v": 1, "boot": "b", "t": 1}
    counts = {"l": [2**2000] * 8, "s": [1] * 10, "r": 2**2000, "n": True, "c": -5}
    return {
        "record-headers": {
            "good": encode_headers("2026-01-01", [("demo", header, 5)]),
            "deep": HEADERS_MAGIC + b"\x81" * 900 + b"\xf6",
            "numbers": HEADERS_MAGIC + cbor2.dumps({"at": 1, "frames": [["a", header, 2**2000], ["a", header, float("inf")]]}),
            "bignum": HEADERS_MAGIC + cbor2.dumps({"at": 2**20_000, "frames": []}),
        },
        "record-fact": {"good": encode_fact("tombstone", {"frame": "0" * 64}), "deep": b'{"kind":' + b"[" * 3000},
        "deletions": {"good": log, "deep": b"[" * 3000 + b"\n" + log, "nameless": b'{"kind": "erasure", "id": "e1"}\n'},
        "backup-manifest": {
            "good": json.dumps(manifest).encode(),
            "outside": json.dumps(outside).encode(),
            "torn": json.dumps(manifest).encode()[:40],
            "deep": b"[" * 3000,
        },
        "wheel": {
            "good": wheel,
            "dot": _wheel((".", b""), metadata),
            "inflate": wheel[:inside] + b"\xff\xff\xff" + wheel[inside + 3 :],
            "outside": _wheel(("../x", b""), metadata),
        },
        "health-said": {
            "good": (GOLDEN / "health.bin").read_bytes(),
            "counts": cbor2.dumps({**plain, "tm": counts, "spent": {"f": 2**2000}, "uplink": {"total": [2**2000] * 4}}),
            "no-tables": cbor2.dumps({**plain, "window": "x", "dry_run": [], "tm": 1, "spent": None, "uplink": 5}),
        },
        "oidc-answer": {
            "good": signed + b"\n" + keys,
            "list": signed + b"\n[1, 2]",
            "keyless": signed + b'\n{"keys": [{"kty": 5}]}',
            "deep": signed + b"\n" + b"[" * 3000,
            "claims": json.dumps({"id_token": "e30.W10.x"}).encode() + b"\n" + keys,
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
        "reported",
        "tombstones",
        "fetch-answer",
    ):
        out[name] = {path.stem: path.read_bytes() for path in sorted(GOLDEN.glob(f"{name}*.bin"))} | _CBOR
    out["health"]["bignum"] = cbor2.dumps({"v": 1, "boot": "b", "t": 1, "fps": 2**2000})
    out["fetch-answer"]["good"] = encode(FetchAnswer(b"x" * 16, "sent", (b"y" * 32,)))
    frame = (GOLDEN / "frame.bin").read_bytes()
    lies = frame[:5] + b"\xff\xff\xff\xff" + frame[9:]
    out["frame"] = {"good": frame, "lies": lies, "cut": frame[:-10]}
    reference = (GOLDEN / "reference.bin").read_bytes()
    out["reference"] = {"good": reference, "cut": reference[:-10], "picture": reference + b"\xff\xd8\xff", "frame": frame}
    out["arrival"] = out["frame"] | {
        f"picture-{name}": _frame_of(data) for name, data in _pictures().items() if len(data) < 2000
    }
    out["topics"] = {
        "frame": b"bowerbird/v1/demo/up/cam-01/frame",
        "reference": b"bowerbird/v1/demo/up/cam-01/reference",
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
    return {
        **out,
        "image-metadata": out["image"],
        **_models(),
        **_identity(),
        **_labels(),
        **_releases(),
        **_device(),
        **_site(),
    }


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
