"""`bowerbird serve`, and each of its processes alone: `ingest`, `delivery`, `web`, `scheduler`, `claims`."""

from __future__ import annotations

import ipaddress
import logging
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from bowerbird_server.access.first_run import FIRST_TOKEN_NAME, first_token, keep_first_token
from bowerbird_server.access.private_files import check_private
from bowerbird_server.broker.upkeep import keep_certificates
from bowerbird_server.catalogue import fleet
from bowerbird_server.cli.common import DATA, Config, Data, configure_logging, open_site, tell
from bowerbird_server.config import WebConfig
from bowerbird_server.errors import BadInput, EnvironmentFault, ServerError
from bowerbird_server.fleet.provision import broker_of, refresh_access, server_address, uses_certificates
from bowerbird_server.identity.place import check_port, listener_address
from bowerbird_server.ingest.share import MAX_WORKERS, Share, client_ids
from bowerbird_server.site import Site, only_one
from bowerbird_server.supervisor import ChildSpec, Supervisor
from bowerbird_server.web.certificate import certificate_of, check_names
from bowerbird_server.web.endpoint import WebEndpoint, is_free

if TYPE_CHECKING:
    from bowerbird_server.ingest.ingest import DiskMarks

logger = logging.getLogger(__name__)

DELIVERY = "bowerbird-delivery"  # the client id of delivery.py, which is not imported before it is needed
PROCESSES = ("ingest", "delivery", "web", "scheduler", "claims")


def add_to(app: typer.Typer) -> None:
    """Register the commands at the root."""
    app.command()(serve)
    for command in (ingest, delivery, web, scheduler, claims):
        app.command(rich_help_panel="One process of the server alone")(command)


def stop_event() -> threading.Event:
    """Set by SIGTERM or SIGINT: finish what is under way, then end."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return stop


def serve(
    data: Data = DATA,
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="Address for the pages, instead of the configured one.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port for the pages; 0 takes a free one.")] = None,
    ingest_workers: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_WORKERS, help="Processes that take frames in, instead of the configured number."),
    ] = None,
) -> None:
    """Run the whole server: broker, ingest, delivery, pages and scheduler; each is started again when it dies.

    Works without any configuration and says what it chose. Example: bowerbird serve --data /srv/bowerbird
    """
    stop = stop_event()
    configure_logging()
    with open_site(data, config, make=True) as site, only_one(site.folder):
        chosen = site.config.web.model_copy(
            update={key: value for key, value in (("host", host), ("port", port)) if value is not None}
        )
        _warn_of_open_address(chosen)
        check_names(chosen)
        check_private(_secrets_of(site))
        certificate_of(site.folder, chosen, now=datetime.now(UTC))  # said here, not in a log
        token = first_token(site.catalogue, site.folder)
        endpoint = WebEndpoint.choose(site.folder, chosen)
        children = _children(site, config, ingest_workers or site.config.ingest.workers)
        _say_what_was_chosen(site, endpoint, token)
        address = server_address(site)
        facts = {"web": endpoint.url, "broker": f"{address.host}:{address.port}"}
        supervisor = Supervisor(children, site.folder.logs, state_path=site.folder.root / "serve.json", facts=facts)
        broker = broker_of(site)
        if broker is not None:
            keep_certificates(broker, stop)
        supervisor.run(stop)


def _warn_of_open_address(web: WebConfig) -> None:
    try:
        loopback = ipaddress.ip_address(web.host).is_loopback
    except ValueError:
        loopback = web.host == "localhost"
    if not loopback and web.tls == "off" and not web.proxies:
        tell(
            f"The pages listen on {web.host} without TLS: anyone on that network can read passwords and tokens. "
            'Set web.tls = "site", put a reverse proxy with TLS in front (docs/access.md), or keep to 127.0.0.1 and use ssh -L.'
        )


def _secrets_of(site: Site) -> list[Path]:
    """The files of this site that nobody else may read."""
    folder = site.folder
    named = [Path(name) for name in (site.config.broker.password_file, site.config.oidc.client_secret_file) if name]
    kept = [path for place in (folder.keys, folder.identity, folder.devices) for path in place.rglob("*")]
    secret = [path for path in kept if path.suffix in {".pem", ".key"} and b"PRIVATE KEY" in path.read_bytes()]
    return [*named, *secret, folder.root / FIRST_TOKEN_NAME, folder.broker / "broker.json"]


def _children(site: Site, config: Path | None, ingest_workers: int) -> list[ChildSpec]:
    broker = broker_of(site)
    if broker is None:
        server_address(site)  # checks it
    else:
        clients = [*client_ids(ingest_workers), DELIVERY]
        broker.prepare(fleet.active_devices(site.catalogue), clients=clients, exact=True)
    _check_broker_port(site)
    if uses_certificates(site):
        check_port(site)
    children = [] if broker is None else [ChildSpec("broker", tuple(broker.argv()), ready=broker.ready)]
    options = ["--data", str(site.folder.root), *([] if config is None else ["--config", str(config.resolve())])]
    for name in PROCESSES:
        if name == "claims" and not uses_certificates(site):
            continue
        argv = (sys.executable, "-m", "bowerbird_server.cli", name, *options)
        if name != "ingest" or ingest_workers == 1:
            children.append(ChildSpec(name, argv))
            continue
        for number in range(1, ingest_workers + 1):
            children.append(ChildSpec(f"ingest-{number}", (*argv, "--worker", str(number), "--workers", str(ingest_workers))))
    return children


def _check_broker_port(site: Site) -> None:
    """Devices know the broker's port, so another program on it is told at once instead of being stepped around."""
    if broker_of(site) is None:
        return
    port = server_address(site).port
    if not is_free(site.config.broker.host, port):
        raise EnvironmentFault(
            f"the broker's port {port} is taken by another program, and devices know this port; stop that program "
            f"(`ss -ltnp 'sport = :{port}'` shows it) and start again"
        )


