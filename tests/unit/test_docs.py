"""The documents cannot drift: every command and every setting stands in them, with the default that the code has."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import typer.main
from pydantic import BaseModel

from bowerbird_agent.cli.app import _parser
from bowerbird_agent.config import AgentConfig
from bowerbird_agent.selection.decisions import DROPS, REFUSALS
from bowerbird_agent.selection.policy import STRATEGIES, Policy
from bowerbird_server.cli.app import app
from bowerbird_server.config import ServerConfig

DOCS = Path(__file__).parents[2] / "docs"
CLI = (DOCS / "cli.md").read_text("utf-8")
CONFIGURATION = (DOCS / "configuration.md").read_text("utf-8")


def server_commands() -> dict[str, Any]:
    """Every command of `bowerbird` by its full name."""

    def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
        below = getattr(command, "commands", None)
        if below is None:
            yield name, command
        for word, child in (below or {}).items():
            yield from walk(child, f"{name} {word}")

    return dict(walk(typer.main.get_command(app), "bowerbird"))


def agent_commands() -> dict[str, argparse.ArgumentParser]:
    """Every command of `bowerbird-agent` by its full name."""
    actions = _parser()._actions
    groups = [action for action in actions if isinstance(action, argparse._SubParsersAction)]
    return {f"bowerbird-agent {name}": parser for group in groups for name, parser in group.choices.items()}


def documented() -> dict[str, str]:
    """Command -> example, from the tables of docs/cli.md."""
    return dict(re.findall(r"^\| `(bowerbird[^`]*)` \| `([^`]+)` \| \S", CLI, re.MULTILINE))


def test_every_command_is_documented_with_an_example_and_no_other_is() -> None:
    code = {*server_commands(), *agent_commands(), "bowerbird-agent --check-config"}
    assert documented().keys() == code


@pytest.mark.parametrize("name", sorted(server_commands()))
def test_an_example_of_the_server_names_only_options_that_exist(name: str) -> None:
    words = shlex.split(documented()[name])
    assert words[: len(name.split())] == name.split()
    known = {option for parameter in server_commands()[name].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_examples_of_the_device_are_accepted_by_its_parser() -> None:
    for example in (text for name, text in documented().items() if name.startswith("bowerbird-agent")):
        _parser().parse_args(shlex.split(example)[1:])


@pytest.mark.parametrize("name", sorted(server_commands()))
def test_every_command_says_what_it_does(name: str) -> None:
    assert len(server_commands()[name].help or "") > 15


def shown(value: object) -> str:
    if value is None:
        return "none"
    return f"`{json.dumps(str(value) if isinstance(value, Path) else value)}`"


def server_keys(part: type[BaseModel] = ServerConfig, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, field in part.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= server_keys(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = shown(field.default)
    return found


def agent_keys() -> dict[str, str | None]:
    """Key path -> default as the table shows it; None where it is made by a function."""
    found: dict[str, str | None] = {"selection.template": "none"}
    hints = get_type_hints(AgentConfig)
    for part in dataclasses.fields(AgentConfig):
        kind, mark = hints[part.name], ""
        if get_origin(kind) is tuple:
            kind, mark = get_args(kind)[0], "[]"
        if not dataclasses.is_dataclass(kind):  # a whole section that may be left out
            found[part.name] = "none"
            continue
        for field in dataclasses.fields(kind):
            made = field.default_factory is not dataclasses.MISSING
            default = "required" if field.default is dataclasses.MISSING else shown(field.default)
            found[f"{part.name}{mark}.{field.name}"] = None if made else default
    return found


def rows_of(title: str) -> dict[str, str]:
    section = CONFIGURATION.split(f"## {title}")[1].split("\n## ")[0]
    rows: list[tuple[str, str]] = re.findall(r"^\| `([^`]+)` \| (.+?) \| \S", section, re.MULTILINE)
    twice = {key for key, count in Counter(key for key, _ in rows).items() if count > 1}
    assert not twice, f"more than one row: {twice}"
    return dict(rows)


def test_every_key_of_the_server_stands_in_the_document_with_its_default() -> None:
    assert rows_of("bowerbird.toml") == server_keys()


def test_every_key_of_the_device_stands_in_the_document_with_its_default() -> None:
    rows = rows_of("agent.toml")
    assert rows.keys() == agent_keys().keys()
    assert {key: rows[key] for key, default in agent_keys().items() if default is not None} == {
        key: default for key, default in agent_keys().items() if default is not None
    }


def test_the_examples_in_the_document_are_taken_by_both_programs() -> None:
    from bowerbird_agent.config import parse_config

    server, agent = re.findall(r"```toml\n(.*?)```", CONFIGURATION, re.DOTALL)
    assert ServerConfig.model_validate(tomllib.loads(server)).loop.frames_per_round == 400
    assert parse_config(agent, Path("/etc/bowerbird")).budget.bytes_per_day == 50_000_000


def test_the_examples_and_states_of_cameras_are_those_of_the_code() -> None:
    from bowerbird_agent.capture.camera_health import ADVICE
    from bowerbird_agent.config import parse_config

    text = (DOCS / "cameras.md").read_text("utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    around = '[device]\nid = "a"\nsite = "b"\n[broker]\nhost = "h"\n'
    (camera,) = parse_config(around + example, Path("/etc/bowerbird")).cameras
    assert (len(camera.masks), camera.region is not None, camera.fps) == (2, True, 5)
    sources = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", text, re.MULTILINE)
    for source in re.findall(r"`([^`]+)`", " ".join(sources[1:])):
        if ":" in source or source.startswith("/dev"):
            parse_config(f'{around}[[cameras]]\nname = "gate"\nsource = "{source}"\n', Path("/etc/bowerbird"))
    assert set(re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE)) >= {"ok", *ADVICE}


def test_every_strategy_and_every_reason_of_the_selection_is_explained() -> None:
    page = (DOCS / "selection.md").read_text("utf-8")
    rows = re.findall(r"^\| ((?:`\w+`,? ?)+)\|.*\| ([\d.]*) ?\|$", page, re.MULTILINE)
    weights = {name: float(weight) for names, weight in rows if weight for name in re.findall(r"`(\w+)`", names)}
    assert weights == dict(Policy().strategies)
    named = {
        name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert {*STRATEGIES, *REFUSALS, *DROPS} <= named
