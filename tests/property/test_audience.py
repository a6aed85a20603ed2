"""Audience expressions in bulk against what a candidate is told, user by user (A1); what counts tell (A13)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decide.audience import compile_expression
from engine.decide.counting import Counter
from engine.decide.disclosure import Disclosure, shown
from engine.decide.profiles import ProfileTable
from engine.decode.events import Profile
from engine.definitions import Compare, Every, HasTag, InOrganisation, Neither, Policy, Some

NOW_MS = 1_767_326_400_000
TAGS = tuple(f"t{number}" for number in range(70))  # more than a word of them
VALUES: tuple[Any, ...] = (0, 1, -1.5, 36, True, "a", "ab", "b", "")
PATHS = ("p", "p/c", "p/c/d", "p/cc", "q", "p/c/d/t/v")

numbers = st.sampled_from((0, 1, -1.5, 36.0, True))
leaves = st.one_of(
    st.builds(HasTag, st.sampled_from((*TAGS[::23], "unknown"))),
    st.builds(InOrganisation, st.sampled_from((*PATHS, "r", "p/"))),
    st.builds(Compare, st.sampled_from("xyz"), st.sampled_from(("==", "!=")), st.sampled_from(VALUES)),
    st.builds(Compare, st.sampled_from("xyz"), st.sampled_from(("<", "<=", ">", ">=")), st.sampled_from(VALUES)),
    st.builds(
        Compare, st.sampled_from("xyz"), st.just("in"), st.lists(st.sampled_from(VALUES), max_size=12).map(tuple)
    ),
    st.builds(Compare, st.sampled_from("xyz"), st.just("prefix"), st.sampled_from(("a", "b", ""))),
    st.builds(Compare, st.sampled_from("xyz"), st.just("exists"), st.booleans()),
)
expressions = st.recursive(
    leaves,
    lambda inner: st.builds(
        lambda kind, parts: kind(tuple(parts)),
        st.sampled_from((Every, Some, Neither)),
        st.lists(inner, min_size=1, max_size=4),
    ),
    max_leaves=8,
)
users = st.fixed_dictionaries(
    {
        "tags": st.lists(st.sampled_from(TAGS[::23]), max_size=3),
        "attributes": st.dictionaries(st.sampled_from("xy"), st.sampled_from(VALUES)),
        "organisation": st.one_of(st.none(), st.sampled_from(PATHS)),
        "dynamic": st.one_of(st.none(), st.tuples(st.sampled_from(TAGS[::23]), st.sampled_from((NOW_MS, NOW_MS + 1)))),
        "is_known": st.booleans(),
    }
)


def table_of(people) -> ProfileTable:
    table = ProfileTable(Policy())
    for slot, one in enumerate(people):
        table.ensure(slot + 1)
        if one.get("is_known", True):
            fields = {name: value for name, value in one.items() if name not in ("is_known", "dynamic")}
            table.apply_profile(slot, Profile(feed=0, user=f"u{slot}", at_ms=NOW_MS, **fields), NOW_MS)
        if one.get("dynamic"):
            table.set_tag(slot, *one["dynamic"])
    return table


@settings(deadline=None)
@given(st.lists(users, max_size=12), st.lists(expressions, min_size=1, max_size=4))
def test_bulk_says_of_every_user_what_a_candidate_is_told(people, asked):
    table = table_of(people)
    counter = Counter(table)
    for expression in asked:
        # First in bulk: it must not make columns for attributes that nobody has.
        columns = len(table.numbers) + len(table.texts)
        bulk = counter.mask(expression, NOW_MS, table.count)
        assert len(table.numbers) + len(table.texts) == columns
        test = compile_expression(expression, table)
        assert bulk.tolist() == [test(slot, NOW_MS) for slot in range(table.count)]
        known = counter.reach(expression, NOW_MS).matching
        assert known.tolist() == [bool(bulk[slot]) and table.is_known(slot) for slot in range(table.count)]


def test_texts_that_come_after_a_question_are_asked_too():
    table = table_of([{"organisation": "p/c"}, {"organisation": "q"}])
    counter = Counter(table)
    inside = InOrganisation("p")
    assert counter.mask(inside, NOW_MS, 2).tolist() == [True, False]
    table.ensure(3)
    table.organisation_column().set(2, "p/d")
    assert counter.mask(inside, NOW_MS, 3).tolist() == [True, False, True]


def test_reach_by_channel_asks_consent_and_do_not_disturb_as_the_gate_does():
    """A2: no record, a no and do-not-disturb all mean no message."""
    table = table_of([{}, {}, {}, {"dnd": True}])
    for slot, granted in ((0, True), (1, False), (3, True)):
        table.set_consent(slot, "marketing.sms", granted, NOW_MS)
    assert Counter(table).reach(None, NOW_MS, ["sms", "app"]).by_channel["sms"].tolist() == [True, False, False, False]
    table.assumed = frozenset({"marketing.sms", "marketing.app"})
    by_channel = Counter(table).reach(None, NOW_MS, ["sms", "app"]).by_channel
    assert by_channel["sms"].tolist() == [True, False, True, False]
    assert by_channel["app"].tolist() == [True, True, True, False]


@pytest.mark.parametrize(("users", "told"), [(0, 0), (1, "<10"), (9, "<10"), (10, 10), (1234, 1234)])
def test_small_counts_are_hidden(users, told):
    assert shown(users) == told


def people(*slots: int) -> np.ndarray:
    mask = np.zeros(max(slots, default=0) + 1, bool)
    mask[list(slots)] = True
    return mask


def test_two_counts_never_tell_of_fewer_than_ten_by_their_difference():
    disclosure = Disclosure()
    assert disclosure.tell(people(*range(100))) == 100
    assert disclosure.tell(people(*range(97))) == 100, "three people fewer: the answer is the old one"
    assert disclosure.tell(people(*range(100), 500)) == 100
    assert disclosure.tell(people(*range(90))) == 90
    assert disclosure.tell(people(*range(100))) == 100
    assert disclosure.tell(people(*range(5))) == "<10"
    assert disclosure.tell(people()) == 0


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 60), min_size=1), min_size=2, max_size=12))
def test_exact_answers_never_differ_by_fewer_than_ten_users(sets):
    disclosure = Disclosure()
    exact: list[set[int]] = []
    for one in sets:
        answer = disclosure.tell(people(*one))
        near = [other for other in exact if len(one ^ other) < 10]
        if len(one) < 10:
            assert answer == "<10"
        elif near:
            assert answer == len(near[0]), "the answer of the oldest set that is as good as this one"
        else:
            assert answer == len(one)
            exact.append(one)
