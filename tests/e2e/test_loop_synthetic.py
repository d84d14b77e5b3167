"""The whole loop, twice, as processes: `bowerbird serve`, two agents on synthetic cameras, the simulated annotator, real training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bowerbird_server.catalogue import Row, fleet
from bowerbird_server.demo import run as demo_run
from bowerbird_server.demo.facts import gather
from bowerbird_testing.broker import mosquitto_path
from bowerbird_testing.small_demo import SMALL, Screen, assert_nothing_lost_nothing_doubled, ledger, no_process_left, pids

pytestmark = [
    pytest.mark.train,
    pytest.mark.broker,
    pytest.mark.xdist_group("system"),
    pytest.mark.skipif(mosquitto_path() is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]
# The keys that the demo's `--json` promises.
PROMISED = (
    "first.map50_95",
    "first.digest",
    "rounds[].map50_95",
    "rounds[].labels",
    "rounds[].promoted",
    "promoted.digest",
    "devices[].id",
    "devices[].digest",
    "frames.seen",
    "frames.sent",
    "bytes.sent",
    "bytes.everything",
    "seconds",
)


@dataclass(frozen=True)
class Finished:
    """A demo whose two rounds are over, its processes still up."""

    state: demo_run.Running
    facts: dict[str, Any]
    said: list[str]
    pids_at_first: dict[str, int]

    def rows(self, sql: str, *values: object) -> list[Row]:
        """Rows of the site's catalogue."""
        return self.state.site.catalogue.rows(sql, *values)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, first_models: Path) -> Iterator[Finished]:
    """Run the small demo to its end."""
    folder = tmp_path_factory.mktemp("loop") / "demo"
    options = demo_run.DemoOptions(folder, first_models, recipe=SMALL)
    screen = Screen()
    with (
        no_process_left(folder),
        demo_run.demo_folder(options, screen) as mark,
        demo_run.running_demo(options, mark, screen) as state,
    ):
        at_first: dict[str, int] = {}

        class Watching(Screen):
            """Notes the processes as soon as both agents run."""

            def progress(self, text: str, done: int, total: int) -> None:
                if not {"cam-1", "cam-2"} <= at_first.keys():
                    at_first.update(pids(state))
                super().progress(text, done, total)

        watching = Watching()
        demo_run.wait_for_loop(state, watching)
        yield Finished(state, json.loads(json.dumps(gather(state))), screen.lines + watching.lines, at_first)


def _at(facts: Any, path: str) -> list[Any]:
    """Every value at a path like `rounds[].labels`; a missing key is an error."""
    found = [facts]
    for part in path.split("."):
        found = [value[part.removesuffix("[]")] for value in found]
        if part.endswith("[]"):
            assert all(found), f"{path}: an empty list"
            found = [item for items in found for item in items]
    return found


@pytest.mark.parametrize("path", PROMISED)
def test_the_facts_hold_every_key_that_is_promised(finished: Finished, path: str) -> None:
    """`--json` writes it with a value, for each round and device."""
    assert all(value is not None for value in _at(finished.facts, path))


def test_both_rounds_are_complete_and_their_labels_counted(finished: Finished) -> None:
    """Two rounds finished, each with a trained, judged model and every wanted frame labelled, whatever the gate said."""
    rounds = finished.rows("SELECT * FROM round ORDER BY number")
    assert [row["state"] for row in rounds] == ["finished", "finished"]
    assert [one["labels"] for one in finished.facts["rounds"]] == [SMALL.labels_per_round] * 2
    assert len({one["digest"] for one in finished.facts["rounds"]}) == 2
    for one in finished.facts["rounds"]:
        assert one["error"] == ""
        assert one["reasons"]
        assert one["promoted"] == (one["digest"] in {row["model"] for row in finished.rows("SELECT model FROM rollout")})
    authors = {
        row["author"]
        for row in finished.rows("SELECT DISTINCT author FROM label JOIN frame ON frame = frame.id WHERE device IS NOT NULL")
    }
    assert authors == {"simulated annotator"}


