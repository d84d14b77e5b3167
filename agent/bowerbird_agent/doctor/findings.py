"""What `bowerbird-agent doctor` says of one point.

In: words. Out: `Finding`. It looks at nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"
ABSENT = "-"  # something that this device can do without is not here


@dataclass(frozen=True)
class Finding:
    """One point: state "ok", "warn", "fail" (something cannot work) or "-" (can be had), what was found, and what to do."""

    name: str
    state: str
    found: str
    advice: str = ""
