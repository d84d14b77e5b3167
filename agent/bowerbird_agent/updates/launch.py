"""How this process was started: by the launcher, which takes a bad version of the agent back, or by hand.

In: the environment and the interpreter's prefix, as the composition root found them. Out: `Launch`, or None. The launcher
itself is deploy/launch.sh, which is part of no version.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from bowerbird_agent.updates.agent_update import AgentUpdate
from bowerbird_agent.updates.agent_versions import AgentVersions
from bowerbird_models.manifest import Probation

VARIABLE = "BOWERBIRD_LAUNCHER"
FOLDER = "agent"  # below the state folder; deploy/launch.sh has the same name
EXIT_RESTART = 75  # EX_TEMPFAIL of sysexits.h; the unit says that it is no failure


@dataclass(frozen=True)
class Launch:
    """The launcher started this process.

    Args:
        prefix: of the interpreter, which says which version this is.
        config: agent.toml, which a new version must understand; None leaves that out.
        probation: limits of a new version's trial; None for the usual ones.
    """

    prefix: Path
    config: Path | None
    probation: Probation | None = None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str], *, prefix: Path, config: Path) -> Launch | None:
        """Takes its variable away, so that no child believes to have been started so; None without it."""
        if environment.pop(VARIABLE, "") != "1":
            return None
        return cls(prefix, config.absolute())

    def agent_update(self, state_dir: Path, restart: Callable[[], None]) -> AgentUpdate:
        """How the agent is updated here."""
        versions = AgentVersions(state_dir / FOLDER, prefix=self.prefix)
        return AgentUpdate(versions, state_dir, config=self.config, restart=restart, launched=True, probation=self.probation)
