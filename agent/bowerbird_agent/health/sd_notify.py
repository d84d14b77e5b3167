"""Tells systemd how the agent is: the `sd_notify` protocol, which is one datagram of `KEY=value` lines.

In: the socket's address and the watchdog's interval, as the composition root found them in the environment. Out: datagrams. Where there
is no such socket nothing is sent. It decides nothing about health: `alive` is called only while every thread makes progress.

Source: sd_notify(3), "Standalone Implementations"; abstract addresses begin with "@".
"""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

# systemd advises half of the interval; a third leaves room for a busy machine.
_BEATS_PER_INTERVAL = 3
_STATUS_EVERY_S = 2.0
_EXTEND_S = 30


@dataclass(frozen=True)
class NotifyAddress:
    """Where to send to, and how often systemd wants to hear of us.

    Args:
        socket: path of the datagram socket, "@..." in the abstract namespace, "" for none.
        watchdog_s: systemd ends a service that is silent for so long; None when it does not watch.
    """

    socket: str = ""
    watchdog_s: float | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, pid: int) -> NotifyAddress:
        """From `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`; what is not meant for this process, or no number, is left out."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return cls()
        usec, meant_for = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(pid))
        watches = usec.isascii() and usec.isdigit() and int(usec) > 0 and meant_for == str(pid)
        return cls(address, int(usec) / 1e6 if watches else None)


class Notifier:
    """The messages of one service. One thread owns it; a send never blocks and never fails loudly."""

    def __init__(self, address: NotifyAddress | None = None) -> None:
        self._address = address or NotifyAddress()
        self._socket: socket.socket | None = None
        self._alive_due_s = self._status_due_s = float("-inf")
        self._status = ""
        self._complained = False
        if self._address.socket:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @property
    def poll_s(self) -> float:
        """How often `alive` should be called at least, in seconds; infinity when systemd does not watch."""
        watchdog_s = self._address.watchdog_s
        return float("inf") if watchdog_s is None else watchdog_s / (2 * _BEATS_PER_INTERVAL)

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, is over."""
        self._send("READY=1", *([f"STATUS={_one_line(status)}"] if status else []))

    def starting(self) -> None:
        """Still starting (a model loads): asks systemd for more time than the unit's start limit."""
        self._send(f"EXTEND_TIMEOUT_USEC={_EXTEND_S * 1_000_000}")

    def alive(self, now_s: float, status: str) -> None:
        """Every thread makes progress. Sends the watchdog's beat when it is due, and the status line when it has changed."""
        lines = []
        if self._address.watchdog_s is not None and now_s >= self._alive_due_s:
            self._alive_due_s = now_s + self._address.watchdog_s / _BEATS_PER_INTERVAL
            lines.append("WATCHDOG=1")
        if status != self._status and now_s >= self._status_due_s:
            self._status, self._status_due_s = status, now_s + _STATUS_EVERY_S
            lines.append(f"STATUS={_one_line(status)}")
        if lines:
            self._send(*lines)

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, why: str = "") -> None:
        """The process is on its way out."""
        self._send("STOPPING=1", *([f"STATUS={_one_line(why)}"] if why else []))

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        address = self._address.socket
        target = "\0" + address[1:] if address.startswith("@") else address
        try:
            self._socket.sendto("\n".join(lines).encode(), os.fsencode(target))
        except OSError as error:
            level = logging.DEBUG if self._complained else logging.WARNING
            self._complained = True
            logger.log(level, "the supervisor at %s is not reached (%s); check NOTIFY_SOCKET", address, error.strerror)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]
