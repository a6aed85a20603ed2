"""Audience expressions over all users at once (rule A1): the bulk twin of `audience.py`, column by column.

Twin of compile_expression: the same user gets the same answer (tests/property/test_audience.py). Reads the profile
table beside the thread that changes it: columns are taken once each, so a count is of about now and never torn inside
one user's value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.decide.audience import is_below
from engine.decide.columns import TextColumn
from engine.decide.profiles import DENIED, DO_NOT_DISTURB, GRANTED, KNOWN, ProfileTable
from engine.definitions import Compare, Every, Expression, HasTag, InOrganisation, Some

_MOST_ANSWERS = 64
_FEW = 8

_ORDER: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
}


@dataclass(frozen=True, slots=True)
class Reach:
    """Whom an audience holds, as masks over the slots: bool[N] each.

    by_channel  of those that match, whom a marketing message may reach: consent, and no do-not-disturb
    """

    known: np.ndarray
    matching: np.ndarray
    by_channel: Mapping[str, np.ndarray] = field(default_factory=dict)


class Counter:
    """Evaluates expressions over a profile table; remembers what it asked of texts, which are never renamed."""

    def __init__(self, profiles: ProfileTable) -> None:
        self._profiles = profiles
        self._answers: dict[tuple[int, str, str], np.ndarray] = {}

    def reach(self, expression: Expression | None, now_ms: int, channels: Sequence[str] = ()) -> Reach:
        """Return who has a profile, who of them is in the audience, and who of these may be sent to."""
        profiles = self._profiles
        count = profiles.count
        flags = profiles.flags.array[:count]
        known = (flags & KNOWN) != 0
        matching = known if expression is None else known & self.mask(expression, now_ms, count)
        by_channel = {}
        for channel in channels:
            purpose = f"marketing.{channel}"
            column = profiles.purposes.get(purpose)
            assumed = purpose in profiles.assumed
            undisturbed = matching & ((flags & DO_NOT_DISTURB) == 0)
            if column is None:
                by_channel[channel] = undisturbed if assumed else np.zeros(count, bool)
            else:
                state = column.array[:count] & 3
                by_channel[channel] = undisturbed & (state != DENIED if assumed else state == GRANTED)
        return Reach(known, matching, by_channel)

    def mask(self, expression: Expression, now_ms: int, count: int) -> np.ndarray:
        """Return bool[count]: for which slots the expression holds, those without a profile included."""
        if isinstance(expression, HasTag):
            return self._tag(expression.tag, now_ms, count)
        if isinstance(expression, InOrganisation):
            path = expression.path
            return self._text(self._profiles.organisation, "below", path, lambda held: is_below(held, path), count)
        if isinstance(expression, Compare):
            return self._compare(expression, count)
        is_every = isinstance(expression, Every)
        out = np.full(count, is_every)
        for part in expression.parts:
            one = self.mask(part, now_ms, count)
            if is_every:
                out &= one
            else:
                out |= one
        return out if is_every or isinstance(expression, Some) else ~out

    def _tag(self, tag: str, now_ms: int, count: int) -> np.ndarray:
        profiles = self._profiles
        out = np.zeros(count, bool)
        if tag in profiles.tags.row:
            column, bit = profiles.tag_place(tag)
            np.not_equal(column.array[:count] & np.uint64(bit), 0, out=out)
        # `list` of a dict's items is one step of the interpreter: the engine's thread may add to it meanwhile.
        for slot, tags in list(profiles.dynamic.items()):
            if slot < count and tags.get(tag, 0) > now_ms:
                out[slot] = True
        return out

    def _compare(self, compare: Compare, count: int) -> np.ndarray:
        name, op, value = compare.attribute, compare.op, compare.value
        number, text = self._profiles.numbers.get(name), self._profiles.texts.get(name)
        numbers = None if number is None else number.array[:count]
        if op == "exists":
            held = np.zeros(count, bool)
            if numbers is not None:
                held |= ~np.isnan(numbers)
            if text is not None:
                held |= text.array[:count] >= 0
            return np.asarray(held if value is not False else ~held)
        if op == "in":
            out = np.zeros(count, bool)
            wanted = [float(one) for one in value if not isinstance(one, str)]
            if numbers is not None and wanted:
                out |= np.isin(numbers, wanted)
            return np.asarray(out | _any_text(text, [one for one in value if isinstance(one, str)], count))
        if op == "prefix":
            return self._text(text, op, value, lambda held: held.startswith(value), count)
        if isinstance(value, str):
            if op == "==":
                return _any_text(text, [value], count)
            if op == "!=":
                if text is None:
                    return np.zeros(count, bool)
                return np.asarray((text.array[:count] >= 0) & ~_any_text(text, [value], count))
            order = _ORDER[op]
            return self._text(text, op, value, lambda held: bool(order(held, value)), count)
        if numbers is None:
            return np.zeros(count, bool)
        if op == "!=":
            return np.asarray((numbers != float(value)) & ~np.isnan(numbers))
        return np.asarray(_ORDER[op](numbers, float(value)))

    def _text(
        self, column: TextColumn | None, op: str, value: str, holds: Callable[[str], bool], count: int
    ) -> np.ndarray:
        """Ask a question once of every distinct text, and only of those that came since it was asked last."""
        if column is None:
            return np.zeros(count, bool)
        codes, texts = column.array[:count], column.names.texts
        key = (id(column.names), op, value)
        answers = self._answers.get(key)
        known = 0 if answers is None else len(answers) - 2
        if answers is None or len(texts) > known:
            new = [holds(text) for text in texts[known:]]
            # One place before the first text for "none", one behind the last for what is added meanwhile.
            kept = np.zeros(1, bool) if answers is None else answers[:-1]
            answers = np.concatenate((kept, np.array(new, bool), np.zeros(1, bool)))
            if len(self._answers) >= _MOST_ANSWERS:
                self._answers.pop(next(iter(self._answers)))
            self._answers[key] = answers
        return np.asarray(answers.take(codes + 1, mode="clip"))


def _any_text(column: TextColumn | None, wanted: Sequence[str], count: int) -> np.ndarray:
    """Say where a column holds one of these texts."""
    if column is None:
        return np.zeros(count, bool)
    codes = column.array[:count]
    rows = [column.names.row[one] for one in wanted if one in column.names.row]
    if len(rows) > _FEW:
        return np.isin(codes, rows)
    out = np.zeros(count, bool)
    for row in rows:
        out |= codes == row
    return out
