"""Attacks on model updates with stolen keys and crafted metadata; those with honest keys are in `integration/test_update.py`.

Whoever holds the online keys can freeze, mix and rush ahead; they cannot make a device run what the models role did not list.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuf.api.metadata import Metadata, Snapshot, Timestamp

from bowerbird_models.golden import check_npz
from bowerbird_models.manifest import ModelManifest, PackageError
from bowerbird_models.package import PackageOnDisk, build_package
from bowerbird_models.signing import PublicKeys, new_root, new_snapshot, new_timestamp, sign, utc
from bowerbird_testing.tiny_yolo import write_tiny_yolo
from bowerbird_testing.update_device import UpdateDevice
from bowerbird_testing.update_server import DAY_S, UpdateServer
from bowerbird_wire.messages import Job, Report

Make = Callable[[str], PackageOnDisk]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def build(salt: str) -> PackageOnDisk:
        onnx = write_tiny_yolo(tmp_path / f"{salt}.onnx", salt=salt)
        return build_package(tmp_path / f"package-{salt}", onnx, created_at="2026-01-01T00:00:00.000Z")

    return build


@pytest.fixture
def server() -> UpdateServer:
    return UpdateServer()


def update(server: UpdateServer, tmp_path: Path, job: Job) -> Report:
    server.reports.clear()
    device = UpdateDevice(tmp_path / "state", server.root, server.send)
    server.connect(device.runner.block)
    with device:
        device.runner.job(job)
        return server.wait_for("committed", "rolled_back", "refused", job_id=job.job_id)


def refuse(server: UpdateServer, tmp_path: Path, job: Job, code: str) -> None:
    report = update(server, tmp_path, job)
    assert (report.state, report.code) == ("refused", code), report.detail


def newest(server: UpdateServer, role: str) -> bytes:
    return server.files[f"metadata/{server.version}.{role}.json"]


def sign_again(server: UpdateServer, files: dict[str, tuple[int, bytes]], version: int) -> None:
    """Snapshot and timestamp over `files`, as whoever stole these two keys signs them."""
    now = server.now_s
    snapshot = sign(new_snapshot(files, version=version, expires=utc(now + DAY_S)), [server.keys["snapshot"]])
    server.files[f"metadata/{version}.snapshot.json"] = snapshot
    stamp = new_timestamp(version, snapshot, version=version, expires=utc(now + DAY_S), signed_at=utc(now))
    server.files["metadata/timestamp.json"] = sign(stamp, [server.keys["timestamp"]])


def test_mix_and_match_of_metadata_that_were_all_good_once(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    """The models metadata of yesterday under today's name: its version is not the one that the snapshot lists."""
    first, second = make("first"), make("second")
    server.publish(first)
    old = newest(server, "models")
    job = server.job(second, server.publish(second))
    server.files[f"metadata/{server.version}.models.json"] = old
    refuse(server, tmp_path, job, "metadata")


