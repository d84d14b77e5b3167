"""Which processor this is, as far as what was compiled or measured for it may not hold on another.

In: /proc/cpuinfo. Out: a name and a digest of the instruction sets. Elsewhere than on Linux both are empty.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path


def this_processor() -> tuple[str, str]:
    """Name, and 12 hex digits over the instruction sets that the kernel offers."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        text = ""
    name, flags = parse_cpuinfo(text)
    return name, hashlib.sha256(flags.encode()).hexdigest()[:12]


def parse_cpuinfo(text: str) -> tuple[str, str]:
    """Model and sorted instruction sets from /proc/cpuinfo, of x86 or ARM; boards with two kinds of cores name both."""

    def values(key: str) -> list[str]:
        return sorted(set(re.findall(rf"^{key}[ \t]*: *(.+)$", text, re.MULTILINE)))

    names = values("model name")
    if not names:
        names = [f"implementer {a} part {b}" for a in values("CPU implementer") for b in values("CPU part")]
    flags = sorted({flag for line in values("flags") + values("Features") for flag in line.split()})
    return " + ".join(names), " ".join(flags)
