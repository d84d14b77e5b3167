"""The server's errors, split by who must act.

`ServerError` is the root; its text is shown to the user as it is, so each says what to do next. A bug of ours is none of these
and keeps its stack trace.
"""

from __future__ import annotations


class ServerError(Exception):
    """Something the user can put right. `exit_code` is what a command ends with."""

    exit_code = 1


class ConfigError(ServerError):
    """A configuration that cannot be used; the message lists every fault with its key path."""

    exit_code = 2


class BadInput(ServerError):
    """A file or an argument from outside that is not what it should be."""

    exit_code = 2


class NotFound(ServerError):
    """A frame, model, data set or device that the catalogue does not know."""

    exit_code = 3


class Conflict(ServerError):
    """The thing is in a state in which this cannot be done."""

    exit_code = 4


class EnvironmentFault(ServerError):
    """Disk full, no broker, missing program: the surroundings must change first."""

    exit_code = 5
