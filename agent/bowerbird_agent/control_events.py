"""What other threads put on the control thread's queue, beside the link's own events (`upload_events.py`).

In: nothing. Out: frozen values that say what has happened or is wanted. They carry messages and decide nothing; what is done about
each stands in `control.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bowerbird_agent.budget.budget import ByteLimits
    from bowerbird_wire.messages import BlockRequest, FetchAnswer, Report


@dataclass(frozen=True)
class Wake:
    """Something to do: frames were promoted."""


@dataclass(frozen=True)
class ModelChanged:
    """Another model answers frames now."""


@dataclass(frozen=True)
class Reconfigure:
    """The configuration was read again: other byte limits, another health interval, or only news for the next health message."""

    limits: ByteLimits
    metered: ByteLimits
    health_every_s: float
    idle_health_s: float


@dataclass(frozen=True)
class AskForBlocks:
    """The updater wants blocks of a file."""

    request: BlockRequest


@dataclass(frozen=True)
class SendReport:
    """What the updater wants told."""

    report: Report


@dataclass(frozen=True)
class SendAnswer:
    """What became of a wish for more of a frame."""

    answer: FetchAnswer
