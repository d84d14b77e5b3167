"""Who does not come in at the broker of our own, and why, as far as its log knows: what a device cannot tell that has no connection.

In: the end of mosquitto's log, the time. Out: a sentence for each address and reason, newest first, that says what to do. The name of a
device is not in them, since it was never learnt; a line that several connections may have caused names no address. Reading a log is
all that it does: rules and certificates are `broker/embedded.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

WITHIN = timedelta(hours=1)
_TAIL_BYTES = 512 * 1024
_LINE = re.compile(r"(\d{9,11}): (.*)")
_NEW = re.compile(r"New connection from (.+):(\d+) on port \d+\.")
_KNOWN = re.compile(r"New client connected from (.+):(\d+) as ")
_FAULT = re.compile(r"OpenSSL Error\[0\]: error:[0-9A-F]+:SSL routines:[^:]*:(.+?)\.?")
_MOST_PENDING = 64

# What OpenSSL says -> what is so, and what to do. "alert" is what the other side said.
_REASONS = {
    "tlsv1 alert unknown ca": "does not trust this server: it knows another CA. If the server was set up anew, make that device a new "
    "bundle (bowerbird devices add NAME --again); if not, somebody stands in between",
    "sslv3 alert bad certificate": "does not take the broker's certificate: it is for other host names than the one that is asked for "
    "(add that name to broker.names), or is not valid yet by the clock there",
    "sslv3 alert certificate expired": "says that the broker's certificate has expired: the clock there, or the server's, is wrong",
    "certificate verify failed": "shows a certificate that is refused: it has expired, is not valid yet, or is of another CA; "
    "bowerbird-agent doctor there says which",
    "peer did not return a certificate": "shows no certificate: enrol that device (bowerbird devices invite)",
}


@dataclass(frozen=True)
class Refused:
    """Connections that came to nothing.

    Args:
        address: from where, "" when it cannot be told.
        why: a sentence that the address begins.
        count: how often within the time.
        last_at: aware.
    """

    address: str
    why: str
    count: int
    last_at: datetime

    @property
    def who(self) -> str:
        """The sentence's subject."""
        return f"somebody at {self.address}" if self.address else "somebody"


def recent(log: Path, *, now: datetime) -> list[Refused]:
    """What the log says of the last hour, newest first; nothing where there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return refusals(text.splitlines(), now=now)


def refusals(lines: Iterable[str], *, now: datetime) -> list[Refused]:
    """The same of lines."""
    found: dict[tuple[str, str], Refused] = {}
    pending: list[tuple[str, str]] = []  # connections of which nothing more was said
    for line in lines:
        match = _LINE.fullmatch(line.strip())
        if match is None:
            continue
        said = match[2]
        if new := _NEW.fullmatch(said):
            pending = [*pending, (new[1], new[2])][-_MOST_PENDING:]
        elif known := _KNOWN.match(said):
            pending = [each for each in pending if each != (known[1], known[2])]
        elif fault := _FAULT.fullmatch(said):
            addresses = {address for address, _ in pending}
            address = addresses.pop() if len(addresses) == 1 else ""
            pending = pending[:-1] if len(pending) == 1 else pending
            at = datetime.fromtimestamp(int(match[1]), tz=UTC)
            why = _REASONS.get(fault[1])
            if why is not None and now - at <= WITHIN:
                before = found.get((address, why), Refused(address, why, 0, at))
                found[address, why] = replace(before, count=before.count + 1, last_at=at)
        elif said.startswith("Client <unknown> disconnected"):
            pending = pending[:-1]
    return sorted(found.values(), key=lambda each: each.last_at, reverse=True)
