"""Who may do what: roles in their order, the sites a person or program is let into, and the person or program itself. Pure.

In: names from configuration, tables and command lines. Out: `Role`, `Sites`, `Principal`. Which address needs which role is told in
`web/permissions.py`; rows of other sites are kept out by `catalogue/scope.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from bowerbird_server.errors import BadInput

EVERYWHERE = "*"


class Role(IntEnum):
    """Each may do what those before it may."""

    METRICS = 0  # reads /metrics and nothing else; for Prometheus
    VIEWER = 1
    LABELLER = 2
    OPERATOR = 3
    RELEASE_MANAGER = 4
    ADMINISTRATOR = 5

    @property
    def word(self) -> str:
        """As people write it, for example `release-manager`."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def of(cls, word: str) -> Role:
        """The role of a word.

        Raises:
            BadInput: there is no such role.
        """
        for role in cls:
            if role.word == word:
                return role
        raise BadInput(f"{word[:40]!r} is not a role; use one of {', '.join(role.word for role in cls)}")


@dataclass(frozen=True)
class Sites:
    """The sites that somebody is let into; None for all of them, and for what belongs to no site."""

    names: frozenset[str] | None = None

    @property
    def everywhere(self) -> bool:
        """Whether nothing is kept from them."""
        return self.names is None

    def text(self) -> str:
        """As it is kept in a table."""
        return json.dumps(EVERYWHERE if self.names is None else sorted(self.names))

    def words(self) -> str:
        """As people read it."""
        return "all" if self.names is None else ", ".join(sorted(self.names))

    @classmethod
    def read(cls, text: str) -> Sites:
        """From a table. What is no list of names lets in nowhere."""
        value = json.loads(text)
        if value == EVERYWHERE:
            return cls()
        return cls(frozenset(str(name) for name in value) if isinstance(value, list) else frozenset())

    @classmethod
    def of(cls, names: Iterable[str]) -> Sites:
        """From a command line: no name means all sites."""
        found = frozenset(names)
        return cls(found or None)


@dataclass(frozen=True)
class Principal:
    """Somebody who has come in.

    Args:
        name: what events and labels call them.
        credential: how they came in, `user:NAME` or `token:ID`; two names on one credential are one for the rule of two people.
    """

    name: str
    role: Role
    sites: Sites
    credential: str
