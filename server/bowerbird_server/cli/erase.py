"""`bowerbird erase` and `bowerbird erasures`: have frames forgotten everywhere, and see what became of such requests."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from bowerbird_server.catalogue import erasures, fleet
from bowerbird_server.catalogue import frames as frame_rows
from bowerbird_server.catalogue.erasures import Criteria
from bowerbird_server.catalogue.frames import SCENE_SECONDS
from bowerbird_server.cli.common import DATA, AsJson, Data, actor, open_site, say, show_json, show_rows
from bowerbird_server.errors import BadInput, NotFound
from bowerbird_server.privacy.erase import Plan, erase, plan, report, text_of
from bowerbird_server.site import Site

_SCENE = re.compile(r"(?P<camera>[^/@]+/[^/@]+)@(?P<minute>\d{4}-\d{2}-\d{2}T\d{2}:\d{2})")
_FRAME_ID = re.compile(r"[0-9a-f]{64}")


def add_to(app: typer.Typer) -> None:
    """Register the commands at the root."""
    app.command("erase")(erase_command)
    app.command("erasures")(erasures_command)


def erase_command(
    why: Annotated[str, typer.Option(help="Kept with the deletion: who asked for it, and on what ground.")] = "",
    device: Annotated[str, typer.Option(help="Only frames of this device.")] = "",
    camera: Annotated[str, typer.Option(help="Only frames of this camera: device/camera.")] = "",
    from_: Annotated[str, typer.Option("--from", help="Captured from here on, like 2026-11-22T12:00:00Z.")] = "",
    to: Annotated[str, typer.Option(help="Captured up to here; now by default.")] = "",
    frames: Annotated[list[str] | None, typer.Option(help="A frame's id or its beginning; may be repeated.")] = None,
    scene: Annotated[str, typer.Option(help="All frames of a scene, also such as come late.")] = "",
    do_it: Annotated[bool, typer.Option("--yes", help="Carry it out. Without, only the plan is shown.")] = False,
    data: Data = DATA,
    as_json: AsJson = False,
) -> None:
    """Have frames forgotten: images, parts, thumbnails, data sets, devices' spools. Shows what it would do; --yes does it.

    Nothing brings them back. Example:
    bowerbird erase --camera cam-01/gate --from 2026-11-22T12:00Z --to 2026-11-22T12:10Z --why "request 17" --yes
    """
    with open_site(data) as site:
        criteria = _criteria(site, device, camera, from_, to, frames or [], scene)
        made = plan(site, criteria)
        if not do_it:
            if as_json:
                show_json({"dry_run": True, **made.plain()})
            else:
                _show_plan(made)
            return
        identity = erase(site, made, actor(), why)
        row = erasures.get(site.catalogue, identity)
        if row is None:
            raise NotFound(f"erasure {identity} is not in the catalogue; look at its events")
        found = report(site, row)
    if as_json:
        show_json(found)
    else:
        say("\n".join(text_of(found)))
        say(f"`bowerbird erasures {identity[:13]}` shows which devices have confirmed since")


def erasures_command(
    erasure: Annotated[str | None, typer.Argument(help="A request's id, or its beginning; none lists them all.")] = None,
    data: Data = DATA,
    as_json: AsJson = False,
) -> None:
    """Requests to erase frames, or the report of one: what is gone, who has not confirmed, which models learnt from it."""
    with open_site(data) as site:
        if erasure is None:
            rows = erasures.listed(site.catalogue)
        else:
            row = erasures.get(site.catalogue, erasure)
            if row is None:
                raise NotFound(f"no single erasure begins with {erasure[:64]!r}; `bowerbird erasures` lists them")
            found = report(site, row)
            if as_json:
                show_json(found)
            else:
                say("\n".join(text_of(found)))
            return
    for row in rows:
        row["short"], row["state"] = row["id"][:13], "done" if row["done_at"] else "in work"
    show_rows(
        rows,
        {"short": "erasure", "at": "asked", "actor": "by", "state": "here", "waiting": "devices waiting", "why": "why"},
        as_json=as_json,
        none="nobody has asked for frames to be erased; `bowerbird erase --help` says how",
    )


def _criteria(site: Site, device: str, camera: str, from_: str, to: str, frames: list[str], scene: str) -> Criteria:
    if device:
        fleet.get(site.catalogue, device)
    if camera and not erasures.knows_camera(site.catalogue, camera):
        raise NotFound(f"no camera {camera[:80]!r}; write it as device/camera, as `bowerbird frames list` shows it")
    if camera and device and not camera.startswith(f"{device}/"):
        raise BadInput(f"camera {camera} is not of device {device}; name one of them")
    ids = [_frame(site, text) for text in frames]
    if scene:
        if device or camera or from_ or to:
            raise BadInput("a scene is a camera and a minute already; name it without --device, --camera, --from and --to")
        rows = erasures.ids_of_scene(site.catalogue, scene)
        match = _SCENE.fullmatch(scene)
        if match is None and not rows:
            raise NotFound(f"no scene {scene[:80]!r}; `bowerbird frames show FRAME` says which scene a frame belongs to")
        if match is None:
            return Criteria(frames=tuple(dict.fromkeys([*ids, *(row["id"] for row in rows)])))
        from_ms = _moment(match["minute"] + ":00Z", "--scene")
        return Criteria("", match["camera"], from_ms, from_ms + SCENE_SECONDS * 1000 - 1, tuple(dict.fromkeys(ids)))
    if not (device or camera or from_ or to):
        return Criteria(frames=tuple(dict.fromkeys(ids)))
    now_ms = int(time.time() * 1000)
    to_ms = _moment(to, "--to") if to else now_ms
    from_ms = _moment(from_, "--from") if from_ else 0
    if to_ms > now_ms:
        raise BadInput(
            f"--to {to} lies in the future: what is not recorded yet is kept out by a mask or by `redact`, not erased"
        )
    if to_ms < from_ms:
        raise BadInput(f"--to {to} is before --from {from_}")
    return Criteria(device, camera, from_ms, to_ms, tuple(dict.fromkeys(ids)))


def _frame(site: Site, text: str) -> str:
    """A whole id may be one that is not here yet: the device still has it."""
    try:
        return str(frame_rows.find(site.catalogue, text)["id"])
    except NotFound:
        if _FRAME_ID.fullmatch(text):
            return text
        raise


def _moment(text: str, option: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadInput(f"{option} is {text!r}; write it like 2026-11-22T12:00:00Z") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def _show_plan(made: Plan) -> None:
    states = ", ".join(f"{count} {state}" for state, count in sorted(made.by_state.items()))
    say(f"{len(made.frames)} frames would be erased here" + (f": {states}" if states else ""))
    for version in made.versions:
        say(f"  data set version {version['number']} holds {sum(map(len, version['splits'].values()))} of them")
    for model in made.models:
        say(f"  model {model['digest'][:12]} ({model['state']}): {model['relation'].replace('_', ' ')}")
    say(f"{len(made.devices)} devices would be asked" + (f": {', '.join(made.devices[:10])}" if made.devices else ""))
    for name in made.not_asked:
        say(f"  {name} is retired and cannot be asked: wipe or destroy its disk")
    if made.without_clock:
        say(f"{made.without_clock} frames of these cameras have no trusted time and would stay; look at them by hand")
    say("nothing was erased; add --yes and --why to do it")
