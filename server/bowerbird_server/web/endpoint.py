"""Where the web server of a site is: address and port, kept from one start to the next.

In: the configuration and what an earlier start chose. Out: `WebEndpoint`, in `web.json` of the data folder. It keeps no secret.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bowerbird_server.config import WebConfig
from bowerbird_server.errors import EnvironmentFault, NotFound
from bowerbird_server.layout import DataFolder

NAME = "web.json"


@dataclass(frozen=True)
class WebEndpoint:
    """How to reach the pages and the API."""

    host: str
    port: int
    scheme: str = "http"

    @property
    def url(self) -> str:
        """The base URL for a browser on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104 - read, not bound
        return f"{self.scheme}://{host}:{self.port}"

    @classmethod
    def load(cls, folder: DataFolder) -> WebEndpoint:
        """What the last start chose.

        Raises:
            NotFound: the server was never started on this data folder.
        """
        path = folder.root / NAME
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            kept.pop("token", None)  # of a release that kept it here
            return cls(**kept)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise NotFound(
                f"{path} is missing or damaged; start the server once with `bowerbird serve --data {folder.root}`"
            ) from error

    @classmethod
    def choose(cls, folder: DataFolder, config: WebConfig) -> WebEndpoint:
        """The endpoint for this start: configured values first, then those of the last start, then new ones.

        Raises:
            EnvironmentFault: the configured port is taken, or the address is none of this machine.
        """
        try:
            last: WebEndpoint | None = cls.load(folder)
        except NotFound:
            last = None
        port = config.port or (last.port if last is not None and last.host == config.host else 0)
        if port and not is_free(config.host, port):
            if config.port:
                raise EnvironmentFault(
                    f"port {port} on {config.host} is taken by another program; stop that one, or give the pages another with "
                    "--port or web.port (0 takes a free one)"
                )
            port = 0  # the one of the last start is gone, and nobody asked for that very one
        port = port or _free_port(config.host)
        endpoint = cls(config.host, port, "http" if config.tls == "off" else "https")
        endpoint._save(folder.root / NAME)
        return endpoint

    def _save(self, path: Path) -> None:
        temporary = path.with_suffix(f".{os.getpid()}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
        temporary.replace(path)


def take_old_token(folder: DataFolder) -> str:
    """The token that releases before roles kept in `web.json`, "" for none; `WebEndpoint.choose` writes the file without it."""
    try:
        kept = json.loads((folder.root / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(kept.get("token", "")) if isinstance(kept, dict) else ""


def is_free(host: str, port: int, wait_s: float = 5.0) -> bool:
    """Whether one could listen there now, or within `wait_s`: a server that was just killed still lets go of its ports."""
    deadline_s = time.monotonic() + wait_s
    while True:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise EnvironmentFault(
                        f"cannot listen on {host}:{port}: {error.strerror}; choose an address of this machine and a port above 1023"
                    ) from error
            else:
                return True
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.1)


def _free_port(host: str) -> int:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise EnvironmentFault(
            f"cannot listen on {host}: {error.strerror}; set web.host to an address of this machine"
        ) from error
