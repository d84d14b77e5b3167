"""Which received frames go to people next: reads what is known of them, has `batch_choice.choose` decide, opens the batch.

In: the catalogue, the labelling settings. Out: an open batch with a role and a reason for each frame, a manifest, and frames set
aside: copies, near-copies of what is labelled, chosen frames of held-out scenes. Scenes of the random audit get their side here, by
chance, before any of their frames is shown to anybody. It looks at no pixels (`looking.py` has that done before) and trains nothing.

`plan_batch` reads and thinks without holding the catalogue; `open_batch` is one short transaction; `build_batch` is both.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bowerbird_models.frame_value import BALANCED
from bowerbird_server.batches import batch_manifest
from bowerbird_server.batches.batch_choice import BatchPolicy, Candidate, Chosen, choose
from bowerbird_server.batches.evaluation_routing import HELD_OUT, TRAINED_ON, route
from bowerbird_server.batches.labelling_cost import cost_of, fit_effort
from bowerbird_server.batches.looking import teacher_of
from bowerbird_server.batches.rescoring import combined, ranks_within
from bowerbird_server.batches.yields import by_strategy, judge_policy, weights_of
from bowerbird_server.blobs import BlobStore
from bowerbird_server.catalogue import batches, datasets, judged, looks, new_id
from bowerbird_server.catalogue import models as model_rows
from bowerbird_server.catalogue.core import Catalogue, Row
from bowerbird_server.catalogue.looks import Look
from bowerbird_server.config import LabellingConfig
from bowerbird_server.errors import BadInput, Conflict
from bowerbird_server.ingest.incoming import NEAR_DUPLICATE
from bowerbird_wire.thumbnail import THUMBNAIL_BYTES, difference

__all__ = ["BatchPolicy", "Candidate", "Chosen", "Plan", "build_batch", "choose", "open_batch", "plan_batch"]

logger = logging.getLogger(__name__)

_TIMED_LABELS = 500
_ROUTING_SEED = "selection.routing_seed"


@dataclass(frozen=True)
class Plan:
    """A batch that may be opened; frames that are no longer `received` by then make that a Conflict."""

    members: tuple[batches.Member, ...]
    policy: Mapping[str, Any]
    manifest: Mapping[str, Any]


def build_batch(
    cat: Catalogue,
    *,
    frames: int,
    policy: BatchPolicy | None = None,
    actor: str = "scheduler",
    among: Catalogue | None = None,
    blobs: BlobStore | None = None,
    settings: LabellingConfig | None = None,
) -> str | None:
    """Open a batch of up to `frames` received frames.

    Args:
        policy: how to choose; what `settings` say is added to it.
        among: the catalogue as somebody sees it who is let into some sites only; their batch has their frames.
        blobs: where the manifest goes; None keeps none, for a catalogue without its blobs.
        settings: of the site; the defaults without.

    Returns:
        The batch's id, or None when no received frame is worth queueing.

    Raises:
        BadInput: `frames` is less than 1.
        Conflict: somebody else queued the same frames at the same moment, twice.
    """
    for attempt in (1, 2):
        plan = plan_batch(cat, frames=frames, policy=policy, actor=actor, among=among, settings=settings)
        if plan is None:
            return None
        try:
            return open_batch(cat, plan, actor, blobs)
        except Conflict:
            if attempt == 2:
                raise
            logger.info("some of the batch's frames were queued by somebody else just now; choosing again")
    return None


def open_batch(cat: Catalogue, plan: Plan, actor: str, blobs: BlobStore | None) -> str:
    """Open a planned batch; returns its id.

    Raises:
        Conflict: a frame is no longer `received`; nothing has changed then.
    """
    manifest = None if blobs is None else blobs.put(batch_manifest.encode(plan.manifest))
    return batches.add_batch(cat, plan.members, plan.policy, actor, manifest)


def plan_batch(
    cat: Catalogue,
    *,
    frames: int,
    policy: BatchPolicy | None = None,
    actor: str = "scheduler",
    among: Catalogue | None = None,
    settings: LabellingConfig | None = None,
) -> Plan | None:
    """Set aside what repeats, give scenes their sides, and choose; arguments as for `build_batch`."""
    if frames < 1:
        raise BadInput(f"a batch needs at least 1 frame, not {frames}")
    settings = settings or LabellingConfig()
    policy = policy or BatchPolicy()
    champion = model_rows.champion(cat)
    looked = {"champion": "" if champion is None else champion["digest"], "teacher": teacher_of(cat)}
    seen, taught = looks.of_received(cat, looked["champion"]), {}
    if looked["teacher"]:
        taught = looks.of_received(cat, looked["teacher"])
    labelled = looks.of_labelled(cat, looked["champion"])
    with cat.transaction():
        batches.set_copies_aside(cat, actor)
        sides = _give_sides(cat, settings.evaluation_share, actor)
        batches.set_held_out_aside(cat, actor)
        received = batches.candidates(cat, policy.pool)
        batches.set_twins_aside(cat, _twins(received, seen, labelled), actor)
    received = batches.candidates(cat if among is None else among, policy.pool)
    policy = dataclasses.replace(
        policy,
        by=_rule_in_force(cat, looked["champion"], actor) if settings.fall_back else policy.by,
        control_share=settings.control_share,
        cost_unit=settings.cost_unit,
        cost_limit=settings.cost_limit,
        seed=policy.seed or new_id(),
    )
    weights = weights_of(by_strategy(judged.judged_frames(cat))) if settings.reweight else None
    pool = _pool(cat, received, seen, taught, policy, weights)
    embedded = [look.embedding for _, look in labelled if look.embedding is not None]
    known = _one_size(embedded)
    chosen = choose(pool, frames, policy, known)
    if not chosen:
        return None
    evidence = {"fall_back": judged.fallen_back(cat), "weights": None if weights is None else dict(weights), "sides": sides}
    manifest = batch_manifest.describe(pool, chosen, policy, frames=frames, looked=looked, labelled=known, evidence=evidence)
    members = tuple(batches.Member(one.frame_id, one.why, one.role, one.probability) for one in chosen)
    return Plan(members, {**dataclasses.asdict(policy), "frames": frames, "candidates": len(pool)}, manifest)


def _give_sides(cat: Catalogue, share: float, actor: str) -> dict[str, str]:
    """Sides for the audit's scenes that have none; a scene whose chosen frames went to people already can only be trained on."""
    scenes = batches.unrouted_scenes(cat)
    if not scenes or share == 0:
        return {}
    spoilt = {row["scene"] for row in scenes if row["chosen"]}
    seed = cat.setting(_ROUTING_SEED)
    if seed is None:
        seed = new_id()
        cat.set_setting(_ROUTING_SEED, seed)
    free = [(row["camera"], row["scene"]) for row in scenes if row["scene"] not in spoilt]
    sides = {**route(free, batches.routed_scenes(cat), share, seed), **dict.fromkeys(spoilt, TRAINED_ON)}
    for scene, side in sorted(sides.items()):
        datasets.assign_scene(cat, scene, side)
    counts = {side: list(sides.values()).count(side) for side in (HELD_OUT, TRAINED_ON)}
    cat.log(actor, "scenes routed", seed, {**counts, "spoilt": len(spoilt)})
    return sides


