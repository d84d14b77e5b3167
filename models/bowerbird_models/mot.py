"""Ground truth in MOTChallenge form: lines `frame, track, left, top, width, height, flag, ...`, frames counted from 1.

In: a file. Out: for each frame the tracks and boxes in it. Lines with flag 0 are left out of tracking scores, but the object is there
and in plain view (checked on PETS09-S2L1): they are taken. It knows no class and no camera.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MotBox = tuple[int, tuple[float, float, float, float]]
"""Track number, and left, top, right, bottom in pixels of the film."""


def read_mot(path: Path, source_wh: tuple[int, int] | None = None) -> dict[int, list[MotBox]]:
    """Sequence (0-based: frame n of the file is sequence n - 1) -> what is in it; frames without a line are missing.

    Args:
        source_wh: the film's width and height; boxes are clipped to it and those wholly outside left out. None: as they are.

    Raises:
        ValueError: the file cannot be read, or lines are malformed; the first twenty are listed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read ground truth {path}: {error}") from error
    found: dict[int, list[MotBox]] = {}
    faults = []
    for number, line in enumerate(text.splitlines(), start=1):
        fault = _take(line, source_wh, found) if line.strip() else None
        if fault:
            faults.append(f"{path}:{number}: {fault}")
    if not found and not faults:
        faults.append(f"{path}: no boxes in it")
    if faults:
        shown = "\n".join(faults[:20]) + (f"\n... and {len(faults) - 20} more" if len(faults) > 20 else "")
        raise ValueError(f"{shown}\nA MOT line is `frame, track, left, top, width, height, flag`, frames counted from 1.")
    return found


def _take(line: str, source_wh: tuple[int, int] | None, found: dict[int, list[MotBox]]) -> str | None:
    parts = line.replace(",", " ").split()
    try:
        frame, track, left, top, width, height = int(parts[0]), int(float(parts[1])), *map(float, parts[2:6])
    except (ValueError, IndexError, OverflowError):
        return f"not a MOT line: {line[:60]!r}"
    if frame < 1:
        return f"frame {frame}: frames are counted from 1"
    if not (width > 0 and height > 0):
        return f"box of {width:g}x{height:g} pixels has no area"
    boxes = found.setdefault(frame - 1, [])
    right, bottom = left + width, top + height
    if source_wh is not None:
        left, right = (min(max(x, 0.0), float(source_wh[0])) for x in (left, right))
        top, bottom = (min(max(y, 0.0), float(source_wh[1])) for y in (top, bottom))
    if right > left and bottom > top:
        boxes.append((track, (left, top, right, bottom)))
    return None
