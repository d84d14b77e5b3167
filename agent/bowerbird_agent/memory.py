"""Memory that the C library keeps for later is given back to the machine.

In: nothing. Out: a smaller process, where the C library is glibc. To load a model takes its file several times over, as bytes, as a
message, as weights in the runtime's own order; glibc keeps what is freed of that for as long as the process lives, 15 MB for a small
detector. It costs milliseconds and is called when a model was loaded, never between frames.
Source: malloc_trim(3).
"""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Collect what Python holds and return free memory to the kernel."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
