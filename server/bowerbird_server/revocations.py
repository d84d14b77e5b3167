"""Devices that were shut out after a backup was made stay out of the site that is made from it.

In: deny lists as the broker keeps them (`broker/denied`), of the data folder that was lost or of a newer backup; a restored catalogue.
Out: devices that are suspended there. It lets nobody in: who was resumed in the meantime is resumed again by a person.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bowerbird_server.catalogue import fleet
from bowerbird_server.catalogue import identity as rows
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.errors import BadInput
from bowerbird_server.identity.states import Happening

MAX_BYTES = 16 * 1024 * 1024


def read_revoked(path: Path) -> set[str]:
    """The names in a deny list.

    Raises:
        BadInput: it is not there or no list of names; nothing may be restored as if nobody had been revoked.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise BadInput(f"{path} is too large for a list of revoked devices; name `broker/denied` of the lost data folder")
        return set(content.decode("ascii").split())
    except OSError as error:
        raise BadInput(
            f"the list of revoked devices {path} cannot be read ({error.strerror}); without it they would be let in again, so nothing "
            "was restored"
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no list of revoked devices; name `broker/denied` of the lost data folder") from error


def keep_out(cat: Catalogue, names: Iterable[str], actor: str) -> list[str]:
    """Suspend those of these devices that the catalogue calls active; returns which."""
    active = fleet.active_devices(cat)
    late = sorted(set(names) & active.keys())
    for name in late:
        rows.change_state(
            cat, name, Happening.SUSPENDED, actor, "was shut out after the backup that the site was restored from"
        )
    return late
