"""A soak: agents, ingest, delivery and the broker are killed at random over a link that resets, and the account is checked all
along.

In: a folder, a seed, how many kills. Out: numbers of the checker; `Discrepancy` when a frame is lost or double. Every draw is one
of the seed and of the step's number, and the number is on disk: a soak that was interrupted goes on in the same folder where it
was.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bowerbird_testing import fault_processes
from bowerbird_testing.broker import Mosquitto
from bowerbird_testing.fault_device import work
from bowerbird_testing.fault_site import FaultSite
from bowerbird_testing.thin_link import ThinLink

# One sends many small frames, the other large ones, in parts, from a spool that is soon full.
KINDS: dict[str, dict[str, Any]] = {"cam-01": {}, "cam-02": {"size": 24_000, "every_s": 0.2, "max_bytes": 2_300_000}}
AGENTS = tuple(KINDS)
WORKERS = 2
LINK_BYTES_PER_S = 250_000
# Victim -> weight. The broker's death takes everybody's connection with it.
VICTIMS = {"agent": 4, "ingest": 4, "delivery": 1, "broker": 1}


class Soak:
    """One soak.

    Args:
        folder: of everything, its progress included.
        seed: of all draws; another one in the same folder is refused.
        longest_s: the longest life between two kills.
    """

    def __init__(self, folder: Path, seed: int, *, longest_s: float = 0.5, every_s: float = 0.05) -> None:
        self.folder, self.seed, self.longest_s, self.every_s = folder, seed, longest_s, every_s
        folder.mkdir(parents=True, exist_ok=True)
        self._progress = folder / "progress.json"
        self.step, self.lives = 0, 0
        self.kills: Counter[str] = Counter()
        if self._progress.exists():
            saved = json.loads(self._progress.read_text())
            if saved["seed"] != seed:
                raise ValueError(
                    f"{folder} holds a soak with seed {saved['seed']}: go on with that seed, or take another folder"
                )
            self.step, self.lives, self.kills = saved["step"], saved["lives"], Counter(saved["kills"])

    def run(
        self, kills: int, *, check_every: int = 50, on_check: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> dict[str, Any]:
        """Kill until there were so many in all, let everything come to rest, and return the last numbers.

        Args:
            check_every: kills between two checks of the account.
            on_check: told the numbers of each.
        """
        with ExitStack() as running:
            broker = running.enter_context(Mosquitto(self.folder / "broker"))
            site = FaultSite(self.folder / "site", broker, AGENTS)
            link = running.enter_context(
                ThinLink(
                    broker.host,
                    broker.port,
                    bytes_per_s=LINK_BYTES_PER_S,
                    rtt_s=0.02,
                    reset_every_s=3.0,
                    seed=self.seed + self.step,
                )
            )
            parts = _Parts(self, site, link)
            running.callback(parts.end_all)
            parts.start_all()
            while sum(self.kills.values()) < kills:
                parts.strike(random.Random(f"{self.seed}/{self.step}"))
                self.step += 1
                self._save()
                if self.step % check_every == 0:
                    parts.end_agents()
                    on_check({**site.check(name=f"step {self.step}", drained=False), "kills": dict(self.kills)})
                    parts.start_agents()
            parts.end_agents()
            parts.drain()
            return {**site.check(name="the end"), "kills": dict(self.kills)}

    def next_life(self) -> int:
        """A number that no agent of this folder has had; on disk before it is used."""
        self.lives += 1
        self._save()
        return self.lives

    def _save(self) -> None:
        part = self._progress.with_suffix(".part")
        part.write_text(json.dumps({"seed": self.seed, "step": self.step, "lives": self.lives, "kills": self.kills}))
        part.replace(self._progress)


class _Parts:
    """The processes of a soak."""

    def __init__(self, soak: Soak, site: FaultSite, link: ThinLink) -> None:
        self._soak, self._site, self._link = soak, site, link
        self._processes: dict[str, BaseProcess] = {}

    def start_all(self) -> None:
        for number in range(1, WORKERS + 1):
            self._start(f"ingest-{number}")
        self._start("delivery")
        self.start_agents()

    def end_all(self) -> None:
        for process in self._processes.values():
            fault_processes.end(process)

    def start_agents(self) -> None:
        for name in AGENTS:
            self._start(name)

    def end_agents(self) -> None:
        """kill -9, and counted as such."""
        for name in AGENTS:
            self._kill(name)
            self._soak.kills["agent"] += 1

    def strike(self, dice: random.Random) -> None:
        """Wait a moment, perhaps disturb the link, kill one part and start it again."""
        time.sleep(dice.uniform(0.0, self._soak.longest_s))
        if dice.random() < 0.05:
            self._link.pause(True)
            time.sleep(dice.uniform(0.1, 1.0))
            self._link.pause(False)
        (victim,) = dice.choices(list(VICTIMS), list(VICTIMS.values()))
        if victim == "broker":
            self._site.broker.restart()
        else:
            name = {
                "agent": dice.choice(AGENTS),
                "ingest": f"ingest-{dice.randint(1, WORKERS)}",
                "delivery": "delivery",
            }[victim]
            self._kill(name)
            self._start(name)
        self._soak.kills[victim] += 1

    def drain(self, timeout_s: float = 240.0) -> None:
        """Let the agents send what is left."""
        for name in AGENTS:
            self._start(name, frames=0, end_when_empty=True)
        until_s = time.monotonic() + timeout_s
        for name in AGENTS:
            self._processes[name].join(max(0.0, until_s - time.monotonic()))
            if self._processes[name].exitcode != 0:
                log = (self._site.root / "logs" / f"{name}.log").read_text()[-2000:]
                raise AssertionError(f"{name} is not through: exit code {self._processes[name].exitcode}\n{log}")

    def _kill(self, name: str) -> None:
        process = self._processes[name]
        if not process.is_alive():
            log = (self._site.root / "logs" / f"{name}.log").read_text()[-2000:]
            raise AssertionError(f"{name} ended by itself with code {process.exitcode}:\n{log}")
        fault_processes.end(process)

    def _start(self, name: str, **order: Any) -> None:
        site = self._site
        server = (str(site.folder.root), site.broker.host, site.broker.port)
        log = site.root / "logs" / f"{name}.log"
        if name == "delivery":
            self._processes[name] = fault_processes.start(log, fault_processes.delivery, *server)
        elif name.startswith("ingest"):
            number = int(name.removeprefix("ingest-"))
            arguments = (*server, "-", 1, number, WORKERS, str(site.held))
            self._processes[name] = fault_processes.start(log, fault_processes.ingest, *arguments)
        else:
            life = self._soak.next_life()
            # Each second life over the link that resets, so that there is progress as well.
            way = {"host": self._link.host, "port": self._link.port} if life % 2 else {}
            values = {"life": life, "every_s": self._soak.every_s, **KINDS[name], **way, **order}
            self._processes[name] = fault_processes.start(log, work, site.order(name, **values))
