"""One opened site: its folder, catalogue, blobs and configuration, as every command and process of the server needs them.

In: the data folder and perhaps a configuration file. Out: `Site`. Opening makes what is missing; closing closes the catalogue.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.catalogue import Catalogue
from bowerbird_server.config import CONFIG_NAME, ServerConfig, load_config
from bowerbird_server.errors import BadInput, Conflict, EnvironmentFault, NotFound
from bowerbird_server.layout import DataFolder


@dataclass(frozen=True)
class Site:
    """Belongs to one thread, as its catalogue does."""

    folder: DataFolder
    config: ServerConfig
    catalogue: Catalogue
    blobs: LocalBlobs

    @classmethod
    def open(cls, data: Path, config_path: Path | None = None, *, make: bool = True) -> Site:
        """Open a data folder.

        Args:
            make: make it when it is new; otherwise a new folder is a mistake, which is told.

        Raises:
            ConfigError: the configuration cannot be used.
            NotFound: there is no site in the folder, and none shall be made.
            Conflict: the folder has lost its catalogue.
            BadInput: the folder is something else's.
            EnvironmentFault: the folder cannot be made or written, or the catalogue not opened.
        """
        config = load_config(data, config_path)
        folder = DataFolder(data.resolve())
        try:
            if not folder.catalogue.exists():
                _check_new(folder, make=make)
            folder.make()
        except OSError as error:
            raise EnvironmentFault(
                f"cannot use the data folder {folder.root}: {error.strerror}; choose another with --data, or set its owner right"
            ) from error
        return cls(folder, config, Catalogue(folder.catalogue), LocalBlobs(folder.blobs))

    def close(self) -> None:
        """Close the catalogue."""
        self.catalogue.close()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def only_one(folder: DataFolder) -> Iterator[None]:
    """Two servers of one data folder would fight for its ports and its broker; the lock goes with the process, however it ends.

    Raises:
        Conflict: another process serves the folder, or works on it as a whole.
    """
    handle = os.open(folder.root / ".serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Conflict(
            f"{folder.root} is served already; {folder.root}/serve.json says by which process and where. Stop it first."
        ) from error
    else:
        yield
    finally:
        os.close(handle)


def _check_new(folder: DataFolder, *, make: bool) -> None:
    """Whether a site may begin here: in no folder yet, or in one without anything of somebody else's or of a site that was here."""
    if folder.blobs.is_dir() and any(path.is_file() for path in folder.blobs.rglob("*")):
        # An empty catalogue over old blobs would know no device, no label and no tombstone.
        raise Conflict(
            f"{folder.root} has blobs but no {folder.catalogue.name}; if it is lost, build it again with "
            f"`bowerbird catalogue rebuild --data {folder.root}`"
        )
    if not make:
        raise NotFound(
            f"there is no site in {folder.root}; check --data, or make one with `bowerbird serve --data {folder.root}`"
        )
    if not folder.root.exists():
        return
    ours = {path.name for path in folder.places()} | {CONFIG_NAME, "lost+found"}
    foreign = sorted(path.name for path in folder.root.iterdir() if path.name not in ours and not path.name.startswith("."))
    if foreign:
        raise BadInput(
            f"{folder.root} holds other things ({', '.join(foreign[:3])}) and no site; name a new or empty folder with --data"
        )
