"""`bowerbird rollout`: start, list, show, approve, pause, resume, abort."""

from __future__ import annotations

from typing import Annotated

import typer

from bowerbird_server.catalogue import Row, fleet, overview, rollouts
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.cli.common import DATA, AsJson, Config, Data, actor, open_site, say, show_json, show_rows
from bowerbird_server.errors import NotFound
from bowerbird_server.fleet.rollout import Event
from bowerbird_server.releases import agent_releases
from bowerbird_server.releases.registry import publish

app = typer.Typer(
    no_args_is_help=True,
    help="Bring a model, or a version of the agent, to devices. Example: bowerbird rollout start --model champion",
)


@app.command()
def start(
    data: Data = DATA,
    config: Config = None,
    model: Annotated[str, typer.Option(help="Digest, a prefix of it, or champion.")] = "champion",
    agent: Annotated[
        str | None, typer.Option(help="Instead of a model, the agent itself: version or digest from `bowerbird agents list`.")
    ] = None,
    device: Annotated[list[str] | None, typer.Option(help="Only these devices; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Publish it if need be and offer it to devices, wave by wave; a running server does the rest."""
    with open_site(data, config) as site:
        found = None if agent is None else agent_releases.find(site, agent)
        digest = found.digest if found is not None else model_rows.model(site.catalogue, model)["digest"]
        active = fleet.expected_devices(site.catalogue)
        unknown = sorted(set(device or ()) - active.keys())
        if unknown:
            raise NotFound(f"no active device {', '.join(unknown)}; `bowerbird devices list` shows all")
        devices = sorted(set(device)) if device else sorted(active)
        sign = publish if found is None else agent_releases.publish_release
        release = sign(site, digest, actor())
        version = "" if found is None else found.manifest.version
        approved = site.config.rollout.approval == "none"
        rollout = rollouts.start_rollout(
            site.catalogue, digest, release, devices, actor(), agent_version=version, approved=approved
        )
        started = rollouts.get(site.catalogue, rollout)
        if as_json:
            show_json(started)
        else:
            later = ", and later ones" if found is None else ""
            say(f"rollout {rollout}: {_what(started)}, release {release}, {len(devices)} devices{later}")
            if not approved:
                say(f"it waits for somebody else: bowerbird rollout approve {rollout}")


def _what(row: Row) -> str:
    return f"agent {row['agent_version']}" if row["agent"] else f"model {row['model'][:12]}"


@app.command("list")
def list_rollouts(data: Data = DATA, as_json: AsJson = False) -> None:
    """All rollouts, newest first."""
    with open_site(data) as site:
        rows = overview.rollouts(site.catalogue)
        for row in rows:
            row["short"] = _what(row) if row["agent"] else row["model"][:12]
            row["succeeded"] = sum(execution["state"] == "succeeded" for execution in row["executions"])
            row["devices"] = len(row["executions"])
        show_rows(
            rows,
            {
                "id": "rollout",
                "short": "brings",
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
        say(f"rollout {row['id']}: {row['state']}, {_what(row)}, release {row['release']}")
        show_rows(
            row["executions"],
            {"device": "device", "wave": "wave", "state": "state", "code": "code", "detail": "detail"},
            as_json=False,
            none="it has no devices",
        )


@app.command()
def approve(rollout: str, data: Data = DATA) -> None:
    """Let a draft begin that somebody else started. Example: bowerbird rollout approve ROLLOUT"""
    with open_site(data) as site:
        rollouts.approve(site.catalogue, rollout, actor())
    say("devices are offered the model")


def _command(event: Event, done: str) -> None:
    def command(rollout: str, data: Data = DATA) -> None:
        with open_site(data) as site:
            rollouts.transition(site.catalogue, rollout, event, actor())
        say(done)

    command.__doc__ = f"{done[0].upper()}{done[1:]}. Example: bowerbird rollout {event.value} ROLLOUT"
    app.command(event.value)(command)


_command(Event.PAUSE, "no further devices are offered it; those under way finish")
_command(Event.RESUME, "devices are offered it again")
_command(Event.ABORT, "the rollout is over; devices that wait or download are told to stop")
