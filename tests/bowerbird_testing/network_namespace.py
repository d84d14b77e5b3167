"""A network namespace with one interface, whose counters are the truth about what a device sends and receives.

In: a name, optionally a rate (`tc tbf`, both ways). Out: addresses of both ends, a prefix for commands inside, the inside's counters.
Neighbours are permanent and IPv6 is off, so that nothing but the device's own traffic is counted; the interface takes one segment at a
time, as a real one does. Needs root. Leaving it removes it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType

_ETHERNET_BYTES = 14


class NoNamespace(RuntimeError):
    """This user, or this kernel, makes none; the text says why."""


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoNamespace(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def _free_number() -> int:
    """0 to 249, in addresses and names: two namespaces with one address would answer each other's packets."""
    try:
        taken = _run("ip", "-4", "-o", "addr")
    except FileNotFoundError as error:
        raise NoNamespace("needs `ip` and `tc`: apt-get install iproute2") from error
    first = os.getpid()
    return next(n for n in ((first + i) % 250 for i in range(250)) if f" 10.213.{n}.1/" not in taken)


class Namespace:
    """The namespace.

    Args:
        rate_kbit: of the link, both ways; None for no limit.
    """

    def __init__(self, *, rate_kbit: int | None = None) -> None:
        number = _free_number()
        self.name = f"bowerbird{number}-{os.getpid()}"
        self._outer, self._inner = f"bbo{number}-{os.getpid()}"[:15], f"bbi{number}-{os.getpid()}"[:15]
        self.host, self.inside = f"10.213.{number}.1", f"10.213.{number}.2"
        self._rate_kbit = rate_kbit

    def __enter__(self) -> Namespace:
        if os.geteuid() != 0:
            raise NoNamespace("needs root to make a network namespace")
        try:
            self._make()
        except FileNotFoundError as error:
            raise NoNamespace("needs `ip` and `tc`: apt-get install iproute2") from error
        except NoNamespace:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._outer], capture_output=True, check=False)

    @property
    def prefix(self) -> list[str]:
        """What stands before a command that is to run inside."""
        return ["ip", "netns", "exec", self.name]

    def counters(self) -> tuple[int, int]:
        """Bytes sent and received by the interface inside."""
        folder = f"/sys/class/net/{self._inner}/statistics"
        sent, received = _run(*self.prefix, "cat", f"{folder}/tx_bytes", f"{folder}/rx_bytes").split()
        return int(sent), int(received)

    def ip_counters(self) -> tuple[int, int]:
        """Bytes of IP packets, and packets, both ways together; cheap enough to be asked fifty times a second."""
        folder = Path(f"/sys/class/net/{self._outer}/statistics")
        octets, packets = (
            sum(int((folder / f"{way}_{what}").read_text()) for way in ("rx", "tx")) for what in ("bytes", "packets")
        )
        return octets - packets * _ETHERNET_BYTES, packets

    def _make(self) -> None:
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", self._outer, "type", "veth", "peer", "name", self._inner, "netns", self.name)
        _run("ip", "addr", "add", f"{self.host}/30", "dev", self._outer)
        _run(*self.prefix, "ip", "addr", "add", f"{self.inside}/30", "dev", self._inner)
        _run(*self.prefix, "ip", "link", "set", "lo", "up")  # paho wakes its thread over it
        _run(*self.prefix, "sysctl", "-qw", f"net.ipv6.conf.{self._inner}.disable_ipv6=1")
        Path(f"/proc/sys/net/ipv6/conf/{self._outer}/disable_ipv6").write_text("1")
        _run("ip", "link", "set", self._outer, "gso_max_segs", "1", "up")
        _run(*self.prefix, "ip", "link", "set", self._inner, "gso_max_segs", "1", "up")
        for prefix, device, other in (([], self._outer, self._inner), (self.prefix, self._inner, self._outer)):
            far = self.prefix if not prefix else []
            address = self.inside if not prefix else self.host
            hardware = _run(*far, "cat", f"/sys/class/net/{other}/address").strip()
            _run(*prefix, "ip", "neigh", "replace", address, "lladdr", hardware, "dev", device, "nud", "permanent")
            if self._rate_kbit is not None:
                shape = ("tbf", "rate", f"{self._rate_kbit}kbit", "burst", "4kb", "limit", "256kb")
                _run(*prefix, "tc", "qdisc", "add", "dev", device, "root", *shape)
