"""What a device tells about itself: the `Health` and `Status` messages, put together from the parts' own counts.

In: counters, ledger, inference and cameras. Out: messages. It counts nothing itself and sends nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bowerbird_agent.health import counters as names
from bowerbird_agent.health import telemetry
from bowerbird_agent.health.telemetry import Readings
from bowerbird_agent.tuning.model_runtime import FALLBACK
from bowerbird_wire.messages import Health, Status
from bowerbird_wire.spent import LETTERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bowerbird_agent.capture.cameras import Cameras
    from bowerbird_agent.health.counters import Counters
    from bowerbird_agent.inference.guard import GuardState
    from bowerbird_agent.inference.inference import Inference
    from bowerbird_agent.spool.index import Ledger
    from bowerbird_agent.storing.storing import StoringThread


# Of what the model runs with, presence says everything, once per model; health comes often, and every byte counts.
_IN_HEALTH = ("runtime", "variant", "origin")
_FILE_DIGEST_DIGITS = 12
_IDLE_INTERVALS = 120.0
# Parts of `extra` that change while nothing happens.
_NO_NEWS = frozenset(
    {"window", "spent", "uplink", "published", "camera_dropped", "dropped", "runtime", "tm", "dry_run", "references"}
)


@dataclass
class ReloadNews:
    """What the last reading of the configuration came to; written by the main thread.

    Args:
        at_ms: UTC of the last reload, 0 for none.
        faults: why the file was refused as a whole; () when it was not.
        restart_needed: settings that wait for a restart.
    """

    at_ms: int = 0
    faults: tuple[str, ...] = ()
    restart_needed: tuple[str, ...] = ()

    def plain(self) -> dict[str, object]:
        """For the message; {} before the first reload."""
        found: dict[str, object] = {"reloaded_at_ms": self.at_ms} if self.at_ms else {}
        if self.faults:
            found["faults"] = [fault[:300] for fault in self.faults[:20]]
        if self.restart_needed:
            found["restart_needed"] = list(self.restart_needed)
        return found


@dataclass(frozen=True)
class Vitals:
    """The parts that health asks."""

    counters: Counters
    inference: Inference
    storing: StoringThread
    cameras: Cameras
    boot_id: str
    agent_version: str
    guard: Callable[[], GuardState]
    reload: ReloadNews = field(default_factory=ReloadNews)
    uplink: Callable[[], Mapping[str, object]] = dict
    identity: Callable[[], Mapping[str, object]] = dict
    readings: Callable[[], Readings] = Readings
    beside: Callable[[], Mapping[str, object]] = dict
    erased: Callable[[], Mapping[str, int]] = dict

    def status(self) -> Status:
        """The retained presence while connected; `identity`: generation of the certificate, connections that were taken over."""
        extra: dict[str, object] = {"runtime": dict(self.inference.runs_with)} if self.inference.runs_with else {}
        identity = dict(self.identity())
        if identity:
            extra["identity"] = identity
        return Status("online", self.boot_id, self.agent_version, self.inference.model_digest, now_ms(), extra)

    def offline(self) -> Status:
        """The will."""
        return Status("offline", self.boot_id, self.agent_version)

    def health(self, ledger: Ledger) -> Health:
        """Everything that is counted, as of now.

        Args:
            ledger: the spool's account of one moment.
        """
        count, inference = self.counters.value, self.inference
        return Health(
            boot_id=self.boot_id,
            at_ms=now_ms(),
            model_digest=inference.model_digest,
            frames_seen=count(names.FRAMES_SEEN),
            frames_scored=count(names.FRAMES_SCORED),
            frames_selected=count(names.FRAMES_SELECTED),
            frames_committed=ledger.committed,
            frames_dropped=count(names.FRAMES_DROPPED),
            bytes_sent=count(names.BYTES_SENT),
            bytes_received=count(names.BYTES_RECEIVED),
            rule_frames=count(names.RULE_FRAMES),
            rule_bytes=count(names.RULE_BYTES),
            all_bytes=count(names.ALL_BYTES),
            round_frames_seen=count(names.ROUND_FRAMES_SEEN),
            desired_version=count(names.DESIRED_VERSION),
            spool=dict(ledger.in_spool),
            evicted=dict(ledger.evicted),
            cameras={worker.name: worker.state[:300] for worker in self.cameras.workers},
            fps=round(inference.rate.fps, 2),
            inference_ms=round(inference.inference_ms, 2),
            extra=self._extra(ledger),
        )

    def _extra(self, ledger: Ledger) -> Mapping[str, object]:
        """`window`: frames judged in the open window, windows closed in this round and ever; `runtime`: what the model
        runs with; `camera_dropped`: camera -> frames dropped since the agent's first start; `spent`, `uplink`, `tm`: see
        `bowerbird_wire.spent` and `bowerbird_wire.telemetry`; `erased`: erase wish -> frames deleted for it, of those done;
        `boost`: the factor on exploration and its end; `references`: frames sent without their pictures; `dry_run`: see `dry_run.py`;
        the rest only when it says something."""
        count = self.counters.value
        extra: dict[str, object] = {
            "window": {
                "open_frames": self.inference.window_frames,
                "round_closed": count(names.ROUND_WINDOWS_CLOSED),
                "closed": count(names.WINDOWS_CLOSED),
            },
            "finished": self.inference.is_flushed,
        }
        trouble = [text for text in (self.storing.trouble,) if text]
        trouble += self.inference.redaction_trouble
        if self.inference.runs_with.get("origin") == FALLBACK:
            trouble.append(str(self.inference.runs_with["why"]))
        if not self.inference.model_digest:
            asked = "" if count(names.DESIRED_VERSION) else "; none goes before the server asks for some"
            trouble.append(f"there is no model yet; frames are chosen by novelty, typicality and chance alone{asked}")
        dropped = {worker.name: count(names.dropped_of(worker.name)) for worker in self.cameras.workers}
        failures = (names.DETECTOR_FAILURES, names.SCORING_FAILURES, names.STORE_REFUSED, names.REDACTION_FAILURES)
        counted = {name: count(name) for name in failures if count(name)}
        for key, value in (
            ("runtime", _shortened(self.inference.runs_with)),
            ("trouble", trouble),
            ("failures", counted),
            ("guard", self._guard()),
            ("config", self.reload.plain()),
            ("spent", self.spent()),
            ("references", count(names.REFERENCES_SENT)),
            ("uplink", dict(self.uplink())),
            ("tm", telemetry.plain(self.counters, self.readings())),
            ("published", self._published()),
            ("erased", dict(self.erased())),
            ("camera_dropped", {name: lost for name, lost in dropped.items() if lost}),
            ("refused", dict(ledger.refused)),
            *self.beside().items(),
            ("dropped", ledger.dropped_by_reason()),
        ):
            if value:
                extra[key] = value
        return extra

    def _guard(self) -> Mapping[str, object]:
        state, skipped = self.guard(), self.counters.value(names.FRAMES_SKIPPED)
        if state.share >= 1.0 and not skipped:
            return {}
        return {"share": state.share, "why": list(state.reasons), "frames_skipped": skipped}

    def _published(self) -> Mapping[str, object]:
        sent, dropped = self.counters.value(names.DETECTIONS_PUBLISHED), self.counters.value(names.DETECTIONS_UNPUBLISHED)
        return {"detections": sent, "dropped": dropped} if sent or dropped else {}

    def spent(self) -> dict[str, int]:
        """Letter of each kind -> bytes since the agent's first start, where there are any."""
        counted = {letter: self.counters.value(names.spent_on(kind)) for kind, letter in LETTERS.items()}
        return {letter: size for letter, size in counted.items() if size}

    def line(self) -> str:
        """One line for the supervisor's status: model, cameras, rate, and what is out of order."""
        inference, workers = self.inference, self.cameras.workers
        digest = inference.model_digest
        well = sum(worker.state == "ok" for worker in workers)
        parts = [
            f"model {digest[:12]}" if digest else "waiting for a model",
            f"{well} of {len(workers)} cameras ok",
            f"{inference.rate.fps:.1f} frames/s",
        ]
        state = self.guard()
        if state.share < 1.0:
            parts.append(f"guard: {state.share * 100:.0f} % of the frame rate ({'; '.join(state.reasons)})")
        if self.reload.faults:
            parts.append("the changed configuration has faults and is not in force")
        return ", ".join(parts)


def idle_interval_s(interval_s: float, idle_s: float) -> float:
    """Seconds between two messages of a device on which nothing happens; a short interval shortens it as well."""
    return max(interval_s, min(idle_s, _IDLE_INTERVALS * interval_s))


def news_of(health: Health) -> tuple[object, ...]:
    """What of a health message is news: while it stays the same, frames pass and nothing happens that anybody waits for."""
    window = health.extra.get("window")
    return (
        health.model_digest,
        health.frames_selected,
        health.frames_committed,
        health.desired_version,
        {state: count for state, count in health.spool.items() if state != "candidate"},
        dict(health.evicted),
        dict(health.cameras),
        bool(window.get("round_closed")) if isinstance(window, dict) else None,
        {key: value for key, value in health.extra.items() if key not in _NO_NEWS},
    )


def _shortened(runs_with: Mapping[str, object]) -> dict[str, object]:
    if not runs_with:
        return {}
    short = {key: runs_with[key] for key in _IN_HEALTH if key in runs_with}
    return {**short, "file_digest": str(runs_with.get("file_digest", ""))[:_FILE_DIGEST_DIGITS]}


def now_ms() -> int:
    """UTC wall time in milliseconds since the epoch: data, never a timeout."""
    return int(time.time() * 1000)
