"""The tables of docs/decisions.md say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from engine.decide.gates import GATES
from engine.decide.plan import CONTEXT_WEIGHT, FACTORS
from engine.decide.runs import MOST_RUNS
from engine.model import Outcome, Reason

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "decisions.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without its head."""
    section = TEXT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_gates_stand_in_the_order_they_are_asked() -> None:  # D1
    assert [row[0].strip("`") for row in rows("Gates")] == list(GATES)


def test_every_reason_is_in_the_table_once_with_its_outcomes() -> None:  # D5
    assert [row[0].strip("`") for row in rows("Reasons")] == [reason.value for reason in Reason]
    named = {outcome for row in rows("Reasons") for outcome in row[1].split(", ")}
    assert named == {outcome.value for outcome in Outcome}


def test_every_reason_but_granted_comes_from_a_gate() -> None:  # D1
    given = {name for row in rows("Gates") for name in re.findall(r"`(\w+)`", row[2])}
    assert given == {reason.value for reason in Reason} - {"granted"}


def test_the_factors_of_the_score_are_named_in_order() -> None:  # D2
    assert [row[0].strip("`") for row in rows("Score")] == list(FACTORS)
    assert CONTEXT_WEIGHT == {"HIGH": 1, "MEDIUM": 0.8, "LOW": 0.5}
    assert f"{MOST_RUNS:,} runs" in TEXT
