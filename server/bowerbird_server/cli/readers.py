"""`bowerbird readers`: other programs of the site that may read what its cameras see, each with a certificate of its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import typer
from cryptography.hazmat.primitives.asymmetric import ec

from bowerbird_server.broker import EmbeddedBroker
from bowerbird_server.broker_address import write_private
from bowerbird_server.catalogue import fleet
from bowerbird_server.cli.common import DATA, AsJson, Config, Data, open_site, say, show_json, show_rows
from bowerbird_server.errors import BadInput, NotFound
from bowerbird_server.identity.authority import Authority, key_pem
from bowerbird_server.provision import broker_of, server_address
from bowerbird_server.site import Site
from bowerbird_wire.topics import DetectionsTopic

app = typer.Typer(
    no_args_is_help=True, help="Programs that read the cameras' detections over MQTT. Example: bowerbird readers add barrier"
)

READER_LIFE = timedelta(days=365)  # nobody renews it but a person


def _broker(site: Site) -> EmbeddedBroker:
    broker = broker_of(site)
    if broker is None:
        raise BadInput("the broker is your own: make a user there and let it read " + DetectionsTopic.filter(site.config.site))
    return broker


@app.command()
def add(name: str, data: Data = DATA, config: Config = None, as_json: AsJson = False) -> None:
    """Let a program read detections; makes its certificate, good for a year. For a known one: a new certificate."""
    with open_site(data, config) as site:
        broker = _broker(site)
        password = broker.add_reader(name, site.config.site, fleet.active_devices(site.catalogue))
        topic = DetectionsTopic.filter(site.config.site)
        address = server_address(site)
        made = _certificate(site, name) if broker.takes_certificates else None
    where = {"host": address.host, "port": address.port, "topic": topic}
    if as_json:
        files = {} if made is None else {"certificate": str(made), "ca": str(made.with_name("ca.pem"))}
        show_json({"username": name, **({} if password is None else {"password": password}), **files, **where})
        return
    if made is None:
        say(f"user {name}, password {password}")
    else:
        say(f"{made} holds its key and certificate, ca.pem beside it the CA: copy both to the program, for its owner only")
    say(f"broker {address.host}:{address.port}, client id {name}")
    say(f"subscribe to {topic}; devices publish there with `publish.detections = true` in agent.toml")


def _certificate(site: Site, name: str) -> Path:
    """Key and certificate of a reader, in a folder like a device's."""
    folder = site.folder.devices / name
    folder.mkdir(mode=0o700, exist_ok=True)
    authority = Authority.open(site.folder.root / "identity")
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = authority.device_certificate(name, key.public_key(), generation=1, now=datetime.now(tz=UTC), life=READER_LIFE)
    write_private(folder / "ca.pem", authority.root_pem)
    write_private(folder / "reader.pem", key_pem(key) + leaf)
    return folder / "reader.pem"


@app.command("list")
def list_readers(data: Data = DATA, config: Config = None, as_json: AsJson = False) -> None:
    """The programs that may read detections."""
    with open_site(data, config) as site:
        rows = [{"name": name, "site": of} for name, of in sorted(_broker(site).readers().items())]
    show_rows(
        rows, {"name": "reader", "site": "site"}, as_json=as_json, none="no readers; `bowerbird readers add NAME` makes one"
    )


@app.command()
def remove(name: str, data: Data = DATA, config: Config = None) -> None:
    """Its certificate stops working, at once."""
    with open_site(data, config) as site:
        broker = _broker(site)
        if name not in broker.readers():
            raise NotFound(f"there is no reader {name}; `bowerbird readers list` shows them")
        broker.remove_device(name, fleet.active_devices(site.catalogue))
    say(f"{name} can read no more")
