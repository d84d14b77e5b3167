"""A package is content with a digest: what builds, what verifies, and what is refused."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from securesystemslib.signer import CryptoSigner

from bowerbird_models.detections import Detections
from bowerbird_models.golden import INT8_TOLERANCE, Tolerance, check_npz, decode_golden, differences
from bowerbird_models.manifest import ModelManifest, PackageError, canonical_json, class_list_fault
from bowerbird_models.package import ONNX_FP16, ONNX_INT8_ORT, PackageOnDisk, build_package, load_package
from bowerbird_models.signing import SigningError, sign_job, utc, verify_job
from bowerbird_testing.tiny_yolo import TinyBox, write_tiny_yolo
from bowerbird_wire.messages import Job

CREATED = "2026-01-01T00:00:00.000Z"


@pytest.fixture
def package(tmp_path: Path) -> PackageOnDisk:
    return build_package(tmp_path / "package", write_tiny_yolo(tmp_path / "model.onnx"), created_at=CREATED)


def test_the_same_arguments_give_the_same_digest_and_another_model_another(package: PackageOnDisk, tmp_path: Path) -> None:
    again = build_package(tmp_path / "again", tmp_path / "model.onnx", created_at=CREATED)
    other = build_package(tmp_path / "other", write_tiny_yolo(tmp_path / "b.onnx", salt="b"), created_at=CREATED)
    assert again.digest == package.digest != other.digest


def test_a_built_package_verifies_and_holds_what_its_model_saw(package: PackageOnDisk) -> None:
    assert load_package(package.dir, digest=package.digest) == package
    (case,) = decode_golden((package.dir / "golden.npz").read_bytes())
    assert len(case.expected) == 1


def test_golden_pictures_are_scaled_down_and_kept_exactly(tmp_path: Path) -> None:
    pictures = [np.full((720, 1280, 3), value, np.uint8) for value in (0, 200)]
    built = build_package(
        tmp_path / "p",
        write_tiny_yolo(tmp_path / "m.onnx"),
        golden_images=pictures,
        created_at=CREATED,
        class_names=("person", "car"),
    )
    cases = list(decode_golden((built.dir / "golden.npz").read_bytes()))
    assert [case.image_bgr.shape for case in cases] == [(180, 320, 3)] * 2
    assert [int(case.image_bgr.mean()) for case in cases] == [0, 200]


def test_class_names_that_are_not_the_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="names its classes"):
        build_package(tmp_path / "p", write_tiny_yolo(tmp_path / "m.onnx"), class_names=("cat",), created_at=CREATED)


def test_any_changed_byte_is_found(package: PackageOnDisk) -> None:
    for name in ("model.onnx", "classes.json", "golden.npz", "manifest.json"):
        path = package.dir / name
        original = path.read_bytes()
        for changed in (original + b" ", original[:-1], bytes([original[0] ^ 1]) + original[1:], b""):
            path.write_bytes(changed)
            with pytest.raises(PackageError):
                load_package(package.dir, digest=package.digest)
        path.write_bytes(original)
    load_package(package.dir, digest=package.digest)


def test_a_file_behind_a_symbolic_link_or_missing_is_refused(package: PackageOnDisk, tmp_path: Path) -> None:
    onnx = package.dir / "model.onnx"
    onnx.rename(tmp_path / "elsewhere.onnx")
    with pytest.raises(PackageError, match="incomplete"):
        load_package(package.dir)
    onnx.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(PackageError):
        load_package(package.dir)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"files": {}},
        {"class_names": []},
        {"class_names": [1]},
        {"input_size_hw": [0, 64]},
        {"input_size_hw": [64]},
        {"parent": "abc"},
        {"tolerance": {"onnx-fp32": {"score": -1, "box_px": 1}}},
        {"probation": {"good_frames": True, "deadline_s": 1, "server_deadline_s": 1}},
        {"notes": None},
        {"accuracy": {"onnx-fp32": 1.5}},
        {"accuracy": [0.5]},
    ],
    ids=str,
)
def test_a_manifest_with_a_wrong_value_is_refused(package: PackageOnDisk, change: dict[str, Any]) -> None:
    plain = json.loads(package.manifest.to_bytes())
    with pytest.raises(PackageError) as refused:
        ModelManifest.from_bytes(canonical_json({**plain, **change}))
    assert refused.value.code == "bad_manifest"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 1}', b"[" * 100_000, b"\xff"], ids=range(6))
def test_bytes_that_are_no_manifest_are_refused(content: bytes) -> None:
    with pytest.raises(PackageError):
        ModelManifest.from_bytes(content)


def test_a_package_says_which_version_of_the_class_list_it_was_made_for(package: PackageOnDisk, tmp_path: Path) -> None:
    names = package.manifest.class_names
    listed = build_package(tmp_path / "listed", tmp_path / "model.onnx", created_at=CREATED, class_list=len(names))
    assert load_package(listed.dir).manifest.class_list == len(names)
    assert b"class_list" not in package.manifest.to_bytes(), "what says nothing has the bytes it always had"
    plain = json.loads(listed.manifest.to_bytes())
    for wrong in (len(names) + 1, -1, "1", True):
        with pytest.raises(PackageError):
            ModelManifest.from_bytes(canonical_json({**plain, "class_list": wrong}))


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (("cat",), ("cat", "fox"), ""),
        (("cat", "fox"), ("cat", "fox"), ""),
        (("cat", "fox"), ("cat",), ""),
        (("cat", "fox"), ("cat", "owl", "elk"), "the model lost fox"),
        (("cat", "fox"), ("fox", "cat"), "class 0 was cat and would be fox"),
        (("cat", "fox"), ("fox", "cat", "owl"), "class 0 was cat and would be fox"),
        (("cat", "fox"), ("fox",), "class 0 was cat and would be fox"),
    ],
    ids=["appended", "the-same", "older", "lost", "re-ordered", "re-ordered-and-appended", "of-another-list"],
)
def test_only_what_the_class_list_declares_may_change(
    package: PackageOnDisk, before: tuple[str, ...], after: tuple[str, ...], says: str
) -> None:
    old, new = (replace(package.manifest, class_names=names, class_list=len(names)) for names in (before, after))
    fault = class_list_fault(old, new)
    assert says in fault
    assert bool(fault) == bool(says)
    assert class_list_fault(replace(old, class_list=0), new) == "", "a model from elsewhere may be followed by any other"


def test_keys_of_a_later_release_are_passed_over(package: PackageOnDisk) -> None:
    plain = json.loads(package.manifest.to_bytes())
    assert ModelManifest.from_bytes(canonical_json({**plain, "from_the_future": [1]})) == package.manifest


def test_a_package_in_transport_form_has_a_reference_and_its_variants(tmp_path: Path) -> None:
    onnx = write_tiny_yolo(tmp_path / "m.onnx")
    quantised = write_tiny_yolo(tmp_path / "q.onnx", boxes=(TinyBox((18.0, 16.0, 50.0, 48.0), 0, 0.8),))
    built = build_package(
        tmp_path / "p",
        onnx,
        created_at=CREATED,
        role=ONNX_FP16,
        variants={ONNX_INT8_ORT: quantised},
        accuracy={ONNX_FP16: 0.5, ONNX_INT8_ORT: 0.499},
    )
    loaded = load_package(built.dir, digest=built.digest)
    assert loaded == built
    assert loaded.manifest.reference_role == ONNX_FP16
    assert loaded.onnx == loaded.variants()[ONNX_FP16]
    assert loaded.variants()[ONNX_INT8_ORT].read_bytes() == quantised.read_bytes()
    assert loaded.manifest.accuracy == {ONNX_FP16: 0.5, ONNX_INT8_ORT: 0.499}
    assert loaded.manifest.tolerance == {ONNX_FP16: Tolerance(), ONNX_INT8_ORT: INT8_TOLERANCE}


def test_each_file_is_held_to_golden_outputs_of_its_own_and_a_role_without_to_the_float_files(tmp_path: Path) -> None:
    quantised = write_tiny_yolo(tmp_path / "q.onnx", boxes=(TinyBox((18.0, 16.0, 50.0, 48.0), 0, 0.8),))
    built = build_package(
        tmp_path / "p",
        write_tiny_yolo(tmp_path / "m.onnx"),
        created_at=CREATED,
        variants={ONNX_INT8_ORT: quantised},
    )
    golden = (built.dir / "golden.npz").read_bytes()
    (plain,), (ours,), (fallback,) = (list(decode_golden(golden, role)) for role in ("", ONNX_INT8_ORT, "onnx-of-later"))
    assert plain.expected.boxes_xyxy[0, 0] == pytest.approx(16, abs=0.1)
    assert ours.expected.boxes_xyxy[0, 0] == pytest.approx(18, abs=0.1)
    assert np.array_equal(fallback.expected.boxes_xyxy, plain.expected.boxes_xyxy)


def test_files_of_two_models_make_no_package(tmp_path: Path) -> None:
    other = write_tiny_yolo(tmp_path / "q.onnx", class_names=("cat",))
    with pytest.raises(PackageError, match="another model"):
        build_package(tmp_path / "p", write_tiny_yolo(tmp_path / "m.onnx"), created_at=CREATED, variants={ONNX_INT8_ORT: other})
    with pytest.raises(PackageError, match="no role"):
        build_package(
            tmp_path / "p",
            write_tiny_yolo(tmp_path / "m.onnx"),
            created_at=CREATED,
            variants={"onnx-int4": write_tiny_yolo(tmp_path / "q.onnx")},
        )


def test_a_manifest_of_before_variants_is_read_and_has_the_bytes_it_always_had(package: PackageOnDisk) -> None:
    content = package.manifest.to_bytes()
    assert b"accuracy" not in content
    assert ModelManifest.from_bytes(content).accuracy == {}


def test_a_package_without_any_float_file_is_refused(package: PackageOnDisk) -> None:
    plain = json.loads(package.manifest.to_bytes())
    plain["files"]["onnx-int8-ort"] = plain["files"].pop("onnx-fp32")
    with pytest.raises(PackageError, match="onnx-fp32 or onnx-fp16"):
        ModelManifest.from_bytes(canonical_json(plain))


def npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def header_that_lies() -> bytes:
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f4", "fortran_order": False, "shape": (10**9,)})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.npy", array.getvalue() + b"few")
    return out.getvalue()


def zip_with(name: str, size: int = 10) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(size))
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 torn",
        npz(a=np.array([object()], dtype=object)),
        npz(a=np.array(["text"])),
        header_that_lies(),
        zip_with("../a.npy"),
        zip_with("a.pkl"),
        zip_with("a.npy"),
        zip_with("a.npy", 200 * 1024 * 1024),
        npz(a=np.zeros(3))[:-30],
    ],
    ids=["empty", "torn", "pickle", "text", "lying-shape", "traversal", "pkl", "no-header", "bomb", "cut"],
)
def test_an_npz_that_needs_trust_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_npz(content)


def test_an_npz_of_numbers_is_taken() -> None:
    check_npz(npz(a=np.zeros((2, 3), np.float32), b=np.arange(4, dtype=np.uint8)))


def seen(*rows: tuple[float, float, int]) -> Detections:
    boxes = np.array([[x, 10, x + 20, 30] for x, _, _ in rows], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([r[1] for r in rows], np.float32), np.array([r[2] for r in rows], np.int32))


@pytest.mark.parametrize(
    ("expected", "actual", "count"),
    [
        (seen((10, 0.9, 0)), seen((10, 0.9, 0)), 0),
        (seen((10, 0.9, 0)), seen((11, 0.89, 0)), 0),
        (seen((10, 0.9, 0)), seen((14, 0.9, 0)), 2),
        (seen((10, 0.9, 0)), seen((10, 0.8, 0)), 2),
        (seen((10, 0.9, 0)), seen((10, 0.9, 1)), 2),
        (seen((10, 0.9, 0)), seen(), 1),
        (seen(), seen((10, 0.9, 0)), 1),
        (seen(), seen((10, 0.26, 0)), 0),
        (seen((10, 0.9, 0)), seen((10, 0.9, 0), (10, 0.9, 0)), 1),
    ],
)
def test_golden_outputs_are_compared_one_to_one_within_the_tolerance(
    expected: Detections, actual: Detections, count: int
) -> None:
    assert len(differences(expected, actual, Tolerance(0.02, 2.0))) == count


def test_a_signed_job_holds_for_its_device_and_time_and_nothing_in_it_can_be_changed() -> None:
    director, other = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
    keys = {director.public_key.keyid: director.public_key}
    job = sign_job(Job("j", "a" * 64, 3), director, device="cam-01", expires_at=utc(1000))
    verify_job(job, keys, device="cam-01", now_ms=999_000)
    changed = [
        (replace(job, release=4), "cam-01", 0, "job_signature"),
        (replace(job, action="cancel"), "cam-01", 0, "job_signature"),
        (replace(job, signature=b""), "cam-01", 0, "job_signature"),
        (replace(job, extra={**job.extra, "dev": "cam-02"}), "cam-02", 0, "job_signature"),
        (sign_job(job, other, device="cam-01", expires_at=utc(1000)), "cam-01", 0, "job_signature"),
        (replace(sign_job(job, other, device="cam-01", expires_at=utc(9)), key_id=job.key_id), "cam-01", 0, "job_signature"),
        (job, "cam-02", 0, "job_device"),
        (job, "cam-01", 1_000_001, "job_expired"),
    ]
    for forged, device, now_ms, code in changed:
        with pytest.raises(SigningError) as refused:
            verify_job(forged, keys, device=device, now_ms=now_ms)
        assert refused.value.code == code
