"""`bowerbird broker`: files for a mosquitto of one's own, and whether the server gets into its broker."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from bowerbird_server.broker.mqtt_session import check_broker
from bowerbird_server.broker.own import write_own_broker
from bowerbird_server.catalogue import fleet
from bowerbird_server.cli.common import DATA, Config, Data, actor, open_site, say
from bowerbird_server.fleet.provision import broker_of, device_ca_of, external_address, server_address
from bowerbird_server.ingest.share import MAX_WORKERS, client_ids

app = typer.Typer(
    no_args_is_help=True, help="A broker of one's own. Example: bowerbird broker config --out broker --name mqtt.example.net"
)
CLIENTS = ("bowerbird-delivery", "bowerbird-check")


@app.command("config")
def write_config(
    out: Annotated[Path, typer.Option(help="Folder for the files; again: certificates that run out are made anew.")],
    name: Annotated[list[str], typer.Option(help="Host name or address under which it is reached; may be repeated.")],
    data: Data = DATA,
    config: Config = None,
    at: Annotated[
        Path | None, typer.Option(help="That folder as the broker sees it, if it is copied or mounted elsewhere.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8883,
    workers: Annotated[int, typer.Option(min=1, max=MAX_WORKERS, help="Ingest processes that the server will have.")] = 1,
) -> None:
    """Write mosquitto.conf, access rules and certificates as the embedded broker has them: TLS, a certificate from everybody."""
    with open_site(data, config, make=True) as site:
        write_own_broker(
            out,
            authority=site.folder.identity,
            site=site.config.site,
            names=name,
            clients=[*client_ids(workers), *CLIENTS],
            shut_out=fleet.shut_out(site.catalogue),
            at=at,
            port=port,
            device_ca=device_ca_of(site),
            now=datetime.now(tz=UTC),
        )
        site.catalogue.log(actor(), "broker configured", name[0], {"folder": str(out.resolve()), "names": list(name)})
    say(f"{out} holds everything; start the broker with: mosquitto -c {(at or out) / 'mosquitto.conf'}")
    say(
        "as root it becomes the user mosquitto, who must be able to read that folder and nobody else: chown -R mosquitto, chmod 700"
    )
    say("and tell the server of it in bowerbird.toml:")
    here = out.resolve()
    say(f'[broker]\nurl = "mqtts://{name[0]}:{port}"\nca_file = "{here / "ca.pem"}"\ncertificate = "{here / "services"}"')
    say("after a change of rules or certificates the broker needs a SIGHUP; certificates last 45 days, so run this every month")


@app.command("check")
def check(data: Data = DATA, config: Config = None) -> None:
    """Log in at the broker that the configuration names, as the server would, and say what is wrong."""
    with open_site(data, config) as site:
        address = server_address(site, "bowerbird-check") if broker_of(site) else external_address(site.config.broker)
    check_broker(address, "bowerbird-check")
    say(f"the broker at {address.host}:{address.port} lets the server in")
