"""The transition table that the kernel runs on and that readers can print (P1)."""

from __future__ import annotations

from pathlib import Path

from engine.presence.table import INPUTS, STATES, printed, transition_table

PRESENT = {"INSIDE", "EXITING", "SUSPENDED"}


def test_the_printed_table_is_the_one_in_the_documents() -> None:  # P1
    assert printed() in (Path(__file__).parents[2] / "docs" / "presence.md").read_text()


def test_every_state_has_an_answer_to_every_input() -> None:  # P1
    table = transition_table()
    assert table.shape == (len(STATES), len(INPUTS))
    assert int(table.max()) < len(STATES)


def test_nobody_is_suspended_or_leaving_without_having_entered() -> None:  # P6
    table = transition_table()
    for state in ("OUTSIDE", "ENTERING"):
        for number, name in INPUTS:
            after = STATES[table[STATES.index(state), number]]
            assert after in {"OUTSIDE", "ENTERING", "INSIDE"}, f"{state} on {name} becomes {after}"


def test_closing_and_removal_leave_nobody_inside() -> None:  # L9, L10
    table = transition_table()
    ends = [number for number, name in INPUTS if name in {"timer: fence closes", "fence removed"}]
    assert len(ends) == 2
    assert {STATES[table[state, number]] for state in range(len(STATES)) for number in ends} == {"OUTSIDE"}
