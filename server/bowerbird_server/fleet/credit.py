"""How many bytes of frames each device may have on its way, from the space on the blobs' disk. Pure.

In: free bytes. Out: the credit. Below the first mark it is nothing, until there is more than the second; ingest stops at the same
marks, but a device that knows of it does not spend its budget on what nobody takes. It publishes nothing; `delivery.py` does.
"""

from __future__ import annotations

from bowerbird_server.ingest.ingest import DiskMarks
from bowerbird_wire.transfer import MAX_WINDOW_BYTES


class CreditGauge:
    """The credit and the memory that keeps it from flickering.

    Args:
        marks: free space below which nothing is taken, and above which frames may come again.
    """

    def __init__(self, marks: DiskMarks) -> None:
        self._marks = marks
        self._is_stopped = False

    def read(self, free_bytes: int) -> int:
        """The credit in bytes; 0 while frames must wait."""
        if free_bytes < self._marks.stop_below_bytes:
            self._is_stopped = True
        elif free_bytes > self._marks.go_on_above_bytes:
            self._is_stopped = False
        return 0 if self._is_stopped else MAX_WINDOW_BYTES
