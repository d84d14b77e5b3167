"""`bowerbird-agent explain`: why, or why not, this frame.

In: arguments. Out: text or JSON. What is told is decided by `explain.py`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bowerbird_agent.cli.options import EXIT_OK, add_command

if TYPE_CHECKING:
    import argparse


def add_explain(commands: Any) -> None:
    """The command `explain`."""
    command = add_command(
        commands,
        "explain",
        "why, or why not, a frame of the recent past was sent",
        "bowerbird-agent explain gate:1234 --config agent.toml\n"
        "  bowerbird-agent explain 3fa94c01b2d7 --config agent.toml --json",
    )
    command.add_argument("frame", metavar="FRAME", help="camera:sequence, or a frame id of which six digits are enough")
    command.add_argument("--dry-run", action="store_true", help="what the policy in dry run decided, not the one in force")
    command.set_defaults(command=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    from bowerbird_agent.config import read_config
    from bowerbird_agent.selection.decision_log import FOLDER
    from bowerbird_agent.selection.dry_run import FOLDER as DRY_FOLDER
    from bowerbird_agent.selection.explain import explain
    from bowerbird_agent.spool.fate import fate_of

    config = read_config(arguments.config)
    found = explain(config.device.state_dir / (DRY_FOLDER if arguments.dry_run else FOLDER), arguments.frame)
    fate = ""
    if found.outcome == "chosen" and not arguments.dry_run:
        fate = fate_of(config.device.state_dir / "spool", found.decision["frame_id"])
    if arguments.json:
        print(json.dumps({**found.plain(), "spool": fate}, indent=1))
    else:
        print("\n".join([*found.lines(), *([f"spool      {fate}"] if fate else [])]))
    return EXIT_OK
