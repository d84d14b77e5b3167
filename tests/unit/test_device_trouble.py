"""What the server says of a device that it does not hear of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bowerbird_server.fleet.device_trouble import trouble_of

NOW = datetime(2026, 11, 28, tzinfo=UTC)
SEEN = {"state": "active", "state_why": "", "online": 0, "status_at": "2026-11-20T00:00:00+00:00"}


def ends_in(days: float) -> dict[str, str]:
    return {"certificate_until": (NOW + timedelta(days=days)).isoformat()}


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({**SEEN, **ends_in(-1)}, "expired on 2026-11-27"),
        ({**SEEN, **ends_in(-1)}, "renews by itself"),
        ({**SEEN, **ends_in(-91)}, "invite it again"),
        ({**SEEN, **ends_in(3)}, "ends on 2026-12-01"),
        ({**SEEN, "state": "suspended", "state_why": "two boards"}, "suspended: two boards"),
        ({**SEEN, "state": "pending"}, "approved"),
        ({**SEEN, "status_at": None}, "never connected"),
        (SEEN, "not connected since 2026-11-20 00:00 UTC"),
        ({**SEEN, **ends_in(30)}, "bowerbird-agent doctor"),
        ({**SEEN, **ends_in(47), "certificate_from": (NOW + timedelta(days=2)).isoformat()}, "clock is behind"),
    ],
)
def test_what_is_wrong_is_said(row: dict[str, Any], word: str) -> None:
    assert word in trouble_of(row, NOW)


@pytest.mark.parametrize(
    "row",
    [
        {**SEEN, "online": 1, **ends_in(30), "certificate_from": (NOW - timedelta(days=15)).isoformat()},
        {**SEEN, "status_at": (NOW - timedelta(minutes=9)).isoformat()},
        {**SEEN, "state": "retired", **ends_in(-9)},
    ],
)
def test_nothing_is_said_while_nothing_is_wrong(row: dict[str, Any]) -> None:
    assert trouble_of(row, NOW) == ""
