"""`bowerbird campaigns`: look for frames of a kind, with a quota for the whole fleet."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from bowerbird_server.catalogue import campaigns
from bowerbird_server.catalogue.campaigns import Condition
from bowerbird_server.cli.common import DATA, AsJson, Config, Data, actor, open_site, say, show_json, show_rows
from bowerbird_server.errors import BadInput
from bowerbird_server.fleet import device_config as rules

app = typer.Typer(
    no_args_is_help=True,
    help="Frames of a kind, from the whole fleet. "
    "Example: bowerbird campaigns start --frames 200 --class person --below 0.5 --site north --until friday --bytes 20MB",
)
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_SPAN = re.compile(r"(\d+)\s*([mhd])")


@app.command()
def start(
    data: Data = DATA,
    config: Config = None,
    frames: Annotated[int, typer.Option(help="Frames from all devices together.")] = 100,
    size: Annotated[str, typer.Option("--bytes", help="Bytes from all devices together, like 20MB.")] = "20MB",
    until: Annotated[str, typer.Option(help="Its end: 3d, 12h, friday, 2026-12-04 or 2026-12-04T18:00 (UTC).")] = "7d",
    class_name: Annotated[str, typer.Option("--class", help="Only boxes of this class count.")] = "",
    at_least: Annotated[float, typer.Option(help="Only boxes of this score or more count.")] = 0.25,
    below: Annotated[float | None, typer.Option(help="Only boxes below this score count.")] = None,
    count_min: Annotated[int, typer.Option(help="So many such boxes at least.")] = 1,
    count_max: Annotated[int | None, typer.Option(help="So many such boxes at most.")] = None,
    nothing: Annotated[bool, typer.Option("--nothing", help="Frames without any such box.")] = False,
    camera: Annotated[list[str] | None, typer.Option(help="Only cameras of this name; may be repeated.")] = None,
    hours: Annotated[
        list[str] | None, typer.Option(help="Only in these hours, like '22:00-06:00' or '22:00-06:00 UTC'.")
    ] = None,
    gap: Annotated[float, typer.Option(help="Seconds between two frames of a camera.")] = 1.0,
    device: Annotated[list[str] | None, typer.Option(help="Only these devices; may be repeated.")] = None,
    site: Annotated[str | None, typer.Option("--site", help="Devices of this site.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Devices with this tag.")] = None,
    as_json: AsJson = False,
) -> None:
    """Begin a campaign; without a group, every device takes part. It ends by itself, also on devices that are offline."""
    condition = Condition(
        class_name,
        at_least,
        below,
        0 if nothing else count_min,
        0 if nothing else count_max,
        tuple(camera or ()),
        tuple(hours or ()),
        gap,
    )
    everyone = not (device or site or tag)
    with open_site(data, config) as opened:
        identity = campaigns.start(
            opened.catalogue,
            frames=frames,
            size_bytes=rules.amount(size),
            until=parse_end(until, datetime.now(UTC)),
            condition=condition,
            actor=actor(),
            devices=device or (),
            site=site,
            tagged=tag,
            everyone=everyone,
        )
        row = campaigns.get(opened.catalogue, identity)
    if as_json:
        show_json(row)
    else:
        say(f"campaign {identity}: {frames} frames, {rules.amount(size)} bytes, until {row['until']}")


@app.command("list")
def list_campaigns(data: Data = DATA, as_json: AsJson = False) -> None:
    """All campaigns with what has come in, the newest first."""
    with open_site(data) as site:
        rows = campaigns.list_campaigns(site.catalogue)
    if not as_json:
        for row in rows:
            row["progress"] = f"{row['frames_received']} of {row['frames']}"
            row["size"] = f"{round(row['bytes_received'] / 1000)} of {round(row['bytes'] / 1000)}"
            row["what"] = row["condition"]["class_name"] or ("nothing" if row["condition"]["count_max"] == 0 else "any")
    show_rows(
        rows,
        {
            "id": "campaign",
            "state": "state",
            "what": "class",
            "progress": "frames",
            "size": "kB",
            "until": "until",
            "actor": "by",
        },
        as_json=as_json,
        none="no campaigns yet; `bowerbird campaigns start` begins one",
    )


@app.command()
def show(campaign: str, data: Data = DATA) -> None:
    """A campaign with its condition and every device's share, as JSON."""
    with open_site(data) as site:
        show_json(campaigns.get(site.catalogue, campaign))


@app.command()
def stop(campaign: str, data: Data = DATA) -> None:
    """End a campaign; frames that devices have taken already still come."""
    with open_site(data) as site:
        identity = campaigns.get(site.catalogue, campaign)["id"]
        campaigns.stop(site.catalogue, identity, actor())
    say(f"campaign {identity} is stopped")


def parse_end(text: str, now: datetime) -> datetime:
    """When a campaign ends, in UTC; a day of the week is the next one's beginning.

    Raises:
        BadInput: it is no time.
    """
    word = text.strip().lower()
    span = _SPAN.fullmatch(word)
    if span:
        return now + int(span[1]) * {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}[span[2]]
    if word in _DAYS:
        ahead = (_DAYS.index(word) - now.weekday() - 1) % 7 + 1
        return (now + timedelta(days=ahead)).replace(hour=0, minute=0, second=0, microsecond=0)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise BadInput(f"{text!r} is no time; write 3d, 12h, friday, 2026-12-04 or 2026-12-04T18:00") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
