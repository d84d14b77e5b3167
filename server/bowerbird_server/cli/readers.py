"""`bowerbird readers`: other programs of the site that may read what its cameras see."""

from __future__ import annotations

import typer

from bowerbird_server.broker import EmbeddedBroker
from bowerbird_server.catalogue import fleet
from bowerbird_server.cli.common import DATA, AsJson, Config, Data, open_site, say, show_json, show_rows
from bowerbird_server.errors import BadInput, NotFound
from bowerbird_server.provision import broker_of
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
    """Let a program read detections; prints its password, which is stored nowhere. For a known one: a new password."""
    with open_site(data, config) as site:
        password = _broker(site).add_reader(name, site.config.site, fleet.active_devices(site.catalogue))
        topic = DetectionsTopic.filter(site.config.site)
    if as_json:
        show_json({"username": name, "password": password, "topic": topic})
        return
    say(f"user {name}, password {password}")
    say(f"subscribe to {topic}; devices publish there with `publish.detections = true` in agent.toml")


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
    """Its password stops working."""
    with open_site(data, config) as site:
        broker = _broker(site)
        if name not in broker.readers():
            raise NotFound(f"there is no reader {name}; `bowerbird readers list` shows them")
        broker.remove_device(name, fleet.active_devices(site.catalogue))
    say(f"{name} can read no more")
