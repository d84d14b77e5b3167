"""The catalogue and the blob store as requests see them: one of each per worker thread, opened on first use.

In: the data folder, and to which sites somebody is let in. Out: the whole catalogue, or one that holds only what is theirs. SQLite
connections belong to the thread that made them, and the framework answers requests on a pool of threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from fastapi import Request

from bowerbird_server.access.roles import Principal, Sites
from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.catalogue import Catalogue
from bowerbird_server.catalogue.scope import scoped

if TYPE_CHECKING:
    from bowerbird_server.layout import DataFolder

_SCOPES_A_THREAD = 8


class Stores:
    """Opens the data folder's catalogue and blobs once a thread."""

    def __init__(self, folder: DataFolder) -> None:
        self.folder = folder
        self._of_thread = threading.local()

    def open(self) -> tuple[Catalogue, LocalBlobs]:
        """This thread's catalogue, the whole of it, and blob store.

        Raises:
            EnvironmentFault: one of them cannot be opened.
        """
        if not hasattr(self._of_thread, "opened"):
            self._of_thread.opened = (Catalogue(self.folder.catalogue), LocalBlobs(self.folder.blobs))
        opened: tuple[Catalogue, LocalBlobs] = self._of_thread.opened
        return opened

    def scoped(self, sites: Sites) -> Catalogue:
        """This thread's catalogue for somebody who is let into these sites.

        Raises:
            EnvironmentFault: it cannot be opened.
        """
        if sites.everywhere:
            return self.open()[0]
        if not hasattr(self._of_thread, "by_sites"):
            self._of_thread.by_sites = OrderedDict()
        held: OrderedDict[Sites, Catalogue] = self._of_thread.by_sites
        if sites not in held:
            held[sites] = scoped(self.folder.catalogue, sites)
            if len(held) > _SCOPES_A_THREAD:
                held.popitem(last=False)[1].close()
        held.move_to_end(sites)
        return held[sites]


def principal_of(request: Request) -> Principal:
    """Who asks; the gate has let them in."""
    principal: Principal = request.state.principal
    return principal


def catalogue(request: Request) -> Catalogue:
    """The catalogue with what the asking person may see, to be called inside the endpoint (not as a dependency: that may run on another
    thread). For those let into some sites only it cannot write: look there first, then write to `whole_catalogue`."""
    held: Stores = request.app.state.stores
    return held.scoped(principal_of(request).sites)


def stores(request: Request) -> tuple[Catalogue, LocalBlobs]:
    """Catalogue and blob store, likewise."""
    held: Stores = request.app.state.stores
    return held.scoped(principal_of(request).sites), held.open()[1]


def whole_catalogue(request: Request) -> Catalogue:
    """All of the catalogue: for writing what was looked up in `catalogue(request)` before, and for accounts."""
    held: Stores = request.app.state.stores
    return held.open()[0]
