"""Rollouts and their executions in the catalogue; each step of `rollout.py` is one transaction with its event.

In: operators' wishes, devices' reports. Out: rows, and the jobs that devices should hold. It signs and sends nothing (`delivery.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from bowerbird_server.catalogue.core import Catalogue, Row, new_id, utc_now
from bowerbird_server.errors import BadInput, Conflict, NotFound
from bowerbird_server.fleet.rollout import (
    CANCELLED,
    FAILED,
    FINISHED,
    OFFERED,
    OPEN,
    SUCCEEDED,
    TIMED_OUT,
    WAITING,
    Event,
    Execution,
    IllegalTransition,
    Settings,
    State,
    accepts,
    assign_waves,
    decide,
    outcome,
)
from bowerbird_server.fleet.rollout import advance as next_state
from bowerbird_wire.messages import OF, Job, Report

ACTOR = "rollout"


@dataclass(frozen=True)
class DeviceJob:
    """The unsigned job that a device should hold; `is_agent`: of the agent itself, else of a model."""

    device: str
    site: str
    job: Job
    is_agent: bool = False


def start_rollout(
    cat: Catalogue,
    model_digest: str,
    release: int,
    devices: Sequence[str],
    actor: str,
    *,
    settings: Settings | None = None,
    approved: bool = True,
    agent_version: str = "",
) -> str:
    """A rollout of a published model; an older one that is still open is aborted, since this one supersedes it.

    Args:
        model_digest: of the model, or, with `agent_version`, of a release of the agent; each supersedes its own kind only.
        release: its release number in the update repository.
        agent_version: version of the agent that the release brings.
        devices: names of active devices, and of pending ones, which join when they are let in.
        approved: approve and start at once (automatic after the gate); otherwise it waits as a draft for `approve`.

    Returns:
        The rollout's id.

    Raises:
        NotFound: a device is not active here.
    """
    settings = settings or Settings()
    rollout = new_id()
    now = utc_now()
    with cat.transaction():
        for older in running(cat):
            if bool(older["agent"]) != bool(agent_version):
                continue
            transition(cat, older["id"], Event.ABORT, actor, {"reason": "superseded", "by": rollout})
        content = {"agent": model_digest, "agent_version": agent_version} if agent_version else {"model": model_digest}
        values = {"id": rollout, "created_at": now, **content, "release": release, "state": State.DRAFT.value}
        cat.insert("rollout", {**values, "settings": settings.to_json()})
        for device, wave in sorted(assign_waves(rollout, devices, settings.wave_shares).items()):
            known = cat.value("SELECT state FROM device WHERE id = ?", device)
            if known == "pending":
                continue  # it joins when it is let in
            if known != "active":
                raise NotFound(f"no active device {device[:80]!r}; `bowerbird devices list` shows all")
            row = {"rollout": rollout, "device": device, "job": new_id(), "wave": wave, "state": WAITING, "updated_at": now}
            cat.insert("execution", row)
        cat.log(actor, "rollout made", rollout, {**content, "release": release, "devices": len(devices)})
        if approved:
            transition(cat, rollout, Event.APPROVE, actor)
            transition(cat, rollout, Event.START, actor)
    return rollout


def join(cat: Catalogue, device: str) -> bool:
    """A device that has just become active takes part in the newest rollout of a model, also in one that is over, so that it gets the
    model that the others run; whether there is one. Which version of the agent it runs was the installer's choice.
    """
    with cat.transaction():
        newest = cat.row(
            "SELECT id, state FROM rollout WHERE agent = '' AND state NOT IN (?, ?) ORDER BY id DESC LIMIT 1",
            State.ABORTED.value,
            State.ROLLED_BACK.value,
        )
        if newest is None:
            return False
        known = cat.value("SELECT state FROM execution WHERE rollout = ? AND device = ?", newest["id"], device)
        if known not in (None, CANCELLED):
            return True
        wave = int(cat.value("SELECT coalesce(max(wave), 0) FROM execution WHERE rollout = ?", newest["id"]))
        cat.execute("DELETE FROM execution WHERE rollout = ? AND device = ?", newest["id"], device)
        state = OFFERED if newest["state"] == State.COMPLETED.value else WAITING
        row = {
            "rollout": newest["id"],
            "device": device,
            "job": new_id(),
            "wave": wave,
            "state": state,
            "updated_at": utc_now(),
        }
        cat.insert("execution", row)
        cat.log(device, "rollout joined", newest["id"], {"state": state})
    return True


def transition(cat: Catalogue, rollout: str, event: Event, actor: str, why: Mapping[str, object] | None = None) -> State:
    """Apply an event; the new state. Abort and roll-back withdraw the job from devices that are not done with it.

    Resuming offers the job again to the devices that failed or stayed silent.

    Raises:
        NotFound: there is no such rollout.
        Conflict: not possible in its state.
    """
    with cat.transaction():
        state = State(get(cat, rollout)["state"])
        try:
            to = next_state(state, event)
        except IllegalTransition as error:
            raise Conflict(str(error)) from error
        now = utc_now()
        finished = None if to in OPEN else now
        cat.execute("UPDATE rollout SET state = ?, finished_at = ? WHERE id = ?", to.value, finished, rollout)
        if event in (Event.ABORT, Event.ROLL_BACK):
            cat.execute(
                "UPDATE execution SET state = ?, updated_at = ? WHERE rollout = ? AND state NOT IN (?, ?)",
                *(CANCELLED, now, rollout, SUCCEEDED, FAILED),
            )
        if event is Event.RESUME:
            for row in cat.rows(
                "SELECT device FROM execution WHERE rollout = ? AND state IN (?, ?)", rollout, FAILED, TIMED_OUT
            ):
                cat.execute(
                    "UPDATE execution SET state = ?, job = ?, code = '', detail = '', updated_at = ? WHERE rollout = ? AND device = ?",
                    *(WAITING, new_id(), now, rollout, row["device"]),
                )
        cat.log(actor, f"rollout {to.value}", rollout, {"from": state.value, **(why or {})})
    return to


def approve(cat: Catalogue, rollout: str, actor: str, credential: str = "") -> None:
    """Let a draft begin; whoever made it may not, nor anybody who came in with the same credential under another name.

    Args:
        credential: `user:NAME` or `token:ID`, "" at the command line of the server's machine.

    Raises:
        NotFound: there is no such rollout.
        Conflict: it is no draft, or the same person's.
    """
    with cat.transaction():
        row = get(cat, rollout)
        made = cat.row("SELECT actor, origin FROM event WHERE subject = ? AND kind = 'rollout made'", row["id"])
        same = made is None or made["actor"] == actor or (credential and made["origin"].split(" ")[-1] == credential)
        if row["state"] == State.DRAFT.value and same:
            raise Conflict(
                "somebody else has to approve this rollout: it was started by the same person or with the same token"
            )
        transition(cat, row["id"], Event.APPROVE, actor)
        transition(cat, row["id"], Event.START, actor)


def steer(cat: Catalogue, rollout: str, event: str, actor: str) -> State:
    """`transition` by an operator's word: approve, start, pause, resume, abort.

    Raises:
        BadInput: another word.
        NotFound: there is no such rollout.
        Conflict: not possible in its state.
    """
    if event not in ("approve", "start", "pause", "resume", "abort"):
        raise BadInput(f"a rollout cannot be told to {event[:40]!r}; use approve, start, pause, resume or abort")
    return transition(cat, rollout, Event(event), actor)


def get(cat: Catalogue, rollout: str) -> Row:
    """A rollout by its id or an unambiguous end of it, with `settings` as a dictionary and its `executions`.

    Raises:
        NotFound: there is no such rollout, or more than one.
    """
    # The beginning of an id is a time, the end is random.
    found = cat.rows(
        "SELECT * FROM rollout WHERE id = ?1 OR (length(?1) >= 4 AND substr(id, -length(?1)) = ?1) LIMIT 2", rollout
    )
    if len(found) != 1:
        raise NotFound(f"{'no' if not found else 'more than one'} rollout {rollout[:80]!r}; `bowerbird rollout list` shows all")
    row = found[0]
    return {**row, "settings": json.loads(row["settings"]), "executions": executions(cat, row["id"])}


def executions(cat: Catalogue, rollout: str) -> list[Row]:
    """A rollout's devices, by wave and name."""
    return cat.rows("SELECT * FROM execution WHERE rollout = ? ORDER BY wave, device", rollout)


