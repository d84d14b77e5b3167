"""`bowerbird-agent enrol`: from a bundle to a device that the server knows.

In: arguments. Out: text or JSON, an exit code. What it does is `enrolment.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bowerbird_agent.cli.options import EXIT_OK, add_command
from bowerbird_wire.claim import SCHEME


def add_enrol(commands: Any, version: str) -> None:
    """The command and its options."""
    example = "bowerbird-agent enrol bundle.json --config agent.toml"
    enrol = add_command(commands, "enrol", "make this board a device of a site", example)
    enrol.add_argument(
        "bundle",
        metavar="BUNDLE",
        help="the file that the server made (bowerbird devices invite, or add), or the text beside it (bowerbird:https://...); - reads "
        "the text from standard input, where no list of processes shows it",
    )
    enrol.add_argument("--serial", default="", help="with a text: serial number to claim with; default: the board's own")
    enrol.add_argument(
        "--state-dir", type=Path, default=None, metavar="DIR", help="default: as agent.toml says, or state beside it"
    )
    enrol.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait so long for a person's approval")
    enrol.add_argument(
        "--in-memory", action="store_true", help="keep the identity although a power cut would take it: for a demo"
    )
    enrol.set_defaults(command=_enrol, version=version)


def _enrol(arguments: argparse.Namespace) -> int:
    from bowerbird_agent.config import read_config
    from bowerbird_agent.identity.enrolment import bundle_of_text, enrol, read_bundle

    named: str = sys.stdin.readline() if arguments.bundle == "-" else arguments.bundle
    is_text = arguments.bundle == "-" or named.startswith(SCHEME)
    bundle = bundle_of_text(named, serial=arguments.serial) if is_text else read_bundle(Path(named))
    config: Path = arguments.config
    state_dir: Path | None = arguments.state_dir
    if state_dir is None and config.exists():
        state_dir = read_config(config).device.state_dir
    done = enrol(
        bundle,
        config,
        version=arguments.version,
        state_dir=state_dir,
        in_memory_ok=arguments.in_memory,
        wait_s=arguments.wait,
        tell=lambda text: print(text, flush=True),
    )
    identity = done.identity
    if arguments.json:
        facts = {"device": identity.device, "generation": identity.generation, "not_after": identity.not_after.isoformat()}
        print(json.dumps({**facts, "config": str(config), "wrote_config": done.wrote_config}))
        return EXIT_OK
    print(f"this board is {identity.device}; its certificate is good until {identity.not_after:%Y-%m-%d} and renews itself")
    print(f"{'wrote' if done.wrote_config else 'kept'} {config}; now: bowerbird-agent run --config {config}")
    return EXIT_OK
