"""Ground truth in MOTChallenge form: lines `frame, track, left, top, width, height, flag, ...`, frames counted from 1.

In: a file. Out: for each frame the people in it, as tracks and boxes. Lines with flag 0 are left out of tracking scores, but the
person is there and in plain view (checked on PETS09-S2L1): they are taken. Files since MOT16 have nine columns and also list cars,
occluders and reflections: of these the three classes of people are taken, and only where a tenth of the person can be seen. It knows
no camera.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

# Pedestrian, person on vehicle, static person. Source: Milan et al., "MOT16: A Benchmark for Multi-Object Tracking" (2016), table 2.
_PEOPLE = frozenset({1, 2, 7})
_CLASSES = range(1, 14)
_LEAST_VISIBLE = 0.1

MotBox = tuple[int, tuple[float, float, float, float]]
"""Track number, and left, top, right, bottom in pixels of the film."""


class _Line(NamedTuple):
    number: int
    fields: list[str]

    @property
    def class_id(self) -> int | None:
        """Of a line of nine columns; None where the eighth is none of the benchmark's classes."""
        if len(self.fields) != 9:  # ten are the older form, with a place in the world
            return None
        try:
            value = float(self.fields[7])
        except ValueError:
            return None
        return int(value) if value in _CLASSES else None

    @property
    def visible(self) -> float:
        """Share of the object in view."""
        try:
            return float(self.fields[8])
        except ValueError:
            return 1.0


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
    lines = [
        _Line(n, fields) for n, line in enumerate(text.splitlines(), start=1) if (fields := line.replace(",", " ").split())
    ]
    classed = bool(lines) and all(line.class_id is not None for line in lines)
    found: dict[int, list[MotBox]] = {}
    faults = []
    for line in lines:
        is_person = not classed or (line.class_id in _PEOPLE and line.visible >= _LEAST_VISIBLE)
        fault = _take(line.fields, source_wh, found, taken=is_person)
        if fault:
            faults.append(f"{path}:{line.number}: {fault}")
    if classed and not any(found.values()) and not faults:
        faults.append(f"{path}: its eighth column is a MOTChallenge class, and no line is a person (1, 2 or 7) in view")
    elif not found and not faults:
        faults.append(f"{path}: no boxes in it")
    if faults:
        shown = "\n".join(faults[:20]) + (f"\n... and {len(faults) - 20} more" if len(faults) > 20 else "")
        raise ValueError(f"{shown}\nA MOT line is `frame, track, left, top, width, height, flag`, frames counted from 1.")
    return found


def _take(parts: list[str], source_wh: tuple[int, int] | None, found: dict[int, list[MotBox]], *, taken: bool) -> str | None:
    """Put a line's box into `found`, or only its frame if it is not `taken`; returns what is wrong with the line."""
    try:
        frame, track, left, top, width, height = int(parts[0]), int(float(parts[1])), *map(float, parts[2:6])
    except (ValueError, IndexError, OverflowError):
        return f"not a MOT line: {','.join(parts)[:60]!r}"
    if frame < 1:
        return f"frame {frame}: frames are counted from 1"
    if not (width > 0 and height > 0):
        return f"box of {width:g}x{height:g} pixels has no area"
    boxes = found.setdefault(frame - 1, [])
    right, bottom = left + width, top + height
    if source_wh is not None:
        left, right = (min(max(x, 0.0), float(source_wh[0])) for x in (left, right))
        top, bottom = (min(max(y, 0.0), float(source_wh[1])) for y in (top, bottom))
    if taken and right > left and bottom > top:
        boxes.append((track, (left, top, right, bottom)))
    return None
