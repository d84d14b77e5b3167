"""The table of identity's faults against the design's list, against the tests that there are, and against the page that people read."""

from __future__ import annotations

import ast

import pytest

from bowerbird_testing.identity_faults import BEGIN, FAULTS, PAGE, ROOT, ROWS, IdentityFault, table


def test_every_fault_of_the_list_is_a_row_in_its_order() -> None:
    assert [row.phrase for row in ROWS] == FAULTS.split("; ")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.phrase)
def test_every_row_names_tests_that_there_are(row: IdentityFault) -> None:
    assert row.tests
    for test in row.tests:
        file, name = test.split("::")
        tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


def test_the_page_shows_the_table() -> None:
    assert PAGE.read_text("utf-8").endswith(BEGIN + table())
