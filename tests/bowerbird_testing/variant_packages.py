"""Packages with more than one model file: the float file, and variants that are good, slow, wrong or broken as the test says.

In: ONNX files by role. Out: a real package folder whose golden outputs are the float file's. What a variant costs in accuracy is
handed to the code under test directly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bowerbird_models.manifest import MANIFEST, PackageFile
from bowerbird_models.package import PackageOnDisk, build_package, load_package


def variant_package(
    folder: Path,
    reference: Path,
    variants: Mapping[str, Path] | None = None,
    accuracy: Mapping[str, float] | None = None,
) -> PackageOnDisk:
    """A package of the float file `reference` and further files by role, whose golden outputs are the float file's, right or not."""
    package = build_package(folder, reference, created_at="2026-01-01T00:00:00.000Z")
    files = dict(package.manifest.files)
    for role, path in (variants or {}).items():
        content = path.read_bytes()
        name = f"{role}.onnx"
        (folder / name).write_bytes(content)
        files[role] = PackageFile(name, hashlib.sha256(content).hexdigest(), len(content))
    (folder / MANIFEST).write_bytes(replace(package.manifest, files=files, accuracy=accuracy or {}).to_bytes())
    return load_package(folder)