def list_rollouts(cat: Catalogue, limit: int = 100) -> list[Row]:
    """Rollouts, newest first, each as `get` returns it."""
    return [get(cat, row["id"]) for row in cat.rows("SELECT id FROM rollout ORDER BY id DESC LIMIT ?", limit)]


def running(cat: Catalogue) -> list[Row]:
    """Rollouts that are not over: draft, approved, running or paused."""
    marks = ", ".join("?" * len(OPEN))
    # Only question marks are put into the text.
    return cat.rows(f"SELECT * FROM rollout WHERE state IN ({marks}) ORDER BY id", *sorted(s.value for s in OPEN))  # noqa: S608


def record_report(cat: Catalogue, device: str, report: Report) -> bool:
    """What a device reports about its job; False when it has no such job. Repeats and late repeats change nothing."""
    with cat.transaction():
        row = cat.row(
            "SELECT execution.*, coalesce(rollout.model, rollout.agent) AS content FROM execution "
            "JOIN rollout ON rollout.id = execution.rollout WHERE job = ? AND device = ?",
            *(report.job_id, device),
        )
        if row is None:
            return False
        to, code = outcome(report.state, running_digest=report.running_digest, model_digest=row["content"], code=report.code)
        if to == row["state"] or not accepts(row["state"], to):
            return True
        _move(cat, row["rollout"], device, to, device, code=code, detail=report.detail)
    return True


