"""Candidates that wait for bytes survive the agent: killed, those of later windows; ended in order, those of the open window too."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from bowerbird_testing.agent_process import AgentProcess, write_config
from bowerbird_testing.broker import free_port
from bowerbird_testing.mqtt_device import wait_until

CAMERA = '[[cameras]]\nname = "gate"\nsource = "synthetic:?seed=1&fps=5"\nfps = 30\n'
# A day's bytes are a few frames: most candidates of a window wait for a later one.
OVERRIDES = {
    "selection": {"window_frames": 20, "frames_per_window": 6, "min_gap_s": 0.1, "spread": 0.0, "epsilon": 0.5},
    "budget": {"bytes_per_day": 400_000},
    "accounting": {"encode_everything": False},
}


class Index:
    """A look at the spool of a running agent."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "spool" / "index.db"

    def _rows(self, sql: str) -> list[tuple[object, ...]]:
        if not self._path.exists():
            return []
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as db, suppress(sqlite3.OperationalError):
            return db.execute(sql).fetchall()
        return []  # it is just being made

    @property
    def candidates(self) -> set[object]:
        return {row[0] for row in self._rows("SELECT frame_id FROM frame WHERE state = 'candidate'")}

    @property
    def here(self) -> set[object]:
        return {row[0] for row in self._rows("SELECT frame_id FROM frame")}

    def counted(self, prefix: str) -> int:
        return sum(int(str(row[1])) for row in self._rows("SELECT name, value FROM counter") if str(row[0]).startswith(prefix))


def test_candidates_that_wait_for_bytes_go_on_waiting_whatever_ended_the_agent(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=free_port(), cameras=CAMERA, overrides=OVERRIDES)
    index = Index(tmp_path / "state")
    with AgentProcess(config) as agent:
        wait_until(lambda: index.counted("windows_closed") >= 4 and len(index.candidates) >= 8, "a ring that fills", 300)
        agent.kill()
        waited = index.candidates
        agent.start()
        wait_until(lambda: agent.log.count("runs now") == 2, "the second start", 300)
        cut_short = index.counted("spool.dropped:window_cut_short")
        assert cut_short < len(waited) / 2, "those of the window that was open when it was killed"
        wait_until(lambda: len(index.here & waited) >= len(waited) / 2, "what waited is still here", 10)
        code, _ = agent.terminate(timeout_s=60)
        assert code == 0
        left = index.candidates
        assert left
        agent.start()
        wait_until(lambda: agent.log.count("runs now") == 3, "the third start", 300)
        assert index.counted("spool.dropped:window_cut_short") == cut_short, "an orderly end gives up none"
    assert "Traceback" not in agent.log
