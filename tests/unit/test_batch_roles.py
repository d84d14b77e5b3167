"""Roles in a batch: what measures, what controls, what was chosen, and what it all may cost."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bowerbird_server.batches import batch_manifest
from bowerbird_server.batches.batch_choice import CONTROL, EVALUATION, POLICY, RARE, BatchPolicy, Candidate, choose


def candidate(
    n: int,
    *,
    camera: str = "c",
    arm: str = "policy",
    score: float = 0.5,
    held_out: bool = False,
    cost: float = 1.0,
    rare: bool = False,
    at_s: float | None = None,
    angle: float | None = None,
) -> Candidate:
    embedding = None if angle is None else np.array([np.cos(angle), np.sin(angle)], np.float32)
    at_s = n * 60.0 if at_s is None else at_s
    probability = 0.05 if arm == "explore" else 1.0
    return Candidate(
        f"{n:064d}", f"image{n}", camera, at_s, arm, "entropy", score, probability, held_out, cost, rare, embedding
    )


pools = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["policy", "policy", "explore", "explore out"]),
        st.floats(0, 1),
        st.floats(0.1, 9),
        st.booleans(),
        st.none() | st.floats(0, 6),
    ),
    max_size=60,
).map(
    lambda rows: [
        candidate(
            n,
            camera=camera,
            arm=arm.split()[0],
            held_out=arm.endswith("out"),
            score=score,
            cost=cost,
            rare=rare and arm == "policy",
            angle=angle,
        )
        for n, (camera, arm, score, cost, rare, angle) in enumerate(rows)
    ]
)


@settings(deadline=None)
@given(pools, st.integers(1, 70), st.sampled_from(["score", "diversity"]), st.sampled_from(["s", "t"]))
def test_a_role_is_told_by_who_took_the_frame(pool: list[Candidate], frames: int, by: str, seed: str) -> None:
    """Evaluation frames are explore frames of held-out scenes and nothing else; the batch is full; its order of input is nothing."""
    policy = BatchPolicy(by=by, seed=seed)  # type: ignore[arg-type]
    chosen = choose(pool, frames, policy)
    by_id = {one.frame_id: one for one in pool}
    assert len({one.frame_id for one in chosen}) == len(chosen) == min(frames, len(pool))
    for one in chosen:
        frame = by_id[one.frame_id]
        assert (one.role == EVALUATION) == (frame.arm == "explore" and frame.held_out)
        assert one.role == CONTROL or frame.arm != "explore" or frame.held_out
        assert one.role != RARE or frame.rare
        assert 0 < one.probability <= 1
        assert one.role in (EVALUATION, CONTROL) or one.probability == 1
    assert choose(pool[::-1], frames, policy) == chosen


@settings(deadline=None)
@given(pools, st.floats(0.5, 40), st.integers(1, 60))
def test_a_batch_never_costs_more_than_it_may_but_for_its_first_frame(pool: list[Candidate], limit: float, frames: int) -> None:
    by_id = {one.frame_id: one for one in pool}
    costs = [by_id[one.frame_id].cost for one in choose(pool, frames, BatchPolicy(cost_limit=limit))]
    assert len(costs) <= 1 or sum(costs) <= limit + 1e-9


def test_a_fifth_of_a_batch_is_taken_by_chance_where_the_audit_left_room() -> None:
    """Two audit frames leave eight places of ten in fifty; chance takes them by lot, with its probability written down."""
    pool = [candidate(n, score=n / 100) for n in range(98)] + [candidate(n, arm="explore") for n in (98, 99)]
    chosen = choose(pool, 50, BatchPolicy(min_gap_s=0, seed="x"))
    roles = Counter(one.role for one in chosen)
    assert roles == {CONTROL: 10, POLICY: 40}
    by_lot = [one for one in chosen if one.why.startswith("control")]
    assert {one.probability for one in by_lot} == {8 / 98}


def test_lots_fall_evenly() -> None:
    """Over many seeds each frame is drawn as often as its probability says, whatever its score."""
    pool = [candidate(n, score=n / 20) for n in range(20)]
    drawn: Counter[str] = Counter()
    for seed in range(600):
        drawn.update(one.frame_id for one in choose(pool, 10, BatchPolicy(seed=str(seed))) if one.role == CONTROL)
    # 600 draws of 2 in 20: 60 expected, standard deviation 7.3.
    assert all(30 <= drawn[one.frame_id] <= 90 for one in pool)


def test_a_rare_class_claims_its_share_before_better_scores() -> None:
    pool = [candidate(n, score=0.9) for n in range(40)] + [candidate(n, score=0.1, rare=True) for n in range(40, 50)]
    chosen = choose(pool, 10, BatchPolicy(control_share=0.0))
    assert Counter(one.role for one in chosen) == {RARE: 2, POLICY: 8}


def test_of_the_best_the_most_different_are_taken() -> None:
    """Ten frames show one thing and three another; of four chosen two are of each, until only copies are left."""
    same = [candidate(n, score=0.9, angle=0.001 * n) for n in range(10)]
    other = [candidate(n, score=0.8, angle=1.5 + 0.001 * n) for n in range(10, 13)]
    chosen = choose(same + other, 2, BatchPolicy(control_share=0.0, shortlist=10))
    assert {one.frame_id[-2:] < "10" for one in chosen} == {True, False}


def test_what_is_labelled_already_is_far_from_nothing_new() -> None:
    """A frame like a labelled one goes after a worse one that is unlike all."""
    pool = [candidate(0, score=0.9, angle=0.0), candidate(1, score=0.2, angle=1.5)]
    labelled = np.array([[1.0, 0.0]], np.float32)
    (one,) = choose(pool, 1, BatchPolicy(control_share=0.0), labelled)
    assert one.frame_id == pool[1].frame_id
    assert "differs by" in one.why


def test_after_a_fall_back_scores_do_not_matter() -> None:
    """The same pool with other scores gives the same batch."""
    policy = BatchPolicy(by="diversity", seed="x")
    one = [candidate(n, score=n / 50, angle=n * 0.7) for n in range(50)]
    other = [candidate(n, score=1 - n / 50, angle=n * 0.7) for n in range(50)]
    assert choose(one, 12, policy) == choose(other, 12, policy)
    assert all("whatever its score" in each.why for each in choose(one, 12, policy) if each.role == POLICY)


def test_a_manifest_names_every_frame_with_its_probability_and_changes_with_the_pool() -> None:
    pool = [candidate(n, arm="explore" if n < 3 else "policy", score=n / 9) for n in range(9)]
    policy = BatchPolicy(seed="s")
    chosen = choose(pool, 5, policy)

    def described(members: list[Candidate]) -> dict[str, object]:
        return batch_manifest.describe(
            members, chosen, policy, frames=5, looked={"champion": "c"}, labelled=None, evidence={"fall_back": None}
        )

    manifest = described(pool)
    assert [each["frame"] for each in manifest["chosen"]] == [one.frame_id for one in chosen]  # type: ignore[attr-defined]
    assert {each["inclusion_probability"] for each in manifest["chosen"] if each["arm"] == "explore"} == {0.05}  # type: ignore[attr-defined]
    assert batch_manifest.encode(manifest) == batch_manifest.encode(described(pool[::-1]))
    assert batch_manifest.encode(manifest) != batch_manifest.encode(described([*pool[:-1], candidate(8, score=0.1)]))
