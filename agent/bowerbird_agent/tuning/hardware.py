"""What this machine is, as far as a model's speed depends on it: processor, accelerator, memory, runtimes.

In: /proc, /sys and the versions of installed packages. Out: `Hardware`, whose `key` changes when a measurement made earlier may no
longer hold, and what the C library is told about huge pages. It loads no runtime, so that a start pays nothing for it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from bowerbird_models.processor import this_processor

TUNABLES = "GLIBC_TUNABLES"
BEGAN_AGAIN = "BOWERBIRD_BEGAN_AGAIN"  # ends a loop that would otherwise never reach the cameras
_HUGE_PAGES = "glibc.malloc.hugetlb"
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "numpy")
_MIN_GLIBC = (2, 35)  # the first that knows the tunable


@dataclass(frozen=True)
class Hardware:
    """A machine.

    Args:
        machine: "x86_64", "aarch64".
        board: name of a board, from its device tree; "" on a PC.
        processor: model name, or implementer and part of an ARM core.
        flags_digest: of the instruction sets that the kernel offers, 12 hex digits.
        cores: this process may use.
        memory_gb: class of memory: the next power of two above what there is.
        gpu: its name, "" for none.
        stack: package -> version of what runs networks.
    """

    machine: str
    board: str
    processor: str
    flags_digest: str
    cores: int
    memory_gb: int
    gpu: str
    stack: Mapping[str, str]

    @property
    def key(self) -> str:
        """SHA-256 over all of it, 64 hex digits."""
        plain = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(plain.encode()).hexdigest()

    def __str__(self) -> str:
        """In words, for people."""
        parts = [self.board or self.processor or self.machine, f"{self.cores} core{'s' if self.cores > 1 else ''}"]
        parts += [f"{self.memory_gb} GB class"] + ([self.gpu] if self.gpu else [])
        return ", ".join(parts)


def this_machine() -> Hardware:
    """The machine that this process runs on."""
    processor, flags_digest = this_processor()
    return Hardware(
        machine=platform.machine(),
        board=_read(Path("/proc/device-tree/model")).strip("\0 \n"),
        processor=processor,
        flags_digest=flags_digest,
        cores=len(os.sched_getaffinity(0)),
        memory_gb=memory_class_gb(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        gpu=_gpu(),
        stack=_stack(),
    )


def memory_class_gb(total_bytes: int) -> int:
    """The next power of two in GB: what a kernel keeps for itself varies from boot to boot."""
    gigabytes = 1
    while gigabytes * 2**30 < total_bytes:
        gigabytes *= 2
    return gigabytes


def can_huge_pages() -> bool:
    """Whether the kernel gives huge pages on request and the C library can be told to ask for them."""
    if not re.search(r"\[(madvise|always)\]", _read(Path("/sys/kernel/mm/transparent_hugepage/enabled"))):
        return False
    name, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return name == "glibc" and numbers >= _MIN_GLIBC and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def with_huge_pages(environment: Mapping[str, str], *, wanted: bool) -> dict[str, str]:
    """The environment of a process with huge pages switched on, or left to the default; every other tunable stays."""
    others = [part for part in environment.get(TUNABLES, "").split(":") if part and part.partition("=")[0] != _HUGE_PAGES]
    if wanted:
        others.append(f"{_HUGE_PAGES}=1")
    changed = {key: value for key, value in environment.items() if key != TUNABLES}
    return changed | ({TUNABLES: ":".join(others)} if others else {})


def has_huge_pages(environment: Mapping[str, str]) -> bool:
    """Whether a process with this environment asks for huge pages."""
    settings = dict(part.partition("=")[::2] for part in environment.get(TUNABLES, "").split(":"))
    return settings.get(_HUGE_PAGES, "0") not in {"", "0"}


def on_huge_pages() -> bool:
    """Whether this process asks for huge pages."""
    return has_huge_pages(os.environ)


def environment_to_begin_again(environment: Mapping[str, str]) -> dict[str, str] | None:
    """What a process that should be on huge pages starts itself again with; None where it need not, cannot, or has tried."""
    if has_huge_pages(environment) or environment.get(BEGAN_AGAIN) or not can_huge_pages():
        return None
    return with_huge_pages(environment, wanted=True) | {BEGAN_AGAIN: "1"}


def _stack() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _gpu() -> str:
    """The first NVIDIA card that the driver lists; a Jetson's is named by its board."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", _read(path), re.MULTILINE)
        if match:
            return match[1].strip()
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
