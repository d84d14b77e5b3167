"""What the server may change of agent.toml, and what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bowerbird_agent.config import parse_config, parse_wished
from bowerbird_agent.errors import ConfigError

BASE = """
[device]
id = "cam-01"
site = "demo"
[broker]
host = "127.0.0.1"
[model]
factory = "m.onnx"
{more}
[[cameras]]
name = "gate"
source = "/dev/video0"
{camera}
[[cameras]]
name = "yard"
source = "/dev/video1"
"""
FOLDER = Path("/etc/bowerbird")


def wished(wish: Any, more: str = "", camera: str = "") -> Any:
    return parse_wished(BASE.format(more=more, camera=camera), FOLDER, wish)


def faults(wish: Any, more: str = "", camera: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        wished(wish, more, camera)
    return "\n".join(caught.value.faults)


def test_a_wish_is_laid_over_the_file_key_by_key() -> None:
    config, differs = wished(
        {
            "selection": {"epsilon": 0.5},
            "budget": {"bytes_per_day": 1_000_000},
            "cameras": {"yard": {"fps": 3, "enabled": False}, "gate": {"region": {"x": 0, "y": 0, "width": 0.5, "height": 1}}},
            "log": {"level": "debug"},
            "health": {"interval_s": 60},
        },
        more="[selection]\nwindow_frames = 77\n",
    )
    assert (config.selection.epsilon, config.selection.window_frames) == (0.5, 77)
    assert config.budget.bytes_per_day == 1_000_000
    assert [camera.name for camera in config.running_cameras] == ["gate"]
    assert config.cameras[0].region is not None
    assert config.cameras[1].fps == 3
    assert (config.log.level, config.health.interval_s, differs) == ("debug", 60.0, ())


def test_an_empty_wish_is_the_file_itself() -> None:
    assert wished({})[0] == parse_config(BASE.format(more="", camera=""), FOLDER)


def test_a_template_takes_the_place_of_the_files_whole_selection() -> None:
    config, _ = wished({"selection": {"template": "random_audit", "min_gap_s": 7}}, more="[selection]\nwindow_frames = 77\n")
    assert config.selection.epsilon == 1.0
    assert (config.selection.min_gap_s, config.selection.window_frames) == (7.0, 600)


def test_all_faults_of_a_wish_are_told_at_once() -> None:
    text = faults(
        {
            "selection": {"epsilonn": 1},
            "log": {"level": "loud"},
            "broker": {"host": "evil.example"},
            "cameras": {"roof": {"fps": 1}, "gate": {"source": "rtsp://evil.example", "fps": "many"}},
        }
    )
    for part in (
        "selection.epsilonn: unknown key; did you mean 'epsilon'?",
        "log: level is 'loud'",
        "broker: cannot be set from afar",
        "cameras.roof: there is no such camera here; there are gate, yard",
        "cameras.gate.source: cannot be set from afar",
        "cameras[0].fps: must be a number",
    ):
        assert part in text


@pytest.mark.parametrize("section", ["device", "broker", "update", "model", "spool", "metered", "publish", "metrics", "remote"])
def test_no_section_but_the_named_can_be_set_from_afar(section: str) -> None:
    assert f"{section}: cannot be set from afar" in faults({section: {}})


def test_what_the_file_does_not_allow_is_refused() -> None:
    text = faults({"selection": {"epsilon": 0.1}, "log": {"level": "debug"}}, more='[remote]\nallow = ["log"]\n')
    assert text == "selection: agent.toml does not allow this section to be set from afar (remote.allow)"


def test_a_cap_in_the_file_cannot_be_raised_from_afar() -> None:
    more = '[budget]\nbytes_per_day = 5000000\nquiet_hours = ["22:00-06:00"]\n'
    text = faults({"budget": {"bytes_per_day": 6_000_000, "quiet_hours": []}}, more)
    assert "budget.bytes_per_day: is 6000000; agent.toml allows at most 5000000 (budget.bytes_per_day)" in text
    assert "budget.quiet_hours: must keep 22:00-06:00" in text
    lower = {"budget": {"bytes_per_day": 4_000_000, "quiet_hours": ["22:00-06:00", "12:00-13:00"]}}
    assert wished(lower, more)[0].budget.bytes_per_day == 4_000_000
    assert wished({"budget": {"bytes_per_day": 6_000_000}}, more + "[remote]\nmax_bytes_per_day = 9000000\n")[0]
    assert "remote.max_bytes_per_day" in faults(
        {"budget": {"bytes_per_day": 10_000_000}}, more + "[remote]\nmax_bytes_per_day = 9000000\n"
    )


def test_privacy_in_the_file_cannot_be_taken_away_from_afar() -> None:
    camera = (
        "enabled = false\nregion = {x = 0.0, y = 0.0, width = 0.5, height = 0.5}\nmasks = [[[0, 0], [0.2, 0], [0.2, 0.2]]]\n"
    )
    text = faults(
        {"cameras": {"gate": {"enabled": True, "region": {"x": 0, "y": 0, "width": 0.6, "height": 0.5}}}}, camera=camera
    )
    assert "cameras.gate.enabled: agent.toml switches this camera off" in text
    assert "cameras.gate.region: reaches beyond" in text
    more_masks = [[[0.5, 0.5], [0.6, 0.5], [0.6, 0.6]]]
    config, differs = wished({"cameras": {"gate": {"masks": more_masks}}}, camera=camera)
    assert len(config.cameras[0].masks) == 2
    assert differs == ("cameras.gate.masks",)
    off = '[selection]\ntemplate = "off"\n'
    assert "switches the selection off" in faults({"selection": {"template": "balanced"}}, more=off)


def test_the_last_camera_cannot_be_switched_off() -> None:
    assert "every camera is switched off" in faults({"cameras": {"gate": {"enabled": False}, "yard": {"enabled": False}}})


def nested(depth: int) -> dict[str, Any]:
    return {"selection": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    "wish",
    [
        [],
        "text",
        None,
        {1: {}},
        {"log": None},
        {"log": {"level": None}},
        {"log": {"level": "x" * 10_000}},
        {"budget": {"bytes_per_day": float("nan")}},
        {"budget": {"bytes_per_day": 10**40}},
        {"budget": {"bytes_per_s": -1}},
        {"budget": {"quiet_hours": "22:00-06:00"}},
        {"budget": {"bytes_per_day": True}},
        {"cameras": [{"name": "gate"}]},
        {"cameras": {"gate": 5}},
        {"cameras": {"gate": {"region": [0, 0, 1, 1]}}},
        {"cameras": {"gate": {"masks": [[["a", "b"]]]}}},
        {"selection": {"strategies": {"__class__": 1}}},
        {"selection": {"template": ["balanced"]}},
        {"selection": {"strategies": [b"x"]}},
        {"cameras": {"gate": {"masks": [[0, 1]] * 5000}}},
        nested(500),
    ],
)
def test_a_hostile_document_is_refused_with_a_reason(wish: Any) -> None:
    assert faults(wish)


keys = st.sampled_from(
    [
        "selection",
        "budget",
        "cameras",
        "gate",
        "log",
        "health",
        "epsilon",
        "template",
        "region",
        "masks",
        "bytes_per_day",
        "quiet_hours",
        "strategies",
        "fps",
        "x",
    ]
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


@given(trees)
def test_no_document_whatever_raises_the_files_cap_or_fails_otherwise_than_by_a_refusal(wish: Any) -> None:
    try:
        config, _ = wished(wish, "[budget]\nbytes_per_day = 5000000\n", "masks = [[[0, 0], [0.2, 0], [0.2, 0.2]]]\n")
    except ConfigError:
        return
    assert config.budget.bytes_per_day is not None
    assert config.budget.bytes_per_day <= 5_000_000
    assert config.cameras[0].masks
    assert [camera.source for camera in config.cameras] == ["/dev/video0", "/dev/video1"]
