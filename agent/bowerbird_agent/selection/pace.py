"""Spending a day's bytes over the day: what one window's end may send, so that the next windows have something left.

In: seconds, the rate at which the caps would be spent evenly, and the bytes that they leave. Out: what a window may plan with, and how
many frames the next one can expect. Pure. It enforces nothing: the caps do (`budget.py`).

Without it the first windows after midnight would spend the day. What a window leaves is saved for the next ones, up to a day's
worth or all that the caps leave; a frame that is dearer than what is saved goes anyway once something is saved, and the next ones
wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bowerbird_agent.budget.budget import DAY_S

if TYPE_CHECKING:
    from bowerbird_agent.selection.choose import WindowResult
    from bowerbird_agent.selection.select import Selector

# Candidates that wait for later windows hold at most so many days' bytes.
_CARRIED_DAYS = 2.0
# Share of what the caps leave that a device which has just started may spend at once.
_START_SHARE = 0.25
# Weight of the newest frame in the usual size of a frame.
_NEWEST = 0.05


class Pace:
    """Bytes saved up. Not thread-safe: one thread owns it. `now_s` is any clock that does not fall."""

    def __init__(self) -> None:
        self._saved: float | None = None
        self._at_s = 0.0
        self._rate = 0.0
        self._usual_bytes: float | None = None

    def saved_bytes(self, now_s: float, bytes_per_s: float, left_bytes: int) -> float:
        """What may be planned with now; at or below 0 nothing may.

        Args:
            bytes_per_s: even rate of the tightest cap.
            left_bytes: what the caps leave, frames that wait to be sent taken off.
        """
        if self._saved is None:
            self._saved, self._at_s = _START_SHARE * left_bytes, now_s
        self._saved += bytes_per_s * max(0.0, now_s - self._at_s)
        self._at_s, self._rate = max(now_s, self._at_s), bytes_per_s
        # A day's worth is saved even while the caps leave nothing: after an outage the bytes go at once, and come back at once.
        self._saved = min(self._saved, max(float(left_bytes), DAY_S * bytes_per_s))
        return min(self._saved, float(left_bytes))

    def spend(self, size_bytes: int) -> None:
        """Bytes were chosen; beyond what is saved they are a debt."""
        if self._saved is not None:
            self._saved -= size_bytes

    def note_size(self, size_bytes: int) -> None:
        """Learn how large a frame is."""
        usual = self._usual_bytes
        self._usual_bytes = float(size_bytes) if usual is None else usual + _NEWEST * (size_bytes - usual)

    def frames_in(self, seconds: float) -> float | None:
        """Frames that can be sent in so many seconds at the even rate; None while a frame's size is unknown."""
        if self._usual_bytes is None or seconds <= 0 or self._saved is None:
            return None
        return self._rate * seconds / max(1.0, self._usual_bytes)


def room_bytes(left_bytes: int | None, unsent_bytes: int, even_bytes_per_s: float | None) -> int | None:
    """What may be chosen in addition to chosen frames that are not sent yet; None without caps.

    While those wait, no more than a quarter of a day's worth is chosen: during an outage better frames may come, and what is chosen
    cannot be taken back.
    """
    if left_bytes is None or even_bytes_per_s is None:
        return left_bytes
    if unsent_bytes:
        left_bytes = min(left_bytes, round(DAY_S * even_bytes_per_s / 4.0))
    return max(0, left_bytes - unsent_bytes)


def close_window(
    selector: Selector, pace: Pace, *, frames_left: int | None, bytes_left: int | None, even_bytes_per_s: float | None
) -> WindowResult:
    """Close the open window with its part of the bytes, and tell the selector what the next one can expect.

    Args:
        frames_left: what the server still wants; None for no limit.
        bytes_left: from `room_bytes`; None for no cap.
        even_bytes_per_s: even rate of the tightest cap; None for no cap of a day or month: nothing is spread then.
    """
    if bytes_left is None or even_bytes_per_s is None:
        return selector.close_window(frames_left=frames_left, bytes_left=bytes_left)
    span_s = selector.window_span_s
    result = selector.close_window(
        frames_left=frames_left,
        bytes_left=bytes_left,
        saved_bytes=pace.saved_bytes(selector.newest_s, even_bytes_per_s, bytes_left),
        carried_bytes=int(_CARRIED_DAYS * DAY_S * even_bytes_per_s),
    )
    pace.spend(result.chosen_bytes)
    selector.expect(selector.frames_left, pace.frames_in(span_s))
    return result
