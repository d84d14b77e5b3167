"""What a device tells about itself: the `Health` and `Status` messages, put together from the parts' own counts.

In: counters, ledger, inference and cameras. Out: messages. It counts nothing itself and sends nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bowerbird_agent import counters as names
from bowerbird_wire.messages import Health, Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bowerbird_agent.capture_worker import CaptureWorker
    from bowerbird_agent.counters import Counters
    from bowerbird_agent.inference import Inference
    from bowerbird_agent.spool_index import Ledger
    from bowerbird_agent.storing import StoringThread


@dataclass(frozen=True)
class Vitals:
    """The parts that health asks."""

    counters: Counters
    inference: Inference
    storing: StoringThread
    workers: Sequence[CaptureWorker]
    boot_id: str
    agent_version: str

    def status(self) -> Status:
        """The retained presence while connected."""
        return Status("online", self.boot_id, self.agent_version, self.inference.model_digest, now_ms())

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
            cameras={worker.name: worker.state[:300] for worker in self.workers},
            fps=round(inference.fps, 2),
            inference_ms=round(inference.inference_ms, 2),
            extra=self._extra(ledger),
        )

    def _extra(self, ledger: Ledger) -> Mapping[str, object]:
        """`window`: frames judged in the open window, windows closed in this round and ever; the rest only when it says something.

        `camera_dropped`: camera -> frames dropped since the agent's first start.
        """
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
        if not self.inference.model_digest:
            trouble.append("there is no model yet; frames are not looked at")
        dropped = {worker.name: count(names.dropped_of(worker.name)) for worker in self.workers}
        failures = (names.DETECTOR_FAILURES, names.SCORING_FAILURES, names.STORE_REFUSED)
        counted = {name: count(name) for name in failures if count(name)}
        for key, value in (
            ("trouble", trouble),
            ("failures", counted),
            ("camera_dropped", {name: lost for name, lost in dropped.items() if lost}),
            ("refused", dict(ledger.refused)),
            ("dropped", dict(ledger.dropped)),
        ):
            if value:
                extra[key] = value
        return extra


def now_ms() -> int:
    """UTC wall time in milliseconds since the epoch: data, never a timeout."""
    return int(time.time() * 1000)
