"""Every script in benchmarks/ can be tried in a minute and ends with its figure, on whatever machine."""

from __future__ import annotations

from pathlib import Path

import pytest

# Modules that scripts share, and no scripts.
SHARED = {"figure.py", "simulated_site.py", "street.py", "trained_model.py"}
SCRIPTS = sorted(path for path in (Path(__file__).parents[2] / "benchmarks").glob("*.py") if path.name not in SHARED)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_has_a_short_form_and_reports_by_the_shared_line(script: Path) -> None:
    text = script.read_text("utf-8")
    assert '"--quick"' in text, "a long form alone is not tried by anybody"
    assert "from figure import" in text
    assert '__name__ == "__main__"' in text
