"""Every parser of foreign bytes: its corpus, seeded changes of it, and a short run that follows coverage (`make fuzz` runs longer)."""

from __future__ import annotations

import pytest

from bowerbird_testing.fuzz import CORPUS, by_changes, corpus, has_atheris, run_child
from bowerbird_testing.fuzz_targets import targets

TARGETS = targets()
CHANGES, RUNS, MANY_RUNS = 300, 300, 20_000


def test_every_target_has_a_corpus() -> None:
    """Also those of features that come and go with a version."""
    kept = {folder.name for folder in CORPUS.iterdir()}
    assert kept >= set(TARGETS)
    assert all(len(corpus(name)) >= 1 for name in kept)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_no_change_of_the_corpus_breaks_a_promise(name: str) -> None:
    """Accepted, or refused by the error that is promised; some inputs of each corpus are accepted, else it would try nothing."""
    accepted = by_changes(name, TARGETS[name], CHANGES)
    assert accepted > 0


@pytest.mark.skipif(not has_atheris(), reason="atheris has no wheel for this machine; the seeded changes above were tried")
@pytest.mark.parametrize("name", ["frame", "claim", "certificate-request", "onnx", "topics", "image"])
def test_following_coverage_finds_nothing(name: str) -> None:
    """A short run of those parsers that strangers reach first; what it finds is in base64 in what it says."""
    done = run_child(name, runs=RUNS)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.heavy
@pytest.mark.skipif(not has_atheris(), reason="atheris has no wheel for this machine; the seeded changes above were tried")
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_following_coverage_for_longer_finds_nothing(name: str) -> None:
    done = run_child(name, runs=MANY_RUNS)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_broken_promise_is_a_finding_with_its_input() -> None:
    """The test of the tests: a parser that raises something else is not passed over."""
    from bowerbird_testing.fuzz_targets import Target

    def parse(data: bytes) -> object:
        if len(data) % 7 == 3:
            raise KeyError("unexpected")
        raise ValueError("refused")

    with pytest.raises(KeyError) as caught:
        by_changes("claim", Target(parse, (ValueError,)), 200)
    assert "base64" in caught.value.__notes__[0]
