"""The catalogue and the blob store as requests see them: one of each per worker thread, opened on first use.

In: the data folder. Out: `open()`. SQLite connections belong to the thread that made them, and the framework answers requests on a pool
of threads.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from fastapi import Request

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.catalogue import Catalogue

if TYPE_CHECKING:
    from bowerbird_server.layout import DataFolder


class Stores:
    """Opens the data folder's catalogue and blobs once a thread."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._of_thread = threading.local()

    def open(self) -> tuple[Catalogue, LocalBlobs]:
        """This thread's catalogue and blob store.

        Raises:
            EnvironmentFault: one of them cannot be opened.
        """
        if not hasattr(self._of_thread, "opened"):
            self._of_thread.opened = (Catalogue(self._folder.catalogue), LocalBlobs(self._folder.blobs))
        opened: tuple[Catalogue, LocalBlobs] = self._of_thread.opened
        return opened


def catalogue(request: Request) -> Catalogue:
    """The catalogue, to be called inside the endpoint (not as a dependency: that may run on another thread)."""
    return stores(request)[0]


def stores(request: Request) -> tuple[Catalogue, LocalBlobs]:
    """Catalogue and blob store, likewise."""
    held: Stores = request.app.state.stores
    return held.open()
