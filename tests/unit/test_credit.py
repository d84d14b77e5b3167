"""The credit that follows the disk."""

from __future__ import annotations

from bowerbird_server.fleet.credit import CreditGauge
from bowerbird_server.ingest.ingest import DiskMarks


def test_the_credit_ends_below_the_first_mark_and_comes_back_only_above_the_second() -> None:
    gauge = CreditGauge(DiskMarks(200, 300))
    readings = [gauge.read(free) for free in (1000, 250, 200, 199, 250, 300, 301, 250)]
    assert [reading > 0 for reading in readings] == [True, True, True, False, False, False, True, True]
