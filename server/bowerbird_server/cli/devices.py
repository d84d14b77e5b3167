"""`bowerbird devices`: invite, add, list, show, approve, suspend, resume, retire, alarms."""

from __future__ import annotations

from csv import Error as CsvError
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bowerbird_server.broker.address import write_private
from bowerbird_server.catalogue import fleet, identity, unsent
from bowerbird_server.catalogue.record_keeping import keep_records
from bowerbird_server.cli import device_config
from bowerbird_server.cli.common import DATA, AsJson, Config, Data, actor, open_site, say, show_json, show_rows
from bowerbird_server.errors import BadInput, Conflict
from bowerbird_server.fleet.provision import (
    BUNDLE_NAME,
    EXAMPLE_CAMERA,
    add_device,
    broker_table,
    check_device_name,
    refresh_access,
    uses_certificates,
)
from bowerbird_server.identity.invitations import MAX_HOURS, Wanted, cameras_of, file_name, read_list
from bowerbird_server.identity.invitations import invite as invite_board
from bowerbird_server.identity.states import Happening
from bowerbird_server.identity.tokens import qr_text
from bowerbird_server.site import Site
from bowerbird_wire.spent import kinds_of

app = typer.Typer(
    no_args_is_help=True, help="Devices of this site. Example: bowerbird devices add cam-01 --camera rtsp://10.0.0.7/1"
)
device_config.add_to(app)


