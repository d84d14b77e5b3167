"""The device's configuration: one typed object, read once from `agent.toml` by the composition root.

In: a TOML file. Out: `AgentConfig`, with every path absolute, or `ConfigError` with all faults at once (key path and line).
Sections with a part of their own are in that part's `*_config.py` or module; `config_files.py` looks at the files that are pointed to.
It reads no environment variable.
"""

from __future__ import annotations

import copy
import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bowerbird_agent.capture.camera_config import CameraConfig
from bowerbird_agent.capture.capture import without_password
from bowerbird_agent.config_files import absolute
from bowerbird_agent.errors import ConfigError
from bowerbird_agent.health.heartbeat import WatchdogConfig
from bowerbird_agent.health.metrics_endpoint import MetricsConfig
from bowerbird_agent.inference.guard import GuardConfig
from bowerbird_agent.link.config import BrokerConfig, BudgetConfig, MeteredConfig
from bowerbird_agent.link.publish import PublishConfig
from bowerbird_agent.remote.config import RemoteConfig, merge
from bowerbird_agent.selection.policy import TEMPLATES, Policy
from bowerbird_agent.storing.fetch_config import FetchConfig
from bowerbird_agent.storing.storing_config import AccountingConfig, ImageConfig, SpoolConfig
from bowerbird_agent.structuring import Faults, require, structure
from bowerbird_agent.toml_lines import with_line
from bowerbird_agent.tuning.model_config import ModelConfig
from bowerbird_wire.errors import TopicError
from bowerbird_wire.topics import check_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class DeviceConfig:
    """Who this device is, and where it keeps its state.

    Args:
        id: the device's name at the server: a-z, 0-9 and hyphens.
        site: the site's name, the same alphabet.
        state_dir: folder for spool, models and keys; must survive a restart.
    """

    id: str
    site: str
    state_dir: Path = Path("state")

    def __post_init__(self) -> None:
        for what, name in (("id", self.id), ("site", self.site)):
            try:
                check_name(name, what)
            except TopicError as error:
                raise ValueError(str(error)) from error


@dataclass(frozen=True)
class UpdateConfig:
    """Trust in model updates. `trusted_root` is the TUF root the device was made with; None refuses every update."""

    trusted_root: Path | None = None


@dataclass(frozen=True)
class HealthConfig:
    """How often counters go to the server, in seconds.

    Args:
        interval_s: while there is news: frames chosen or sent, a camera that fails, another model.
        idle_interval_s: while there is none; at most 120 times `interval_s`.
    """

    interval_s: float = 30.0
    idle_interval_s: float = 3600.0

    def __post_init__(self) -> None:
        require(0.2 <= self.interval_s <= 3600, f"interval_s is {self.interval_s}; it must be 0.2 to 3600")
        require(1 <= self.idle_interval_s <= 86_400, f"idle_interval_s is {self.idle_interval_s}; it must be 1 to 86400")


@dataclass(frozen=True)
class LogConfig:
    """How much the agent says: "debug", "info", "warning" or "error". `--log-level` wins."""

    level: str = "info"

    def __post_init__(self) -> None:
        require(self.level in LOG_LEVELS, f"level is {self.level!r}; it must be one of {', '.join(LOG_LEVELS)}")


