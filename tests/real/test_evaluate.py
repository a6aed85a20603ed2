"""The evaluation of coarse signalling runs, and what must be exact in it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import evaluate


def test_a_thinned_trace_alternates_and_finds_what_its_cells_could_show(shared_data: Path) -> None:  # L2, L8, P3, P6
    rows = {row["name"].removeprefix("evaluate.telecom."): row["value"] for row in evaluate.run(smoke=True)}
    assert shared_data.is_dir()
    assert rows["alternation_errors"] == 0
    assert rows["evaluate.full.alternation_errors"] == 0
    assert rows["long_visits"] >= 10
    assert rows["long_visits_found"] >= 0.9
    assert rows["long_visits_found_of_those"] == 1.0


def test_without_the_data_the_evaluation_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(evaluate, "DATA", tmp_path)
    assert evaluate.run() == [{"name": "evaluate.telecom.skipped", "value": 1, "unit": "no ../shared/data"}]
