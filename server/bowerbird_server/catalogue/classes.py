"""The class list: names with ids from 0, append-only, because a class id in an old data set must keep its meaning for ever.

In: names. Out: names in id order, and which of them a label's author did not look for. It renames and removes nothing. Each name that
is appended is a version of the list: version n is its first n names, so that a frozen list says which version it is.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from bowerbird_server.catalogue.core import Catalogue, utc_now
from bowerbird_server.errors import BadInput

_LONGEST_NAME = 64
_LOOKED_FOR = "classes.looked_for"


def class_names(cat: Catalogue) -> list[str]:
    """All class names; the position in the list is the class id."""
    return [row["name"] for row in cat.rows("SELECT name FROM class ORDER BY id")]


def version_of(known: Sequence[str], names: Sequence[str]) -> int:
    """Which version of the list these names are; 0 when they are none: a class is missing, foreign or in another place."""
    return len(names) if list(names) == list(known[: len(names)]) else 0


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
            cat.log(actor, "class.added", name, {"id": next_id, "version": next_id + 1})
            added.append(name)
    return added


def unreviewed(
    known: Sequence[str], reviewed: Sequence[str], labelled_at: str = "", looked_for: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """The classes that a label's author did not look for, in class id order: the frame may well show them undrawn.

    Args:
        known: all classes.
        reviewed: those that the label names.
        labelled_at: UTC text.
        looked_for: from `declared_looked_for`.
    """
    declared = looked_for or {}
    named = set(reviewed)
    return tuple(name for name in known if name not in named and not (name in declared and labelled_at <= declared[name]))


def declared_looked_for(cat: Catalogue) -> dict[str, str]:
    """Class -> until when an operator says that labels looked for it, whatever they name."""
    found: dict[str, str] = cat.setting(_LOOKED_FOR, {})
    return found


def declare_looked_for(cat: Catalogue, name: str, actor: str) -> None:
    """Whatever is labelled by now was looked through for a class, says an operator: what is not drawn there is not there.

    Raises:
        BadInput: there is no such class.
    """
    if name not in class_names(cat):
        raise BadInput(f"{name!r} is not in the class list; `bowerbird labels classes` shows it, `--add` appends one")
    with cat.transaction():
        cat.set_setting(_LOOKED_FOR, {**declared_looked_for(cat), name: utc_now()})
        cat.log(actor, "class.looked_for", name, {})
