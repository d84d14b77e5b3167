"""What an operator wants of devices' configuration, as a document and as changes to it. Pure.

In: words of the command line or of the API. Out: documents, patches, differences. Only the shape is looked at here; whether a value
makes sense is the device's to say, with the same code that reads its file (`docs/remote-configuration.md`).
"""

from __future__ import annotations

import copy
import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bowerbird_server.errors import BadInput
from bowerbird_server.fleet.rollout import Settings

# What devices take, if their agent.toml allows it. The same names stand in `bowerbird_agent/remote/config.py`.
SECTIONS = ("selection", "dry_run", "budget", "cameras", "log", "health")
MAX_DOCUMENT_BYTES = 16_384
_MAX_DEPTH = 6
# A handful goes at once; more go in waves, and the next wave waits for the one before.
_AT_ONCE = 3
_SILENT_S = 1800.0
_PATIENT_S = 30 * 86_400.0  # where no wave waits for it, a device may come back when it likes
_PARALLEL = 500

Document = dict[str, Any]


def settings_for(devices: int, *, at_once: bool = False) -> Settings:
    """How a change to so many devices goes out: in waves of a fiftieth, a fifth and the rest."""
    if at_once or devices <= _AT_ONCE:
        return Settings(wave_shares=(1.0,), silent_s=_PATIENT_S, max_parallel=max(devices, 1))
    return Settings(wave_shares=(0.02, 0.2, 1.0), silent_s=_SILENT_S, max_parallel=_PARALLEL)


def parse_assignments(words: Iterable[str]) -> Document:
    """`selection.epsilon=0.3` and so on as a document; a value is TOML, or else text.

    Raises:
        BadInput: a word is no assignment, or two do not fit together.
    """
    document: Document = {}
    for word in words:
        path, equals, text = word.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise BadInput(f"{word[:80]!r} is no setting; write it like selection.epsilon=0.3 or cameras.gate.fps=5")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        table = document
        for key in keys[:-1]:
            below = table.setdefault(key, {})
            if not isinstance(below, dict):
                raise BadInput(f"{path} goes below {key}, which was given a value already")
            table = below
        table[keys[-1]] = value
    return document


def merged(document: Mapping[str, Any], patch: Mapping[str, Any]) -> Document:
    """A document with a patch applied.

    Args:
        document: before.
        patch: `set`: tables laid over it, key by key; `unset`: key paths to leave out, "" for all.
    """
    result = copy.deepcopy(dict(document))
    for path in patch.get("unset", ()):
        if not path:
            result = {}
            continue
        *above, last = path.split(".")
        table: Any = result
        for key in above:
            table = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict):
            table.pop(last, None)
    _lay_over(result, patch.get("set", {}))
    return _without_empty(result)


def _lay_over(below: Document, above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), dict):
            _lay_over(below[key], value)
        else:
            below[key] = copy.deepcopy(value)


def _without_empty(document: Document) -> Document:
    cleaned = {key: _without_empty(value) if isinstance(value, dict) else value for key, value in document.items()}
    return {key: value for key, value in cleaned.items() if value != {}}


def flat(document: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Key path -> value."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        where = f"{path}.{key}" if path else key
        found |= flat(value, where) if isinstance(value, Mapping) else {where: value}
    return found


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key path -> (value in one, value in the other), None where it is not set; what is equal is left out."""
    before, after = flat(one), flat(other)
    return {
        path: (before.get(path), after.get(path))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path) or (path in before) != (path in after)
    }


def check(document: Mapping[str, Any]) -> None:
    """Look at a document's shape.

    Raises:
        BadInput: a section that no device takes, values that cannot be sent, or too much.
    """
    unknown = sorted(set(document) - set(SECTIONS))
    if unknown:
        raise BadInput(f"{', '.join(map(repr, unknown))} cannot be set on devices; what can is {', '.join(SECTIONS)}")
    for section, values in document.items():
        if not isinstance(values, Mapping):
            raise BadInput(f"{section} must be a table, such as {section}.key=value")
    _check_plain(document, "", 0)
    size = len(json.dumps(document))
    if size > MAX_DOCUMENT_BYTES:
        raise BadInput(f"the document has {size} bytes; a device takes at most {MAX_DOCUMENT_BYTES}")


def _check_plain(value: Any, path: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise BadInput(f"{path} is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for item in value:
            _check_plain(item, path, depth + 1)
    elif not isinstance(value, str | bool | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise BadInput(
            f"{path} is {value!r}; a value is a text, a finite number, true, false or a list; unset takes a key away"
        )


def amount(text: str) -> int:
    """Bytes in "20MB", "500 kB" or "1000".

    Raises:
        BadInput: it is none.
    """
    units = {"": 1, "b": 1, "kb": 1000, "mb": 10**6, "gb": 10**9}
    stripped = text.strip().lower()
    digits = stripped.rstrip("kmgb ")
    unit = stripped[len(digits) :].strip()
    try:
        value = float(digits)
    except ValueError:
        value = math.nan
    if unit not in units or not math.isfinite(value) or value <= 0:
        raise BadInput(f"{text!r} is no number of bytes; write it like 20MB or 500kB")
    return int(value * units[unit])