def test_the_second_round_learns_from_the_labels_of_both(finished: Finished) -> None:
    """Each round's data set holds the one before it and its own frames."""
    trained = finished.rows(
        "SELECT dataset_version.frames FROM training_run JOIN dataset_version ON dataset_version.id = dataset_version "
        "WHERE training_run.id IN (SELECT training_run FROM round) ORDER BY training_run.id"
    )
    first, second = (row["frames"] for row in trained)
    assert first == SMALL.first_frames + SMALL.held_out_frames + SMALL.labels_per_round
    assert second == first + SMALL.labels_per_round


def test_nothing_is_lost_and_nothing_doubled(finished: Finished) -> None:
    """Both agents' ledgers balance and agree with the catalogue; each frame row has its picture."""
    assert_nothing_lost_nothing_doubled(finished.state)
    committed = sum(ledger(finished.state, device)[0].committed for device in ("cam-1", "cam-2"))
    assert committed == finished.facts["frames"]["sent"] == 2 * SMALL.labels_per_round


def test_no_frame_is_sent_unasked(finished: Finished) -> None:
    """The cameras watch from the start, but the first frame comes after the first round was opened, with a model's judgement."""
    first = finished.rows("SELECT min(received_at) AS at FROM frame WHERE device IS NOT NULL")[0]["at"]
    assert first > finished.rows("SELECT opened_at FROM round WHERE number = 1")[0]["opened_at"]
    assert finished.rows("SELECT count(*) AS n FROM frame WHERE device IS NOT NULL AND model = ''")[0]["n"] == 0


def test_sending_chosen_frames_costs_less_than_sending_all(finished: Finished) -> None:
    """The whole uplink, health and all, against the same frames at the same size and encoder."""
    sent, frames = finished.facts["bytes"], finished.facts["frames"]
    assert 0 < sent["sent"] < sent["everything"]
    assert frames["sent"] < frames["seen"]
    stored = finished.rows("SELECT sum(bytes) AS bytes FROM frame WHERE device IS NOT NULL")[0]["bytes"]
    assert stored < sent["sent"]


def test_every_chosen_frame_says_why_and_how_likely_it_was(finished: Finished) -> None:
    """Reasons, a score, the batch's word, and an inclusion probability that later statistics can use."""
    chosen = [frame for one in finished.facts["rounds"] for frame in one["frames"]]
    assert len({frame["id"] for frame in chosen}) == 2 * SMALL.labels_per_round
    assert {frame["camera"] for frame in chosen} == {"cam-1/street", "cam-2/street"}
    for frame in chosen:
        assert frame["arm"] in ("policy", "explore")
        assert all(frame["reasons"]), frame
        assert frame["why"]
        assert 0.0 < frame["inclusion_probability"] <= 1.0
        assert 0.0 <= frame["score"] <= 1.0


def test_the_agents_run_the_champion_and_never_restarted(finished: Finished) -> None:
    """Both report the champion's digest, from the processes that were started."""
    digests = {row["id"]: row["model_digest"] for row in fleet.list_devices(finished.state.site.catalogue)}
    assert digests == dict.fromkeys(("cam-1", "cam-2"), finished.facts["promoted"]["digest"])
    now = pids(finished.state)
    assert {name: now[name] for name in ("cam-1", "cam-2")} == {
        name: finished.pids_at_first[name] for name in ("cam-1", "cam-2")
    }


def test_the_model_before_the_rounds_came_by_signed_update_too(finished: Finished) -> None:
    """Releases count up from 1, one for each model that was ever sent, and every rollout ended well."""
    rollouts = finished.rows("SELECT * FROM rollout ORDER BY id")
    assert [row["release"] for row in rollouts] == list(range(1, len(rollouts) + 1))
    assert [row["state"] for row in rollouts] == ["completed"] * len(rollouts)
    assert len(rollouts) == 1 + sum(one["promoted"] for one in finished.facts["rounds"])


def test_random_picks_are_trained_for_comparison(finished: Finished) -> None:
    """As many random labels as the loop used, with a result of their own."""
    random = finished.facts["random"]
    assert random["error"] == ""
    assert random["labels"] == 2 * SMALL.labels_per_round
    assert random["map50_95"] is not None