def record_running(cat: Catalogue, device: str, running_digest: str) -> bool:
    """A heartbeat names the model a device runs: one that left the model it had committed counts as failed. Whether it did."""
    if not running_digest:
        return False
    with cat.transaction():
        row = cat.row(
            "SELECT execution.*, rollout.model FROM execution JOIN rollout ON rollout.id = execution.rollout "
            "WHERE device = ? AND rollout.model IS NOT NULL ORDER BY rollout.id DESC LIMIT 1",
            device,
        )
        if row is None or row["state"] != SUCCEEDED or row["model"] == running_digest:
            return False
        detail = f"reports model {running_digest[:12]} after it had committed {row['model'][:12]}"
        _move(cat, row["rollout"], device, FAILED, device, code="reverted", detail=detail)
    return True


def record_agent_version(cat: Catalogue, device: str, version: str) -> bool:
    """The same of the agent: a device that comes up with another version than the one it had committed. Whether it did."""
    if not version:
        return False
    with cat.transaction():
        row = cat.row(
            "SELECT execution.*, rollout.agent_version FROM execution JOIN rollout ON rollout.id = execution.rollout "
            "WHERE device = ? AND rollout.agent != '' ORDER BY rollout.id DESC LIMIT 1",
            device,
        )
        if row is None or row["state"] != SUCCEEDED or row["agent_version"] == version:
            return False
        detail = f"runs version {version[:40]} after it had committed {row['agent_version']}"
        _move(cat, row["rollout"], device, FAILED, device, code="reverted", detail=detail)
    return True


def advance(cat: Catalogue) -> list[str]:
    """Take every running rollout as far as it goes now; ids of those that changed. Call it every second or so."""
    changed: list[str] = []
    for rollout in cat.rows("SELECT id, settings FROM rollout WHERE state = ? ORDER BY id", State.RUNNING.value):
        with cat.transaction():
            # Asked again inside the transaction: an operator may have paused it in between.
            if get(cat, rollout["id"])["state"] == State.RUNNING.value and _advance_one(cat, rollout):
                changed.append(rollout["id"])
    return changed


def _advance_one(cat: Catalogue, rollout: Row) -> bool:
    identity = rollout["id"]
    retired = cat.rows(
        "SELECT device, execution.state FROM execution JOIN device ON device.id = device "
        "WHERE rollout = ? AND device.state != 'active'",
        identity,
    )
    for row in retired:
        if row["state"] not in FINISHED:
            _move(cat, identity, row["device"], CANCELLED, ACTOR, code="retired")
    parts = [
        Execution(row["device"], row["wave"], row["state"], _age_s(row["updated_at"]), row["code"])
        for row in cat.rows("SELECT * FROM execution WHERE rollout = ? ORDER BY device", identity)
    ]
    decision = decide(parts, Settings.from_json(rollout["settings"]))
    for device in decision.timed_out:
        _move(cat, identity, device, TIMED_OUT, ACTOR, detail="the device stayed silent")
    for device in decision.offer:
        _move(cat, identity, device, OFFERED, ACTOR)
    if decision.event is not None:
        transition(cat, identity, decision.event, ACTOR, decision.why)
    return bool(decision.offer or decision.timed_out or decision.event)


def _age_s(updated_at: str) -> float:
    # Wall time, since it must outlive the process; a clock that is set back only makes a silent device wait longer.
    return (datetime.now(tz=UTC) - datetime.fromisoformat(updated_at.replace("Z", "+00:00"))).total_seconds()


def _move(cat: Catalogue, rollout: str, device: str, to: str, actor: str, *, code: str = "", detail: str = "") -> None:
    cat.execute(
        "UPDATE execution SET state = ?, code = ?, detail = ?, updated_at = ? WHERE rollout = ? AND device = ?",
        *(to, code[:100], detail[:500], utc_now(), rollout, device),
    )
    cat.log(actor, f"execution {to[:40]}", f"{rollout}/{device}", {"code": code[:100], "detail": detail[:500]})


def jobs(cat: Catalogue) -> list[DeviceJob]:
    """The job that each active device should hold, of the newest rollout of a model, and of the agent, that has reached it.

    A device that failed gets none (it would refuse the model anyway), one that was withdrawn gets a cancel.
    """
    rows = cat.rows(
        "SELECT execution.*, rollout.model, rollout.agent, rollout.release, rollout.created_at, device.site FROM execution "
        "JOIN rollout ON rollout.id = execution.rollout JOIN device ON device.id = execution.device "
        "WHERE device.state = 'active' AND execution.state != ? ORDER BY rollout.id",
        WAITING,
    )
    newest = {(row["device"], bool(row["agent"])): row for row in rows}
    return [_device_job(row) for row in newest.values() if row["state"] != FAILED]


def _device_job(row: Row) -> DeviceJob:
    created = datetime.fromisoformat(row["created_at"].replace("Z", "+00:00"))
    action = "cancel" if row["state"] == CANCELLED else "install"
    is_agent = bool(row["agent"])
    digest, extra = (row["agent"], {OF: "agent"}) if is_agent else (row["model"], {})
    job = Job(row["job"], digest, row["release"], action, int(created.timestamp() * 1000), extra=extra)
    return DeviceJob(row["device"], row["site"], job, is_agent)
