"""Why a device is not heard of, as far as the server can know: its state, its certificate's dates, when it was last there.
Pure.

In: a device's row, when its newest certificate ends, the time. Out: a sentence for `bowerbird devices list` and the dashboard,
empty while nothing is wrong. What only the device can know (wrong CA, wrong host name, its own clock) it says itself:
`bowerbird-agent doctor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

RENEWS_WITH_OLD_KEY = timedelta(days=90)
CLOCK_OFF = timedelta(hours=1)
AWAY = timedelta(minutes=10)  # longer than a boot or a lost link usually is
LATE = timedelta(days=10)  # a certificate of 45 days renews with 15 left


def trouble_of(row: Mapping[str, Any], now: datetime) -> str:
    """What keeps a device away, or will soon.

    Args:
        row: `state`, `state_why`, `online`, `status_at`, `certificate_until`, `certificate_from` (ISO texts or None).
        now: aware.
    """
    state = str(row["state"])
    why = f": {row['state_why']}" if row.get("state_why") else ""
    if state == "pending":
        return "waits to be enrolled or approved"
    if state == "suspended":
        return f"suspended{why}; the broker passes nothing on"
    if state == "retired":
        return ""
    until = row.get("certificate_until")
    if until:
        ends = datetime.fromisoformat(str(until))
        if ends <= now:
            way = (
                "it renews by itself once it reaches the claim listener"
                if now - ends < RENEWS_WITH_OLD_KEY
                else "invite it again"
            )
            return f"its certificate expired on {ends:%Y-%m-%d}, so the broker refuses it; {way}"
        if ends - now < LATE:
            return f"its certificate ends on {ends:%Y-%m-%d} and was not renewed; can it reach the claim listener?"
    begins = row.get("certificate_from")
    if begins and datetime.fromisoformat(str(begins)) - now > CLOCK_OFF:
        return f"its certificate was issued on {begins[:10]}, which is yet to come here: this server's clock is behind, set it (NTP)"
    if not row["online"] and not row["status_at"]:
        return "was never connected; `bowerbird-agent doctor` there says what is missing"
    if not row["online"]:
        since = datetime.fromisoformat(str(row["status_at"]))
        if now - since > AWAY:
            return (
                f"not connected since {since:%Y-%m-%d %H:%M} UTC; `bowerbird-agent doctor` there says why: network, clock, certificate "
                "(expired, not yet valid), another CA or host name"
            )
    return ""