@dataclass(frozen=True)
class AgentConfig:
    """Everything in agent.toml."""

    device: DeviceConfig
    broker: BrokerConfig
    cameras: tuple[CameraConfig, ...]
    update: UpdateConfig = field(default_factory=UpdateConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    selection: Policy = field(default_factory=Policy)
    dry_run: Policy | None = None
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    metered: MeteredConfig = field(default_factory=MeteredConfig)
    spool: SpoolConfig = field(default_factory=SpoolConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    accounting: AccountingConfig = field(default_factory=AccountingConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    log: LogConfig = field(default_factory=LogConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)

    def __post_init__(self) -> None:
        require(bool(self.cameras), "there is no [[cameras]] section; add one with name and source")
        names = [camera.name for camera in self.cameras]
        doubled = sorted({name for name in names if names.count(name) > 1})
        require(not doubled, f"two cameras are called {', '.join(doubled)}; each needs its own name")
        require(
            bool(self.running_cameras), "every camera is switched off; leave one on, or send no picture with template = 'off'"
        )

    @property
    def running_cameras(self) -> tuple[CameraConfig, ...]:
        """The cameras that are switched on."""
        return tuple(camera for camera in self.cameras if camera.enabled)


def parse_config(text: str, folder: Path, source: str = "agent.toml") -> AgentConfig:
    """The configuration in a TOML text; relative paths are relative to `folder`.

    Raises:
        ConfigError: not TOML, or any number of faults, all of them listed.
    """
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(source, [f"not TOML: {error}"]) from error
    faults = Faults()
    _apply_templates(plain, faults)
    config = structure(plain, AgentConfig, "", faults)
    if config is None or faults.found:
        raise ConfigError(source, [with_line(path, message, text) for path, message in faults.found])
    return absolute(config, folder)


def parse_wished(
    text: str, folder: Path, wish: Mapping[str, Any], source: str = "the wish"
) -> tuple[AgentConfig, tuple[str, ...]]:
    """The configuration of a TOML text without faults, with a wish of the server laid over it.

    Args:
        wish: section -> key -> value; `cameras` by name. See `remote/config.py`.

    Returns:
        The configuration, and the key paths in which the file adds to what was wished.

    Raises:
        ConfigError: the wish asks for what agent.toml does not allow, or what no file could say; all faults are listed.
    """
    own = parse_config(text, folder)
    plain = tomllib.loads(text)
    merged = merge(plain, wish, own.remote, is_off=own.selection.frames_per_window == 0)
    faults = Faults()
    faults.found += merged.faults
    both = copy.deepcopy(merged.plain)
    _apply_templates(both, faults)
    config = structure(both, AgentConfig, "", faults)
    if config is None or faults.found:
        raise ConfigError(source, [f"{path}: {message}" for path, message in faults.found])
    return absolute(config, folder), merged.differs


def read_config(path: Path) -> AgentConfig:
    """The configuration in a file.

    Raises:
        ConfigError: the file cannot be read, or as `parse_config`.
    """
    return parse_config(read_text(path), path.resolve().parent, str(path))


def read_text(path: Path) -> str:
    """The text of a configuration file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(str(path), [f"cannot be read ({reason}); name the file with --config FILE"]) from error


def _apply_templates(plain: Mapping[str, Any], faults: Faults) -> None:
    for section in ("selection", "dry_run"):
        _apply_template(plain.get(section), section, faults)


def _apply_template(selection: Any, section: str, faults: Faults) -> None:
    """Replace `template = "name"` in a section by that template's fields; the table's own keys win."""
    if not isinstance(selection, dict):
        return
    if "template" not in selection:
        unknown = sorted(set(selection) - {f.name for f in fields(Policy)})
        for key in difflib.get_close_matches("template", unknown, n=1):
            faults.add(f"{section}.{key}", "unknown key; did you mean 'template'?")
            del selection[key]
        return
    name = selection.pop("template")
    if not isinstance(name, str) or name not in TEMPLATES:
        faults.add(f"{section}.template", f"is {name!r}; it must be one of {', '.join(map(repr, sorted(TEMPLATES)))}")
        return
    for key, value in TEMPLATES[name].items():
        selection.setdefault(key, value)


def summary(config: AgentConfig) -> dict[str, Any]:
    """The configuration as plain values for `--check-config --json`; no secret is in it."""
    return {
        "device": config.device.id,
        "site": config.device.site,
        "state_dir": str(config.device.state_dir),
        "broker": f"{'mqtts' if config.broker.tls else 'mqtt'}://{config.broker.host}:{config.broker.port}",
        "cameras": {camera.name: without_password(camera.source) for camera in config.cameras},
        "factory_model": None if config.model.factory is None else str(config.model.factory),
    }
