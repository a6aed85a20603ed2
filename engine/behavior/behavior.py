"""`Behavior`: usage events in, matches (event row, trigger) out. Cold twin of the kernels beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.behavior import kernel
from engine.definitions import FieldTest, UsageTrigger
from engine.settings import FeedTable

_FIELDS = {"app": kernel.FIELD_APP, "category": kernel.FIELD_CATEGORY, "action": kernel.FIELD_ACTION}
_SMALLEST_TABLE = 1 << 12
_NEVER_MS = -(1 << 62)


class Behavior:
    """Match usage events against triggers; count each event once.

    triggers  the usage triggers of the content, in scenario order; a match names its index
    hash_text the hash that decode fills app, category and action with
    """

    def __init__(self, triggers: Sequence[UsageTrigger], feeds: FeedTable, hash_text: Callable[[str], int]) -> None:
        self._hash_text = hash_text
        self._lateness_ms = feeds.array["allowed_lateness_ms"].copy()
        self._keep_ms = int(self._lateness_ms.max())
        self._seen = _empty_table(_SMALLEST_TABLE, _blank(1024))
        self._out_row = np.empty(1 << 14, np.int32)
        self._out_trigger = np.empty(1 << 14, np.int32)
        self.activate(triggers)

    def activate(self, triggers: Sequence[UsageTrigger]) -> None:
        """Take the triggers of new content; what was seen stays."""
        self._triggers = tuple(triggers)
        self._table = compile_triggers(self._triggers, self._hash_text)
        self._plain = [tuple(test for test in one.tests if not _is_hashed(test)) for one in self._triggers]

    def ensure(self, users: int) -> None:
        """Make room for user slots below `users`."""
        have = len(self._seen.newest)
        if users > have:
            more = _blank(max(users - have, have // 4))
            self._seen = self._seen._replace(newest=np.concatenate((self._seen.newest, more)))

    def match(self, events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Admit the usage events of EVENT[N] (sets `drop`) and return (rows, triggers) that match, by row."""
        self._make_room(len(events))
        kernel.admit_usage(events, self._lateness_ms, self._keep_ms, self._seen)
        if not self._triggers:
            return self._out_row[:0], self._out_trigger[:0]
        rows: list[np.ndarray] = []
        triggers: list[np.ndarray] = []
        row = 0
        while row < len(events):
            written, following = kernel.match_usage(events, self._table, row, self._out_row, self._out_trigger)
            if written == 0 and following == row:
                # One event alone matches more triggers than the buffer holds.
                self._out_row = np.empty(2 * len(self._out_row), np.int32)
                self._out_trigger = np.empty_like(self._out_row)
                continue
            rows.append(self._out_row[:written].copy())
            triggers.append(self._out_trigger[:written].copy())
            row = following
        if len(rows) == 1:
            return rows[0], triggers[0]
        return (np.concatenate(rows), np.concatenate(triggers)) if rows else (self._out_row[:0], self._out_trigger[:0])

    def needs_event(self, trigger: int) -> bool:
        """Say whether this trigger has tests that only the whole event can answer."""
        return bool(self._plain[trigger])

    def passes(self, trigger: int, event: Any) -> bool:
        """Answer the tests that the kernel cannot: prefixes, and properties of any kind (B1)."""
        return all(_holds(test, event) for test in self._plain[trigger])

    def idle(self, first: int, last: int, before_ms: int) -> np.ndarray:
        """Say of users first .. last - 1 whether nothing is known of them that is newer than `before_ms`."""
        newest_ms = self._seen.newest["at_ms"][first:last]
        idle: np.ndarray = np.append(newest_ms < before_ms, np.ones(last - first - len(newest_ms), np.bool_))
        return idle

    def reset_users(self, slots: np.ndarray) -> None:
        """As `reset_user`, for many."""
        for slot in slots.tolist():
            self.reset_user(slot)

    def reset_user(self, slot: int) -> None:
        """Forget a user whose slot is given away."""
        self._seen.newest[slot] = _blank(1)[0]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint needs."""
        return self._seen._asdict()

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self._seen = kernel.SeenIds(**{name: arrays[name].copy() for name in kernel.SeenIds._fields})

    def _make_room(self, events: int) -> None:
        capacity = len(self._seen.table)
        if (int(self._seen.used[0]) + events) * 10 <= capacity * 7:
            return
        living = kernel.count_living(self._seen, self._keep_ms)
        # A sweep leaves the table at most half full, so that it pays for itself before the next.
        while (living + events) * 2 > capacity:
            capacity *= 2
        fresh = _empty_table(capacity, self._seen.newest)
        kernel.move_living(self._seen, self._keep_ms, fresh)
        self._seen = fresh


def _empty_table(capacity: int, newest: np.ndarray) -> kernel.SeenIds:
    return kernel.SeenIds(np.zeros(capacity, kernel.SEEN), newest, np.zeros(1, np.int64))


def _blank(users: int) -> np.ndarray:
    newest = np.zeros(users, kernel.NEWEST)
    newest["at_ms"] = _NEVER_MS
    return newest


def _is_hashed(test: FieldTest) -> bool:
    return test.field in _FIELDS and test.op in ("==", "in")


def compile_triggers(triggers: Sequence[UsageTrigger], hash_text: Callable[[str], int]) -> kernel.TriggerTable:
    """Build the lookup of `kernel.TriggerTable`; each trigger is filed under its most telling field."""
    filed: dict[int, list[int]] = {}
    test_start, test_field, value_start, values = [0], [], [0], []
    for index, trigger in enumerate(triggers):
        hashed = {}
        for test in trigger.tests:
            if _is_hashed(test):
                wanted = [test.value] if test.op == "==" else list(test.value)
                hashed[_FIELDS[test.field]] = [hash_text(str(value)) for value in wanted]
        if not hashed:
            raise AssertionError("content refuses a usage trigger without an app, category or action")
        filing = min(hashed)
        for value in hashed[filing]:
            filed.setdefault(int(kernel.mix(np.uint64((value + filing) & (2**64 - 1)))), []).append(index)
        for field, wanted_hashes in hashed.items():
            test_field.append(field)
            values.extend(wanted_hashes)
            value_start.append(len(values))
        test_start.append(len(test_field))
    capacity = 8
    while capacity < 2 * len(filed):
        capacity *= 2
    slot_key, slot_list = np.zeros(capacity, np.uint64), np.zeros(capacity, np.int32)
    list_start: list[int] = [0]
    list_trigger: list[int] = []
    for row, (key, members) in enumerate(filed.items()):
        slot = key & (capacity - 1)
        while slot_key[slot]:
            slot = (slot + 1) & (capacity - 1)
        slot_key[slot], slot_list[slot] = key, row
        list_trigger.extend(dict.fromkeys(members))
        list_start.append(len(list_trigger))
    return kernel.TriggerTable(
        slot_key,
        slot_list,
        np.array(list_start, np.int32),
        np.array(list_trigger, np.int32),
        np.array(test_start, np.int32),
        np.array(test_field, np.int32),
        np.array(value_start, np.int32),
        np.array(values, np.uint64),
    )


def _holds(test: FieldTest, event: Any) -> bool:
    if test.field.startswith("props."):
        actual = (event.props or {}).get(test.field[6:])
    else:
        actual = getattr(event, test.field, None)
    if actual is None:
        return False
    if test.op == "==":
        return bool(actual == test.value)
    if test.op == "in":
        return actual in test.value
    if test.op == "prefix":
        return isinstance(actual, str) and actual.startswith(test.value)
    low, high = test.value
    is_number = isinstance(actual, (int, float)) and not isinstance(actual, bool)
    return is_number and (low is None or actual >= low) and (high is None or actual < high)
