"""The class list: names with ids from 0, append-only, because a class id in an old data set must keep its meaning for ever.

In: names. Out: names in id order. It renames and removes nothing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from bowerbird_server.catalogue.core import Catalogue, utc_now
from bowerbird_server.errors import BadInput

_LONGEST_NAME = 64


def class_names(cat: Catalogue) -> list[str]:
    """All class names; the position in the list is the class id."""
    return [row["name"] for row in cat.rows("SELECT name FROM class ORDER BY id")]


def check_class_name(name: str) -> str:
    """The name without surrounding blanks.

    Raises:
        BadInput: it is empty, longer than 64 characters or holds a control character (it must fit on a line of a data.yaml).
    """
    clean = name.strip()
    if not clean or len(clean) > _LONGEST_NAME or any(unicodedata.category(letter).startswith("C") for letter in clean):
        raise BadInput(f"{name[:80]!r} cannot be a class name: use 1 to {_LONGEST_NAME} printable characters.")
    return clean


def add_classes(cat: Catalogue, names: Sequence[str], actor: str) -> list[str]:
    """Append the names that are new, in the order given; returns those. Known names change nothing.

    Raises:
        BadInput: a name is not usable; then none is added.
    """
    wanted = list(dict.fromkeys(check_class_name(name) for name in names))
    added = []
    with cat.transaction():
        known = set(class_names(cat))
        for name in wanted:
            if name in known:
                continue
            next_id = cat.value("SELECT coalesce(max(id) + 1, 0) FROM class")
            cat.insert("class", {"id": next_id, "name": name, "added_at": utc_now()})
            cat.log(actor, "class.added", name, {"id": next_id})
            added.append(name)
    return added
