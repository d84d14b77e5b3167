"""What agent.toml says of the network: the broker, and how many bytes may pass to it and when.

In: plain values of `[broker]`, `[budget]` and `[metered]`. Out: frozen types that check themselves, or ValueError with what to write
instead; the password, read from its own file. It opens no connection and counts no byte (`mqtt_link.py`, `budget.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bowerbird_agent.budget.budget import ByteLimits
from bowerbird_agent.budget.tariff import QuietHours
from bowerbird_agent.errors import ConfigError
from bowerbird_agent.structuring import require

_CONTROL_BYTES = 100_000


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
        require(bool(self.host), "host is empty; name the broker's address")
        require(0 <= self.port <= 65535, f"port is {self.port}; it must be 1 to 65535")
        if self.port == 0:
            object.__setattr__(self, "port", 8883 if self.tls else 1883)
        named = self.ca_file or self.certificate_file
        require(self.tls or not named, "tls is false; ca_file and certificate_file are for TLS")
        require(5 <= self.keepalive_s <= 3600, f"keepalive_s is {self.keepalive_s}; it must be 5 to 3600")


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
        require(self.burst_bytes >= 10_000, f"burst_bytes is {self.burst_bytes}; it must hold at least one frame (10000)")
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
        require(all(self.interfaces), "a name in interfaces is empty; name an interface such as wwan0, or a pattern")
        capped = (self.bytes_per_day, self.bytes_per_month) != (None, None)
        require(bool(self.interfaces) or not capped, "there are caps but no interfaces; name the metered ones")
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
