"""`bowerbird readers`: other programs of the site that may read what its cameras see, each with a certificate of its own."""

from __future__ import annotations

from datetime import UTC, datetime

import typer

from bowerbird_server.access.readers import ends, make_certificate, trouble_of
from bowerbird_server.broker.embedded import EmbeddedBroker
from bowerbird_server.catalogue import fleet
from bowerbird_server.cli.common import DATA, AsJson, Config, Data, actor, open_site, say, show_json, show_rows
from bowerbird_server.errors import BadInput, NotFound
from bowerbird_server.fleet.provision import broker_of, server_address
from bowerbird_server.site import Site
from bowerbird_wire.topics import DetectionsTopic

app = typer.Typer(
    no_args_is_help=True, help="Programs that read the cameras' detections over MQTT. Example: bowerbird readers add barrier"
)


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
        made = make_certificate(site.folder, name) if broker.takes_certificates else None
        site.catalogue.log(actor(), "reader added", name, {"site": site.config.site})
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


@app.command()
def renew(name: str, data: Data = DATA, config: Config = None, as_json: AsJson = False) -> None:
    """Make a known reader's next certificate, good for a year; the one that it has stays good until its own end."""
    with open_site(data, config) as site:
        broker = _broker(site)
        if name not in broker.readers():
            raise NotFound(f"there is no reader {name}; `bowerbird readers list` shows them, `bowerbird readers add` makes one")
        if not broker.takes_certificates:
            raise BadInput("this site's broker knows passwords only, which do not end; `bowerbird readers add` makes another")
        made = make_certificate(site.folder, name)
        until = ends(site.folder, [name])[name]
        site.catalogue.log(actor(), "reader renewed", name, {"until": until and until.isoformat()})
    if as_json:
        show_json(
            {
                "username": name,
                "certificate": str(made),
                "ca": str(made.with_name("ca.pem")),
                "until": until and until.isoformat(),
            }
        )
        return
    say(f"{made} holds its new key and certificate, good until {until:%Y-%m-%d}: copy it to the program, for its owner only")


@app.command("list")
def list_readers(data: Data = DATA, config: Config = None, as_json: AsJson = False) -> None:
    """The programs that may read detections."""
    with open_site(data, config) as site:
        readers = sorted(_broker(site).readers().items())
        until, now = ends(site.folder, [name for name, _ in readers]), datetime.now(tz=UTC)
        rows = [
            {
                "name": name,
                "site": of,
                "certificate_until": "" if until[name] is None else f"{until[name]:%Y-%m-%d}",
                "trouble": trouble_of(name, until[name], now),
            }
            for name, of in readers
        ]
    show_rows(
        rows,
        {"name": "reader", "site": "site", "certificate_until": "certificate until", "trouble": "trouble"},
        as_json=as_json,
        none="no readers; `bowerbird readers add NAME` makes one",
    )


@app.command()
def remove(name: str, data: Data = DATA, config: Config = None) -> None:
    """Its certificate stops working, at once."""
    with open_site(data, config) as site:
        broker = _broker(site)
        if name not in broker.readers():
            raise NotFound(f"there is no reader {name}; `bowerbird readers list` shows them")
        broker.remove_device(name, fleet.active_devices(site.catalogue))
        site.catalogue.log(actor(), "reader removed", name)
    say(f"{name} can read no more")