@app.command()
def add(
    names: Annotated[list[str], typer.Argument(help="Names: a-z, 0-9 and '-'.")],
    data: Data = DATA,
    config: Config = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(help="Camera as SOURCE (rtsp://..., /dev/video0, a file or a folder) or NAME=SOURCE; may be repeated."),
    ] = None,
    broker_host: Annotated[str | None, typer.Option(help="The server's name or address as the device sees it.")] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="With a broker of your own: file with the device's password there.")
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="A known device too: a new bundle and a new folder, for another key on the same device."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make devices known by name; each gets a folder to copy to the board, with agent.toml and the bundle to enrol with."""
    for name in names:
        check_device_name(name)
    password = None
    if password_file is not None:
        try:
            password = password_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise BadInput(f"cannot read {password_file}: {error.strerror}") from error
    cameras = cameras_of(camera or [])
    with open_site(data, config, make=True) as site:
        known = sorted(set(names) & {row["id"] for row in fleet.list_devices(site.catalogue)})
        if known and not again:
            raise Conflict(
                f"{', '.join(known)} is known already; its folder is in {site.folder.devices}. "
                "--again makes a new folder, with a new bundle to enrol with."
            )
        made = {
            name: str(add_device(site, name, actor=actor(), cameras=list(cameras), broker_host=broker_host, password=password))
            for name in names
        }
    if as_json:
        show_json(made)
        return
    for name, folder in made.items():
        say(f"{name}: copy {folder} to the device,{'' if cameras else ' set its cameras in agent.toml,'} then there:")
        if (Path(folder) / BUNDLE_NAME).exists():
            say(f"  bowerbird-agent enrol {BUNDLE_NAME} --config agent.toml")
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
            certificate=(row["certificate_until"] or "")[:10],
        )
    show_rows(
        rows,
        {
            "id": "device",
            "label": "label",
            "state": "state",
            "status": "status",
            "agent_version": "agent",
            "model": "model",
            "seen": "seen",
            "sent": "sent",
            "kilobytes": "kB sent",
            "certificate": "certificate until",
            "trouble": "trouble",
        },
        as_json=as_json,
        none="no devices yet; `bowerbird devices add cam-01` makes the first",
    )


@app.command()
def show(device: str, data: Data = DATA) -> None:
    """Everything a device last said, and its certificates, as JSON."""
    with open_site(data) as site:
        row = fleet.get(site.catalogue, device)
        row["certificates"] = identity.certificates(site.catalogue, device)
        spent = kinds_of((row["health"] or {}).get("extra", {}).get("spent"))
        show_json({**row, "spent_bytes": spent, "unsent": unsent.of_device(site.catalogue, device)})


@app.command()
def invite(
    serials: Annotated[list[str] | None, typer.Argument(help="What the boards are called: serial numbers or labels.")] = None,
    data: Data = DATA,
    config: Config = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="File with the columns serial, label, camera.")] = None,
    check_serial: Annotated[
        bool, typer.Option("--check-serial", help="The board must report this very serial number; always so with --csv.")
    ] = False,
    approve: Annotated[bool, typer.Option(help="Approved beforehand; with --no-approve a person looks at each claim.")] = True,
    hours: Annotated[float, typer.Option(min=0.01, max=MAX_HOURS, help="How long the tokens are good.")] = MAX_HOURS,
    camera: Annotated[list[str] | None, typer.Option(help="Camera as SOURCE or NAME=SOURCE; may be repeated.")] = None,
    host: Annotated[str | None, typer.Option(help="This server's name or address as the boards see it.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the bundles, one file a board.")] = Path(),
    qr: Annotated[bool, typer.Option("--qr", help="Also draw each token as a QR code.")] = False,
    as_json: AsJson = False,
) -> None:
    """Invite boards that have no name yet: a one-time token for each, as a bundle and as a text, for `bowerbird-agent enrol`."""
    cameras = cameras_of(camera or [])
    wanted = [Wanted(serial, serial if check_serial else "", cameras=cameras) for serial in serials or []]
    if csv is not None:
        try:
            listed = read_list(csv.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, CsvError) as error:
            raise BadInput(f"cannot read {csv}: {error}") from error
        wanted += [each if each.cameras else replace(each, cameras=cameras) for each in listed]
    if not wanted:
        raise BadInput("whom to invite? Name serial numbers, or a file with --csv")
    made: list[dict[str, str]] = []
    with open_site(data, config, make=True) as site:
        if not uses_certificates(site):
            raise BadInput("this site's broker knows no certificates: install mosquitto, or set broker.url to mqtts://...")
        table = broker_table(site, host)
        out.mkdir(parents=True, exist_ok=True)
        for each in wanted:
            shown = replace(each, cameras=each.cameras or [EXAMPLE_CAMERA])
            invited = invite_board(
                site, shown, broker=table, tables={}, actor=actor(), approved=approve, hours=hours, host=host
            )
            path = out / f"{file_name(each.label)}.bundle.json"
            write_private(path, invited.bundle.to_text().encode())
            made.append(
                {
                    "label": each.label,
                    "bundle": str(path),
                    "token": invited.bundle.token,
                    "pin": invited.bundle.pin,
                    "expires_at": invited.bundle.expires_at,
                    "text": invited.text,
                }
            )
    if as_json:
        show_json(made)
        return
    for row in made:
        say(f"{row['label']}: {row['bundle']}, good once until {row['expires_at']}")
        say(f"  token {row['token']}")
        say(f"  pin   {row['pin']}")
        say(f"  text  {row['text']}")
        if qr:
            say(qr_text(row["text"]))
    say("on the board: bowerbird-agent enrol BUNDLE --config agent.toml (or the text in the bundle's place, within quotes)")


@app.command()
def approve(
    device: str,
    data: Data = DATA,
    config: Config = None,
    replaces: Annotated[
        str | None, typer.Option(help="The device in whose place this new board stands: that one retires, its cameras go on.")
    ] = None,
) -> None:
    """Let a board in that has claimed and waits; it gets its certificate at its next try."""
    with open_site(data, config) as site, site.catalogue.transaction():
        if replaces is not None:
            identity.replace(site.catalogue, replaces, device, actor())
        identity.change_state(site.catalogue, device, Happening.APPROVED, actor(), f"replaces {replaces}" if replaces else "")
    with open_site(data, config) as site:
        _tell_broker(site)
    say(f"{device} is active" + (f", {replaces} is retired" if replaces else ""))


@app.command()
def suspend(
    device: str,
    data: Data = DATA,
    config: Config = None,
    why: Annotated[str, typer.Option(help="For the log.")] = "",
) -> None:
    """Shut a device out for now: it is disconnected, and neither connects, renews nor claims until it is resumed."""
    _change(data, config, device, Happening.SUSPENDED, why)
    say(f"{device} is suspended; `bowerbird devices resume {device}` lets it in again")


@app.command()
def resume(device: str, data: Data = DATA, config: Config = None) -> None:
    """Let a suspended device in again; what was remembered of its connections is forgotten."""
    _change(data, config, device, Happening.RESUMED)
    say(f"{device} is active")


@app.command()
def retire(device: str, data: Data = DATA, config: Config = None) -> None:
    """Take a device out of service for good: it is shut out, its frames stay."""
    _change(data, config, device, Happening.RETIRED)
    say(f"{device} is retired")


@app.command()
def alarms(data: Data = DATA, as_json: AsJson = False) -> None:
    """What needs a person's eye: clones, tokens used twice, two boards with one serial number."""
    with open_site(data) as site:
        rows = [{**row, "what": row["why"].get("why", "")} for row in identity.alarms(site.catalogue)]
    show_rows(rows, {"at": "when", "subject": "device", "what": "what"}, as_json=as_json, none="no alarms")


def _change(data: Path, config: Path | None, device: str, happening: Happening, why: str = "") -> None:
    with open_site(data, config) as site:
        identity.change_state(site.catalogue, device, happening, actor(), why)
        _tell_broker(site)


def _tell_broker(site: Site) -> None:
    keep_records(site.catalogue, site.blobs)
    refresh_access(site)
