"""The table of attacks against the designs' lists, against the tests that there are, and against the page that people read."""

from __future__ import annotations

import ast
import importlib.util
import re

import pytest

from bowerbird_testing.attack_table import IDENTITY, OF_IDENTITY, OF_UPDATES, PAGE, TESTS, UPDATES, Attack, page
from bowerbird_testing.weakenings import WEAKENINGS, source_of, weakened_source

ROWS = (*OF_IDENTITY, *OF_UPDATES)


@pytest.mark.parametrize(("paragraph", "rows"), [(IDENTITY, OF_IDENTITY), (UPDATES, OF_UPDATES)], ids=["identity", "updates"])
def test_every_word_of_the_lists_is_in_a_row(paragraph: str, rows: tuple[Attack, ...]) -> None:
    """Once the rows' words are taken out, in their order, only what joins them is left."""
    rest, at = "", 0
    for row in rows:
        found = paragraph.index(row.phrase, at)
        rest += paragraph[at:found]
        at = found + len(row.phrase)
    rest += paragraph[at:]
    assert re.sub(r"[;,.\s]|\band\b|\bor\b", "", rest) == ""


def functions_of(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def is_here(row: Attack) -> bool:
    if not row.awaits:
        return True
    return importlib.util.find_spec(row.awaits) is not None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.phrase)
def test_every_row_names_tests_that_there_are(row: Attack) -> None:
    """A row without a test, or with one that was renamed, is a promise that nobody keeps."""
    assert row.tests
    if not is_here(row):
        pytest.skip(f"its feature is not here yet: {row.awaits}")
    for test in row.tests:
        file, name = test.split("::")
        assert name in functions_of(file), test


def test_every_weakening_still_fits_the_code_and_names_tests_that_there_are() -> None:
    """The table must follow the code: an edit that changes nothing would weaken nothing."""
    names = [weakening.name for weakening in WEAKENINGS]
    assert len(set(names)) == len(names) > 20
    for weakening in WEAKENINGS:
        for module, edits in weakening.all_edits().items():
            text = weakened_source(edits, source_of(module))
            assert text != source_of(module).read_text(encoding="utf-8")
            compile(text, module, "exec")
        for test in weakening.caught_by:
            file, name = test.split("::")
            assert name in functions_of(file), test


def test_the_page_is_as_the_tables_are() -> None:
    """`python -m bowerbird_testing.attack_table`, in `tests/`, writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()