def _say_what_was_chosen(site: Site, endpoint: WebEndpoint, token: str | None) -> None:
    address = server_address(site)
    own = "of its own" if broker_of(site) is not None else "yours"
    tell(f"data       {site.folder.root}")
    tell(f"broker     {address.host}:{address.port} ({own})")
    if uses_certificates(site):
        claims_at = listener_address(site)
        tell(f"claims     {claims_at.host}:{claims_at.port}, for {', '.join(claims_at.names)}")
    if token is None:
        tell(f"dashboard  {endpoint.url}")
    elif sys.stderr.isatty():
        tell(f"dashboard  {endpoint.url}/login#token={token}")
        tell(
            "           an administrator's token, shown this once; make accounts with it: bowerbird users add NAME --role administrator"
        )
    else:
        tell(f"dashboard  {endpoint.url}; an administrator's first token is in {keep_first_token(site.folder, token)}")
    tell(f"devices    bowerbird devices add cam-01 --data {site.folder.root}")


def ingest(
    data: Data = DATA,
    config: Config = None,
    worker: Annotated[int, typer.Option(min=1, max=MAX_WORKERS, help="Which of the processes this is.")] = 1,
    workers: Annotated[int, typer.Option(min=1, max=MAX_WORKERS, help="How many share the frames out among them.")] = 1,
) -> None:
    """Take frames from the broker into blobs and catalogue, all of them or one process's share."""
    from bowerbird_server.ingest import ingest as process
    from bowerbird_server.ingest.device_limits import DeviceLimit

    if worker > workers:
        raise BadInput(f"there is no worker {worker} of {workers}: count from 1, and give every process the same --workers")

    stop = stop_event()
    configure_logging()
    with open_site(data, config) as site:
        address = server_address(site, Share(worker, workers).client_id)
        folder = site.folder
        marks = _disk_marks(site)
        limit = DeviceLimit.of(site.config.ingest)
    process.run(folder, address, stop, share=Share(worker, workers), marks=marks, limit=limit)


def _disk_marks(site: Site) -> DiskMarks:
    from bowerbird_server.ingest.ingest import DiskMarks

    chosen = site.config.ingest
    return DiskMarks(chosen.stop_below_free_mib * 1024**2, chosen.go_on_above_free_mib * 1024**2)


def delivery(data: Data = DATA, config: Config = None) -> None:
    """Talk to devices: status, health, wishes, credit, jobs, model blocks."""
    from bowerbird_server.drift.verdicts import DriftSettings
    from bowerbird_server.fleet import delivery as process
    from bowerbird_server.identity.service import verifier_of

    stop = stop_event()
    configure_logging()
    with open_site(data, config) as site:
        address = server_address(site, DELIVERY)
        folder, marks = site.folder, _disk_marks(site)
        drift = DriftSettings(**site.config.drift.model_dump())
        verifies = verifier_of(site.config, folder)

    def shut_out(device: str) -> None:
        try:
            with open_site(data, config) as site:
                refresh_access(site)
        except ServerError as error:
            logger.error(
                "%s is suspended and the broker does not shut it out yet: %s; `devices suspend` tries again", device, error
            )

    process.run(folder, address, stop, marks=marks, on_suspended=shut_out, drift=drift, verifies=verifies)


def web(data: Data = DATA, config: Config = None) -> None:
    """Serve the dashboard, the review page and the JSON API."""
    from bowerbird_server.web import server as web_server

    configure_logging()
    with open_site(data, config) as site:
        endpoint, folder, chosen = WebEndpoint.load(site.folder), site.folder, site.config
    web_server.run(folder, endpoint, chosen)


def scheduler(data: Data = DATA, config: Config = None) -> None:
    """Batches, trainings, the gate and rollouts."""
    from bowerbird_server import scheduler as process

    stop = stop_event()
    configure_logging()
    with open_site(data, config) as site:
        process.run(site, stop)


def claims(data: Data = DATA, config: Config = None) -> None:
    """Answer boards that enrol and devices that renew, over HTTPS, and nothing else."""
    from bowerbird_server.identity import service

    stop = stop_event()
    configure_logging()
    service.run(data, config, stop)
