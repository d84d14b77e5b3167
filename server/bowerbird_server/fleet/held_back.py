"""Why devices keep their frames although they could send them: the server's disk is full, or a device is over its daily limit.

In: free bytes, the site's marks and limits, what devices sent in a day. Out: sentences for the dashboard, none while nothing is held.
Nothing is lost while it lasts. It holds nothing back itself (`credit.py` and `device_limits.py` do).
"""

from __future__ import annotations

from collections.abc import Iterable

from bowerbird_server.config import IngestConfig


def held_back(config: IngestConfig, free_bytes: int, over: Iterable[str]) -> list[str]:
    """What holds frames back now.

    Args:
        free_bytes: on the disk of the blobs.
        over: devices that have sent as much as they may in 24 hours.
    """
    found = []
    if free_bytes < config.stop_below_free_mib * 1024**2:
        found.append(
            f"The disk has {free_bytes / 1e6:.0f} MB left, less than ingest.stop_below_free_mib = {config.stop_below_free_mib}: all "
            f"devices keep their frames until there is more than {config.go_on_above_free_mib} MiB. Free some space, or move the data."
        )
    names = sorted(over)
    if names:
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        found.append(
            f"Over the daily limit of the site (ingest.device_frames_per_day, ingest.device_mb_per_day), so their frames wait on the "
            f"device: {shown}."
        )
    return found
