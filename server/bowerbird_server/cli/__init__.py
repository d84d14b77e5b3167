"""`bowerbird`: the operator's commands, one module per group.

In: arguments. Out: tables for people or JSON for scripts on standard output, messages on standard error, an exit code. This is the
composition root: the only place that reads the environment, configures logging and prints.
"""

from __future__ import annotations

from bowerbird_server.cli.app import main

__all__ = ["main"]
