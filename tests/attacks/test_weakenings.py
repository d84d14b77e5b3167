"""The code without one of its checks, again and again: each time the attack that the check is against must be seen to succeed.

Weakenings whose tests take seconds each (brokers, whole updates and sites) run in `make attacks` only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bowerbird_server.broker.embedded import find_program
from bowerbird_testing.weakenings import WEAKENINGS, Weakening

TESTS = Path(__file__).parents[1]


_QUICK = ("unit/", "integration/test_claims.py", "integration/test_web_api.py", "attacks/test_hostile_")


def is_quick(weakening: Weakening) -> bool:
    """Whether its tests take a second or so, which `make test` has for each of them."""
    return not weakening.slow and all(test.startswith(_QUICK) for test in weakening.caught_by)


def tried(names: tuple[str, ...]) -> dict[str, dict[str, object]]:
    """What came of these weakenings, by name; one process that forks for each."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "false",
    }
    environment.pop("PYTEST_XDIST_WORKER", None)
    argv = [sys.executable, "-W", "ignore", "-m", "bowerbird_testing.weakenings", *names]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return {result["name"]: result for result in map(json.loads, done.stdout.splitlines())}


def check(weakening: Weakening, result: dict[str, object]) -> None:
    """Every test that is named failed by its own word: not by an error of import or of a fixture."""
    assert result["touched"], f"the tests of {weakening.name!r} do not import what it weakens"
    assert set(weakening.caught_by) <= set(result["failed"]), result  # type: ignore[call-overload]


@pytest.fixture(scope="session")
def plain() -> dict[str, dict[str, object]]:
    return tried(tuple(weakening.name for weakening in WEAKENINGS if is_quick(weakening)))


@pytest.mark.xdist_group("weakenings")
@pytest.mark.parametrize("weakening", [each for each in WEAKENINGS if is_quick(each)], ids=lambda each: each.name)
def test_what_is_left_out_is_missed(weakening: Weakening, plain: dict[str, dict[str, object]]) -> None:
    check(weakening, plain[weakening.name])


@pytest.mark.heavy
@pytest.mark.parametrize("weakening", [each for each in WEAKENINGS if not is_quick(each)], ids=lambda each: each.name)
def test_what_is_left_out_of_the_slow_ones_is_missed(weakening: Weakening) -> None:
    if any("broker" in test for test in weakening.caught_by) and find_program("mosquitto") is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    check(weakening, tried((weakening.name,))[weakening.name])


def test_a_table_that_the_code_has_left_behind_is_an_error() -> None:
    """The test of the tests: an edit that fits nowhere is not passed over."""
    from bowerbird_testing.weakenings import source_of, weakened_source

    with pytest.raises(ValueError, match="must follow the code"):
        weakened_source([("there is no such line", "")], source_of("bowerbird_server.fleet.offers"))
