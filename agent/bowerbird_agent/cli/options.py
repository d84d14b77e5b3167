"""What all commands of `bowerbird-agent` have in common: exit codes, options, the look of their help.

In: a parser. Out: the parser with more in it. It runs nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_HUNG = 0, 1, 2, 3


def add_command(commands: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """A command with the options that all have, and an example under its help."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_options(parser, defaults=False)
    return parser


def add_common_options(parser: argparse.ArgumentParser, *, defaults: bool) -> None:
    """Options that stand before or behind the command's name; the one behind wins."""

    def default(value: Any) -> Any:
        return value if defaults else argparse.SUPPRESS

    parser.add_argument(
        "--config",
        type=Path,
        default=default(Path("/etc/bowerbird/agent.toml")),
        metavar="FILE",
        help="the device's agent.toml",
    )
    parser.add_argument("--json", action="store_true", default=default(False), help="answer as JSON")
    parser.add_argument(
        "--log-level",
        default=default(None),
        choices=("debug", "info", "warning", "error"),
        help="default: the configuration's log.level, or info",
    )


def positive(text: str) -> int:
    """An argument that is a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value
