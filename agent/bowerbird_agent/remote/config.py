"""What may be set from afar, and how a wish is laid over `agent.toml`. Pure.

In: the file's plain values, the wished document, the file's `[remote]` section. Out: the plain values of both together, every fault at
once, and the key paths in which the file has its way. The result goes through the same checks as the file (`config.py`). It keeps
nothing and applies nothing (`remote/wish.py`, `device.py`).

What the file says about money and privacy is a ceiling: byte caps and quiet hours can only become stricter, masks only more, the region
only smaller, a camera or a selection that is switched off stays off. `[remote] max_*` lifts a cap's ceiling above the file's own value.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SECTIONS = ("selection", "dry_run", "budget", "cameras", "log", "health", "campaigns")
# Of the sections with more than may be wished for: the keys that may.
KEYS: Mapping[str, tuple[str, ...]] = {"log": ("level",), "health": ("interval_s",)}
CAMERA_KEYS = ("fps", "region", "masks", "enabled")
_CAPS = ("bytes_per_s", "burst_bytes", "bytes_per_day", "bytes_per_month", "carry_over_bytes")

MAX_DOCUMENT_BYTES = 16_384
_MAX_DEPTH = 6
_MAX_VALUES = 4000
_MAX_TEXT = 500

Fault = tuple[str, str]


@dataclass(frozen=True)
class RemoteConfig:
    """What the server may change.

    Args:
        allow: sections that it may set: any of "selection", "dry_run", "budget", "cameras", "log", "health", "campaigns"; [] for
            nothing.
        max_bytes_per_s, max_bytes_per_day, max_bytes_per_month: ceilings of `[budget]` as it may be set from afar; None for what
            `[budget]` says itself, and no ceiling where it says nothing.
        probation_s: how long a new configuration is on trial: if the agent fails in that time, it goes back to the one before.
    """

    allow: tuple[str, ...] = SECTIONS
    max_bytes_per_s: float | None = None
    max_bytes_per_day: int | None = None
    max_bytes_per_month: int | None = None
    probation_s: float = 300.0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.allow) - set(SECTIONS))
        if unknown:
            raise ValueError(f"allow names {', '.join(map(repr, unknown))}; it may name {', '.join(map(repr, SECTIONS))}")
        for name in ("max_bytes_per_s", "max_bytes_per_day", "max_bytes_per_month"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}; it must not be negative")
        if not 5 <= self.probation_s <= 86_400:
            raise ValueError(f"probation_s is {self.probation_s}; it must be 5 to 86400")


@dataclass(frozen=True)
class Merged:
    """A file with a wish over it.

    Args:
        plain: as `tomllib` would have read it.
        faults: (key path, message) of everything that the wish may not ask for; with any of them it is refused whole.
        differs: key paths in which the file adds to what was wished.
    """

    plain: dict[str, Any]
    faults: tuple[Fault, ...] = ()
    differs: tuple[str, ...] = ()


def merge(plain: Mapping[str, Any], wish: Mapping[str, Any], remote: RemoteConfig, *, is_off: bool = False) -> Merged:
    """Lay `wish` over the file.

    Args:
        plain: the file's tables; not changed.
        wish: section -> key -> value, of `cameras` name -> key -> value. Anything at all may have come from the network.
        remote: the file's own word on what may be set.
        is_off: whether the file switches the selection off, so that no picture leaves the device.
    """
    faults = _not_plain(wish)
    if faults:
        return Merged(dict(plain), tuple(faults))
    merged: dict[str, Any] = copy.deepcopy(dict(plain))
    differs: list[str] = []
    for section, values in wish.items():
        if section not in SECTIONS or section == "campaigns":
            known = ", ".join(name for name in SECTIONS if name != "campaigns")
            faults.append((section, f"cannot be set from afar; what can is {known}"))
        elif section not in remote.allow:
            faults.append((section, "agent.toml does not allow this section to be set from afar (remote.allow)"))
        elif not isinstance(values, dict):
            faults.append((section, "must be a table"))
        elif section == "cameras":
            _cameras(merged, values, faults, differs)
        elif section == "selection" and is_off:
            faults.append((section, "agent.toml switches the selection off; that cannot be undone from afar"))
        else:
            allowed = KEYS.get(section)
            faults += [
                (f"{section}.{key}", "cannot be set from afar") for key in values if allowed is not None and key not in allowed
            ]
            if section == "budget":
                faults += _above_ceiling(plain.get("budget", {}), values, remote)
            before = {} if section in ("selection", "dry_run") and "template" in values else merged.get(section, {})
            merged[section] = {**before, **copy.deepcopy(values)}
    return Merged(merged, tuple(faults), tuple(differs))


def _not_plain(wish: object) -> list[Fault]:
    """Whatever is not a small tree of tables, lists, texts and finite numbers."""
    left = [_MAX_VALUES]

    def look(value: object, path: str, depth: int) -> str | None:
        left[0] -= 1
        if left[0] < 0:
            return f"the document has more than {_MAX_VALUES} values"
        if depth > _MAX_DEPTH:
            return f"{path or 'the document'} is nested deeper than {_MAX_DEPTH} levels"
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str) or not 0 < len(key) <= 100:
                    return f"{path or 'the document'} has a key that is no short text"
                found = look(item, f"{path}.{key}" if path else key, depth + 1)
                if found:
                    return found
            return None
        if isinstance(value, list):
            return next((found for item in value if (found := look(item, path, depth + 1))), None)
        if isinstance(value, str):
            return None if len(value) <= _MAX_TEXT else f"{path} is a text of more than {_MAX_TEXT} characters"
        if isinstance(value, bool):
            return None
        if isinstance(value, int):
            return None if -(2**53) <= value <= 2**53 else f"{path} is a number that nothing needs"
        if isinstance(value, float):
            return None if math.isfinite(value) else f"{path} is no finite number"
        return f"{path or 'the document'} is a {type(value).__name__}; leave a key out to keep what agent.toml says"

    if not isinstance(wish, dict):
        return [("the document", "must be a table")]
    found = look(wish, "", 0)
    return [("the document", found)] if found else []


def _above_ceiling(own: Mapping[str, Any], wished: Mapping[str, Any], remote: RemoteConfig) -> list[Fault]:
    faults = []
    for key in _CAPS:
        lifted = getattr(remote, f"max_{key}", None)
        ceiling = own.get(key) if lifted is None else lifted
        value = wished.get(key)
        if ceiling is not None and isinstance(value, int | float) and value > ceiling:
            where = f"budget.{key}" if lifted is None else f"remote.max_{key}"
            faults.append((f"budget.{key}", f"is {value}; agent.toml allows at most {ceiling} ({where})"))
    hours = wished.get("quiet_hours")
    if isinstance(hours, list):
        missing = [text for text in own.get("quiet_hours", ()) if text not in hours]
        if missing:
            faults.append(("budget.quiet_hours", f"must keep {', '.join(missing)}, which agent.toml says"))
    return faults


def _cameras(merged: dict[str, Any], wished: Mapping[str, Any], faults: list[Fault], differs: list[str]) -> None:
    """Lay the wished cameras over the file's, by name."""
    here = {camera["name"]: camera for camera in merged["cameras"]}
    for name, values in wished.items():
        path = f"cameras.{name}"
        camera = here.get(name)
        if camera is None:
            faults.append((path, f"there is no such camera here; there are {', '.join(sorted(here))}"))
            continue
        if not isinstance(values, dict):
            faults.append((path, "must be a table"))
            continue
        faults += [
            (f"{path}.{key}", f"cannot be set from afar; what can is {', '.join(CAMERA_KEYS)}")
            for key in values
            if key not in CAMERA_KEYS
        ]
        if values.get("enabled") is True and camera.get("enabled") is False:
            faults.append((f"{path}.enabled", "agent.toml switches this camera off; that cannot be undone from afar"))
        own_region, region = camera.get("region"), values.get("region")
        if own_region is not None and isinstance(region, dict) and not _within(region, own_region):
            faults.append((f"{path}.region", "reaches beyond the region that agent.toml shows"))
        changed = {key: copy.deepcopy(value) for key, value in values.items() if key in CAMERA_KEYS}
        own_masks = camera.get("masks", [])
        if isinstance(changed.get("masks"), list) and own_masks:
            added = [mask for mask in changed["masks"] if mask not in own_masks]
            if len(added) + len(own_masks) != len(changed["masks"]):
                differs.append(f"{path}.masks")
            changed["masks"] = [*own_masks, *added]
        camera.update(changed)


def _within(inner: Mapping[str, Any], outer: Mapping[str, Any]) -> bool:
    """Whether a region lies in another; also True for one that is no region, of which the ordinary checks say what is wrong."""
    slack = 1e-6
    for at, size in (("x", "width"), ("y", "height")):
        sides = (inner.get(at), inner.get(size), outer.get(at), outer.get(size))
        if not all(isinstance(number, int | float) for number in sides):
            return True
        begin, length, outer_begin, outer_length = (float(number) for number in sides if number is not None)
        if begin < outer_begin - slack or begin + length > outer_begin + outer_length + slack:
            return False
    return True
