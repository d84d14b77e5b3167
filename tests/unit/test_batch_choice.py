"""Which frames go into a batch, and the reason each is given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bowerbird_server.batches.batch import BatchPolicy, Candidate, choose


def candidate(name: str, at_s: float, score: float, camera: str = "c", arm: str = "policy", blob: str = "") -> Candidate:
    return Candidate(name, blob or name, camera, at_s, arm, "entropy", score, 0.05 if arm == "explore" else 1.0)


def ids(pool: list[Candidate], frames: int, **policy: float) -> list[str]:
    return [one.frame_id for one in choose(pool, frames, BatchPolicy(**policy))]  # type: ignore[arg-type]


def test_explore_frames_come_first_whatever_their_score() -> None:
    """They are the only unbiased look at the stream."""
    pool = [candidate("best", 0, 1.0), candidate("audit", 500, 0.0, arm="explore")]
    assert ids(pool, 1) == ["audit"]
    assert choose(pool, 2, BatchPolicy())[0].why.startswith("explore")


def test_too_many_explore_frames_are_thinned_evenly_over_time() -> None:
    """Not the first ones, and not the best."""
    assert ids([candidate(str(i), i * 60.0, i / 10, arm="explore") for i in range(9)], 3) == ["1", "4", "7"]


def test_a_neighbour_in_time_waits_for_a_worse_frame_from_elsewhere() -> None:
    """Near-duplicates teach little: the third-best frame, a minute away, goes before the second-best, a second away."""
    pool = [candidate("a", 0, 0.9), candidate("b", 1, 0.8), candidate("c", 60, 0.3)]
    assert ids(pool, 2) == ["a", "c"]
    assert ids(pool, 3) == ["a", "c", "b"]


def test_no_camera_takes_the_whole_batch_while_another_has_frames() -> None:
    """A camera's scores are comparable within it only, so each has a quota."""
    pool = [candidate(f"loud{i}", i * 60, 0.9, "loud") for i in range(10)] + [
        candidate(f"calm{i}", i * 60, 0.1, "calm") for i in range(10)
    ]
    chosen = ids(pool, 8)
    assert sum(name.startswith("calm") for name in chosen) == 2


def test_one_picture_is_taken_once_and_as_the_explore_frame() -> None:
    """Of copies the one with a probability is kept."""
    pool = [
        candidate("twin", 0, 0.9, blob="x"),
        candidate("audit", 30, 0.1, arm="explore", blob="x"),
        candidate("other", 99, 0.2),
    ]
    assert ids(pool, 3) == ["audit", "other"]


@given(
    st.lists(
        st.builds(
            candidate,
            st.uuids().map(str),
            st.floats(0, 1000),
            st.floats(0, 1),
            st.sampled_from(["a", "b", "c"]),
            st.sampled_from(["policy", "explore"]),
        ),
        max_size=40,
        unique_by=lambda c: c.frame_id,
    ),
    st.integers(1, 50),
    st.sampled_from([0.0, 0.4, 10.0, 900.0]),
)
def test_a_batch_is_as_full_as_the_pool_allows_and_does_not_depend_on_its_order(
    pool: list[Candidate], frames: int, gap_s: float
) -> None:
    """No frame is chosen twice, none is left over while there is room, and the choice is reproducible."""
    chosen = ids(pool, frames, min_gap_s=gap_s)
    assert len(chosen) == len(set(chosen)) == min(frames, len(pool))
    assert ids(pool[::-1], frames, min_gap_s=gap_s) == chosen
