"""`bowerbird devices config` and `bowerbird devices tag`: what is wished of devices' configuration, and which devices are meant."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from bowerbird_server.catalogue import config_changes, device_groups, fleet
from bowerbird_server.catalogue import device_config as rows
from bowerbird_server.cli.common import DATA, AsJson, Config, Data, actor, open_site, say, show_json, show_rows
from bowerbird_server.errors import BadInput
from bowerbird_server.fleet import device_config as rules
from bowerbird_server.fleet.rollout import Event

app = typer.Typer(
    no_args_is_help=True,
    help="Configuration of devices from afar. Example: bowerbird devices config set --site north selection.epsilon=0.3",
)

Site = Annotated[str | None, typer.Option("--site", help="All active devices of this site.")]
Tag = Annotated[str | None, typer.Option("--tag", help="All active devices with this tag.")]
Everyone = Annotated[bool, typer.Option("--all", help="All active devices.")]
AtOnce = Annotated[bool, typer.Option("--at-once", help="No waves: every device gets it now.")]
Change = Annotated[str, typer.Argument(help="Id of a change, or its beginning.")]


def add_to(devices: typer.Typer) -> None:
    """The group `config` and the command `tag` below `bowerbird devices`."""
    devices.add_typer(app, name="config")
    devices.command()(tag)


def tag(
    device: str,
    tags: Annotated[list[str] | None, typer.Argument(help="Tags: a-z, 0-9 and '-'; none shows them.")] = None,
    data: Data = DATA,
    remove: Annotated[bool, typer.Option("--remove", help="Take these tags away.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give a device tags, so that --tag can mean a group of devices; without tags, show them."""
    with open_site(data) as site:
        now = device_groups.tag(site.catalogue, device, tags or [], actor(), remove=remove)
    if as_json:
        show_json({"device": device, "tags": now})
    else:
        say(f"{device}: {', '.join(now) or 'no tags'}")


@app.command()
def show(device: str, data: Data = DATA, as_json: AsJson = False) -> None:
    """What is wished of a device, and what it made of it."""
    with open_site(data) as site:
        found = rows.show(site.catalogue, device)
    if as_json:
        show_json(found)
        return
    _say_standing(found)
    for path, value in rules.flat(found["document"]).items():
        say(f"  {path} = {json.dumps(value)}")


@app.command("set")
def set_values(
    words: Annotated[list[str], typer.Argument(help="Devices, and settings like selection.epsilon=0.3 or cameras.gate.fps=5.")],
    data: Data = DATA,
    config: Config = None,
    site: Site = None,
    tag: Tag = None,
    everyone: Everyone = False,
    at_once: AtOnce = False,
    as_json: AsJson = False,
) -> None:
    """Wish settings of devices; each lays them over its agent.toml if that allows it, and says what became of it."""
    names = [word for word in words if "=" not in word]
    document = rules.parse_assignments(word for word in words if "=" in word)
    if not document:
        raise BadInput("nothing to set; write settings like selection.epsilon=0.3")
    _change(data, config, names, {"set": document}, site, tag, everyone, at_once, as_json)


@app.command()
def unset(
    names: Annotated[list[str] | None, typer.Argument(help="Devices.")] = None,
    data: Data = DATA,
    config: Config = None,
    key: Annotated[list[str] | None, typer.Option(help="Key path, such as selection.epsilon; may be repeated.")] = None,
    everything: Annotated[bool, typer.Option("--everything", help="All that was wished: agent.toml alone counts.")] = False,
    site: Site = None,
    tag: Tag = None,
    everyone: Everyone = False,
    at_once: AtOnce = False,
    as_json: AsJson = False,
) -> None:
    """Wish settings no longer: what the devices' agent.toml says counts again."""
    if bool(key) == everything:
        raise BadInput("name what to unset with --key, or take all of it away with --everything")
    _change(data, config, names or [], {"unset": key or [""]}, site, tag, everyone, at_once, as_json)


