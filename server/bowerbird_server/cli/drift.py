"""`bowerbird drift`: what cameras show compared with what they showed, and how good the model is in the field."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from bowerbird_server.catalogue import Catalogue, audited, drift_rows, fleet
from bowerbird_server.cli.common import DATA, AsJson, Data, actor, open_site, say, show_rows
from bowerbird_server.errors import NotFound

app = typer.Typer(no_args_is_help=True, help="Drift of cameras and accuracy in the field. Example: bowerbird drift field")

Camera = Annotated[str | None, typer.Option(help="Only this camera, like cam-01/gate.")]


class Period(StrEnum):
    """How long the periods of `field` are."""

    DAY = "day"
    WEEK = "week"
    ALL = "all"


@app.command("list")
def list_drift(
    data: Data = DATA,
    device: Annotated[str | None, typer.Option(help="Only this device's cameras.")] = None,
    as_json: AsJson = False,
) -> None:
    """Episodes in which a camera showed something else than before, newest first, with what was done about them."""
    with open_site(data) as site:
        if device is not None:
            fleet.get(site.catalogue, device)
        rows = drift_rows.episodes(site.catalogue, device=device)
    for row in rows:
        row["state"] = "open" if row["closed_at"] is None else row["why_closed"].replace("_", " ")
        row["in"] = ", ".join(row["far"])
    show_rows(
        rows,
        {
            "camera": "camera",
            "since": "since",
            "until": "until",
            "cause": "cause",
            "in": "in",
            "state": "state",
            "boosted_until": "explored more until",
            "slice": "slice",
        },
        as_json=as_json,
        none="no camera has drifted; `bowerbird drift hours CAMERA` shows what its hours are like",
    )


@app.command()
def hours(
    camera: Annotated[str, typer.Argument(help="Like cam-01/gate.")],
    data: Data = DATA,
    limit: Annotated[int, typer.Option(min=1, help="Newest hours.")] = 48,
    as_json: AsJson = False,
) -> None:
    """A camera's hours, newest first: how far each is from its like, and what was said of it."""
    with open_site(data) as site:
        _known(site.catalogue, camera)
        rows = drift_rows.verdicts(site.catalogue, camera, limit)
    for row in rows:
        row["far"] = ", ".join(
            f"{name} {distance['psi']:.2f}{'' if distance['ks'] is None else ' / ' + format(distance['ks'], '.2f')}"
            for name, distance in sorted(row["distances"].items())
        )
    show_rows(
        rows,
        {"hour": "hour", "frames": "frames", "state": "state", "cause": "cause", "far": "psi / ks"},
        as_json=as_json,
        none="nothing was heard of this camera's hours yet; devices send each hour when it is over",
    )


@app.command()
def changes(
    camera: Annotated[str, typer.Argument(help="Like cam-01/gate.")],
    data: Data = DATA,
    model: Annotated[str | None, typer.Option(help="Only frames that this model saw; the beginning of its digest.")] = None,
    as_json: AsJson = False,
) -> None:
    """When a camera's recall in the field rose or fell, by ADWIN over the random audit; rates are of its window, without intervals."""
    with open_site(data) as site:
        _known(site.catalogue, camera)
        rows = audited.recall_changes(site.catalogue, camera, model=model)
    if not as_json:
        rows = [{"at": row["at"], "before": f"{row['before']:.3f}", "after": f"{row['after']:.3f}"} for row in rows]
    show_rows(
        rows,
        {"at": "noticed", "before": "before", "after": "after"},
        as_json=as_json,
        none="no change of recall was noticed; it takes some hundred labelled frames of the random audit",
    )


def _known(cat: Catalogue, camera: str) -> None:
    if cat.value("SELECT 1 FROM camera WHERE id = ?", camera) is None:
        raise NotFound(f"no camera {camera[:80]!r}; a camera is called device/name, `bowerbird devices list` shows them")


@app.command("stop-boost")
def stop_boost(device: str, data: Data = DATA) -> None:
    """Let a device explore all its cameras as much as its policy says again, before the day is over."""
    with open_site(data) as site:
        fleet.get(site.catalogue, device)
        count = drift_rows.stop_boost(site.catalogue, device, actor())
    say(f"{device} explores as usual again" if count else f"{device} was not boosted")


@app.command()
def field(
    data: Data = DATA,
    camera: Camera = None,
    by: Annotated[Period, typer.Option(help="Length of the periods.")] = Period.WEEK,
    model: Annotated[str | None, typer.Option(help="Only frames that this model saw; the beginning of its digest.")] = None,
    as_json: AsJson = False,
) -> None:
    """Precision and recall in the field with 95 % intervals, from the random audit, by camera and over time."""
    with open_site(data) as site:
        if camera is not None:
            _known(site.catalogue, camera)
        rows = audited.metrics(site.catalogue, period=by.value, camera=camera, model=model)
    if not as_json:
        rows = [audited.in_words(row) for row in rows]
    show_rows(
        rows,
        {
            "camera": "camera",
            "begin": "from",
            "precision": "precision",
            "recall": "recall",
            "frames": "frames",
            "missing": "missing",
        },
        as_json=as_json,
        none="no frame of the random audit has come yet; `selection.epsilon` above 0 sends them, labels make them count",
    )
