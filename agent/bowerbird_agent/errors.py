"""Everything that can go wrong on the device, as one tree, split by who must act.

Raised by this package only. `AgentError` is what the command line shows without a stack trace: its message says what happened
and what to do next. Errors of the model's file are `bowerbird_models.errors`, of the peer's bytes `bowerbird_wire.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class AgentError(Exception):
    """Base of all; the message is complete and is shown as it stands."""


class ConfigError(AgentError):
    """The configuration cannot be used. `faults` lists every one of them, each with its key path."""

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {fault}" for fault in faults))


class CameraError(AgentError):
    """A camera is absent, has died or gives no picture. On a live camera the agent tries again."""


class SourceError(CameraError):
    """A file, folder or source text that will not get better by trying again."""


class MaskError(SourceError):
    """A privacy mask cannot be applied: the camera stops rather than show what nobody may see."""


class RedactionError(AgentError):
    """A picture cannot be redacted as its camera asks: it is not kept."""


class OpenCvMissing(AgentError):
    """There is no OpenCV here, or one that does not load; the message says which to install."""


class SpoolError(AgentError):
    """The spool's folder or index cannot be used."""


class SpoolFull(SpoolError):
    """There is no room for this frame and nothing worse to give up for it; the frame is not spooled, everything else is kept."""


class SpoolFault(SpoolError):
    """The disk refused: read-only, input/output error, damaged index. What is already spooled stays."""


class UpdateError(AgentError):
    """An update cannot go on."""


class UpdateRefused(UpdateError):
    """A job, its metadata or its files are not to be trusted, or do not fit this device. `code` is what is reported."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class UpdateStopped(UpdateError):
    """The process is on its way out; the next one goes on with the update."""


class NoModelError(AgentError):
    """There is no model to run: neither an installed one nor a factory one."""


class StageHung(AgentError):
    """A thread of the agent shows no sign of life; the process ends so that its supervisor starts it again."""


class StageDied(AgentError):
    """A thread of the agent ended by an error of ours; the process ends so that its supervisor starts it again."""
