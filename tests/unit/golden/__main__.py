"""Writes the golden files that are not there yet."""

from __future__ import annotations

from unit.golden import FOLDER, encoded

for name, content in encoded().items():
    if not (FOLDER / name).exists():
        (FOLDER / name).write_bytes(content)
