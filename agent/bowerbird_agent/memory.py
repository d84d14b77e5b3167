"""Memory that the C library keeps for later is given back to the machine.

In: nothing. Out: a smaller process, where the C library is glibc. To load a model takes its file several times over, as bytes, as a
message, as weights in the runtime's own order; glibc keeps what is freed of that for as long as the process lives, 15 MB for a small
detector. A process that runs for months also scatters what lives among what is free. It costs milliseconds and is called when a
model was loaded and every few minutes, by a thread that no frame waits for.
Source: malloc_trim(3).
"""

from __future__ import annotations

import ctypes
import gc


def give_back(*, collect: bool = True) -> None:
    """Return free memory to the kernel.

    Args:
        collect: have Python look for cycles first, which holds the interpreter for some ten milliseconds.
    """
    if collect:
        gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
