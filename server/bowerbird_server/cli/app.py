"""The root of the command line: the groups, the version, and how errors become messages and exit codes."""

from __future__ import annotations

import sqlite3
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from bowerbird_models.core_dumps import forbid_core_dumps
from bowerbird_models.errors import ModelError
from bowerbird_server.cli import (
    agents,
    audit,
    backup,
    broker,
    campaigns,
    catalogue,
    dataset,
    demo,
    devices,
    doctor,
    erase,
    frames,
    identity,
    labels,
    models,
    readers,
    retention,
    rollout,
    serve,
    tokens,
    train,
    users,
)
from bowerbird_server.cli.common import err
from bowerbird_server.errors import BadInput, EnvironmentFault, ServerError

app = typer.Typer(
    name="bowerbird",
    help="Cameras send the frames worth a label; this labels, retrains, proves the new model better and sends it back.",
    epilog="First look: `bowerbird demo`. A real site: `bowerbird serve`, then `bowerbird devices add cam-01`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"bowerbird {version('bowerbird')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Cameras send the frames worth a label; this labels, retrains, proves the new model better and sends it back."""


demo.add_to(app)
serve.add_to(app)
app.add_typer(devices.app, name="devices")
app.add_typer(identity.app, name="identity")
app.add_typer(campaigns.app, name="campaigns")
app.add_typer(agents.app, name="agents")
app.add_typer(readers.app, name="readers")
app.add_typer(broker.app, name="broker")
app.add_typer(users.app, name="users")
app.add_typer(tokens.app, name="tokens")
app.add_typer(audit.app, name="audit")
app.add_typer(frames.app, name="frames")
app.add_typer(labels.app, name="labels")
app.add_typer(dataset.app, name="dataset")
app.add_typer(catalogue.app, name="catalogue")
app.add_typer(train.app, name="train")
app.add_typer(models.app, name="models")
app.add_typer(rollout.app, name="rollout")
backup.add_to(app)
erase.add_to(app)
retention.add_to(app)
doctor.add_to(app)


def main() -> None:
    """The `bowerbird` command. Exit codes: 0 done, 1 failed, 2 bad input, 3 not found, 4 conflict, 5 surroundings, 130 interrupted."""
    forbid_core_dumps()
    try:
        app()
    except (ServerError, ModelError) as error:
        _fail(str(error), getattr(error, "exit_code", BadInput.exit_code))
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
    except BrokenPipeError:  # `bowerbird frames list | head`
        sys.stderr.close()
        sys.exit(0)
    except (
        sqlite3.OperationalError
    ) as error:  # the disk under the catalogue: full, read-only, gone, or a writer that never ends
        _fail(
            f"the catalogue cannot be used now: {error}; free space or set the folder's owner right", EnvironmentFault.exit_code
        )
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _fail(
            f"cannot go on:{where} {error.strerror or error}; free space or set owner and mode right",
            EnvironmentFault.exit_code,
        )


def _fail(message: str, exit_code: int) -> NoReturn:
    err.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
