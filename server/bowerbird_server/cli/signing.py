"""What `models sign` and `agents sign` share: a file of pending metadata that is signed away from the server.

In: the options `--file` and `--key`. Out: the signed file. Which key signs what, and publishing what is signed, are the commands' own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bowerbird_models.signing import sign_file
from bowerbird_server.cli.common import say
from bowerbird_server.errors import BadInput

OnlyFile = Annotated[
    Path | None,
    typer.Option("--file", help="Only sign this file, on a machine that holds the key and no data folder."),
]


def signs_only_a_file(file: Path | None, key: Path | None, command: str) -> bool:
    """Sign a file that was copied here, when one is named; False when the data folder is meant.

    Args:
        command: of the server, which publishes the file when it is back.

    Raises:
        BadInput: there is a file and no key, or the file is not to be signed with it.
    """
    if file is None:
        return False
    if key is None:
        raise BadInput("--file needs --key: the key that is to sign it")
    sign_file(file, key)
    say(f"{file} is signed; copy it back to repository/pending/ of the server and run `{command}` there")
    return True
