"""Rows of an import: what passes makes no dead letter by the engine's own reader, a fault is named (A1, A2)."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decode.profile_columns import ProfileRows, RowFault
from tests.world import NOON_MS, block_of, make_pipeline

COLUMNS = ("user", "tags", "person", "organisation", "time_zone", "dnd", "attribute.age", "attribute.plan:text")
CONSENTS = ("consent.marketing.sms", "consent.location", "consent.location.at", "consent_at", "consent_source")
CELLS = st.one_of(
    st.none(),
    st.text(max_size=300),
    st.sampled_from(("u1", "yes", "no", "Asia/Shanghai", "a|b", "42", "1e400", "007", "-0", "beijing/x", str(NOON_MS))),
    st.sampled_from(("2026-01-02T03:04:05+08:00", "2026-01-02 03:04:05", "1767326400", "2199-12-31T00:00:00Z")),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.lists(st.text(max_size=10), max_size=3),
)


@settings(deadline=None)
@given(st.lists(st.tuples(*[CELLS] * (len(COLUMNS) + len(CONSENTS))), max_size=8), st.booleans())
def test_a_row_that_passes_makes_no_dead_letter_and_a_fault_names_a_column(table, clear):
    rows = ProfileRows((*COLUMNS, *CONSENTS), at_ms=NOON_MS, latest_ms=NOON_MS, clear=clear)
    lines = []
    for number, cells in enumerate(table):
        made = rows.events(number, cells)
        if isinstance(made, RowFault):
            assert made.column in (*COLUMNS, *CONSENTS)
            assert made.row == number
        else:
            lines += made
    if lines:
        effects = make_pipeline().process(block_of([b"\n".join(lines)], append_ms=NOON_MS))
        assert effects.dead == []
        assert effects.events == len(lines)


def one(**cells):
    """The events of one row, read by the engine's own rules."""
    names = ("user", *(name.replace("__", ".") for name in cells))
    rows = ProfileRows(names, at_ms=NOON_MS, latest_ms=NOON_MS)
    made = rows.events(2, ("u1", *cells.values()))
    return made if isinstance(made, RowFault) else [msgspec.json.decode(line) for line in made]


def test_numbers_are_numbers_as_json_writes_them_and_the_rest_stays_text():
    (profile,) = one(
        attribute__a="42", attribute__b="007", attribute__c="true", attribute__d="4g-59", attribute__e="-1.5e2"
    )
    assert profile["attributes"] == {"a": 42, "b": "007", "c": True, "d": "4g-59", "e": -150}


def test_a_consent_carries_its_own_instant_and_source_or_those_of_the_row():
    consents = one(
        consent__location="yes",
        consent__usage="否",
        consent__usage__at="2026-01-01T00:00:00+08:00",
        consent__usage__source="shop",
        consent_at=NOON_MS - 5,
    )
    assert [(it["purpose"], it["granted"], it["at"], it["source"]) for it in consents] == [
        ("location", True, NOON_MS - 5, "import"),
        ("usage", False, 1_767_196_800_000, "shop"),
    ]
