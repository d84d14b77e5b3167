"""What SIGHUP may change, as a table."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from bowerbird_agent.config import AgentConfig, parse_config
from bowerbird_agent.remote.reload import SECTIONS, Applies, reload_plan

OLD = """\
[device]
id = "cam-01"
site = "demo"
[broker]
host = "127.0.0.1"
[model]
factory = "m.onnx"
[[cameras]]
name = "gate"
source = "film.avi"
[[cameras]]
name = "yard"
source = "0"
"""


def config(text: str = OLD) -> AgentConfig:
    return parse_config(text, Path("/etc/bowerbird"))


def test_every_section_of_the_configuration_is_in_the_table() -> None:
    assert set(SECTIONS) == {f.name for f in fields(AgentConfig)}


def test_the_same_file_changes_nothing() -> None:
    plan = reload_plan(config(), config())
    assert plan.changes_nothing
    assert not plan.refused
    assert str(plan) == "nothing has changed"


@pytest.mark.parametrize(
    ("addition", "section"),
    [
        ("[selection]\nepsilon = 0.5", "selection"),
        ("[budget]\nbytes_per_day = 5000000", "budget"),
        ("[image]\nquality = 70", "image"),
        ("[accounting]\nencode_everything = true", "accounting"),
        ("[health]\ninterval_s = 5", "health"),
        ("[guard]\nwarm_c = 70", "guard"),
        ("[publish]\ndetections = true", "publish"),
        ('[log]\nlevel = "debug"', "log"),
    ],
)
def test_these_sections_take_effect_at_once(addition: str, section: str) -> None:
    new = config(f"{OLD}{addition}\n")
    plan = reload_plan(config(), new)
    assert (plan.live, plan.refused) == ((section,), ())
    assert plan.config == new


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (('id = "cam-01"', 'id = "cam-02"'), "device.id"),
        (('site = "demo"', 'site = "other"'), "device.site"),
        (('site = "demo"', 'site = "demo"\nstate_dir = "/var/lib/x"'), "device.state_dir"),
        (('host = "127.0.0.1"', 'host = "192.0.2.1"\nport = 1884'), "broker.host, broker.port"),
        (('factory = "m.onnx"', 'factory = "n.onnx"'), "model.factory"),
        (("[model]", '[update]\ntrusted_root = "r.json"\n[model]'), "update.trusted_root"),
        (("[model]", "[spool]\nmax_bytes = 9000000\n[model]"), "spool.max_bytes"),
        (("[model]", "[watchdog]\ncamera_s = 5\n[model]"), "watchdog.camera_s"),
    ],
)
def test_these_keys_need_a_restart_and_keep_their_value(change: tuple[str, str], key: str) -> None:
    plan = reload_plan(config(), config(OLD.replace(*change)))
    (refusal,) = plan.refused
    assert refusal.startswith(f"{key} cannot change")
    assert "restart" in refusal
    assert plan.changes_nothing
    assert plan.config == config()


def test_what_may_change_does_although_something_else_is_refused() -> None:
    new = config(OLD.replace('id = "cam-01"', 'id = "cam-02"') + "[image]\nquality = 70\n")
    plan = reload_plan(config(), new)
    assert plan.live == ("image",)
    assert plan.config.image.quality == 70
    assert plan.config.device.id == "cam-01"
    assert reload_plan(plan.config, new).changes_nothing, "the second reading of the same file has nothing left to do"


def test_only_cameras_whose_section_changed_are_touched() -> None:
    old = config()
    gate, yard = old.cameras
    new = replace(old, cameras=(replace(gate, fps=5.0), yard, replace(gate, name="dock")))
    plan = reload_plan(old, new)
    assert ([c.name for c in plan.added], [c.name for c in plan.changed], plan.removed) == (["dock"], ["gate"], ())
    plan = reload_plan(new, replace(new, cameras=new.cameras[:1]))
    assert (plan.added, plan.changed, plan.removed) == ((), (), ("yard", "dock"))
    assert "cameras removed: yard, dock" in str(plan)


def test_the_order_of_the_cameras_means_nothing() -> None:
    old = config()
    values: dict[str, Any] = {"cameras": old.cameras[::-1]}
    assert reload_plan(old, replace(old, **values)).changes_nothing


def test_every_refusal_belongs_to_a_section_that_needs_a_restart() -> None:
    assert {name for name, applies in SECTIONS.items() if applies is Applies.RESTART} == {
        "device",
        "broker",
        "update",
        "model",
        "spool",
        "fetch",
        "metrics",
        "watchdog",
    }
