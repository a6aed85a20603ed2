"""Audience expressions compiled to closures over profile columns (rule A1).

A comparison with an attribute the user lacks is false, whatever the operator; so `none` of it is true.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import eq, ge, gt, le, lt, ne
from typing import Any

from engine.decide.profiles import ProfileTable
from engine.definitions import Compare, Every, Expression, HasTag, InOrganisation, Neither, Some

Test = Callable[[int, int], bool]
"""Takes slot and now_ms."""

_ORDER = {"==": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}


def compile_expression(expression: Expression, profiles: ProfileTable) -> Test:
    """Return the test of an expression; the slot must be below `profiles.count`."""
    if isinstance(expression, HasTag):
        return _tag_test(expression.tag, profiles)
    if isinstance(expression, InOrganisation):
        return _text_test(profiles.organisation_column(), lambda path: is_below(path, expression.path))
    if isinstance(expression, Compare):
        return _compare_test(expression, profiles)
    tests = tuple(compile_expression(part, profiles) for part in expression.parts)
    if isinstance(expression, Every):
        return _all_of(tests)
    return _any_of(tests, isinstance(expression, Some))


def _all_of(tests: tuple[Test, ...]) -> Test:
    def test(slot: int, now_ms: int) -> bool:
        for part in tests:  # noqa: SIM110 - a generator would cost more than the tests
            if not part(slot, now_ms):
                return False
        return True

    return tests[0] if len(tests) == 1 else test


def _any_of(tests: tuple[Test, ...], answer: bool) -> Test:
    """`answer` where any part holds, else the opposite: any, or none."""

    def test(slot: int, now_ms: int) -> bool:
        for part in tests:
            if part(slot, now_ms):
                return answer
        return not answer

    return test


def is_below(path: str, root: str) -> bool:
    """Say whether an organisation path is `root` or lies below it."""
    root = root.rstrip("/")
    return path == root or path.startswith(root + "/")


def _tag_test(tag: str, profiles: ProfileTable) -> Test:
    column, mask = profiles.tag_place(tag)
    dynamic = profiles.dynamic

    def test(slot: int, now_ms: int) -> bool:
        if column.view[slot] & mask:
            return True
        return bool(dynamic) and slot in dynamic and dynamic[slot].get(tag, 0) > now_ms

    return test


def _text_test(column: Any, holds: Callable[[str], bool]) -> Test:
    """Ask a question about a text once per distinct text."""
    known: dict[int, bool] = {-1: False}

    def test(slot: int, now_ms: int) -> bool:
        row = column.view[slot]
        answer = known.get(row)
        if answer is None:
            answer = known[row] = holds(column.names.texts[row])
        return answer

    return test


def _compare_test(compare: Compare, profiles: ProfileTable) -> Test:
    op, value, name = compare.op, compare.value, compare.attribute
    if op == "exists":
        number, text = profiles.number_column(name), profiles.text_column(name)
        wanted = value is not False

        def exists(slot: int, now_ms: int) -> bool:
            held = number.view[slot]
            return (held == held or text.view[slot] >= 0) is wanted

        return exists
    if op == "in":
        numbers = frozenset(float(one) for one in value if not isinstance(one, str))
        texts = frozenset(one for one in value if isinstance(one, str))
        of_text = _text_test(profiles.text_column(name), texts.__contains__)
        column = profiles.number_column(name)
        return lambda slot, now_ms: column.view[slot] in numbers or of_text(slot, now_ms)
    if op == "prefix":
        return _text_test(profiles.text_column(name), lambda held: held.startswith(value))
    order = _ORDER[op]
    if isinstance(value, str):
        return _text_test(profiles.text_column(name), lambda held: order(held, value))
    column, limit = profiles.number_column(name), float(value)
    if op == "!=":
        return lambda slot, now_ms: column.view[slot] == column.view[slot] != limit
    return lambda slot, now_ms: order(column.view[slot], limit)


def expression_text(expression: Expression) -> str:
    """Return the expression as one line, for people."""
    if isinstance(expression, HasTag):
        return f"tag {expression.tag}"
    if isinstance(expression, InOrganisation):
        return f"organisation below {expression.path}"
    if isinstance(expression, Compare):
        if expression.op == "exists":
            return f"{expression.attribute} {'exists' if expression.value is not False else 'is absent'}"
        value = expression.value
        if isinstance(value, list | tuple | set | frozenset):
            value = "[" + ", ".join(sorted(map(str, value))) + "]"
        return f"{expression.attribute} {expression.op} {value}"
    word = "all" if isinstance(expression, Every) else "any" if isinstance(expression, Some) else "none"
    assert isinstance(expression, Every | Some | Neither)
    return f"{word}({', '.join(map(expression_text, expression.parts))})"


def compile_findings(expression: Expression, profiles: ProfileTable) -> Callable[[int, int], dict[str, Any]]:
    """Return what tells, for each comparison in the expression, the value that the user has."""
    leaves: dict[str, Callable[[int, int], Any]] = {}
    _collect(expression, profiles, leaves)
    readers = tuple(leaves.items())

    def findings(slot: int, now_ms: int) -> dict[str, Any]:
        return {label: read(slot, now_ms) for label, read in readers}

    return findings


def _collect(expression: Expression, profiles: ProfileTable, leaves: dict[str, Callable[[int, int], Any]]) -> None:
    if isinstance(expression, HasTag):
        leaves[expression_text(expression)] = _tag_test(expression.tag, profiles)
    elif isinstance(expression, InOrganisation):
        column = profiles.organisation_column()
        leaves[expression_text(expression)] = lambda slot, now_ms: column.get(slot)
    elif isinstance(expression, Compare):
        name = expression.attribute
        leaves[expression_text(expression)] = lambda slot, now_ms: profiles.attribute(slot, name)
    else:
        for part in expression.parts:
            _collect(part, profiles, leaves)
