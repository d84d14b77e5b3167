"""`bowerbird audit`: list, verify, seen."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bowerbird_server.access import anchors
from bowerbird_server.access.event_chain import Anchor
from bowerbird_server.catalogue import audit
from bowerbird_server.cli.common import DATA, AsJson, Data, open_site, say, show_rows
from bowerbird_server.errors import BadInput, ServerError

app = typer.Typer(no_args_is_help=True, help="Who did what, and who saw what. Example: bowerbird audit list --who ada")

_MOST_FAULTS = 20


@app.command("list")
def list_events(
    who: Annotated[str | None, typer.Option(help="Only what this person or program did.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only what was done to this: a frame, a device, a user, a token.")] = None,
    since: Annotated[str | None, typer.Option(help="UTC, for example 2026-11-28 or 2026-11-28T09:30.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Lines at most.")] = 100,
    data: Data = DATA,
    as_json: AsJson = False,
) -> None:
    """What was done, newest first: when, who, what, to what, from where."""
    with open_site(data) as site:
        rows = audit.events(site.catalogue, actor=who, subject=subject, since=since, limit=limit)
    for row in rows:
        row["details"] = json.dumps(row["why"], sort_keys=True) if row["why"] else ""
    columns = {
        "position": "no.",
        "at": "when",
        "actor": "who",
        "kind": "what",
        "subject": "to what",
        "origin": "from where",
        "details": "details",
    }
    show_rows(rows, columns, as_json=as_json, none="nothing of the kind has happened")


@app.command()
def verify(
    anchor: Annotated[
        list[str] | None, typer.Option(help="POSITION:DIGEST that you wrote down yourself, for example from the journal.")
    ] = None,
    data: Data = DATA,
) -> None:
    """Read the whole log: rows that were edited, taken out or cut off are told. Exit code 1 when there is one."""
    given = [_anchor(text) for text in anchor or ()]
    with open_site(data) as site:
        known = [*anchors.read(site.folder.audit_anchors), *given]
        faults = list(audit.verify(site.catalogue, known))
        head = audit.head(site.catalogue)
        if not faults:
            anchors.note(site.catalogue, site.folder.audit_anchors)
    if faults:
        more = f"\n  and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
        raise ServerError(
            "the audit log is not what was written; keep this data folder as evidence and look at your backups:\n  "
            + "\n  ".join(faults[:_MOST_FAULTS])
            + more
        )
    if head is None:
        say("the log is empty")
        return
    say(f"whole: {head.position} events, {len(known)} anchors; write this down elsewhere: {head.position}:{head.digest}")


@app.command()
def seen(
    who: Annotated[str | None, typer.Option(help="Only what this person or program was shown.")] = None,
    frame: Annotated[str | None, typer.Option(help="Only who was shown this frame.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Lines at most.")] = 100,
    data: Data = DATA,
    as_json: AsJson = False,
) -> None:
    """Who was shown which frame, newest first: the first time of each day."""
    with open_site(data) as site:
        rows = audit.sights(site.catalogue, person=who, frame=frame, limit=limit)
    columns = {"at": "when", "person": "who", "frame": "frame", "origin": "from where"}
    show_rows(rows, columns, as_json=as_json, none="nobody was shown anything of the kind")


def _anchor(text: str) -> Anchor:
    position, _, digest = text.partition(":")
    if not position.isdigit() or len(digest) != 64:
        raise BadInput(f"{text[:90]!r} is not POSITION:DIGEST as `bowerbird audit verify` prints it")
    return Anchor(int(position), digest)
