"""The stand-in for the NVIDIA driver, compiled from `fake_libcuda.c` beside this file.

In: a folder. Out: a shared library named as the driver's, so that our own ctypes declarations are what is exercised.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

from bowerbird_models.cuda import LIBRARY

SOURCE = Path(__file__).with_name("fake_libcuda.c")


def compiler() -> str | None:
    """A C compiler, or None."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compile_libcuda(folder: Path, name: str = LIBRARY) -> Path:
    """The library's file; needs a C compiler. Under the driver's name it is for children: a process that has once loaded a
    library of that name has an NVIDIA driver from then on."""
    path = folder / name
    command = [str(compiler()), "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(path), str(SOURCE)]
    subprocess.run([*command, f"-Wl,-soname,{name}"], check=True, timeout=120)
    return path


def load_libcuda(path: Path) -> ctypes.CDLL:
    """It in this process; one state for all who load it."""
    library = ctypes.CDLL(str(path))
    library.fake_allocations.restype = ctypes.c_size_t
    library.fake_set_devices.argtypes = (ctypes.c_size_t,)
    library.fake_set_memory.argtypes = (ctypes.c_size_t,)
    library.fake_is_device.argtypes = (ctypes.c_uint64, ctypes.c_size_t)
    return library