@app.command()
def diff(device: str, data: Data = DATA, as_json: AsJson = False) -> None:
    """What a device runs with and what is wished of it, where the two differ."""
    with open_site(data) as site:
        found = rows.show(site.catalogue, device)
        in_force = rows.document_in_force(site.catalogue, device)
    differing = rules.difference(in_force, found["document"])
    if as_json:
        show_json({**found, "differences": {path: {"in_force": a, "wished": b} for path, (a, b) in differing.items()}})
        return
    _say_standing(found)
    for path, (now, wanted) in differing.items():
        say(f"  {path}: {_shown(now)} in force, {_shown(wanted)} wished")
    if not differing:
        say("  nothing differs")


@app.command()
def history(device: str, data: Data = DATA, as_json: AsJson = False) -> None:
    """Every wish of a device, the newest first: when, by whom, and what it was."""
    with open_site(data) as site:
        found = rows.history(site.catalogue, device)
    show_rows(
        [{**row, "shown": json.dumps(row["document"])} if not as_json else row for row in found],
        {"version": "version", "at": "at", "actor": "by", "shown": "document"},
        as_json=as_json,
        none="nothing was ever wished of this device",
    )


@app.command()
def changes(data: Data = DATA, as_json: AsJson = False) -> None:
    """Changes and how far each has come, the newest first."""
    with open_site(data) as site:
        found = config_changes.changes(site.catalogue)
    if not as_json:
        for row in found:
            states = [member["state"] for member in row["devices"]]
            row["progress"] = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
            row["shown"] = json.dumps({key: value for key, value in row["patch"].items() if value})
            row["reason"] = row["why"].get("reason", "")
    columns = {
        "id": "change",
        "at": "at",
        "actor": "by",
        "state": "state",
        "progress": "devices",
        "shown": "what",
        "reason": "why",
    }
    show_rows(found, columns, as_json=as_json, none="no changes yet; `bowerbird devices config set` makes one")


@app.command()
def pause(change: Change, data: Data = DATA) -> None:
    """Hold a change: no further device gets it."""
    _move(data, change, Event.PAUSE)


@app.command()
def resume(change: Change, data: Data = DATA) -> None:
    """Go on with a change that was paused; devices that failed are left out."""
    _move(data, change, Event.RESUME)


@app.command()
def abort(change: Change, data: Data = DATA) -> None:
    """End a change: devices that have not got it never will; the others keep it until it is unset."""
    _move(data, change, Event.ABORT)


def _move(data: Any, change: str, event: Event) -> None:
    with open_site(data) as site:
        identity = config_changes.get_change(site.catalogue, change)["id"]
        config_changes.move(site.catalogue, identity, event, actor())
        state = config_changes.get_change(site.catalogue, identity)["state"]
    say(f"change {identity} is {state}")


def _change(
    data: Any,
    config: Any,
    names: list[str],
    patch: dict[str, Any],
    of_site: str | None,
    tagged: str | None,
    everyone: bool,
    at_once: bool,
    as_json: bool,
) -> None:
    with open_site(data, config) as site:
        devices = device_groups.resolve(site.catalogue, names, site=of_site, tagged=tagged, everyone=everyone)
        identity = config_changes.change(site.catalogue, devices, patch, actor(), at_once=at_once)
        waves = len({member["wave"] for member in config_changes.get_change(site.catalogue, identity)["devices"]})
        offline = sum(not fleet.get(site.catalogue, device)["online"] for device in devices[:1000])
    if as_json:
        show_json({"change": identity, "devices": devices, "waves": waves})
        return
    say(f"change {identity}: {len(devices)} device(s) in {waves} wave(s); a running server carries it out")
    if offline:
        say(f"  {offline} not connected now; it waits for them at the broker")


def _say_standing(found: dict[str, Any]) -> None:
    say(f"{found['device']}: version {found['version']} {found['state']}, version {found['in_force']} in force")
    for fault in found["faults"]:
        say(f"  ! {fault}")
    if found["differs"]:
        say(f"  the device's own agent.toml adds to {', '.join(found['differs'])}")


def _shown(value: Any) -> str:
    return "agent.toml" if value is None else json.dumps(value)
