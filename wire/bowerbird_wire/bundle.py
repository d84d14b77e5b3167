"""The provisioning bundle: what a bare board needs to become a device, in one JSON file that is good for one board and not for long.

In: values of the server, or the file's text on the board. Out: `Bundle`; the text of agent.toml. It holds no private key, and its
token is void once used; until then the file is a secret.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bowerbird_wire.errors import WireError

VERSION = 1
MAX_BYTES = 256 * 1024


class BundleError(WireError):
    """A file that is no bundle, or one of a newer release."""


@dataclass(frozen=True)
class Bundle:
    """One board's way in.

    Args:
        site: the site's name in topics.
        token: for one claim.
        claim_urls: addresses of the claim listener, to be tried in this order.
        ca: the root certificate, PEM; everything is verified by it.
        pin: SHA-256 of the root's public key, hex; the same as printed beside the token.
        expires_at: UTC ISO text; the token is void from then on.
        label: what the operator calls the board.
        device: its id if that is settled already.
        serial: serial number to claim with, "" for the board's own.
        trusted_root: the TUF root of model updates, JSON text; "" for none.
        tables: further tables of agent.toml, `broker` among them.
        cameras: `[[cameras]]` tables.
    """

    site: str
    token: str
    claim_urls: Sequence[str]
    ca: str
    pin: str
    expires_at: str
    label: str = ""
    device: str = ""
    serial: str = ""
    trusted_root: str = ""
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cameras: Sequence[Mapping[str, Any]] = ()

    def to_text(self) -> str:
        """The file's text."""
        return json.dumps({"bowerbird_bundle": VERSION, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Bundle:
        """The bundle in a file's text.

        Raises:
            BundleError: it is none, or of a newer release.
        """
        try:
            if len(text) > MAX_BYTES:
                raise ValueError
            plain = json.loads(text)
            version = plain.pop("bowerbird_bundle")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise BundleError("this is no bundle; make one with `bowerbird devices invite` or `devices add`") from error
        if version != VERSION:
            raise BundleError(f"this bundle is of version {version!r} and this agent knows {VERSION}; update the older side")
        known = {key: value for key, value in plain.items() if key in cls.__dataclass_fields__}
        try:
            bundle = cls(**known)
        except TypeError as error:
            raise BundleError(f"this bundle is damaged ({error}); make it again at the server") from error
        texts = (bundle.site, bundle.token, bundle.ca, bundle.pin, bundle.device, bundle.serial, bundle.trusted_root)
        urls = bundle.claim_urls
        if (
            not all(map(_is_text, (*texts, bundle.label, bundle.expires_at, *(urls if isinstance(urls, list) else [None]))))
            or not urls
        ):
            raise BundleError("this bundle is damaged (a text is missing); make it again at the server")
        if not _is_tables(bundle.tables) or not isinstance(bundle.cameras, list) or not all(map(_is_table, bundle.cameras)):
            raise BundleError("this bundle is damaged (a table of agent.toml is none); make it again at the server")
        return bundle


_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")  # bare keys of TOML: whatever else would end the line


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()  # JSON can spell halves of characters, which no file takes
    except UnicodeEncodeError:
        return False
    return True


def _is_tables(value: Any) -> bool:
    return isinstance(value, dict) and all(_KEY.fullmatch(key) and _is_table(table) for key, table in value.items())


def _is_table(value: Any, depth: int = 0) -> bool:
    return isinstance(value, dict) and all(_KEY.fullmatch(key) and _is_value(each, depth + 1) for key, each in value.items())


def _is_value(value: Any, depth: int) -> bool:
    """Whether agent.toml can say it: text, finite numbers of 64 bits, lists, tables, four deep at most; TOML has no null."""
    if depth > 4:
        return False
    if isinstance(value, list):
        return all(not isinstance(item, dict) and _is_value(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return _is_table(value, depth)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return _is_text(value)


def agent_toml(bundle: Bundle, device: str) -> str:
    """The text of agent.toml for a device of this bundle; paths in it are relative to the file."""
    content: dict[str, Mapping[str, Any]] = {"device": {"id": device, "site": bundle.site, "state_dir": "state"}}
    content |= bundle.tables
    if bundle.trusted_root:
        content["update"] = {"trusted_root": "root.json", **content.get("update", {})}
    text = "".join(_table(key, table) for key, table in content.items())
    return text + "".join(_table("cameras", camera, many=True) for camera in bundle.cameras)


def _table(name: str, values: Mapping[str, Any], *, many: bool = False) -> str:
    head = f"[[{name}]]" if many else f"[{name}]"
    nested = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    lines = [head, *(f"{key} = {_toml(value)}" for key, value in values.items() if key not in nested), ""]
    text = "\n".join(lines) + "\n"
    return text + "".join(_table(f"{name}.{key}", value) for key, value in nested.items())


def _toml(value: Any) -> str:
    """A TOML literal; JSON's text, number, boolean and list forms are also TOML's."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)
