"""What bounds an upload: the uploader's limits and times, what things take on the wire, and the budget that it asks. Values only.

In: nothing. Out: types. `uploader.py` keeps to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class ByteBudget(Protocol):
    """What the uploader asks of `budget.TokenBucket`."""

    def wait_s(self, now_s: float, size_bytes: int) -> float:
        """Seconds until so many bytes may be sent; 0 now, infinity never."""

    def spend(self, now_s: float, size_bytes: int) -> None:
        """Record bytes that are sent."""


@dataclass(frozen=True)
class UploadLimits:
    """Bounds and times.

    Args:
        max_frames, max_bytes: sent without a receipt, at most. One frame is always allowed.
        receipt_timeout_s: after this a sent frame is in doubt.
        resend_s, resend_max_s: wait after a question without an answer before it is asked again; doubles each time up to the second.
        relink_s: wait of the first question after the link has come back.
        retry_s: wait after the link has not taken a packet.
        stuck_s: no receipt for this long while frames are out is reported.
        credit_wait_s: a credit of an earlier connection counts no longer than this on a new one.
    """

    max_frames: int = 32
    max_bytes: int = 512 * 1024
    receipt_timeout_s: float = 20.0
    resend_s: float = 5.0
    resend_max_s: float = 300.0
    relink_s: float = 0.0
    retry_s: float = 0.5
    stuck_s: float = 120.0
    credit_wait_s: float = 30.0


@dataclass(frozen=True)
class WireSizes:
    """What things take on the wire, upper bounds: a message, a chunk with so much data, a question (first: with a thumbnail), a
    reference.

    `overhead` are the headers around a packet of so many bytes: the byte budget must have room for them, the broker does not see them.
    """

    whole: Callable[[int], int] = lambda size: size
    chunk: Callable[[int], int] = lambda size: size
    offer: Callable[[bool], int] = lambda _first: 0
    overhead: Callable[[int], int] = lambda _size: 0
    reference: Callable[[int], int] = lambda size: size