def test_stolen_timestamp_and_snapshot_keys_list_no_model(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    """They point to models metadata that the models key did not sign."""
    model, stranger = make("model"), UpdateServer()
    stranger.publish(model)
    forged = newest(stranger, "models")
    server.files.update({path: content for path, content in stranger.files.items() if path.startswith("targets/")})
    version = server.version + 1
    server.files[f"metadata/{version}.models.json"] = forged
    files = {"targets.json": (server.version, newest(server, "targets")), "models.json": (stranger.version, forged)}
    server.files[f"metadata/{stranger.version}.models.json"] = forged
    sign_again(server, files, version)
    refuse(server, tmp_path, server.job(model, 1), "metadata")


def test_a_stolen_director_installs_only_what_the_models_role_lists(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    """Its jobs are good; the digest that they name is in no targets metadata, and a listed one has the release that was signed."""
    listed, unlisted = make("listed"), make("unlisted")
    release = server.publish(listed)
    refuse(server, tmp_path, server.job(unlisted, release, job_id="a"), "unknown_model")
    refuse(server, tmp_path, server.job(listed, release + 5, job_id="b"), "release_mismatch")
    assert update(server, tmp_path, server.job(listed, release, job_id="c")).state == "committed"


def keys_of(server: UpdateServer) -> PublicKeys:
    names = ("targets", "snapshot", "timestamp", "models", "director")
    return PublicKeys(
        tuple(server.keys[f"root-{n}"].public_key for n in (1, 2, 3)), **{name: server.keys[name].public_key for name in names}
    )


def test_a_root_with_too_few_signatures_changes_nothing(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    """One stolen root key of three; two of them would be enough."""
    from securesystemslib.signer import CryptoSigner

    model = make("model")
    job = server.job(model, server.publish(model))
    thief = CryptoSigner.generate_ed25519()
    server.keys["timestamp"] = thief
    root = new_root(keys_of(server), version=2, expires=utc(server.now_s + DAY_S))
    server.files["metadata/2.root.json"] = sign(root, [server.keys["root-1"]])
    server.refresh()
    refuse(server, tmp_path, job, "metadata")
    server.files["metadata/2.root.json"] = sign(root, [server.keys["root-1"], server.keys["root-3"]])
    assert update(server, tmp_path, server.sign(Job("again", model.digest, job.release))).state == "committed"


def test_a_fast_forward_ends_with_new_keys(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    """Stolen online keys publish version two thousand million: honest metadata are then too old, until the root names new keys."""
    from securesystemslib.signer import CryptoSigner

    first, second = make("first"), make("second")
    job = server.job(first, server.publish(first), job_id="first")
    far = 2_000_000_000
    files = {
        "targets.json": (server.version, newest(server, "targets")),
        "models.json": (server.version, newest(server, "models")),
    }
    sign_again(server, files, far)
    assert update(server, tmp_path, job).state == "committed"
    later = server.job(second, server.publish(second), job_id="second")
    refuse(server, tmp_path, later, "metadata")
    for role in ("timestamp", "snapshot"):
        server.keys[role] = CryptoSigner.generate_ed25519()
    root = new_root(keys_of(server), version=2, expires=utc(server.now_s + DAY_S))
    server.files["metadata/2.root.json"] = sign(root, [server.keys["root-1"], server.keys["root-2"]])
    server.refresh()
    again = server.sign(Job("third", second.digest, later.release))
    assert update(server, tmp_path, again).state == "committed"


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"signed":' * 5000, b"{}", b"\xff\xfe", b"null", b""], ids=range(6))
def test_metadata_that_no_parser_likes_end_in_a_refusal(
    server: UpdateServer, make: Make, tmp_path: Path, content: bytes
) -> None:
    """And the agent takes the next job as if nothing had been."""
    model = make("model")
    job = server.job(model, server.publish(model), job_id="a")
    honest = server.files["metadata/timestamp.json"]
    server.files["metadata/timestamp.json"] = content
    refuse(server, tmp_path, job, "metadata")
    server.files["metadata/timestamp.json"] = honest
    assert update(server, tmp_path, server.job(model, job.release, job_id="b")).state == "committed"


def test_metadata_and_targets_without_end_are_not_fetched(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    """A timestamp of 20 MB, and a model longer than what was signed: given up by their length."""
    model = make("model")
    job = server.job(model, server.publish(model), job_id="a")
    honest = server.files["metadata/timestamp.json"]
    server.files["metadata/timestamp.json"] = honest + b" " * 20_000_000
    server.requests.clear()
    report = update(server, tmp_path, job)
    assert report.state == "refused"
    assert sum(request.blocks for request in server.requests) < 20
    server.files["metadata/timestamp.json"] = honest
    (path,) = [path for path in server.files if path.endswith(".onnx")]
    server.files[path] += bytes(20_000_000)
    assert update(server, tmp_path, server.job(model, job.release, job_id="b")).state == "refused"


def npz(declared: int | None = None, count: int = 4) -> bytes:
    """One deflated array; its archive may declare another size than it has."""
    out = io.BytesIO()
    np.savez_compressed(out, image_0=np.zeros(count, np.float32))
    data = bytearray(out.getvalue())
    if declared is not None:
        with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
            at = archive.start_dir
        data[at + 24 : at + 28] = struct.pack("<I", declared)
    return bytes(data)


def test_a_bomb_of_zeros_is_refused_whatever_size_it_declares() -> None:
    """Half a gigabyte in half a megabyte: as it is by its declared size, and with a small one since its array says more than that."""
    check_npz(npz())
    bomb = npz(count=2**27)
    assert len(bomb) < 2**20
    with pytest.raises(ValueError, match="unpacks to more"):
        check_npz(bomb)
    small = bytearray(bomb)
    with zipfile.ZipFile(io.BytesIO(bomb)) as archive:
        at = archive.start_dir
    assert small[at : at + 4] == b"PK\x01\x02"
    small[at + 24 : at + 28] = struct.pack("<I", 100)
    with pytest.raises(ValueError, match=r"declares more|not a NPZ|unpacks"):
        check_npz(bytes(small))


@pytest.mark.parametrize(
    "plain", ['{"schema":NaN}', '{"schema":1e999}', '{"schema":' + "9" * 5000 + "}", "[" * 50_000, '{"schema":"\\ud800"}']
)
def test_a_manifest_that_is_no_canonical_json_is_refused(plain: str) -> None:
    """JSON readers take more than JSON; none of it may be anything but a refusal."""
    with pytest.raises(PackageError):
        ModelManifest.from_bytes(plain.encode())


def test_a_time_in_a_timestamp_that_is_none_is_passed_over(server: UpdateServer, make: Make, tmp_path: Path) -> None:
    """The time floor rises by what a timestamp says of itself; text there neither raises it nor stops the agent."""
    model = make("model")
    job = server.job(model, server.publish(model))
    stamp: Metadata[Any] = Metadata[Timestamp].from_bytes(server.files["metadata/timestamp.json"])
    stamp.signed.unrecognized_fields["x-bowerbird-signed-at-ms"] = "soon"
    server.files["metadata/timestamp.json"] = sign(stamp, [server.keys["timestamp"]])
    assert update(server, tmp_path, job).state == "committed"
    assert json.loads(newest(server, "snapshot"))["signed"]["_type"] == Snapshot.type
