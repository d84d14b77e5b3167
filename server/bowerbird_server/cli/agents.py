"""`bowerbird agents`: pack, import, list, publish, sign."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from bowerbird_models.agent_release import describe_release
from bowerbird_server.cli.common import DATA, AsJson, Config, Data, actor, open_site, say, show_json, show_rows
from bowerbird_server.cli.signing import OnlyFile, signs_only_a_file
from bowerbird_server.releases import agent_releases
from bowerbird_server.releases.agent_archive import pack

app = typer.Typer(
    no_args_is_help=True,
    help="Releases of the agent, with which devices update themselves. Example: bowerbird agents import release.tar",
)
_EXTRAS = "agent,opencv"


@app.command("pack")
def pack_(
    folder: Annotated[Path, typer.Argument(help="Wheels, requirements.txt with hashes and sbom.cdx.json.")],
    machine: Annotated[str, typer.Option(help="x86_64 or aarch64.")],
    python: Annotated[str, typer.Option(help="For example 3.11.")],
    out: Annotated[Path, typer.Option(help="Folder for the archive.")] = Path(),
    extras: Annotated[str, typer.Option(help="Extras that the agent is installed with.")] = _EXTRAS,
    system_site_packages: Annotated[
        bool, typer.Option("--system-site-packages", help="For devices that use the system's OpenCV (Jetson).")
    ] = False,
    created_at: Annotated[
        str | None, typer.Option(help="UTC ISO time; default: now. The same time gives the same bytes.")
    ] = None,
) -> None:
    """Make a release's archive of a wheelhouse; `scripts/agent-release` does all of it."""
    when = created_at or datetime.now(tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    release = describe_release(
        folder,
        python=python,
        machine=machine,
        extras=tuple(extra for extra in extras.split(",") if extra),
        created_at=when,
        system_site_packages=system_site_packages,
    )
    out.mkdir(parents=True, exist_ok=True)
    say(f"{pack(release, out)}: version {release.manifest.version}, {release.digest[:12]}")


@app.command("import")
def import_(
    archive: Annotated[Path, typer.Argument(help="bowerbird-agent-VERSION-MACHINE-PYTHON.tar.")],
    data: Data = DATA,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Take in a release of the agent, verified; nothing of it is run here. Example: bowerbird agents import release.tar"""
    with open_site(data, config, make=True) as site:
        found = agent_releases.import_release(site, archive, actor())
    if as_json:
        show_json(_plain(found))
    else:
        say(
            f"agent {found.manifest.version} for {found.manifest.machine}, Python {found.manifest.python}: {found.digest[:12]}; "
            f"`bowerbird rollout start --agent {found.manifest.version}` offers it to devices"
        )


@app.command("list")
def list_agents(data: Data = DATA, as_json: AsJson = False) -> None:
    """All releases of the agent that are here, newest first."""
    with open_site(data) as site:
        rows = [_plain(each) for each in agent_releases.list_releases(site)]
    for row in rows:
        row["short"] = row["digest"][:12]
    show_rows(
        rows,
        {
            "version": "version",
            "short": "digest",
            "machine": "machine",
            "python": "Python",
            "release": "release",
            "state": "state",
            "created_at": "made",
        },
        as_json=as_json,
        none="no releases of the agent yet; `bowerbird agents import ARCHIVE` takes one in",
    )


@app.command("publish")
def publish_(
    version: Annotated[str, typer.Argument(help="Version, or the digest or its beginning.")],
    data: Data = DATA,
    config: Config = None,
    again: Annotated[
        bool, typer.Option("--again", help="A new release counter for an old version, so that devices go back to it.")
    ] = False,
) -> None:
    """Sign a release into the repository of the devices; `rollout start --agent` does so too. Example: bowerbird agents publish 0.2.0

    With signing.mode "approved" it only makes ready what `bowerbird agents sign` then signs.
    """
    with open_site(data, config) as site:
        found = agent_releases.find(site, version)
        counter = agent_releases.publish_release(site, found.digest, actor(), again=again)
    say(f"agent {found.manifest.version} ({found.digest[:12]}) is release {counter}")


@app.command("sign")
def sign_(
    key: Annotated[
        Path | None, typer.Option(help="The agents key; left out, what was signed elsewhere and brought back is published.")
    ] = None,
    file: OnlyFile = None,
    data: Data = DATA,
    config: Config = None,
) -> None:
    """Sign what waits for a person (signing.mode "approved") and publish it. Example: bowerbird agents sign --key agents.pem

    On another machine: copy repository/pending/agents.json there, bowerbird agents sign --key agents.pem --file agents.json, copy it
    back to its place and run bowerbird agents sign without a key.
    """
    if signs_only_a_file(file, key, "bowerbird agents sign"):
        return
    with open_site(data, config) as site:
        signed = agent_releases.finish_signing(site, key, actor())
    for digest, counter in signed.items():
        say(
            f"agent release {digest[:12]} is release {counter}; `bowerbird rollout start --agent {digest[:12]}` offers it to devices"
        )
    if not signed:
        say("published; there was no new release in it")


def _plain(found: agent_releases.AgentRelease) -> dict[str, Any]:
    manifest = found.manifest
    awaits = f"awaits a signature (release {found.awaits})" if found.awaits is not None else "imported"
    return {
        "version": manifest.version,
        "digest": found.digest,
        "machine": manifest.machine,
        "python": manifest.python,
        "extras": list(manifest.extras),
        "bytes": manifest.total_bytes,
        "release": found.release,
        "state": "published" if found.release is not None else awaits,
        "created_at": manifest.created_at,
    }
