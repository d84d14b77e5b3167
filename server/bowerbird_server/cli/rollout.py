"""`bowerbird rollout`: start, list, show, pause, resume, abort."""

from __future__ import annotations

from typing import Annotated

import typer

from bowerbird_server.catalogue import fleet, overview, rollouts
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.cli.common import DATA, AsJson, Config, Data, actor, open_site, say, show_json, show_rows
from bowerbird_server.errors import NotFound
from bowerbird_server.registry import publish
from bowerbird_server.rollout import Event

app = typer.Typer(no_args_is_help=True, help="Bring a model to devices. Example: bowerbird rollout start --model champion")


@app.command()
def start(
    data: Data = DATA,
    config: Config = None,
    model: Annotated[str, typer.Option(help="Digest, a prefix of it, or champion.")] = "champion",
    device: Annotated[list[str] | None, typer.Option(help="Only these devices; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Publish a model if need be and offer it to devices, wave by wave; a running server does the rest."""
    with open_site(data, config) as site:
        row = model_rows.model(site.catalogue, model)
        active = fleet.expected_devices(site.catalogue)
        unknown = sorted(set(device or ()) - active.keys())
        if unknown:
            raise NotFound(f"no active device {', '.join(unknown)}; `bowerbird devices list` shows all")
        devices = sorted(set(device)) if device else sorted(active)
        release = publish(site, row["digest"], actor())
        rollout = rollouts.start_rollout(site.catalogue, row["digest"], release, devices, actor())
        if as_json:
            show_json(rollouts.get(site.catalogue, rollout))
        else:
            say(f"rollout {rollout}: model {row['digest'][:12]}, release {release}, {len(devices)} devices, and later ones")


@app.command("list")
def list_rollouts(data: Data = DATA, as_json: AsJson = False) -> None:
    """All rollouts, newest first."""
    with open_site(data) as site:
        rows = overview.rollouts(site.catalogue)
        for row in rows:
            row["short"] = row["model"][:12]
            row["succeeded"] = sum(execution["state"] == "succeeded" for execution in row["executions"])
            row["devices"] = len(row["executions"])
        show_rows(
            rows,
            {
                "id": "rollout",
                "short": "model",
                "release": "release",
                "state": "state",
                "succeeded": "succeeded",
                "devices": "of",
            },
            as_json=as_json,
            none="no rollouts yet; `bowerbird rollout start` offers the champion to all devices",
        )


@app.command()
def show(rollout: str, data: Data = DATA, as_json: AsJson = False) -> None:
    """One rollout, device by device."""
    with open_site(data) as site:
        row = rollouts.get(site.catalogue, rollout)
        if as_json:
            show_json(row)
            return
        say(f"rollout {row['id']}: {row['state']}, model {row['model'][:12]}, release {row['release']}")
        show_rows(
            row["executions"],
            {"device": "device", "wave": "wave", "state": "state", "code": "code", "detail": "detail"},
            as_json=False,
            none="it has no devices",
        )


def _command(event: Event, done: str) -> None:
    def command(rollout: str, data: Data = DATA) -> None:
        with open_site(data) as site:
            rollouts.transition(site.catalogue, rollout, event, actor())
        say(done)

    command.__doc__ = f"{done[0].upper()}{done[1:]}. Example: bowerbird rollout {event.value} ROLLOUT"
    app.command(event.value)(command)


_command(Event.PAUSE, "no further devices are offered the model; those under way finish")
_command(Event.RESUME, "devices are offered the model again")
_command(Event.ABORT, "the rollout is over; devices that wait or download are told to stop")
