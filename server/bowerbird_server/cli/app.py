"""The root of the command line: the groups, the version, and how errors become messages and exit codes."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from bowerbird_models.errors import ModelError
from bowerbird_server.cli import dataset, demo, devices, doctor, frames, labels, models, rollout, serve, train
from bowerbird_server.cli.common import err
from bowerbird_server.errors import ServerError

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
app.add_typer(frames.app, name="frames")
app.add_typer(labels.app, name="labels")
app.add_typer(dataset.app, name="dataset")
app.add_typer(train.app, name="train")
app.add_typer(models.app, name="models")
app.add_typer(rollout.app, name="rollout")
doctor.add_to(app)


def main() -> None:
    """The `bowerbird` command. Exit codes: 0 done, 1 failed, 2 bad input, 3 not found, 4 conflict, 5 surroundings, 130 interrupted."""
    try:
        app()
    except (ServerError, ModelError) as error:
        err.print(f"[bold red]error:[/] {_escaped(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(getattr(error, "exit_code", 2))
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
    except BrokenPipeError:  # `bowerbird frames list | head`
        sys.stderr.close()
        sys.exit(0)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
