"""Where a simulated annotator gets its answers: what is really in a camera's frame.

In: a MOTChallenge file, or synthetic scenes. Out: class names and boxes in pixels of the camera's picture. It knows nothing of the
catalogue; scaling to the stored image is the annotator's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bowerbird_server.errors import BadInput
from bowerbird_server.labelling.boxes import Xyxy

if TYPE_CHECKING:
    from bowerbird_models.scenes import SceneStream

TruthBox = tuple[str, Xyxy]


class GroundTruth(Protocol):
    """Knows the answers for some cameras."""

    @property
    def class_names(self) -> Sequence[str]:
        """Every class it may answer with, in class id order."""

    def boxes(self, camera_id: str, sequence: int) -> list[TruthBox] | None:
        """What is in frame `sequence` of a camera (`device/camera`), source pixels; None when it does not know."""


class MotTruth:
    """Ground truth of a film in MOTChallenge form: lines `frame, track, left, top, width, height, flag, ...`, frame from 1.

    Frame number n is the film's n-th decoded frame, that is sequence n - 1. Lines with flag 0 are left out of
    tracking scores, but the object is there and in plain view (checked on PETS09-S2L1), so an annotator draws it: they are taken.

    Args:
        path: the file.
        class_name: the class of all boxes.
        source_wh: the film's width and height; boxes are clipped to it and those wholly outside left out. None: as they are.

    Raises:
        BadInput: the file cannot be read, or lines are malformed (all are listed).
    """

    def __init__(self, path: Path, class_name: str = "person", source_wh: tuple[int, int] | None = None) -> None:
        self.class_names: Sequence[str] = (class_name,)
        self._by_frame: dict[int, list[Xyxy]] = {}
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"cannot read ground truth {path}: {error}") from error
        faults = []
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            fault = self._take(line, source_wh)
            if fault:
                faults.append(f"{path}:{number}: {fault}")
        if not self._by_frame and not faults:
            faults.append(f"{path}: no boxes in it")
        if faults:
            shown = "\n".join(faults[:20]) + (f"\n... and {len(faults) - 20} more" if len(faults) > 20 else "")
            raise BadInput(f"{shown}\nA MOT line is `frame, track, left, top, width, height, flag`, frames counted from 1.")
        self.last_frame = max(self._by_frame)

    def _take(self, line: str, source_wh: tuple[int, int] | None) -> str | None:
        parts = line.replace(",", " ").split()
        try:
            frame, left, top, width, height = int(parts[0]), *map(float, parts[2:6])
        except (ValueError, IndexError):
            return f"not a MOT line: {line[:60]!r}"
        if frame < 1:
            return f"frame {frame}: frames are counted from 1"
        if not (width > 0 and height > 0):
            return f"box of {width:g}x{height:g} pixels has no area"
        boxes = self._by_frame.setdefault(frame, [])
        right, bottom = left + width, top + height
        if source_wh is not None:
            left, right = (min(max(x, 0.0), float(source_wh[0])) for x in (left, right))
            top, bottom = (min(max(y, 0.0), float(source_wh[1])) for y in (top, bottom))
        if right > left and bottom > top:
            boxes.append((left, top, right, bottom))
        return None

    def boxes(self, camera_id: str, sequence: int) -> list[TruthBox] | None:  # noqa: ARG002 - one film, whoever films it
        """See `GroundTruth`; frames after the file's last are unknown, those between with no line are empty."""
        if not 0 <= sequence < self.last_frame:
            return None
        return [(self.class_names[0], box) for box in self._by_frame.get(sequence + 1, [])]


class SceneTruth:
    """Ground truth of synthetic cameras: the same streams that the devices render.

    Args:
        streams: camera id (`device/camera`) -> its stream.
    """

    def __init__(self, streams: Mapping[str, SceneStream]) -> None:
        from bowerbird_models.scenes import CLASS_NAMES

        self.class_names: Sequence[str] = tuple(CLASS_NAMES)
        self._streams = dict(streams)

    def boxes(self, camera_id: str, sequence: int) -> list[TruthBox] | None:
        """See `GroundTruth`."""
        stream = self._streams.get(camera_id)
        if stream is None or sequence < 0:
            return None
        truth = stream.truth(sequence)
        return [
            (self.class_names[class_id], (float(box[0]), float(box[1]), float(box[2]), float(box[3])))
            for box, class_id in zip(truth.boxes_xyxy, truth.class_ids, strict=True)
        ]
