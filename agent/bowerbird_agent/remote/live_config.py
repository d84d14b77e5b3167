"""Another configuration put in force in the parts of a running device: read again, wished by the server, or raised for a while.

In: the configuration's file, the server's wishes, the boost's clock. Out: parts that go on with other settings; news for health. What
may change without a restart is `reload.py`'s word, what may be wished `remote/config.py`'s. It builds and stops no part but cameras.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from bowerbird_agent.clock import clock_ok
from bowerbird_agent.errors import AgentError, ConfigError
from bowerbird_agent.health.health import idle_interval_s, now_ms
from bowerbird_agent.remote.reload import ReloadPlan, reload_plan
from bowerbird_agent.selection.dry_run import FOLDER as DRY_FOLDER
from bowerbird_agent.selection.dry_run import DryRun, keep_trial, read_trial
from bowerbird_agent.storing.redaction import redactors_after, redactors_of
from bowerbird_agent.storing.storing import OnDisk

if TYPE_CHECKING:
    from collections.abc import Callable

    from bowerbird_agent.device_parts import DeviceParts
    from bowerbird_agent.health.sd_notify import Notifier
    from bowerbird_agent.remote.runner import RemoteWishes

logger = logging.getLogger(__name__)

_OLD_CAMERAS_S = 1.0
# States of a camera that gives pictures, or has given all it has.
_WELL = frozenset({"ok", "dark", "blurred", "moved", "finished"})


class LiveConfig:
    """The main thread owns it.

    Args:
        parts: their `config` is the one in force.
        remote, on_log_level, notifier: as `Device`.
    """

    def __init__(
        self, parts: DeviceParts, remote: RemoteWishes | None, on_log_level: Callable[[str], None], notifier: Notifier
    ) -> None:
        self._parts, self._remote, self._on_log_level, self._notifier = parts, remote, on_log_level, notifier

    def reload(self) -> None:
        """Read the configuration again and apply what has changed; with a fault in it everything stays as it is."""
        if self._remote is None:
            return
        parts = self._parts
        self._notifier.reloading()
        news = parts.vitals.reload
        try:
            plan = reload_plan(parts.config, self._remote.reread())
        except (AgentError, OSError) as error:
            logger.error("the configuration stays as it was: %s", error)
            news.at_ms = now_ms()
            news.faults = error.faults if isinstance(error, ConfigError) else (str(error),)
        else:
            news.at_ms, news.faults, news.restart_needed = now_ms(), (), plan.refused
            for refusal in plan.refused:
                logger.warning("%s", refusal)
            logger.info("the configuration was read again: %s", plan)
            self._apply(plan)
        self._tell_control()
        self._notifier.ready(parts.vitals.line())

    def look_at_wishes(self) -> None:
        """Take up what the server wants of the configuration, or go back to what was before."""
        if self._remote is None:
            return
        parts = self._parts
        well = any(worker.state.partition(";")[0] in _WELL for worker in parts.cameras.workers)
        config = self._remote.step(time.monotonic(), camera_well=well, connected=parts.link.connected)
        if config is None:
            return
        plan = reload_plan(parts.config, config)
        logger.info("the configuration was changed from afar: %s", plan)
        self._apply(plan)
        self._tell_control()

    def _apply(self, plan: ReloadPlan) -> None:
        """Put a plan in force, as far as it goes without a restart."""
        parts, config = self._parts, plan.config
        before, parts.config = parts.config, config
        if "log" in plan.live:
            self._on_log_level(config.log.level)
        parts.encoder.image_config = config.image
        # Before the new cameras begin, and what is gone from the file stays until the old ones have ended: a frame of theirs that
        # is in the model right now is redacted if either side asks for it.
        parts.encoder.redactors = {**parts.encoder.redactors, **redactors_of(config.cameras)}
        parts.guard.config = config.guard
        parts.publisher.config = config.publish
        parts.tariff.quiet_hours = config.budget.quiet_ranges()
        parts.tariff.metered_interfaces = config.metered.interfaces
        parts.inference.encode_everything = config.accounting.encode_everything
        parts.decisions.keep = config.accounting.keep_decisions
        parts.cameras.change(plan.added, plan.changed, plan.removed, wait_s=_OLD_CAMERAS_S)
        parts.encoder.redactors = redactors_after(parts.encoder.redactors, config.cameras)
        for name in (*(camera.name for camera in plan.changed), *plan.removed):
            parts.fetching.forget(name)  # with other masks, or other things covered
        cameras = len(config.running_cameras)
        if "selection" in plan.live or cameras != len(before.running_cameras):
            parts.inference.set_policy(config.selection, device=config.device.id, cameras=cameras)
        self._set_boosts()
        if "dry_run" in plan.live or (config.dry_run is not None and cameras != len(before.running_cameras)):
            self.set_dry_run()

    def _factors(self) -> dict[str, float]:
        return self._parts.boost.factors(camera.name for camera in self._parts.config.running_cameras)

    def _set_boosts(self) -> None:
        self._parts.inference.set_boosts(self._factors())

    def look_at_boost(self) -> None:
        """More exploration of a camera begins or ends."""
        parts = self._parts
        allowed = "selection" in parts.config.remote.allow
        if parts.boost.step(time.monotonic(), now_ms(), clock_ok=clock_ok(), allowed=allowed):
            boosted = ", ".join(self._factors())
            logger.info("exploration and target rate are %s", f"raised for a while: {boosted}" if boosted else "as usual again")
            self._set_boosts()

    def set_dry_run(self) -> None:
        """Begin, replace or end the trial of a policy."""
        parts, config = self._parts, self._parts.config
        folder = config.device.state_dir / DRY_FOLDER
        if config.dry_run is None:
            parts.inference.dry_run = None
            parts.storing.submit(OnDisk(partial(keep_trial, folder, None)))
            return

        def keep(state: bytes) -> None:
            parts.storing.submit(OnDisk(partial(keep_trial, folder, state)))

        parts.dry_decisions.keep = config.accounting.keep_decisions
        parts.inference.dry_run = DryRun(
            config.dry_run,
            device=config.device.id,
            cameras=len(config.running_cameras),
            log=parts.dry_decisions,
            frames_left=lambda: parts.inference.frames_left,
            bytes_left=lambda: parts.control.bytes_left_today,
            state=read_trial(folder),
            keep=keep,
        )
        logger.info("a policy is tried in dry run; nothing of it is sent")

    def _tell_control(self) -> None:
        parts = self._parts
        limits, metered = parts.config.budget.to_limits(), parts.config.metered.to_limits()
        every_s, idle_s = parts.config.health.interval_s, parts.config.health.idle_interval_s
        parts.control.reconfigure(limits, metered, every_s, idle_interval_s(every_s, idle_s))
