"""The device's configuration: one typed object, read once from `agent.toml` by the composition root.

In: a TOML file. Out: `AgentConfig`, with every path absolute, or `ConfigError` with all faults at once (key path and line).
`check_files` looks further: missing files, a password that others can read. It reads no environment variable.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bowerbird_agent.budget import ByteLimits
from bowerbird_agent.camera_config import CameraConfig
from bowerbird_agent.capture import kind_of, without_password
from bowerbird_agent.errors import ConfigError
from bowerbird_agent.fetch_config import FetchConfig
from bowerbird_agent.guard import GuardConfig
from bowerbird_agent.heartbeat import WatchdogConfig
from bowerbird_agent.metrics_endpoint import MetricsConfig
from bowerbird_agent.model_config import ModelConfig
from bowerbird_agent.policy import STRATEGIES, TEMPLATES, Policy
from bowerbird_agent.publish import PublishConfig
from bowerbird_agent.remote_config import RemoteConfig, merge
from bowerbird_agent.spool_eviction import FLOORS
from bowerbird_agent.structuring import Faults, structure
from bowerbird_agent.tariff import QuietHours
from bowerbird_wire.errors import TopicError
from bowerbird_wire.topics import check_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_LONG_SIDE_PX = 4096
_CONTROL_BYTES = 100_000
LOG_LEVELS = ("debug", "info", "warning", "error")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


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
class BrokerConfig:
    """The MQTT broker. With TLS the device shows the certificate that it was enrolled with. A password stands in a file of its own,
    readable by this user only.

    Args:
        host, port: where it listens; port 0 for 8883 with TLS and 1883 without.
        tls: whether TLS is spoken, 1.2 or newer; without it everybody on the way reads along.
        ca_file: CA of a broker that is not the server's own; None for the one that came with the enrolment.
        certificate_file: key and certificate in one PEM file for such a broker; None for those of the enrolment.
        username: None for the device's id.
        password_file: first line is the password; None for no password.
        keepalive_s: seconds without traffic after which the device asks whether the broker still lives; half as long again until
            the broker calls a silent device offline. While packets wait for their acknowledgement 90 s without a byte are enough.
    """

    host: str
    port: int = 0
    tls: bool = True
    ca_file: Path | None = None
    certificate_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    keepalive_s: int = 300

    def __post_init__(self) -> None:
        _require(bool(self.host), "host is empty; name the broker's address")
        _require(0 <= self.port <= 65535, f"port is {self.port}; it must be 1 to 65535")
        if self.port == 0:
            object.__setattr__(self, "port", 8883 if self.tls else 1883)
        named = self.ca_file or self.certificate_file
        _require(self.tls or not named, "tls is false; ca_file and certificate_file are for TLS")
        _require(5 <= self.keepalive_s <= 3600, f"keepalive_s is {self.keepalive_s}; it must be 5 to 3600")


@dataclass(frozen=True)
class UpdateConfig:
    """Trust in model updates. `trusted_root` is the TUF root the device was made with; None refuses every update."""

    trusted_root: Path | None = None


@dataclass(frozen=True)
class BudgetConfig:
    """How much may pass the network. Every byte at the link counts, headers, resends and control included.

    Downloads count for day and month.

    Args:
        bytes_per_s: the uplink's long-term rate.
        burst_bytes: what an idle uplink saves up and may then send at once, on top of the rate.
        bytes_per_day: cap in every rolling 24 hours, None for none.
        bytes_per_month: cap in every rolling 31 days, hence in every calendar month; None for none.
        carry_over_bytes: what days leave of `bytes_per_day` may be spent later, up to so much on top of one day.
        quiet_hours: times of day like "22:00-06:00" (local time) or "22:00-06:00 UTC" in which no frames, no detections and no
            model updates go; control does. While the clock is not set it counts as quiet.
    """

    bytes_per_s: float = 16_000.0
    burst_bytes: int = 2_000_000
    bytes_per_day: int | None = None
    bytes_per_month: int | None = None
    carry_over_bytes: int = 0
    quiet_hours: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.quiet_ranges()
        _require(self.burst_bytes >= 10_000, f"burst_bytes is {self.burst_bytes}; it must hold at least one frame (10000)")
        self.to_limits()

    def to_limits(self) -> ByteLimits:
        """The caps as the token bucket takes them.

        Raises:
            ValueError: a number is out of range.
        """
        return ByteLimits(
            self.bytes_per_s,
            self.burst_bytes,
            self.bytes_per_day,
            self.bytes_per_month,
            self.carry_over_bytes,
            _control_bytes(self.bytes_per_day),
        )

    def quiet_ranges(self) -> tuple[QuietHours, ...]:
        """The quiet hours as the tariff takes them.

        Raises:
            ValueError: one of them is no time range.
        """
        return tuple(QuietHours.parse(text) for text in self.quiet_hours)


@dataclass(frozen=True)
class MeteredConfig:
    """A budget of its own for what goes over metered interfaces, on top of `[budget]`.

    Args:
        interfaces: names or patterns, like "wwan*": the uplink is metered while a default route leads over one of them.
        bytes_per_day: cap in every rolling 24 hours, None for none.
        bytes_per_month: cap in every rolling 31 days, None for none.
    """

    interfaces: tuple[str, ...] = ()
    bytes_per_day: int | None = None
    bytes_per_month: int | None = None

    def __post_init__(self) -> None:
        _require(all(self.interfaces), "a name in interfaces is empty; name an interface such as wwan0, or a pattern")
        capped = (self.bytes_per_day, self.bytes_per_month) != (None, None)
        _require(bool(self.interfaces) or not capped, "there are caps but no interfaces; name the metered ones")
        self.to_limits()

    def to_limits(self) -> ByteLimits:
        """The caps as the token bucket takes them.

        Raises:
            ValueError: a number is out of range.
        """
        return ByteLimits(
            bytes_per_day=self.bytes_per_day,
            bytes_per_month=self.bytes_per_month,
            control_bytes=_control_bytes(self.bytes_per_day),
        )


def _control_bytes(bytes_per_day: int | None) -> int:
    """What frames leave of a day's cap for keep-alives, receipts and commands."""
    return _CONTROL_BYTES if bytes_per_day is None else min(_CONTROL_BYTES, max(0, bytes_per_day) // 20)


@dataclass(frozen=True)
class SpoolConfig:
    """Bounds of the durable queue on disk.

    Args:
        max_bytes: hard cap of frames, index and all.
        min_free_bytes: the spool does not grow while the disk has less free than this.
        floors: "explore" or a strategy -> the share of the spool that is its frames' own. Below it they make way for no others.
        max_age_days: frames captured longer ago are given up unsent; None keeps them until they are sent.
    """

    max_bytes: int = 500_000_000
    min_free_bytes: int = 200_000_000
    floors: dict[str, float] = field(default_factory=lambda: dict(FLOORS))
    max_age_days: float | None = None

    def __post_init__(self) -> None:
        _require(self.max_bytes >= 3_000_000, f"max_bytes is {self.max_bytes}; it must be at least 3000000")
        _require(
            self.max_age_days is None or 0.01 <= self.max_age_days <= 3660,
            f"max_age_days is {self.max_age_days}; it must be 0.01 to 3660",
        )
        _require(self.min_free_bytes >= 0, f"min_free_bytes is {self.min_free_bytes}; it must not be negative")
        known = ("explore", *STRATEGIES)
        unknown = sorted(set(self.floors) - set(known))
        _require(not unknown, f"floors knows no {', '.join(unknown)}; known are {', '.join(known)}")
        _require(all(0 <= share <= 1 for share in self.floors.values()), "a share in floors must be 0 to 1")
        _require(sum(self.floors.values()) <= 1, f"floors add up to {sum(self.floors.values()):g}; together at most 1")


@dataclass(frozen=True)
class ImageConfig:
    """How a frame is stored and sent: JPEG of at most `long_side` pixels (never enlarged) and this quality."""

    long_side: int = 640
    quality: int = 90

    def __post_init__(self) -> None:
        _require(
            64 <= self.long_side <= MAX_LONG_SIDE_PX, f"long_side is {self.long_side}; it must be 64 to {MAX_LONG_SIDE_PX}"
        )
        _require(10 <= self.quality <= 100, f"quality is {self.quality}; it must be 10 to 100")


@dataclass(frozen=True)
class AccountingConfig:
    """What is kept for the record.

    Args:
        encode_everything: encodes each distinct frame, to know what sending everything or the 0.6 rule would have cost.
        keep_decisions: newest decisions kept in the state folder for `bowerbird-agent explain`, some 40 bytes each; 0 for none.
    """

    encode_everything: bool = False
    keep_decisions: int = 20_000

    def __post_init__(self) -> None:
        _require(0 <= self.keep_decisions <= 1_000_000, f"keep_decisions is {self.keep_decisions}; it must be 0 to 1000000")


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
        _require(0.2 <= self.interval_s <= 3600, f"interval_s is {self.interval_s}; it must be 0.2 to 3600")
        _require(1 <= self.idle_interval_s <= 86_400, f"idle_interval_s is {self.idle_interval_s}; it must be 1 to 86400")


@dataclass(frozen=True)
class LogConfig:
    """How much the agent says: "debug", "info", "warning" or "error". `--log-level` wins."""

    level: str = "info"

    def __post_init__(self) -> None:
        _require(self.level in LOG_LEVELS, f"level is {self.level!r}; it must be one of {', '.join(LOG_LEVELS)}")


@dataclass(frozen=True)
class AgentConfig:
    """Everything in agent.toml."""

    device: DeviceConfig
    broker: BrokerConfig
    cameras: tuple[CameraConfig, ...]
    update: UpdateConfig = field(default_factory=UpdateConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    selection: Policy = field(default_factory=Policy)
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
        _require(bool(self.cameras), "there is no [[cameras]] section; add one with name and source")
        names = [camera.name for camera in self.cameras]
        doubled = sorted({name for name in names if names.count(name) > 1})
        _require(not doubled, f"two cameras are called {', '.join(doubled)}; each needs its own name")
        _require(
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
    _apply_template(plain.get("selection"), faults)
    config = structure(plain, AgentConfig, "", faults)
    if config is None or faults.found:
        raise ConfigError(source, [_shown(path, message, text) for path, message in faults.found])
    return _absolute(config, folder)


def parse_wished(
    text: str, folder: Path, wish: Mapping[str, Any], source: str = "the wish"
) -> tuple[AgentConfig, tuple[str, ...]]:
    """The configuration of a TOML text without faults, with a wish of the server laid over it.

    Args:
        wish: section -> key -> value; `cameras` by name. See `remote_config.py`.

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
    _apply_template(both.get("selection"), faults)
    config = structure(both, AgentConfig, "", faults)
    if config is None or faults.found:
        raise ConfigError(source, [f"{path}: {message}" for path, message in faults.found])
    return _absolute(config, folder), merged.differs


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


def check_files(config: AgentConfig, source: str) -> None:
    """Check what the configuration points to.

    Raises:
        ConfigError: a film, folder, model, root or password file is missing, or others can read the password.
    """
    found: list[str] = []
    for i, camera in enumerate(config.cameras):
        if kind_of(camera.source) == "path" and not Path(camera.source).exists():
            found.append(f"cameras[{i}].source: {camera.source} does not exist; check the path")
    pointed = (
        ("model.factory", config.model.factory),
        ("update.trusted_root", config.update.trusted_root),
        ("broker.password_file", config.broker.password_file),
        ("broker.ca_file", config.broker.ca_file),
        ("broker.certificate_file", config.broker.certificate_file),
    )
    found += [
        f"{key}: {path} does not exist; check the path" for key, path in pointed if path is not None and not path.exists()
    ]
    for key in ("password_file", "certificate_file"):
        secret = getattr(config.broker, key)
        if secret is not None and secret.is_file() and secret.stat().st_mode & 0o077:
            found.append(f"broker.{key}: others can read {secret}; run `chmod 600 {secret}`")
    if config.model.factory is None and config.update.trusted_root is None:
        found.append(
            "model.factory: neither a factory model nor update.trusted_root is given, so no model would ever run; name one"
        )
    if found:
        raise ConfigError(source, found)


def read_password(config: BrokerConfig) -> str | None:
    """The first line of the password file, None when there is none.

    Raises:
        ConfigError: the file cannot be read.
    """
    if config.password_file is None:
        return None
    try:
        return config.password_file.read_text("utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(config.password_file), ["the password file cannot be read; check path and owner"]) from error


def _absolute(config: AgentConfig, folder: Path) -> AgentConfig:
    def at(path: Path | None) -> Path | None:
        return None if path is None else folder / path.expanduser()

    cameras = tuple(
        replace(camera, source=str(folder / Path(camera.source.removeprefix("file://")).expanduser()))
        if kind_of(camera.source) == "path"
        else camera
        for camera in config.cameras
    )
    return replace(
        config,
        device=replace(config.device, state_dir=folder / config.device.state_dir.expanduser()),
        broker=replace(
            config.broker,
            password_file=at(config.broker.password_file),
            ca_file=at(config.broker.ca_file),
            certificate_file=at(config.broker.certificate_file),
        ),
        update=replace(config.update, trusted_root=at(config.update.trusted_root)),
        model=replace(config.model, factory=at(config.model.factory)),
        cameras=cameras,
    )


def _apply_template(selection: Any, faults: Faults) -> None:
    """Replace `template = "name"` in [selection] by that template's fields; the table's own keys win."""
    if not isinstance(selection, dict) or "template" not in selection:
        return
    name = selection.pop("template")
    if not isinstance(name, str) or name not in TEMPLATES:
        faults.add("selection.template", f"is {name!r}; it must be one of {', '.join(map(repr, sorted(TEMPLATES)))}")
        return
    for key, value in TEMPLATES[name].items():
        selection.setdefault(key, value)


def _shown(path: str, message: str, text: str) -> str:
    line = _line_of(path, text)
    return f"{path}: {message}" if line is None else f"{path} (line {line}): {message}"


def _line_of(path: str, text: str) -> int | None:
    """The line of a key path such as `cameras[1].fps`, or of its table; found by reading headers, good for ordinary files."""
    table, _, key = path.rpartition(".")
    name, _, index = (table or path).partition("[")
    wanted = int(index.partition("]")[0]) if index else 0
    seen = -1
    in_table = not table
    table_line = None
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?", line)
        if header:
            is_named = header[1] == name
            seen += is_named
            in_table = is_named and seen == wanted
            if in_table and table_line is None:
                table_line = number
        elif in_table and re.match(rf"\s*{re.escape(key)}\s*=", line):
            return number
    return table_line


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
