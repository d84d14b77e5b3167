"""TOML tables -> frozen dataclasses, strictly: unknown keys, wrong types and values out of range are all found in one pass.

In: plain values from `tomllib` and the dataclass they should become. Out: the value and a list of faults, each with its key path.
The dataclasses check their own ranges in `__post_init__` and raise ValueError. It reads no file.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_NAMES = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false", Path: "a path in quotes"}


class Faults:
    """Collects (key path, message) pairs."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def add(self, path: str, message: str) -> None:
        """One fault at a key path such as `cameras[0].fps`."""
        self.found.append((path, message))


def require(holds: bool, message: str) -> None:
    """One check of a dataclass that a table becomes.

    Raises:
        ValueError: it does not hold; the message says what to write instead.
    """
    if not holds:
        raise ValueError(message)


def structure(plain: Any, kind: type[T], path: str, faults: Faults) -> T | None:
    """A table as a dataclass, or None when something in it is wrong; everything wrong is in `faults`."""
    if not isinstance(plain, dict):
        faults.add(path, "must be a table")
        return None
    before = len(faults.found)
    hints = get_type_hints(kind)
    # dataclasses.fields wants a dataclass type; `kind` always is one, which T cannot say.
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    unknown = 0
    for key, value in plain.items():
        where = f"{path}.{key}" if path else key
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(fields)}"
            faults.add(where, f"unknown key; {hint}")
            unknown += 1
            continue
        values[key] = _value(value, hints[key], where, faults)
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in plain:
            faults.add(f"{path}.{name}" if path else name, "is missing")
    if len(faults.found) > before + unknown:
        return None
    try:
        made = kind(**values)  # with an unknown key as well, for what else is wrong
    except ValueError as error:
        faults.add(path or "the file", str(error))
        return None
    return None if unknown else made


def _value(value: Any, kind: Any, where: str, faults: Faults) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _value(value, next(option for option in get_args(kind) if option is not type(None)), where, faults)
    if origin is tuple:
        if not isinstance(value, list):
            faults.add(where, "must be a list")
            return ()
        return tuple(_value(item, get_args(kind)[0], f"{where}[{i}]", faults) for i, item in enumerate(value))
    if origin is not None:  # a mapping of names to values
        if not isinstance(value, dict):
            faults.add(where, "must be a table")
            return {}
        return {key: _value(item, get_args(kind)[1], f"{where}.{key}", faults) for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return structure(value, kind, where, faults)  # type: ignore[arg-type]  # a dataclass type, which is_dataclass cannot say
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    if kind is not Path and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    faults.add(where, f"must be {_NAMES.get(kind, kind.__name__)}, not {value!r}")
    return None
