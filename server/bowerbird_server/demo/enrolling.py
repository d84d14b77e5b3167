"""The demo's devices enrol as boards do: each makes its key and claims its certificate, by `bowerbird-agent enrol`.

In: the folders that `devices add` wrote. Out: devices that are enrolled before anything else begins, so that the demo's rounds
ask all of them. For so long, the claim listener runs in a thread here.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bowerbird_server.errors import EnvironmentFault
from bowerbird_server.fleet.provision import BUNDLE_NAME, uses_certificates
from bowerbird_server.identity import service
from bowerbird_server.identity.place import listener_address
from bowerbird_server.site import Site

_ENROLLED = "state/identity/claimed"  # in a device's folder, once it is one
_READY_S = 30.0


def is_enrolled(site: Site, folder: Path) -> bool:
    """Whether a device needs no bundle any more."""
    return (folder / _ENROLLED).exists() or not uses_certificates(site)


def enrol_here(site: Site, folders: Sequence[Path]) -> None:
    """Enrol those that are not yet.

    Raises:
        EnvironmentFault: one of them cannot.
    """
    waiting = [folder for folder in folders if not is_enrolled(site, folder)]
    if not waiting:
        return
    stop = threading.Event()
    listener = threading.Thread(target=service.run, args=(site.folder.root, None, stop), name="claims")
    listener.start()
    try:
        _await(site, listener)
        for folder in waiting:
            argv = [sys.executable, "-m", "bowerbird_agent", "enrol", str(folder / BUNDLE_NAME)]
            # A demo may lie where it likes, in memory too.
            argv += ["--config", str(folder / "agent.toml"), "--in-memory"]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                raise EnvironmentFault(f"{folder.name} cannot enrol: {done.stderr.strip()[-500:]}")
    finally:
        stop.set()
        listener.join()


def _await(site: Site, listener: threading.Thread) -> None:
    address = listener_address(site)
    deadline_s = time.monotonic() + _READY_S
    while listener.is_alive() and time.monotonic() < deadline_s:
        try:
            socket.create_connection((address.host, address.port), timeout=0.5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise EnvironmentFault("the claim listener does not come up; see the lines above")
