"""Whether this installation of the server can work on this machine: `python -m bowerbird_server.install_check DATA`.

In: the data folder, perhaps still empty. Out: exit code 0, or 1 and what is wrong. Every version brings its own check, and
deploy/install.sh runs that of the version which is to become `current`, before anything is switched. It imports what the server
imports, writes a file durably to the data folder, and looks whether it knows every step that the catalogue there has been
through: a version that does not would have to be refused by `bowerbird serve`. It changes nothing in the data folder and starts
nothing.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bowerbird_models.durable import write_durably
from bowerbird_server.errors import EnvironmentFault

MODULES = (
    "bowerbird_server.supervisor",
    "bowerbird_server.cli.app",
    "bowerbird_server.fleet.delivery",
    "bowerbird_server.ingest.ingest",
    "bowerbird_server.scheduler",
    "bowerbird_server.web.app",
    "bowerbird_models.onnx_detector",
    "onnxruntime",
    "cv2",
    "uvicorn",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all checks, the cheapest first, and stop at the first that fails."""
    parser = argparse.ArgumentParser(
        prog="python -m bowerbird_server.install_check", description="Can this installation of the server work here?"
    )
    parser.add_argument("data", type=Path, help="the data folder; it must exist")
    data: Path = parser.parse_args(argv).data
    checks: list[tuple[str, Callable[[], None]]] = [
        ("data folder", lambda: write_and_read(data)),
        ("catalogue", lambda: read_catalogue(data)),
        ("imports", import_all),
    ]
    for name, check in checks:
        try:
            check()
        except (EnvironmentFault, ImportError, OSError) as error:
            print(f"install check: {name}: {error}", file=sys.stderr)
            return 1
        print(f"install check: {name}: ok")
    return 0


def import_all() -> None:
    """Raises ImportError, with the module's name, for a package that is missing or was built for another machine."""
    for name in MODULES:
        importlib.import_module(name)


def write_and_read(data: Path) -> None:
    """Raises OSError when the data folder does not keep a file."""
    probe = data / ".install-check"
    try:
        write_durably(probe, b"bowerbird", 0o600)
        if probe.read_bytes() != b"bowerbird":
            raise EnvironmentFault(f"{data} gives back something else than was written; check the disk")
    finally:
        probe.unlink(missing_ok=True)


def read_catalogue(data: Path) -> None:
    """Raises EnvironmentFault when a later version has changed the catalogue; a folder without one is fine."""
    from bowerbird_server.catalogue.core import steps_of_a_later_version
    from bowerbird_server.layout import DataFolder

    steps_of_a_later_version(DataFolder(data).catalogue)


if __name__ == "__main__":
    sys.exit(main())
