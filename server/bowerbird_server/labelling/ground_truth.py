"""Where a simulated annotator gets its answers: what is really in a camera's frame.

In: a MOTChallenge file, or synthetic scenes. Out: class names and boxes in pixels of the camera's picture. It knows nothing of the
catalogue; scaling to the stored image is the annotator's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bowerbird_models.mot import read_mot
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

    Frame number n is the film's n-th decoded frame, that is sequence n - 1. Which lines are taken says `bowerbird_models.mot`.

    Args:
        path: the file.
        class_name: the class of all boxes.
        source_wh: the film's width and height; boxes are clipped to it and those wholly outside left out. None: as they are.

    Raises:
        BadInput: the file cannot be read, or lines are malformed (all are listed).
    """

    def __init__(self, path: Path, class_name: str = "person", source_wh: tuple[int, int] | None = None) -> None:
        self.class_names: Sequence[str] = (class_name,)
        try:
            found = read_mot(path, source_wh)
        except ValueError as error:
            raise BadInput(str(error)) from error
        self._by_sequence: dict[int, list[Xyxy]] = {at: [box for _, box in boxes] for at, boxes in found.items()}
        self.last_frame = max(found) + 1

    def boxes(self, camera_id: str, sequence: int) -> list[TruthBox] | None:  # noqa: ARG002 - one film, whoever films it
        """See `GroundTruth`; frames after the file's last are unknown, those between with no line are empty."""
        if not 0 <= sequence < self.last_frame:
            return None
        return [(self.class_names[0], box) for box in self._by_sequence.get(sequence, [])]


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
