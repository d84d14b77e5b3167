"""Small still frames and a spool of one's own for tests of the selection: frames without a camera, candidates without a disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bowerbird_agent.capture.capture import Frame
from bowerbird_agent.selection.select import Candidate, Judgement, Selector, WindowResult
from bowerbird_models.detections import Detections

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

START_MS = 1_767_225_600_000


def textured(seed: int, *, width: int = 128, height: int = 96) -> NDArray[np.uint8]:
    """A picture (height, width, 3) of coarse blocks; another seed, another picture."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(8, axis=0).repeat(8, axis=1))


def frame(index: int, *, camera: str = "gate", fps: float = 10.0, image_bgr: NDArray[np.uint8] | None = None) -> Frame:
    """Frame `index` of a camera whose timeline starts at START_MS; its picture depends on the index unless one is given."""
    picture = textured(index) if image_bgr is None else image_bgr
    return Frame(picture, camera, index, START_MS + round(index * 1000 / fps), round(index * 1e9 / fps))


def seeing(*scores: float) -> Detections:
    """Detections of those scores, side by side."""
    order = np.sort(np.array(scores, np.float32))[::-1]
    boxes = np.array([(20.0 * i, 0.0, 20.0 * i + 15, 30.0) for i in range(len(order))], np.float32).reshape(-1, 4)
    return Detections(boxes, order, np.zeros(len(order), np.int32))


@dataclass
class PaperSpool:
    """Feeds a selector as the pipeline does and remembers what a spool would hold."""

    selector: Selector
    size_bytes: int = 1000
    waiting: set[str] = field(default_factory=set)
    judged: dict[str, Judgement] = field(default_factory=dict)
    late: int = 0  # how many admitted frames are on their way to the disk before `add` is called
    _under_way: list[Candidate] = field(default_factory=list)

    def show(self, frames: Iterable[tuple[Frame, Detections | None]]) -> None:
        """Judge frames; admitted ones become candidates."""
        for shown, detections in frames:
            judgement = self.selector.judge(shown, detections)
            frame_id = f"{shown.camera}/{shown.sequence}"
            self.judged[frame_id] = judgement
            if judgement.admit:
                self._under_way.append(Candidate(frame_id, shown.camera, shown.captured_at_ms, judgement, self.size_bytes))
            self._store(self.late)
        self._store(0)

    def close(self, *, frames_left: int | None = None, bytes_left: int | None = None) -> WindowResult:
        """Close the window and check that each candidate was either chosen or dropped, and none was both."""
        result = self.selector.close_window(frames_left=frames_left, bytes_left=bytes_left)
        assert set(result.chosen).isdisjoint(result.dropped)
        assert set(result.chosen) | set(result.dropped) == self.waiting
        self.waiting.clear()
        return result

    def _store(self, leave: int) -> None:
        while len(self._under_way) > leave:
            candidate = self._under_way.pop(0)
            self.waiting.add(candidate.frame_id)
            self.waiting -= set(self.selector.add(candidate))
