"""What a changed configuration file may change while the agent runs (SIGHUP), and what needs a restart.

In: the configuration in force and the one in the file. Out: a `ReloadPlan`: the sections to apply, the cameras to start, stop and
replace, the refusals in words, and the configuration that is then in force. Pure: it reads no file and changes nothing (`device.py`
does).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bowerbird_agent.capture.camera_config import CameraConfig
from bowerbird_agent.config import AgentConfig


class Applies(Enum):
    """When a section takes effect."""

    LIVE = "live"
    RESTART = "restart"
    CAMERAS = "cameras"  # one by one


# Section of agent.toml -> when it takes effect. Total: a test compares it with the fields of `AgentConfig`.
SECTIONS: Mapping[str, Applies] = MappingProxyType(
    {
        "device": Applies.RESTART,  # names and folder are part of every topic, frame id and path
        "broker": Applies.RESTART,
        "cameras": Applies.CAMERAS,
        "update": Applies.RESTART,  # trust is not exchanged under a running updater
        "model": Applies.RESTART,
        "selection": Applies.LIVE,
        "dry_run": Applies.LIVE,
        "budget": Applies.LIVE,
        "metered": Applies.LIVE,
        "spool": Applies.RESTART,
        "image": Applies.LIVE,
        "fetch": Applies.RESTART,
        "accounting": Applies.LIVE,
        "health": Applies.LIVE,
        "guard": Applies.LIVE,
        "publish": Applies.LIVE,
        "metrics": Applies.RESTART,
        "watchdog": Applies.RESTART,
        "log": Applies.LIVE,
        "remote": Applies.LIVE,
    }
)


@dataclass(frozen=True)
class ReloadPlan:
    """What a reload does.

    Args:
        config: in force afterwards: the new one, with the old values of what is refused.
        live: sections that have changed and take effect now.
        added, changed: cameras to start; a changed one takes the place of its old self.
        removed: names of cameras to stop.
        refused: what stays as it was, each with the reason, for the log and for health.
    """

    config: AgentConfig
    live: tuple[str, ...] = ()
    added: tuple[CameraConfig, ...] = ()
    changed: tuple[CameraConfig, ...] = ()
    removed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def changes_nothing(self) -> bool:
        """Whether the file says what is in force already, refusals apart."""
        return not (self.live or self.added or self.changed or self.removed)

    def __str__(self) -> str:
        cameras = (
            ("added", [camera.name for camera in self.added]),
            ("changed", [camera.name for camera in self.changed]),
            ("removed", list(self.removed)),
        )
        parts = [*self.live, *(f"cameras {what}: {', '.join(names)}" for what, names in cameras if names)]
        return "; ".join(parts) or "nothing has changed"


def reload_plan(old: AgentConfig, new: AgentConfig) -> ReloadPlan:
    """What to do so that `new` is in force, as far as that goes without a restart.

    Args:
        old: in force.
        new: from the file, without faults.
    """
    live, refused = [], []
    kept = {}
    for section, applies in SECTIONS.items():
        before, after = getattr(old, section), getattr(new, section)
        if before == after or applies is Applies.CAMERAS:
            continue
        if applies is Applies.LIVE:
            live.append(section)
            continue
        kept[section] = before
        keys = [f"{section}.{f.name}" for f in fields(before) if getattr(before, f.name) != getattr(after, f.name)]
        refused.append(f"{', '.join(keys)} cannot change while the agent runs; restart it to take the new value")
    were = {camera.name: camera for camera in old.running_cameras}
    are = {camera.name: camera for camera in new.running_cameras}
    return ReloadPlan(
        config=replace(new, **kept),
        live=tuple(live),
        added=tuple(camera for name, camera in are.items() if name not in were),
        changed=tuple(camera for name, camera in are.items() if name in were and were[name] != camera),
        removed=tuple(name for name in were if name not in are),
        refused=tuple(refused),
    )
