"""One opened site: its folder, catalogue, blobs and configuration, as every command and process of the server needs them.

In: the data folder and perhaps a configuration file. Out: `Site`. Opening makes what is missing; closing closes the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.catalogue import Catalogue
from bowerbird_server.config import ServerConfig, load_config
from bowerbird_server.errors import EnvironmentFault
from bowerbird_server.layout import DataFolder


@dataclass(frozen=True)
class Site:
    """Belongs to one thread, as its catalogue does."""

    folder: DataFolder
    config: ServerConfig
    catalogue: Catalogue
    blobs: LocalBlobs

    @classmethod
    def open(cls, data: Path, config_path: Path | None = None) -> Site:
        """Open a data folder, making it when it is new.

        Raises:
            ConfigError: the configuration cannot be used.
            EnvironmentFault: the folder cannot be made or written, or the catalogue not opened.
        """
        config = load_config(data, config_path)
        folder = DataFolder(data.resolve())
        try:
            folder.make()
        except OSError as error:
            raise EnvironmentFault(
                f"cannot make the data folder {folder.root}: {error.strerror}; choose another with --data"
            ) from error
        return cls(folder, config, Catalogue(folder.catalogue), LocalBlobs(folder.blobs))

    def close(self) -> None:
        """Close the catalogue."""
        self.catalogue.close()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
