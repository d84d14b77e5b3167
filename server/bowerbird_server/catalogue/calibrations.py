"""Which calibration table the wish of each device holds: that of the model it says it runs.

In: models' figures. Out: bytes by device. A model that was never evaluated, such as an imported one, has none: its devices take its
scores at their word. A device that goes back to an earlier model is told that one's table again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from bowerbird_server.catalogue.core import Catalogue
from bowerbird_server.training.score_calibration import table_bytes
from bowerbird_wire.fleet_sketch import model_key


def wished(cat: Catalogue) -> dict[str, bytes]:
    """Device -> the table that its wish holds, for active devices that report a model which has one."""
    running = {row["id"]: row["model_digest"] for row in cat.rows("SELECT id, model_digest FROM device WHERE state = 'active'")}
    tables = _tables(cat, sorted({digest for digest in running.values() if digest}))
    return {device: tables[digest] for device, digest in running.items() if tables.get(digest)}


def of_model(cat: Catalogue, digest: str) -> bytes:
    """A model's table; b"" for none."""
    return _tables(cat, [digest]).get(digest, b"")


def _tables(cat: Catalogue, digests: Sequence[str]) -> dict[str, bytes]:
    rows = cat.rows(
        "SELECT digest, class_names, json_extract(metrics, '$.calibration') AS calibration FROM model "
        "WHERE digest IN (SELECT value FROM json_each(?)) AND calibration IS NOT NULL",
        json.dumps(list(digests)),
    )
    return {
        row["digest"]: table_bytes(model_key(row["digest"]), json.loads(row["class_names"]), json.loads(row["calibration"]))
        for row in rows
    }
