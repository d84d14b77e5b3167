"""The scheduler: asks `loop.next_step` what to do and does it, for as long as the server runs.

In: the catalogue. Out: rounds opened, batches built, trainings run, rollouts started, each in a transaction of its own, so that a
scheduler killed anywhere goes on from what is on disk. It labels nothing and talks to no device (see `delivery.py`).
"""

from __future__ import annotations

import json
import logging
import threading
from datetime import UTC, datetime

from bowerbird_server.access import readers
from bowerbird_server.batches.batch import open_batch, plan_batch
from bowerbird_server.batches.looking import try_to_look
from bowerbird_server.catalogue import Row, batches, fleet, frames, rollouts, second_looks
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.catalogue import training as run_rows
from bowerbird_server.catalogue.record_keeping import keep_records
from bowerbird_server.errors import ServerError
from bowerbird_server.fleet.provision import broker_of
from bowerbird_server.loop import LoopFacts, Step, next_step
from bowerbird_server.privacy import retention
from bowerbird_server.privacy.erase import finish_all
from bowerbird_server.releases.registry import open_repository, publish
from bowerbird_server.site import Site
from bowerbird_server.training.snapshot import take_snapshot
from bowerbird_server.training.training_runs import carry_out, queue_run

logger = logging.getLogger(__name__)

ACTOR = "scheduler"
POLL_S = 0.5
REFRESH_S = 3600.0
KEEP_RECORDS_S = 5.0
# Frames that came while nothing else was to do are looked at every so often, so many at a time.
LOOK_S, LOOK_FRAMES = 60.0, 256
WARN_S = 6 * 3600.0  # of certificates that a person renews
PRIVACY_S = 300.0  # what an erasure left, and what is kept too long
# After a step that failed for want of something (disk, signature), do not try again at once.
RETRY_S = 10.0


def run(site: Site, stop: threading.Event) -> None:
    """Work until `stop` is set."""
    refreshed_s = kept_s = privacy_s = warned_s = 0.0
    looked_s = datetime.now(UTC).timestamp()
    warned = ""
    while not stop.is_set():
        try:
            now_s = datetime.now(UTC).timestamp()
            if now_s - refreshed_s > REFRESH_S and model_rows.champion(site.catalogue) is not None:
                open_repository(site).refresh()
                refreshed_s = now_s
            if now_s - kept_s > KEEP_RECORDS_S:
                keep_records(site.catalogue, site.blobs)
                kept_s = now_s
            if now_s - warned_s > WARN_S:
                _warn_of_readers(site)
                warned_s = now_s
            if now_s - privacy_s > PRIVACY_S:
                finish_all(site)
                retention.apply(site)
                privacy_s = now_s
            step = next_step(read_facts(site))
            idle = step in (Step.WAIT, Step.DONE)
            if not idle:
                logger.info("next step: %s", step)
                do_step(site, step)
            elif now_s - looked_s > LOOK_S:
                second_looks.ask(site.catalogue, site.config.labelling.consensus_share, ACTOR)
                try_to_look(site, limit=LOOK_FRAMES, cancelled=stop.is_set)
                looked_s = datetime.now(UTC).timestamp()
            warned = ""
            stop.wait(POLL_S if idle else 0.0)
        except ServerError as error:
            if str(error) != warned:
                logger.warning("%s", error)
            warned = str(error)
            stop.wait(RETRY_S)
    try:
        keep_records(site.catalogue, site.blobs)  # of the last seconds too
    except ServerError as error:
        logger.warning(
            "what was decided in the last %g s may be missing from a catalogue that is rebuilt: %s", KEEP_RECORDS_S, error
        )


def _warn_of_readers(site: Site) -> None:
    broker = broker_of(site)
    if broker is not None:
        for text in readers.warn(site.catalogue, site.folder, broker.readers(), datetime.now(UTC)):
            logger.warning("%s", text)


def read_facts(site: Site) -> LoopFacts:
    """What the catalogue says now."""
    catalogue, loop = site.catalogue, site.config.loop
    rounds = run_rows.rounds(catalogue)
    current = next((row for row in rounds if row["state"] != "finished"), None)
    devices = fleet.active_devices(catalogue)
    run_row = run_rows.run(catalogue, current["training_run"]) if current and current["training_run"] else None
    return LoopFacts(
        collect=loop.collect,
        train=loop.train,
        roll_out=loop.roll_out,
        rounds_limit=loop.rounds,
        rounds_finished=sum(row["state"] == "finished" for row in rounds),
        round_state=None if current is None else current["state"],
        frames_wanted=0 if current is None else current["frames_wanted"],
        frames_received=batches.candidate_count(catalogue),
        devices=len(devices),
        collection_over=current is not None and _collection_over(site, current),
        batch_done=current is not None and _batch_done(site, current),
        open_run=run_rows.next_open_run(catalogue) is not None,
        round_run_state=None if run_row is None else run_row["state"],
        round_rollout_state=None if current is None else _rollout_state(site, current),
        champion_rolled_out=not [each for each in rollouts.running(catalogue) if each["model"]],
    )