def _rule_in_force(cat: Catalogue, champion: str, actor: str) -> Literal["score", "diversity"]:
    """`score`, or `diversity` while the policy is no better than its control; a new champion gives the policy another chance."""
    fallen = judged.fallen_back(cat)
    if fallen is not None and fallen["champion"] != champion:
        judged.restore(cat, "there is a new champion, whose doubts are other ones", actor)
        return "score"
    if fallen is None:
        verdict = judge_policy(judged.judged_frames(cat))
        if verdict.word != "not_better":
            return "score"
        judged.fall_back(cat, champion, verdict.why, actor)
        logger.warning("the selection policy is no better than its control, batches are chosen by diversity: %s", verdict.why)
    return "diversity"


def _twins(received: Sequence[Row], seen: Mapping[str, Look], labelled: Sequence[tuple[str, Look]]) -> dict[str, str]:
    """Chosen frames that look like a labelled or queued one of their camera. Frames that chance took stay: to leave some out would
    make the audit biased."""
    by_camera: dict[str, list[Look]] = {}
    for camera, look in labelled:
        if len(look.luma) == THUMBNAIL_BYTES:
            by_camera.setdefault(camera, []).append(look)
    stacked = {
        camera: np.frombuffer(b"".join(look.luma for look in each), np.uint8).reshape(len(each), THUMBNAIL_BYTES)
        for camera, each in by_camera.items()
    }
    twins = {}
    for row in received:
        own, others = seen.get(row["id"]), stacked.get(row["camera"] or "")
        if row["arm"] == "explore" or own is None or others is None or len(own.luma) != THUMBNAIL_BYTES:
            continue
        apart = difference(own.luma, others)
        nearest = int(apart.argmin())
        if apart[nearest] <= NEAR_DUPLICATE:
            twins[row["id"]] = by_camera[row["camera"] or ""][nearest].frame
    return twins


