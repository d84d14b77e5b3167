"""`bowerbird doctor`: is everything here that the server needs, and what to do where it is not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import typer

from bowerbird_server.access.readers import ends, trouble_of
from bowerbird_server.broker.embedded import find_program
from bowerbird_server.catalogue.frames import blobs_of
from bowerbird_server.cli.common import DATA, AsJson, Config, Data, say, show_json
from bowerbird_server.config import load_config
from bowerbird_server.errors import ServerError
from bowerbird_server.fleet.provision import broker_of
from bowerbird_server.site import Site

_LEAST_FREE_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Finding:
    """One line: `ok`, `note` (works, but) or `fault` (does not)."""

    what: str
    state: str
    text: str


def add_to(app: typer.Typer) -> None:
    """Register the command at the root."""
    app.command()(doctor)


def doctor(data: Data = DATA, config: Config = None, as_json: AsJson = False) -> None:
    """Check this machine and this data folder; ends with 1 when something must be put right."""
    findings = list(_examine(data, config))
    if as_json:
        show_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            say(f"{finding.state:5} {finding.what}: {finding.text}")
    if any(finding.state == "fault" for finding in findings):
        raise typer.Exit(1)


def _examine(data: Path, config: Path | None) -> Iterator[Finding]:
    yield Finding("python", "ok", sys.version.split()[0])
    if find_program("mosquitto") and find_program("mosquitto_passwd"):
        yield Finding("broker", "ok", "mosquitto is installed")
    elif find_spec("iotcore") is not None:
        yield Finding("broker", "note", "no mosquitto; the iotcore wheel serves loopback demos only. apt-get install mosquitto")
    else:
        yield Finding("broker", "fault", "no broker: apt-get install mosquitto, or set broker.url to one of your own")
    missing = [name for name in ("torch", "torchvision", "ultralytics", "onnx") if find_spec(name) is None]
    if missing:
        yield Finding(
            "training", "note", f"{', '.join(missing)} missing, so this machine cannot train: pip install 'bowerbird[train]'"
        )
    else:
        yield Finding("training", "ok", "torch and ultralytics are installed (ultralytics is AGPL-3.0, in its own process)")
    place = data if data.exists() else data.resolve().parent
    free = shutil.disk_usage(place if place.exists() else Path.cwd()).free
    state = "ok" if free > _LEAST_FREE_BYTES else "fault"
    yield Finding(
        "disk",
        state,
        f"{free / 1e9:.1f} GB free for {data}" + ("" if state == "ok" else "; make room, or use --data elsewhere"),
    )
    try:
        loaded = load_config(data, config)
    except ServerError as error:
        yield Finding("config", "fault", str(error))
        return
    yield Finding("config", "ok", f"site {loaded.site}, gate {loaded.gate.profile}, signing {loaded.signing.mode}")
    if not data.exists():
        yield Finding("data", "note", f"{data} does not exist yet; `bowerbird serve --data {data}` makes it")
        return
    yield from _examine_data(data, config)


def _examine_data(data: Path, config: Path | None) -> Iterator[Finding]:
    try:
        with Site.open(data, config, make=False) as site:
            damage = site.catalogue.damage()
            rows = blobs_of(site.catalogue)
            lost = [row["id"] for row in rows if not site.blobs.exists(row["blob"])]
            offline = sorted(path.name for path in (site.folder.keys / "offline").glob("*.pem"))
            readers = list(_examine_readers(site))
            loose = [path.name for path in site.folder.keys.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    except ServerError as error:
        yield Finding("data", "fault", str(error))
        return
    yield from readers
    yield Finding(
        "catalogue",
        "fault" if damage else "ok",
        f"damaged: {damage}; restore it from a backup" if damage else f"{len(rows)} frames",
    )
    if lost:
        yield Finding(
            "blobs", "fault", f"{len(lost)} frames have no image, {lost[0][:12]} first; restore {data}/blobs from a backup"
        )
    if loose:
        yield Finding("keys", "fault", f"others can read {', '.join(loose[:5])}: chmod 600 {data}/keys/*")
    elif offline:
        yield Finding(
            "keys", "note", f"move {', '.join(offline)} of {data}/keys/offline to a safe place away from this machine"
        )


def _examine_readers(site: Site) -> Iterator[Finding]:
    """Certificates that nobody but a person renews."""
    broker, now = broker_of(site), datetime.now(tz=UTC)
    until = ends(site.folder, broker.readers() if broker is not None else ())
    for name, ends_at in sorted(until.items()):
        trouble = trouble_of(name, ends_at, now)
        if trouble and ends_at is not None:
            yield Finding("readers", "fault" if ends_at <= now else "note", trouble)
