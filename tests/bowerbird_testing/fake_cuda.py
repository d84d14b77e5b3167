"""The stand-in for the NVIDIA driver, compiled from `fake_libcuda.c` beside this file.

In: a folder. Out: a shared library named as the driver's, so that our own ctypes declarations are what is exercised.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_libcuda.c")


def compiler() -> str | None:
    """A C compiler, or None."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compile_libcuda(folder: Path) -> Path:
    """The library's file; needs a C compiler."""
    path = folder / "libcuda.so.1"
    command = [str(compiler()), "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(path), str(SOURCE)]
    subprocess.run([*command, "-Wl,-soname,libcuda.so.1"], check=True, timeout=120)
    return path


def load_libcuda(path: Path) -> ctypes.CDLL:
    """A private copy of it in this process, with state of its own."""
    library = ctypes.CDLL(str(path))
    library.fake_allocations.restype = ctypes.c_size_t
    library.fake_set_devices.argtypes = (ctypes.c_size_t,)
    library.fake_set_memory.argtypes = (ctypes.c_size_t,)
    library.fake_is_device.argtypes = (ctypes.c_uint64, ctypes.c_size_t)
    return library
