"""A site whose claim listener runs, on a free loopback port.

In: a folder. Out: `ClaimSite`: invitations, bundles as files, and the listener, which may be stopped and started again.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from bowerbird_server.fleet.provision import broker_table
from bowerbird_server.identity import service
from bowerbird_server.identity.authority import Authority
from bowerbird_server.identity.invitations import Invitation, Wanted, invite
from bowerbird_server.identity.place import listener_address
from bowerbird_server.site import Site

CAMERA = {"name": "gate", "source": "synthetic:?seed=1", "pace": "realtime"}


@dataclass
class ClaimSite:
    """Call `start` before anybody enrols; `site` belongs to the test's thread."""

    site: Site
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Of the listener."""
        return f"https://127.0.0.1:{listener_address(self.site).port}"

    def start(self) -> None:
        """Listen; returns when connections are accepted."""
        address = listener_address(self.site)
        self._stop.clear()
        self._thread = threading.Thread(
            target=service.run, args=(self.site.folder.root, None, self._stop), name="claims", daemon=True
        )
        self._thread.start()
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError), socket.create_connection((address.host, address.port), timeout=1):
                return
            time.sleep(0.02)
        raise TimeoutError("the claim listener does not come up")

    def stop(self) -> None:
        """End the listener."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)

    def invite(
        self,
        label: str = "SN-1",
        *,
        serial: str = "",
        device: str | None = None,
        approved: bool = True,
        now: datetime | None = None,
    ) -> Invitation:
        """An invitation for one board with one camera."""
        wanted = Wanted(label, serial, device, cameras=(CAMERA,))
        return invite(
            self.site,
            wanted,
            broker=broker_table(self.site),
            tables={},
            actor="test",
            approved=approved,
            host="127.0.0.1",
            now=now,
        )

    def bundle(self, folder: Path, **options: object) -> Path:
        """The same as a file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "bundle.json"
        path.write_text(self.invite(**options).bundle.to_text())  # type: ignore[arg-type]
        return path


@contextlib.contextmanager
def claim_site(folder: Path, *, names: tuple[str, ...] = (), made: datetime | None = None) -> Iterator[ClaimSite]:
    """A new site in `folder` with its listener up; its authority is of the day `made`."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = ", ".join(f'"{name}"' for name in names)
    (folder / "bowerbird.toml").write_text(f'site = "demo"\n[signing]\nmode = "automatic"\n[broker]\nnames = [{listed}]\n')
    Authority.open(folder / "identity", now=made)
    with Site.open(folder) as site:
        running = ClaimSite(site)
        running.start()
        try:
            yield running
        finally:
            running.stop()
