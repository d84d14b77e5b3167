"""No core dumps: the memory of these processes holds pictures, keys and passwords, and none of it shall become a file.

In: nothing. Out: the process's limit of core files is 0, for its children as well, and on Linux it is marked as not dumpable. Both are
needed: the limit does not hold where the kernel pipes cores to a program (`kernel.core_pattern` beginning with `|`), and the mark is
lost when a program is started. Called by the entry points, before anything secret is read.
"""

from __future__ import annotations

import ctypes
import logging

logger = logging.getLogger(__name__)

_PR_SET_DUMPABLE = 4


def forbid_core_dumps() -> bool:
    """Forbid them for this process; whether everything that the system offers was done.

    A process that is not dumpable cannot be attached to by a debugger of the same user, which is wanted as well.
    """
    done = True
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError) as error:
        logger.warning("core dumps cannot be limited (%s); set LimitCORE=0 in the unit", error)
        done = False
    try:
        done = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0 and done
    except (OSError, AttributeError):
        done = False  # not Linux
    return done
