"""The last row of the fault table: all of it mixed. The long form is `benchmarks/soak.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from bowerbird_testing.broker import mosquitto_path
from bowerbird_testing.fault_rows import row
from bowerbird_testing.fault_soak import Soak

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(mosquitto_path() is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]


@row("seeded_soak_mixes_them")
def test_seeded_soak_mixes_them(tmp_path: Path, fault_seed: int) -> None:
    """Interrupted once, it goes on where it was, with another draw for each step."""
    first = Soak(tmp_path, fault_seed)
    first.run(12, check_every=6)
    again = Soak(tmp_path, fault_seed)
    assert (again.step, again.lives) == (first.step, first.lives)
    numbers = again.run(26, check_every=8)
    assert sum(numbers["kills"].values()) >= 26
    assert numbers["rows"] >= numbers["accepted"] > 20


def test_a_soak_with_another_seed_is_refused_in_the_same_folder(tmp_path: Path) -> None:
    Soak(tmp_path, 1).next_life()
    with pytest.raises(ValueError, match="go on with that seed"):
        Soak(tmp_path, 2)
