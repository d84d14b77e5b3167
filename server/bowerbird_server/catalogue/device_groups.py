"""Which devices an operator means: tags, and groups by name, site or tag.

In: names, a site, a tag. Out: active devices, sorted. It changes nothing but tags.
"""

from __future__ import annotations

from collections.abc import Sequence

from bowerbird_server.catalogue import fleet
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.errors import BadInput, NotFound
from bowerbird_wire.errors import TopicError
from bowerbird_wire.topics import check_name


def tag(cat: Catalogue, device: str, tags: Sequence[str], actor: str, *, remove: bool = False) -> list[str]:
    """Add tags to a device or take them away; returns all it has.

    Raises:
        NotFound: no such device.
        BadInput: a tag that is no name.
    """
    with cat.transaction():
        fleet.get(cat, device)
        for name in tags:
            try:
                check_name(name, "tag")
            except TopicError as error:
                raise BadInput(str(error)) from error
            if remove:
                cat.execute("DELETE FROM device_tag WHERE device = ? AND tag = ?", device, name)
            else:
                cat.insert("device_tag", {"device": device, "tag": name}, ignore=True)
        if tags:
            cat.log(actor, "device untagged" if remove else "device tagged", device, {"tags": list(tags)})
    return tags_of(cat, device)


def tags_of(cat: Catalogue, device: str) -> list[str]:
    """The tags of a device, sorted."""
    return [row["tag"] for row in cat.rows("SELECT tag FROM device_tag WHERE device = ? ORDER BY tag", device)]


def resolve(
    cat: Catalogue,
    names: Sequence[str] = (),
    *,
    site: str | None = None,
    tagged: str | None = None,
    everyone: bool = False,
) -> list[str]:
    """The active devices that an operator means, sorted: by name, of a site, with a tag, or all of them.

    Raises:
        BadInput: nothing was named, or names together with a group.
        NotFound: a name that is no active device, or a group without any.
    """
    groups = [site is not None, tagged is not None, everyone]
    if not names and not any(groups):
        raise BadInput("name devices, or a group of them: --site, --tag or --all")
    if names and any(groups):
        raise BadInput("name devices or a group of them, not both")
    active = fleet.active_devices(cat)
    unknown = sorted(set(names) - active.keys())
    if unknown:
        raise NotFound(f"no active device {', '.join(unknown)[:200]}; `bowerbird devices list` shows all")
    if names:
        return sorted(set(names))
    tagged_ones = {row["device"] for row in cat.rows("SELECT device FROM device_tag WHERE tag = ?", tagged)}
    found = [
        device
        for device, its_site in active.items()
        if (site is None or its_site == site) and (tagged is None or device in tagged_ones)
    ]
    if not found:
        raise NotFound("there is no active device in that group; `bowerbird devices list` shows all")
    return sorted(found)
