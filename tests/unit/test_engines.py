"""The folder of engines gives back what this device built for this stack, and nothing else."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from bowerbird_models.engines import MAGIC, MAX_ENGINES, EngineCache, EngineKey, Stack, provider_folder
from bowerbird_models.errors import RuntimeMissing, UnsupportedModel
from bowerbird_models.tensorrt_build import profile_shapes

ORIN = Stack("Orin", "8.7", "tensorrt 10.3.0")
KEY = EngineKey("ab" * 32, ORIN, "fp16", "640 x 640 by 32")


def keep(cache: EngineCache, key: EngineKey, engine: bytes) -> Path:
    """Admit an engine as a build does, and say which file it is."""
    with cache.building():
        cache.admit(key, engine)
        cache.admit_timing_cache(key.stack, b"timings of " + engine)
    return cache._folder / f"{key.digest()}.engine"


def test_what_was_admitted_is_given_back(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    assert cache.load(KEY) is None
    keep(cache, KEY, b"the engine")
    assert EngineCache(tmp_path / "engines").load(KEY) == b"the engine"
    assert cache.timing_cache(ORIN) == b"timings of the engine"


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, onnx_digest="cd" * 32),
        replace(KEY, precision="fp32"),
        replace(KEY, form="320 x 640 by 32"),
        replace(KEY, stack=replace(ORIN, device="Thor")),
        replace(KEY, stack=replace(ORIN, capability="8.9")),
        replace(KEY, stack=replace(ORIN, runtime="tensorrt 10.7.0")),
        replace(KEY, stack=replace(ORIN, recipe=ORIN.recipe + 1)),
    ],
)
def test_another_file_precision_shape_gpu_or_tensorrt_is_another_engine(tmp_path: Path, other: EngineKey) -> None:
    cache = EngineCache(tmp_path)
    keep(cache, KEY, b"the engine")
    assert cache.load(other) is None


def test_only_the_owner_can_read_or_write_what_lies_there(tmp_path: Path) -> None:
    path = keep(EngineCache(tmp_path / "engines"), KEY, b"the engine")
    modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in [*path.parent.iterdir(), path.parent]}
    assert modes.pop("engines") == 0o700
    assert set(modes.values()) == {0o600}


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    """The header is for people who look: the key in JSON, in front of the engine."""
    content = keep(EngineCache(tmp_path), KEY, b"the engine").read_bytes()
    size = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 4], "big")
    header = json.loads(content[len(MAGIC) + 4 : len(MAGIC) + 4 + size])
    assert content.startswith(MAGIC)
    assert header["stack"] == {"device": "Orin", "capability": "8.7", "runtime": "tensorrt 10.3.0", "recipe": ORIN.recipe}


def test_a_changed_engine_is_not_loaded(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    path = keep(cache, KEY, b"the engine")
    content = path.read_bytes()
    for changed in (content[:-1], content[:-1] + b"!", b""):
        path.write_bytes(changed)
        assert cache.load(KEY) is None
    path.write_bytes(content)
    assert cache.load(KEY) == b"the engine"


def test_an_engine_that_somebody_put_there_is_not_loaded(tmp_path: Path) -> None:
    """Of the right name and form, but the index does not know it."""
    theirs = keep(EngineCache(tmp_path / "theirs"), KEY, b"their engine")
    cache = EngineCache(tmp_path / "ours")
    (tmp_path / "ours" / theirs.name).write_bytes(theirs.read_bytes())
    assert cache.load(KEY) is None


@pytest.mark.parametrize("index", [b"", b"{", b"[]", b'{"a": 1}', b"null"])
def test_a_broken_index_means_that_engines_are_built_again(tmp_path: Path, index: bytes) -> None:
    cache = EngineCache(tmp_path)
    keep(cache, KEY, b"the engine")
    (tmp_path / "index.json").write_bytes(index)
    assert cache.load(KEY) is None
    keep(cache, KEY, b"the engine again")
    assert cache.load(KEY) == b"the engine again"


def test_an_index_that_others_can_write_does_not_count(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    keep(cache, KEY, b"the engine")
    (tmp_path / "index.json").chmod(0o666)
    assert cache.load(KEY) is None


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(RuntimeMissing, match="chmod"):
        EngineCache(folder)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RuntimeMissing, match="another folder"):
        EngineCache(tmp_path / "file" / "engines")


def test_a_sweep_removes_other_stacks_unfinished_and_unknown_files(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    before = replace(KEY, stack=replace(ORIN, runtime="tensorrt 10.2.0"))
    keep(cache, before, b"of the old TensorRT")
    keep(cache, KEY, b"the engine")
    (tmp_path / ".engine.part").write_bytes(b"half an eng")
    (tmp_path / ("f" * 64 + ".engine")).write_bytes(b"whose?")
    (tmp_path / "notes.txt").write_text("not ours to remove")
    with cache.building():
        cache.sweep(ORIN)
    assert cache.load(KEY) == b"the engine"
    assert cache.load(before) is None
    assert cache.timing_cache(ORIN) == b"timings of the engine"
    names = {path.name for path in tmp_path.iterdir()}
    assert {name for name in names if name.endswith(".engine")} == {f"{KEY.digest()}.engine"}
    assert len({name for name in names if name.endswith(".timing")}) == 1
    assert {"notes.txt", "index.json"} < names
    assert ".engine.part" not in names


def test_a_sweep_keeps_the_newest_engines(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    keys = [replace(KEY, onnx_digest=f"{number:064x}") for number in range(MAX_ENGINES + 2)]
    for key in keys:
        keep(cache, key, key.onnx_digest.encode())
    keep(cache, keys[0], b"built again, so it is the newest")
    with cache.building():
        cache.sweep(ORIN)
    there = [key for key in keys if cache.load(key) is not None]
    assert there == [keys[0], *keys[3:]]


def test_onnx_runtimes_own_engines_are_kept_apart_by_weights_and_stack(tmp_path: Path) -> None:
    """It names them by the graph: in one folder a retrained model would run with the old weights."""
    first = provider_folder(tmp_path, "digest 1", "fp16", "1.23.0", "Orin")
    (first / "TensorrtExecutionProvider_1.engine").write_bytes(b"old weights")
    assert provider_folder(tmp_path, "digest 1", "fp16", "1.23.0", "Orin") == first
    for facts in (
        ("digest 2", "fp16", "1.23.0", "Orin"),
        ("digest 1", "fp32", "1.23.0", "Orin"),
        ("digest 1", "fp16", "1.23.0"),
    ):
        assert not list(provider_folder(tmp_path, *facts).iterdir())
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
    with EngineCache(tmp_path).building():
        EngineCache(tmp_path).sweep(ORIN)
    assert list(first.iterdir()), "a sweep of ours leaves them alone"


def test_the_longest_unused_of_onnx_runtimes_engines_go(tmp_path: Path) -> None:
    folders = [provider_folder(tmp_path, str(number)) for number in range(MAX_ENGINES)]
    for number, folder in enumerate(folders):
        os.utime(folder, (number, number))
    assert provider_folder(tmp_path, "0") == folders[0], "used again, so it is the newest"
    provider_folder(tmp_path, "one more")
    assert [folder.exists() for folder in folders] == [True, False, *[True] * (MAX_ENGINES - 2)]


def test_a_profile_spans_the_sizes_that_the_detector_uses() -> None:
    """Channels first or last, open or fixed; what the file fixes stays."""
    assert profile_shapes((-1, 3, -1, -1), (384, 640), 32) == ((1, 3, 32, 32), (1, 3, 384, 640), (1, 3, 384, 640))
    assert profile_shapes((1, -1, -1, 3), (384, 640), 32) == ((1, 32, 32, 3), (1, 384, 640, 3), (1, 384, 640, 3))
    assert profile_shapes((-1, 3, 320, 320), (320, 320), 32) == ((1, 3, 320, 320),) * 3
    with pytest.raises(UnsupportedModel, match="four dimensions"):
        profile_shapes((-1, 10), (640, 640), 32)
