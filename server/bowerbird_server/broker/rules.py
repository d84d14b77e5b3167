"""mosquitto's access rules, generated from the topic types, and read back. Pure text.

In: devices, readers, the names of the server's own processes. Out: the text of an ACL file. Whoever is not in it may connect
with a good certificate and then do nothing: nothing that it publishes is passed on and nothing is delivered to it, what waited
for it included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bowerbird_wire.topics import DOWN, LOCAL, ROOT, UP, VERSION, CreditTopic, EchoTopic, FrameTopic

SERVER_USER = "bowerbird-server"
PROBE_ROOT = "bowerbird-rules"  # below it lies one topic, named by the rules in force


@dataclass(frozen=True)
class AccessRules:
    """Who may do what.

    Args:
        devices, readers: name -> site.
        servers: names with every right below our tree.
        probe: the name that may ask which rules are in force, and nothing else; empty for none.
    """

    devices: Mapping[str, str] = field(default_factory=dict)
    readers: Mapping[str, str] = field(default_factory=dict)
    servers: Iterable[str] = (SERVER_USER,)
    probe: str = ""

    def text(self) -> str:
        """The ACL file."""
        body = access_rules(self.devices, self.servers, readers=self.readers)
        if not self.probe:
            return body
        return f"user {self.probe}\ntopic write {probe_topic(body)}\n\n{body}"


def access_rules(
    devices: Mapping[str, str], servers: Iterable[str] = (SERVER_USER,), *, readers: Mapping[str, str] | None = None
) -> str:
    """The rules: the server may do all below our tree, a device publish its own `up` and `local` leaves and read its own `down` leaves;
    beside that it may write to itself.

    Args:
        devices: name -> site.
        servers: the names of the server's processes.
        readers: other programs of a site, which read what its devices tell it (`local` leaves) and nothing else; name -> site.
    """
    lines: list[str] = []
    for server in sorted(servers):
        lines += [f"user {server}", f"topic readwrite {ROOT}/{VERSION}/#", ""]
    for device, site in sorted(devices.items()):
        lines += [f"user {device}", *device_rules(site, device), ""]
    for reader, site in sorted((readers or {}).items()):
        lines += [f"user {reader}", *(f"topic read {kind.filter(site)}" for kind in LOCAL), ""]
    return "\n".join(lines[:-1]) + "\n"


def device_rules(site: str, device: str) -> list[str]:
    """The lines of one device."""
    return [
        *(f"topic write {kind(site, device)}" for kind in UP),
        *(f"topic write {kind.of_device(site, device)}" for kind in LOCAL),
        *(f"topic read {kind(site, device)}" for kind in DOWN),
        f"topic read {CreditTopic(site)}",
        f"topic readwrite {EchoTopic(site, device)}",
    ]


def pattern_rules(site: str) -> str:
    """The same for every device of a site in one piece, `%u` for the name in its certificate: for a broker that the server cannot tell
    of new devices.
    """
    rules = "\n".join(device_rules(site, "device"))
    return rules.replace("topic ", "pattern ").replace("/device", "/%u") + "\n"


def probe_topic(rules: str) -> str:
    """The topic that only these rules let the probe publish to."""
    return f"{PROBE_ROOT}/{hashlib.sha256(rules.encode()).hexdigest()[:32]}"


def probe_topic_of(text: str) -> str:
    """The probe's topic in a whole ACL file, empty when it has none."""
    for line in text.splitlines():
        if line.startswith(f"topic write {PROBE_ROOT}/"):
            return line.removeprefix("topic write ")
    return ""


def read_devices(text: str) -> dict[str, str]:
    """The devices (name -> site) in an ACL file."""
    topics = [line.removeprefix("topic write ") for line in text.splitlines() if line.endswith(f"/{FrameTopic.LEAF}")]
    return {topic.device: topic.site for topic in map(FrameTopic.parse, topics)}


def read_readers(text: str) -> dict[str, str]:
    """The readers (name -> site) in an ACL file: those that read a topic of the cameras."""
    found: dict[str, str] = {}
    user = ""
    for line in text.splitlines():
        user = line.removeprefix("user ") if line.startswith("user ") else user
        levels = line.removeprefix("topic read ").split("/")
        if line.startswith("topic read ") and levels[3:4] == [LOCAL[0].DIRECTION]:
            found[user] = levels[2]
    return found
