"""Which earlier frame of the random audit shows what this one shows: its twin, in whose place it need not be sent again.

In: frames of the audit of one camera with their thumbnails, and what became of them. Out: frame ids. Every frame is compared with the
twin itself and never with another that was like it, so that nothing creeps through a chain of small changes. Pure; it neither drops
nor chooses a frame, and decides nothing about how one is sent (`link/reference_sending.py` does).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bowerbird_agent.selection.gate import changed_cells

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy as np
    from numpy.typing import NDArray

    from bowerbird_agent.capture.capture import Frame

# A day of one light and season. It also bounds for how long a twin that the server has lost makes references that it asks for whole.
SERVES_S = 86_400.0


@dataclass(frozen=True)
class _Twin:
    """A frame that others are compared with; without an id until it is stored."""

    thumb: NDArray[np.uint8]
    shape: tuple[int, ...]
    captured_at_ms: int
    monotonic_ns: int
    frame_id: str = ""


class Twins:
    """One camera's. Forgotten with the process: the first frame of the audit after a start goes whole."""

    def __init__(self) -> None:
        self._twin: _Twin | None = None

    def look(self, frame: Frame, thumb: NDArray[np.uint8]) -> str:
        """The id of the twin of a frame that chance took, "" for none; those behind it are compared with this one then.

        Args:
            frame: of the audit.
            thumb: (48, 64) uint8, of it.
        """
        twin = self._twin
        if twin is not None and twin.frame_id and self._serves(twin, frame) and not changed_cells(thumb, twin.thumb).any():
            return twin.frame_id
        self._twin = _Twin(thumb, frame.image_bgr.shape, frame.captured_at_ms, frame.monotonic_ns)
        return ""

    def stored(self, captured_at_ms: int, frame_id: str) -> None:
        """A frame of the camera lies in the spool under this id."""
        if self._twin is not None and not self._twin.frame_id and self._twin.captured_at_ms == captured_at_ms:
            self._twin = replace(self._twin, frame_id=frame_id)

    def gone(self, frame_ids: Collection[str]) -> None:
        """These frames will never be sent."""
        if self._twin is not None and self._twin.frame_id in frame_ids:
            self._twin = None

    def forget(self) -> None:
        """Another model or another wish: begin anew."""
        self._twin = None

    @staticmethod
    def _serves(twin: _Twin, frame: Frame) -> bool:
        age_s = (frame.monotonic_ns - twin.monotonic_ns) / 1e9
        return 0.0 <= age_s <= SERVES_S and frame.image_bgr.shape == twin.shape
