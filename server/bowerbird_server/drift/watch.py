"""What arriving hours mean and what is done about it: verdicts, episodes, a boost for a day, a slice marked for the gate.

In: `Histograms` messages. Out: rows; what is wished of a device follows from them (`delivery.py`). Statistics and rules are in
`drift/verdicts.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from bowerbird_server.catalogue import drift_rows
from bowerbird_server.catalogue.core import Catalogue, utc_text
from bowerbird_server.catalogue.drift_rows import Series
from bowerbird_server.drift.verdicts import DRIFTED, DriftSettings, episode, joins_reference, judge
from bowerbird_wire.histograms import MAX_CAMERAS, Histograms

log = logging.getLogger(__name__)

_MOST_HOURS = 24 * MAX_CAMERAS


def _now_ms() -> int:
    return int(time.time() * 1000)


class DriftWatch:
    """Judges hours as they come.

    Args:
        cat: the catalogue, of the calling thread.
        now_ms: UTC.
    """

    def __init__(self, cat: Catalogue, settings: DriftSettings | None = None, now_ms: Callable[[], int] = _now_ms) -> None:
        self._cat, self._settings, self._now_ms = cat, settings or DriftSettings(), now_ms

    def take(self, device: str, message: Histograms) -> None:
        """Keep a device's hours and say what they mean.

        Raises:
            WireError: histograms that are none; the hours before them are kept.
        """
        arrived = [drift_rows.record(self._cat, device, hour) for hour in message.hours[:_MOST_HOURS]]
        self._look_for_new_cameras({series.camera for series, _ in arrived})
        for series, at_ms in sorted(set(arrived), key=lambda pair: (pair[1], pair[0].camera)):
            self._judge(series, at_ms)

    def _look_for_new_cameras(self, cameras: set[str]) -> None:
        """Nobody knows yet what a new camera shows: it is explored more, as long as one that has drifted."""
        settings = self._settings
        until_ms = self._now_ms() + int(settings.boost_hours * 3_600_000) if settings.boost_factor > 1 else 0
        for camera in sorted(cameras):
            with self._cat.transaction(durable=False):
                is_new = drift_rows.note_new_camera(self._cat, camera, boost_until_ms=until_ms, factor=settings.boost_factor)
            if is_new:
                log.info("camera %s is new; its device explores it more for %g hours", camera, settings.boost_hours)

    def _judge(self, series: Series, at_ms: int) -> None:
        cat, settings = self._cat, self._settings
        hour = drift_rows.hour_of(cat, series, at_ms)
        verdict = judge(hour, drift_rows.reference(cat, series), settings)
        is_reference = joins_reference(hour, verdict, drift_rows.first_at_ms(cat, series), settings)
        with cat.transaction(durable=False):
            drift_rows.note_verdict(cat, series, at_ms, verdict, is_reference=is_reference)
            drift_rows.close_episodes(cat, series.camera, "new_model", but_model=series.model)
            under_way = drift_rows.open_drift(cat, series.camera, series.model)
            needed = settings.after_hours if under_way is None else settings.over_hours
            after = drift_rows.last_closed(cat, series.camera, series.model)
            newest = drift_rows.newest_states(cat, series, after, needed)
            step = episode([state for _, state in newest], is_open=under_way is not None, settings=settings)
            if step == "opens" and verdict.state == DRIFTED:
                until_ms = self._now_ms() + int(settings.boost_hours * 3_600_000)
                drift_rows.open_episode(
                    cat,
                    series,
                    verdict,
                    newest[0][0],
                    newest[-1][0],
                    boost_until_ms=until_ms if settings.boost_factor > 1 else 0,
                    factor=settings.boost_factor,
                )
                log.warning(
                    "camera %s has drifted since %s (%s); its device explores it more for %g hours",
                    series.camera,
                    newest[0][0],
                    verdict.cause,
                    settings.boost_hours,
                )
            elif under_way is not None and verdict.state == DRIFTED:
                drift_rows.extend_episode(cat, under_way["id"], utc_text(at_ms))
            elif step == "closes":
                drift_rows.close_episodes(cat, series.camera, "stable", model=series.model)
                log.info("camera %s is as before", series.camera)
