"""What is put down for the inference thread is taken up once, and the newest only."""

from __future__ import annotations

from bowerbird_agent.inference.wishes import Latest


def test_of_several_wishes_only_the_newest_is_taken_up_and_once() -> None:
    wish: Latest[bytes] = Latest()
    assert wish.take() is None
    wish.put(b"old")
    wish.put(b"new")
    assert wish.take() == b"new"
    assert wish.take() is None


def test_an_empty_wish_is_a_wish() -> None:
    wish: Latest[bytes] = Latest()
    wish.put(b"")
    assert wish.take() == b""


def test_the_same_again_is_no_news_until_it_has_to_be_told_anew() -> None:
    wish: Latest[bytes] = Latest()
    wish.again()
    assert wish.take() is None, "nothing was ever wished"
    wish.put_if_other(b"x")
    assert wish.take() == b"x"
    wish.put_if_other(b"x")
    assert wish.take() is None
    wish.again()
    assert wish.take() == b"x"
