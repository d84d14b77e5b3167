"""The sketch of what the fleet has enough of: when it is made anew, and which devices are told.

In: looks of the champion at labelled and queued frames. Out: one stored sketch, and for each device the bytes that its wish holds.
Only a device that runs the sketch's model is told: to another its numbers mean nothing, and a new model begins without.
"""

from __future__ import annotations

import numpy as np

from bowerbird_server.catalogue import batches, looks
from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.fleet.fleet_sketch import make_sketch
from bowerbird_wire.fleet_sketch import model_key

_SKETCH = "selection.fleet_sketch"
# Bytes on thin links: told again when there is a tenth more to tell from.
_WORTH_TELLING = 1.1


def refresh(cat: Catalogue, champion: str, enough: int, actor: str) -> bool:
    """Make the sketch anew when there is another champion or enough more to make it from; whether it changed.

    Args:
        champion: digest of its package, "" for none.
        enough: frames that look alike from which on there is enough of them.
    """
    stored = cat.setting(_SKETCH, {})
    known = [look for _, look in looks.of_labelled(cat, champion)] if champion else []
    rare, drawn = set(batches.rare_classes(cat)), batches.drawn_classes(cat, [look.frame for look in known])
    counted = sorted(
        (look for look in known if look.embedding is not None and not rare & {*look.class_names, *drawn.get(look.frame, ())}),
        key=lambda look: look.frame,
    )
    same_model = stored.get("model", "") == champion
    if same_model and stored.get("frames", 0) <= len(counted) < _WORTH_TELLING * stored.get("frames", 0):
        return False
    sizes = {len(look.embedding) for look in counted if look.embedding is not None}
    payload = b""
    if len(sizes) == 1:
        payload = make_sketch(
            model_key(champion), np.stack([look.embedding for look in counted if look.embedding is not None]), enough
        )
    if same_model and payload.hex() == stored.get("bytes", ""):
        return False
    with cat.transaction():
        cat.set_setting(_SKETCH, {"model": champion, "frames": len(counted), "bytes": payload.hex()})
        if payload or stored.get("bytes"):
            cat.log(actor, "fleet sketch made", champion or "no champion", {"frames": len(counted), "bytes": len(payload)})
    return bool(payload or stored.get("bytes"))


def wished(cat: Catalogue) -> dict[str, bytes]:
    """Device -> the sketch that its wish holds: of active devices that report to run its model."""
    stored = cat.setting(_SKETCH, {})
    if not stored.get("bytes"):
        return {}
    payload = bytes.fromhex(stored["bytes"])
    rows = cat.rows("SELECT id FROM device WHERE state = 'active' AND model_digest = ?", stored["model"])
    return {row["id"]: payload for row in rows}
