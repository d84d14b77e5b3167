"""`bowerbird-agent`: the device's commands, one module per group.

In: arguments. Out: words on standard output, messages on standard error, an exit code. It reads no environment of its own.
"""

from __future__ import annotations

from bowerbird_agent.cli.app import main

__all__ = ["main"]
