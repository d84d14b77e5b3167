"""What a model leaves behind when it was loaded is given back to the machine: freed memory, and code that ran once.

In: nothing. Out: a smaller process, on Linux with glibc.

Freed memory: to load a model takes its file several times over, as bytes, as a message, as weights in the runtime's own order; glibc
keeps what is freed of that for as long as the process lives, 15 MB for a small detector. A process that runs for months also
scatters what lives among what is free.

Code that ran once: a runtime's libraries are tens of megabytes of compilers and kernels for other networks. Their pages were read while
the model was loaded and stay mapped although nothing will call them again: 70 of OpenVINO's 200 MB. Unmapping is safe for pages that
are still the file's own; what is needed comes back by a page fault, from the page cache as long as the machine has room for it.

It costs milliseconds and is called by threads that no frame waits for. Sources: malloc_trim(3), madvise(2), proc_pid_smaps(5).
"""

from __future__ import annotations

import ctypes
import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_MMAP_BYTES = 4 * 1024 * 1024
_MAPPINGS = Path("/proc/self/smaps")
_MADV_DONTNEED = 4  # Linux, every architecture but Alpha


def keep_little() -> None:
    """Tell glibc to keep less of what is freed; to be called once, before there are threads.

    By default every thread gets a pool of its own, out of which nothing comes back while one piece of it lives, and the size from
    which a piece comes straight from the kernel, and goes straight back, rises with the largest piece freed so far: to 32 MB once
    a model was loaded. Python's threads seldom want memory at once, so one pool serves them all; frames and their scaled copies stay
    below the size, since asking the kernel for every one of them would cost more than they keep; files of models are above it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _MMAP_BYTES)


def give_back(*, collect: bool = True, code: bool = False) -> None:
    """Return free memory to the kernel.

    Args:
        collect: have Python look for cycles first, which holds the interpreter for some ten milliseconds.
        code: also let go of pages of programs and libraries; for the moment after a model was loaded.
    """
    if collect:
        gc.collect()
    library = ctypes.CDLL(None, use_errno=True)
    trim = getattr(library, "malloc_trim", None)
    if trim is not None:
        trim(0)
    if code:
        _let_go_of_code(library)


def _let_go_of_code(library: ctypes.CDLL) -> None:
    try:
        lines = _MAPPINGS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:  # not Linux, or a kernel that does not tell
        logger.debug("pages of libraries stay mapped: %s", error)
        return
    madvise = library.madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in clean_file_mappings(lines):
        madvise(start, end - start, _MADV_DONTNEED)  # what is refused stays mapped, and nothing is lost by that


def clean_file_mappings(lines: Iterable[str]) -> list[tuple[int, int]]:
    """Which address ranges hold nothing but what a program's or library's file holds, and may be written by nobody.

    Letting go of any other page would lose data: a private mapping keeps its own copy of a page that was written, as the dynamic
    linker does with addresses before it protects them. Such a range has anonymous pages, or some in swap, and is left alone as a
    whole. So is a file without a writable range: another thread may be about to load it, and the linker, which begins with one
    range for all of a file and puts the writable one in last, has not come to an end.

    Args:
        lines: of /proc/PID/smaps.

    Returns:
        (start, end) of each, in the file's order.
    """
    clean: list[tuple[int, int, str]] = []
    loaded: set[str] = set()
    header: list[str] = []
    anonymous = "0"
    for line in lines:
        name, _, value = line.partition(":")
        if "-" in name.split(" ", 1)[0]:
            header = line.split(maxsplit=5)
            if _is_file(header) and "w" in header[1]:
                loaded.add(header[5])
        elif name == "Anonymous":
            anonymous = value.split()[0]
        elif (
            name == "Swap"
            and _is_file(header)
            and header[1] in ("r-xp", "r--p")
            and (anonymous, value.split()[0]) == ("0", "0")
        ):
            start, _, end = header[0].partition("-")
            clean.append((int(start, 16), int(end, 16), header[5]))
    return [(start, end) for start, end, path in clean if path in loaded]


def _is_file(header: list[str]) -> bool:
    """Whether a mapping's first line "start-end r-xp offset device inode /path", split, names a file."""
    return len(header) == 6 and header[5].startswith("/")