def _batch_done(site: Site, current: Row) -> bool:
    state: str | None = site.catalogue.value("SELECT state FROM batch WHERE id = ?", current["batch"])
    return state == "done"


def _rollout_state(site: Site, current: Row) -> str | None:
    state: str | None = site.catalogue.value("SELECT state FROM rollout WHERE id = ?", current["rollout"])
    return state


def _collection_over(site: Site, current: Row) -> bool:
    """Whether every active device has closed this round's window and all it chose is committed here, or the wait is over."""
    waited_s = (datetime.now(UTC) - datetime.fromisoformat(current["opened_at"])).total_seconds()
    if waited_s > site.config.loop.wait_s:
        return True
    return all(_has_sent_all(site, row) for row in fleet.list_devices(site.catalogue) if row["state"] == "active")


def _has_sent_all(site: Site, device: Row) -> bool:
    health = device["health"]
    if health.get("desired_version") != device["desired_version"]:
        return False  # it has not heard of this round
    if not health.get("extra", {}).get("window", {}).get("round_closed"):
        return False
    here = sum(frames.count_by_state(site.catalogue, device=device["id"]).values())
    unsent = sum(health.get("spool", {}).get(state, 0) for state in ("new", "sent", "in_doubt"))
    return unsent == 0 and here >= int(health.get("frames_selected", 0))


def do_step(site: Site, step: Step) -> None:
    """Carry out one step.

    Raises:
        ServerError: the surroundings do not allow it now; the facts are unchanged and the step comes again.
    """
    rounds = run_rows.rounds(site.catalogue)
    current = rounds[-1] if rounds else None
    if step is Step.TRAIN:
        open_run = run_rows.next_open_run(site.catalogue)
        if open_run is not None:
            carry_out(site, open_run)
    elif step is Step.OPEN_ROUND:
        _open_round(site)
    elif current is not None:
        _ROUND_STEPS[step](site, current)


def _open_round(site: Site) -> None:
    """Ask each device for its share of the round's frames, on top of what it has sent already."""
    devices = sorted(fleet.active_devices(site.catalogue))
    wanted = site.config.loop.frames_per_round
    with site.catalogue.transaction():
        run_rows.open_round(site.catalogue, wanted, ACTOR)
        for place, device in enumerate(devices):
            share = wanted // len(devices) + (place < wanted % len(devices))
            health = fleet.get(site.catalogue, device)["health"]
            sent = max(
                int(health.get("frames_selected", 0)), sum(frames.count_by_state(site.catalogue, device=device).values())
            )
            fleet.set_frames_total(site.catalogue, device, sent + share, ACTOR)


def _build_batch(site: Site, current: Row) -> None:
    try_to_look(site)
    plan = plan_batch(site.catalogue, frames=current["frames_wanted"], actor=ACTOR, settings=site.config.labelling)
    if plan is None:
        return
    with site.catalogue.transaction():
        batch = open_batch(site.catalogue, plan, ACTOR, site.blobs)
        run_rows.move_round(site.catalogue, current["number"], "labelling", ACTOR, batch=batch)


def _queue_training(site: Site, current: Row) -> None:
    version = take_snapshot(site.catalogue, site.blobs, holdout_share=site.config.loop.holdout_share, actor=ACTOR)
    with site.catalogue.transaction():
        run_id = queue_run(site, version, site.config.loop.training, ACTOR)
        run_rows.move_round(site.catalogue, current["number"], "training", ACTOR, training_run=run_id)


def _roll_out(site: Site, current: Row) -> None:
    digest = json.loads(run_rows.run(site.catalogue, current["training_run"])["result"])["model"]
    release = publish(site, digest, ACTOR)
    with site.catalogue.transaction():
        devices = sorted(fleet.active_devices(site.catalogue))
        approved = site.config.rollout.approval == "none"
        rollout = rollouts.start_rollout(site.catalogue, digest, release, devices, ACTOR, approved=approved)
        run_rows.move_round(site.catalogue, current["number"], "rolling_out", ACTOR, rollout=rollout)


def _finish_round(site: Site, current: Row) -> None:
    run_rows.move_round(site.catalogue, current["number"], "finished", ACTOR)


_ROUND_STEPS = {
    Step.BUILD_BATCH: _build_batch,
    Step.QUEUE_TRAINING: _queue_training,
    Step.ROLL_OUT: _roll_out,
    Step.FINISH_ROUND: _finish_round,
}
