"""`bowerbird devices`: add, list, show, retire."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bowerbird_server.catalogue import fleet
from bowerbird_server.cli.common import DATA, AsJson, Config, Data, actor, open_site, say, show_json, show_rows
from bowerbird_server.errors import BadInput, Conflict
from bowerbird_server.provision import add_device, broker_of, check_device_name
from bowerbird_server.record_keeping import keep_records

app = typer.Typer(
    no_args_is_help=True, help="Devices of this site. Example: bowerbird devices add cam-01 --camera rtsp://10.0.0.7/1"
)


@app.command()
def add(
    names: Annotated[list[str], typer.Argument(help="Names: a-z, 0-9 and '-'.")],
    data: Data = DATA,
    config: Config = None,
    camera: Annotated[
        list[str] | None, typer.Option(help="Source of a camera: rtsp://..., /dev/video0, a file or a folder; may be repeated.")
    ] = None,
    broker_host: Annotated[str | None, typer.Option(help="The broker's address as the device sees it.")] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="With a broker of your own: file with the device's password there.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="A known device too: new password, new folder; the old password stops working.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make devices known; each gets a folder to copy to the board, for `bowerbird-agent run --config FOLDER/agent.toml`."""
    for name in names:
        check_device_name(name)
    password = None
    if password_file is not None:
        try:
            password = password_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise BadInput(f"cannot read {password_file}: {error.strerror}") from error
    cameras = [{"name": f"camera-{n}", "source": source} for n, source in enumerate(camera or [], start=1)]
    with open_site(data, config, make=True) as site:
        known = sorted(set(names) & fleet.active_devices(site.catalogue).keys())
        if known and not again:
            raise Conflict(
                f"{', '.join(known)} is known already; its folder is in {site.folder.devices}. "
                "--again gives it a new password and a new folder, and the old password stops working."
            )
        made = {
            name: str(add_device(site, name, actor=actor(), cameras=list(cameras), broker_host=broker_host, password=password))
            for name in names
        }
    if as_json:
        show_json(made)
        return
    for name, folder in made.items():
        say(f"{name}: copy {folder} to the device, set its cameras in agent.toml, then there:")
        say("  bowerbird-agent run --config agent.toml")


@app.command("list")
def list_devices(data: Data = DATA, as_json: AsJson = False) -> None:
    """All devices with what they last reported."""
    with open_site(data) as site:
        rows = fleet.list_devices(site.catalogue)
    for row in rows:
        health = row["health"]
        row.update(
            status="online" if row["online"] else "offline",
            model=row["model_digest"][:12],
            seen=health.get("frames_seen", 0),
            sent=health.get("frames_committed", 0),
            kilobytes=round(health.get("bytes_sent", 0) / 1000),
        )
    show_rows(
        rows,
        {
            "id": "device",
            "state": "state",
            "status": "status",
            "agent_version": "agent",
            "model": "model",
            "seen": "seen",
            "sent": "sent",
            "kilobytes": "kB sent",
        },
        as_json=as_json,
        none="no devices yet; `bowerbird devices add cam-01` makes the first",
    )


@app.command()
def show(device: str, data: Data = DATA) -> None:
    """Everything a device last said, as JSON."""
    with open_site(data) as site:
        row = fleet.get(site.catalogue, device)
        show_json(row)


@app.command()
def retire(device: str, data: Data = DATA, config: Config = None) -> None:
    """Take a device out of service: its password stops working, its frames stay."""
    with open_site(data, config) as site:
        fleet.retire_device(site.catalogue, device, actor())
        keep_records(site.catalogue, site.blobs)
        broker = broker_of(site)
        if broker is not None:
            broker.remove_device(device, fleet.active_devices(site.catalogue))
    say(f"{device} is retired")
