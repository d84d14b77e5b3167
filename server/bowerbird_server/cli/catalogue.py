"""`bowerbird catalogue`: prove that every row has its blob, and build the catalogue again from the blobs."""

from __future__ import annotations

import dataclasses

import typer

from bowerbird_server.blobs import LocalBlobs
from bowerbird_server.catalogue.kept import NOT_REBUILT
from bowerbird_server.catalogue.rebuild import rebuild as rebuild_catalogue
from bowerbird_server.catalogue.verify import verify as verify_catalogue
from bowerbird_server.cli.backup import stages
from bowerbird_server.cli.common import DATA, AsJson, Data, actor, open_site, progress_of, say, show_json, tell
from bowerbird_server.errors import NotFound
from bowerbird_server.layout import DataFolder
from bowerbird_server.site import only_one

_SHOWN = 20

app = typer.Typer(no_args_is_help=True, help="The catalogue against the blobs. Example: bowerbird catalogue verify")


@app.command()
def verify(data: Data = DATA, as_json: AsJson = False) -> None:
    """Read every blob that a row names and compare its digest; ends with 1 when one is missing or damaged. The server may run."""
    with open_site(data) as site, progress_of("reading blobs") as progress:
        found = verify_catalogue(site.catalogue, site.blobs, progress)
    if as_json:
        show_json({**dataclasses.asdict(found), "ok": not found.faults})
    else:
        for fault in found.faults[:_SHOWN]:
            tell(f"{fault.text}; {fault.what_to_do}")
        if len(found.faults) > _SHOWN:
            tell(f"and {len(found.faults) - _SHOWN} more; --json lists all")
        say(f"{found.rows} rows, {found.blobs} blobs, {found.bytes / 1e6:.1f} MB read: {len(found.faults) or 'no'} faults")
    if found.faults:
        raise typer.Exit(1)


@app.command()
def rebuild(data: Data = DATA, as_json: AsJson = False) -> None:
    """Build the catalogue again from the blobs and put it in the old one's place, which is kept. The server must not run.

    Frames, detections, labels, data set versions, models, devices and classes come back; batches, rounds, rollouts, the event log,
    health history and settings do not (`bowerbird restore` brings them from a backup). Ends with 1 when a record names a lost blob.
    """
    folder = DataFolder(data.resolve())
    if not folder.blobs.is_dir():
        raise NotFound(f"there are no blobs in {folder.root}; check --data, or restore a backup with `bowerbird restore`")
    with only_one(folder), stages() as progress:
        result = rebuild_catalogue(folder.catalogue, LocalBlobs(folder.blobs), actor(), progress)
    if as_json:
        show_json({**dataclasses.asdict(result), "not_rebuilt": list(NOT_REBUILT)})
    else:
        for text in (*result.lost, *(f"record {digest[:12]} is damaged" for digest in result.damaged_records)):
            tell(f"{text}; put the blob back from a backup and rebuild again")
        say(", ".join(f"{count} {table}" for table, count in result.counts.items()))
        if result.previous is not None:
            say(f"the catalogue before is {result.previous}")
        say(f"not rebuilt: {', '.join(NOT_REBUILT)}")
    if result.lost or result.damaged_records:
        raise typer.Exit(1)
