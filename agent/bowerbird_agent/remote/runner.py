"""Keeps the server's configuration on disk, lays it over agent.toml, and watches over its time of trial.

In: agent.toml, wishes from the control thread, how the agent is. Out: the configuration that is in force, and what the server is told
(`Reported`). The rules are in `remote/config.py` (what may be wished) and `remote/wish.py` (trial and way back); `device.py` applies.
What stands is on disk before it is acted on, so the process may be killed at any time.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bowerbird_agent.config import parse_config, parse_wished, read_text
from bowerbird_agent.config_files import check_files
from bowerbird_agent.errors import ConfigError
from bowerbird_agent.remote.config import MAX_DOCUMENT_BYTES
from bowerbird_agent.remote.wish import (
    Standing,
    accepted,
    fallen_back,
    from_plain,
    harm,
    is_to_blame,
    proved,
    refused,
    started,
)
from bowerbird_models.durable import write_durably
from bowerbird_wire.codec import config_digest

if TYPE_CHECKING:
    from bowerbird_agent.config import AgentConfig

logger = logging.getLogger(__name__)

FOLDER = "remote"
_FILE = "configuration.json"
_TRY_AGAIN_S = 30.0


class RemoteWishes:
    """The configuration from afar. The main thread owns it; `offer` and `reported` may be called from any thread.

    Args:
        path: agent.toml.

    Raises:
        ConfigError: the file itself cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._offered: tuple[int, Mapping[str, Any]] | None = None
        self._not_before_s = -math.inf
        self._own, text = self._read()
        self._store = self._own.device.state_dir / FOLDER / _FILE
        self._standing = started(self._load())
        if is_to_blame(self._standing):
            self._fall_back(f"the agent ended {self._standing.starts} times in the time of trial")
        self.config = self._lay_over(text)
        self._keep_or_go_on()
        if self._standing.document:
            logger.info("configuration %d of the server is laid over %s", self._standing.version, path.name)
        self._trial_since_s: float | None = None
        self._camera_well_s = -math.inf
        self._was_connected = False

    # --- any thread ----------------------------------------------------------------------------------------------------

    def offer(self, version: int, document: Mapping[str, Any]) -> bool:
        """A wish has come; False for one that is not newer than what was judged. `step` takes it up."""
        with self._lock:
            newest = self._standing.seen if self._offered is None else self._offered[0]
            if version <= newest:
                return False
            self._offered = (version, document)
            return True

    @property
    def standing(self) -> Standing:
        """What is in force, and what became of the newest wish."""
        with self._lock:
            return self._standing

    # --- the main thread -----------------------------------------------------------------------------------------------

    def step(self, now_s: float, *, camera_well: bool, connected: bool) -> AgentConfig | None:
        """Judge a wish that has come, and look at the trial; the configuration to apply now, None for no change.

        Args:
            now_s: monotonic.
            camera_well: whether any camera gives pictures, or has ended as it should.
            connected: whether the broker has accepted us.
        """
        if camera_well:
            self._camera_well_s = now_s
        self._was_connected |= connected
        if self._standing.on_trial and self._trial_since_s is None:
            self._begin_trial(now_s)
        taken = self._take(now_s)
        if taken is not None:
            changed = self._judge(*taken, now_s, had_camera=camera_well)
            if changed is not None:
                self._begin_trial(now_s)
            return changed
        return self._look_at_trial(now_s)

    def reread(self) -> AgentConfig:
        """The configuration after agent.toml has changed.

        Raises:
            ConfigError: the file cannot be used; everything stays as it was.
        """
        own, text = self._read()
        self._own = own
        self.config = self._lay_over(text)
        self._keep_or_go_on()
        return self.config

    def close(self) -> None:
        """The process ends in order: an end that is not counts against a document on trial."""
        self._set(replace(self._standing, orderly=True))
        self._keep_or_go_on()

    # --- inside --------------------------------------------------------------------------------------------------------

    def _read(self) -> tuple[AgentConfig, str]:
        text = read_text(self._path)
        config = parse_config(text, self._path.resolve().parent, str(self._path))
        check_files(config, str(self._path))
        return config, text

    def _lay_over(self, text: str) -> AgentConfig:
        """File and document in force together; a document that no longer fits the file is given up."""
        if not self._standing.document:
            return self._own
        for _ in range(2):  # the one on trial, the one before
            try:
                config, differs = parse_wished(text, self._path.resolve().parent, self._standing.document)
            except ConfigError as error:
                self._fall_back(f"it does not fit agent.toml: {'; '.join(error.faults)}")
                if not self._standing.document:
                    break
                continue
            self._set(replace(self._standing, differs=differs))
            return config
        return self._own

    def _take(self, now_s: float) -> tuple[int, Mapping[str, Any]] | None:
        with self._lock:
            if self._offered is None or now_s < self._not_before_s:
                return None
            return self._offered

    def _judge(self, version: int, document: Mapping[str, Any], now_s: float, *, had_camera: bool) -> AgentConfig | None:
        before, before_config = self._standing, self.config
        try:
            size = len(json.dumps(document))
        except (TypeError, ValueError, RecursionError):
            size = 0  # holds what JSON cannot say: the merge tells what
        try:
            if size > MAX_DOCUMENT_BYTES:
                raise ConfigError("the wish", [f"the document has {size} bytes; at most {MAX_DOCUMENT_BYTES} are taken"])
            text = read_text(self._path)
            config, differs = parse_wished(text, self._path.resolve().parent, document)
        except ConfigError as error:
            logger.warning("configuration %d of the server is refused: %s", version, "; ".join(error.faults))
            changed = None
            self._set(refused(before, version, error.faults))
        else:
            changed = self.config = config
            self._set(accepted(before, version, document, had_camera=had_camera, differs=differs))
        if not self._keep():
            # Nothing is acted on that a restart would not know of.
            self._set(before)
            self.config = before_config
            self._not_before_s = now_s + _TRY_AGAIN_S
            return None
        with self._lock:
            if self._offered is not None and self._offered[0] <= version:
                self._offered = None
        if changed is not None:
            logger.info("configuration %d of the server is on trial for %.0f s", version, self.config.remote.probation_s)
        return changed

    def _begin_trial(self, now_s: float) -> None:
        self._trial_since_s, self._was_connected = now_s, False

    def _look_at_trial(self, now_s: float) -> AgentConfig | None:
        standing, since_s = self._standing, self._trial_since_s
        probation_s = self.config.remote.probation_s
        if not standing.on_trial or since_s is None or now_s - since_s < probation_s:
            return None
        self._trial_since_s = None
        why = harm(
            standing,
            camera_well=now_s - self._camera_well_s <= probation_s / 2,
            server_heard=self._was_connected,
        )
        if not why:
            self._set(proved(standing))
            logger.info("configuration %d of the server is in force for good", standing.version)
            self._keep_or_go_on()
            return None
        self._fall_back(why)
        self._keep_or_go_on()
        try:
            self.config = self._lay_over(read_text(self._path))
        except ConfigError:  # the file is being written: what was in force without the wish
            self.config = self._own
        return self.config

    def _fall_back(self, why: str) -> None:
        before = self._standing
        self._set(fallen_back(before, why))
        logger.error(
            "configuration %d of the server is given up (%s); %s is in force again",
            before.version,
            why,
            f"configuration {self._standing.version}" if self._standing.version else "agent.toml alone",
        )

    def _set(self, standing: Standing) -> None:
        with self._lock:
            self._standing = standing

    def _load(self) -> Standing:
        try:
            return from_plain(json.loads(self._store.read_text("utf-8")))
        except FileNotFoundError:
            return Standing()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            logger.error(
                "%s cannot be read (%s); agent.toml alone is in force until the server says its wish again", self._store, error
            )
            return Standing()

    def _keep(self) -> bool:
        try:
            self._store.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._store, json.dumps(self._standing.plain()).encode(), 0o600)
        except OSError as error:
            logger.warning("%s cannot be written (%s); free some space or check the folder", self._store, error)
            return False
        return True

    def _keep_or_go_on(self) -> None:
        """Where the way ahead is the safe one, a disk that refuses does not stop it."""
        if self._standing.seen:
            self._keep()


def digest_of(standing: Standing) -> bytes:
    """The digest of the document in force."""
    return config_digest(standing.document)
