"""The catalogue as somebody sees it who is let into some sites only: the same tables, without the rows of other sites.

In: the catalogue's path and site names. Out: a `Catalogue` that cannot write and whose queries, written for the whole, find only
what is theirs. Each table is shadowed by a temporary view of its name, so the scope stands in the SQL of every query and none can
forget it. A table that is not named here is empty for them: a new one stays shut until somebody decides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from bowerbird_server.access.roles import Sites
from bowerbird_server.catalogue.core import Catalogue

_OURS = "SELECT id FROM main.device WHERE site IN (SELECT site FROM temp.our_site)"
_OUR_FRAME = f"EXISTS (SELECT 1 FROM main.frame AS seen WHERE seen.id = {{key}} AND seen.device IN ({_OURS}))"  # noqa: S608 - constants
_OUR_CAMERA = f"camera IN (SELECT id FROM main.camera WHERE device IN ({_OURS}))"  # noqa: S608 - constants

# Table -> what must hold for a row to be theirs.
THEIRS: Mapping[str, str] = {
    "device": "site IN (SELECT site FROM temp.our_site)",
    "camera": f"device IN ({_OURS})",
    "health": f"device IN ({_OURS})",
    # Imported frames have no device and belong to no site.
    "frame": f"device IN ({_OURS})",
    "detection": _OUR_FRAME.format(key="detection.frame"),
    "label": _OUR_FRAME.format(key="label.frame"),
    "batch_frame": _OUR_FRAME.format(key="batch_frame.frame"),
    "dataset_frame": _OUR_FRAME.format(key="dataset_frame.frame"),
    "look": _OUR_FRAME.format(key="look.frame"),
    "second_look": _OUR_FRAME.format(key="second_look.frame"),
    "thumbnail": "site IN (SELECT site FROM temp.our_site)",
    "batch": "EXISTS (SELECT 1 FROM batch_frame WHERE batch_frame.batch = batch.id)",
    "execution": f"device IN ({_OURS})",
    "rollout": "EXISTS (SELECT 1 FROM execution WHERE execution.rollout = rollout.id)",
    "linked_frame": _OUR_FRAME.format(key="linked_frame.frame"),
    "fetch": f"device IN ({_OURS})",
    "unsent": f"device IN ({_OURS})",
    "tombstone": f"device IN ({_OURS})",
    "redaction": _OUR_FRAME.format(key="redaction.frame"),
    "certificate": f"device IN ({_OURS})",
    "device_tag": f"device IN ({_OURS})",
    "device_config": f"device IN ({_OURS})",
    "config_history": f"device IN ({_OURS})",
    "config_change_device": f"device IN ({_OURS})",
    "config_change": "EXISTS (SELECT 1 FROM config_change_device WHERE config_change_device.change = config_change.id)",
    "campaign_share": f"device IN ({_OURS})",
    "campaign": "EXISTS (SELECT 1 FROM campaign_share WHERE campaign_share.campaign = campaign.id)",
    "camera_hour": _OUR_CAMERA,
    "drift_hour": _OUR_CAMERA,
    "drift": _OUR_CAMERA,
    "new_camera": _OUR_CAMERA,
    # About a device, a frame or a rollout of theirs; what happened to the server as a whole is not theirs.
    "event": " OR ".join(
        (f"subject IN ({_OURS})", "subject IN (SELECT id FROM rollout)", _OUR_FRAME.format(key="event.subject"))
    ),
}
# Tables that all sites of a server share: classes, data sets, trainings and models are made of the frames of all and show none of them.
SHARED = frozenset({"class", "dataset_version", "model", "training_run"})
# Views of the catalogue are made again over what is theirs: theirs would otherwise look at the tables behind.
_VIEWS = ("label_newest", "queue")


def scoped(path: Path, sites: Sites) -> Catalogue:
    """The catalogue for somebody; the whole one, and able to write, when they are let in everywhere.

    Raises:
        EnvironmentFault: the file cannot be opened.
    """
    cat = Catalogue(path)
    if sites.names is None:
        return cat
    cat.connection.execute("CREATE TEMP TABLE our_site (site TEXT PRIMARY KEY)")
    cat.connection.execute("INSERT INTO our_site (site) SELECT value FROM json_each(?)", (json.dumps(sorted(sites.names)),))
    found = cat.rows(
        "SELECT name, type, sql FROM main.sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'"
    )
    for row in found:
        name = row["name"]
        if row["type"] == "view":
            sql = row["sql"].replace("CREATE VIEW", "CREATE TEMP VIEW", 1) if name in _VIEWS else _view(name, "0")
        elif name in SHARED:
            continue
        else:
            sql = _view(name, THEIRS.get(name, "0"))
        cat.connection.execute(sql)
    cat.connection.execute("PRAGMA query_only = ON")
    return cat


def _view(name: str, condition: str) -> str:
    # Names and conditions are our own constants and the catalogue's own tables.
    return f'CREATE TEMP VIEW "{name}" AS SELECT * FROM main."{name}" AS "{name}" WHERE {condition}'  # noqa: S608