def _pool(
    cat: Catalogue,
    received: Sequence[Row],
    seen: Mapping[str, Look],
    taught: Mapping[str, Look],
    policy: BatchPolicy,
    weights: Mapping[str, float] | None,
) -> list[Candidate]:
    """Received frames with all that is known of them."""
    rare = set(batches.rare_classes(cat))
    # Asked of the whole catalogue: somebody of one site does not see the sides of scenes.
    held_out = {scene for scene, (side, _) in datasets.scene_splits(cat).items() if side == HELD_OUT}
    effort = fit_effort(batches.timed_labels(cat, _TIMED_LABELS))
    values = {
        row["id"]: (
            row["camera"] or "import",
            combined(
                look.doubt,
                json.loads(row["strategy_scores"]),
                weights,
                fresh_weight=1.0 if row["id"] in taught else BALANCED["entropy"],
            ),
        )
        for row in received
        if (look := taught.get(row["id"]) or seen.get(row["id"])) is not None and look.doubt is not None
    }
    # Where only some frames of a camera were looked at, its devices' scores count for all: the two are not on one scale.
    whole = {row["camera"] or "import" for row in received} - {
        row["camera"] or "import" for row in received if row["id"] not in values
    }
    ranks = ranks_within({frame: value for frame, value in values.items() if value[0] in whole})
    pool = []
    for row in received:
        look = seen.get(row["id"])
        best = taught.get(row["id"]) or look
        boxes, shown = (1.0, set[str]()) if best is None else (best.boxes, set(best.class_names))
        pool.append(
            Candidate(
                frame_id=row["id"],
                blob=row["blob"],
                camera=row["camera"] or "import",
                captured_s=datetime.fromisoformat(row["captured_at"]).timestamp(),
                arm=row["arm"],
                reasons=row["reason"],
                score=ranks[row["id"]] if row["id"] in ranks else float(row["score"]),
                inclusion_probability=row["inclusion_probability"],
                held_out=row["scene"] in held_out,
                cost=cost_of(policy.cost_unit, boxes, effort),
                rare=bool(shown & rare),
                embedding=None if look is None else look.embedding,
            )
        )
    return pool


def _one_size(embeddings: Sequence[NDArray[np.float32]]) -> NDArray[np.float32] | None:
    """(n, d) of those that are as long as the first; None for none."""
    same = [each for each in embeddings if len(each) == len(embeddings[0])]
    return np.stack(same) if same else None
