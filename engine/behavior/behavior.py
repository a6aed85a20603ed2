"""`Behavior`: usage events in, matches (event row, filter) and completed patterns out. Cold twin of the kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.behavior import kernel
from engine.behavior.catalogue import compile_apps
from engine.behavior.catalogue_kernel import fill_categories
from engine.behavior.filters import compile_filters, field_of, holds, is_hashed, summand_of, value_hash
from engine.behavior.layout_kernel import FIRED, Steps
from engine.behavior.patterns import PatternStore
from engine.behavior.plan import Plan
from engine.definitions import AppTable, UsageTrigger
from engine.model import LOUD_REASONS, TransitionReason
from engine.settings import FeedTable

_SMALLEST_TABLE = 1 << 12
_NO_FIRED = np.zeros(0, FIRED)
_IS_LOUD = np.isin(np.arange(len(TransitionReason)), LOUD_REASONS)
Read = Callable[[Any], Any]


class Behavior:
    """Match usage events against filters, each event counted once, and follow the patterns they are steps of.

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
        self._store: PatternStore | None = None
        self._apps: np.ndarray | None = None
        self._feeds = len(feeds.names)
        self._users = 0
        self.activate(triggers)

    def activate(self, triggers: Sequence[UsageTrigger], plan: Plan | None = None) -> None:
        """Take the triggers and patterns of new content; what was seen, and unchanged patterns, stay (L10)."""
        self.plan = plan
        self._usage = len(triggers)
        filters = plan.filters if plan else []
        self._triggers = (*triggers, *(one.trigger for one in filters))
        self._needs_event = np.array([False] * self._usage + [one.needs_event for one in filters], np.bool_)
        self._looks = np.zeros(len(self._triggers), np.bool_)
        self._looks[sorted(plan.looks) if plan else []] = True
        self._has_looks = bool(self._looks.any())
        self._awaited = np.diff(plan.arrays.route_start) > 0 if plan else np.zeros(0, np.bool_)
        self._table = compile_filters(self._triggers, self._hash_text)
        self._plain = [tuple(test for test in one.tests if not is_hashed(test)) for one in self._triggers]
        if plan is None or not plan.patterns:
            self._store = None
        elif self._store is None:
            self._store = PatternStore(plan, self._feeds, self._keep_ms)
            self._store.ensure(self._users)
        else:
            self._store.activate(plan)

    def set_apps(self, apps: AppTable) -> None:
        """Take the catalogue that says the category of events which do not."""
        self._apps = compile_apps(apps)

    def ensure(self, users: int) -> None:
        """Make room for user slots below `users`."""
        have = len(self._seen.newest)
        if users > have:
            more = _blank(max(users - have, have // 4))
            self._seen = self._seen._replace(newest=np.concatenate((self._seen.newest, more)))
        self._users = max(self._users, users)
        if self._store is not None:
            self._store.ensure(users)

    def match(self, events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Admit the usage events of EVENT[N] (sets `drop`) and return (rows, triggers) that match, by row."""
        if self._apps is not None:
            fill_categories(events, self._apps)
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

    def rows_to_look(self, rows: np.ndarray, filters: np.ndarray) -> np.ndarray | None:
        """Return the event rows at which somebody will ask where the user is inside (B4), rising; None: nobody."""
        if not self._has_looks or not len(rows):
            return None
        looked = rows[self._looks[filters]]
        return looked[np.append(True, looked[1:] != looked[:-1])] if len(looked) else None

    def advance(
        self,
        events: np.ndarray,
        matches: tuple[np.ndarray, np.ndarray],
        transitions: np.ndarray,
        now_ms: int,
        read: Read,
    ) -> np.ndarray:
        """Let the patterns take what happened in a batch, then let time pass; return FIRED[K] in log order.

        matches  of `match`; those of plain usage triggers are passed over
        read     turns an EVENT row into the whole event, for what hashes cannot answer
        """
        if self._store is None or self.plan is None:
            return _NO_FIRED
        if not len(matches[0]) and not len(transitions) and not self._store.looks(events, now_ms):
            return _NO_FIRED
        rows, filters = matches
        if len(rows):
            chosen = np.flatnonzero(filters >= self._usage)
            rows, filters = rows[chosen], filters[chosen]
        if len(rows) > 1:
            # Within one event first what others ask about (plan.ASKED); fields are looked up in another order.
            order = np.lexsort((filters, rows))
            rows, filters = rows[order], filters[order]
        value, same = np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.uint64)
        asking = np.flatnonzero(self._needs_event[filters]) if len(rows) else rows
        if len(asking):
            keep = np.ones(len(rows), np.bool_)
            for place in asking.tolist():
                keep[place] = self._read_match(events[rows[place]], int(filters[place]), place, value, same, read)
            rows, filters, value, same = rows[keep], filters[keep], value[keep], same[keep]
        index = self._steps_among(transitions)
        return self._store.advance(
            Steps(events, transitions[index], index, rows, filters, value, same),
            now_ms,
        )

    def _read_match(self, event: Any, number: int, place: int, value: np.ndarray, same: np.ndarray, read: Read) -> bool:
        """Answer what the whole event must answer; False where it is no step."""
        assert self.plan is not None
        whole, wanted = read(event), self.plan.filters[number - self._usage]
        if not all(holds(test, whole) for test in self._plain[number]):
            return False
        if wanted.is_sum:
            real = summand_of(whole, wanted.field)
            if real is None:
                return False
            value.view(np.float64)[place] = real
        elif wanted.field:
            value[place] = value_hash(field_of(whole, wanted.field), self._hash_text)
        if wanted.same:
            same[place] = value_hash(field_of(whole, wanted.same), self._hash_text)
        return True

    def _steps_among(self, transitions: np.ndarray) -> np.ndarray:
        """Return the places of the transitions that some pattern waits for.

        A step needs an instant: what closing, a gap or an activation gave has none, nor has an ENTER of unknown begin.
        """
        if not len(transitions) or not self._awaited.any():
            return np.zeros(0, np.int32)
        assert self.plan is not None
        route = transitions["kind"].astype(np.int64) * len(self.plan.arrays.fence_hash) + transitions["fence"]
        wanted = self._awaited[route] & _IS_LOUD[transitions["reason"]]
        wanted &= (transitions["initial"] == 0) & (transitions["wide_gap"] == 0)
        return np.flatnonzero(wanted).astype(np.int32)

    def needs_event(self, trigger: int) -> bool:
        """Say whether this trigger has tests that only the whole event can answer."""
        return bool(self._plain[trigger])

    def passes(self, trigger: int, event: Any) -> bool:
        """Answer the tests that the kernel cannot: prefixes, and properties of any kind (B1)."""
        return all(holds(test, event) for test in self._plain[trigger])

    def idle(self, first: int, last: int, before_ms: int, now_ms: int) -> np.ndarray:
        """Say of users first .. last - 1 whether no usage is newer than `before_ms`, nor counts in a pattern."""
        newest_ms = self._seen.newest["at_ms"][first:last]
        idle: np.ndarray = np.append(newest_ms < before_ms, np.ones(last - first - len(newest_ms), np.bool_))
        if self._store is not None and idle.any():
            self._store.clear_bound(idle, first, now_ms)
        return idle

    def reset_users(self, slots: np.ndarray) -> None:
        """As `reset_user`, for many."""
        self._seen.newest[slots] = _blank(1)[0]
        if self._store is not None and len(slots):
            self._store.reset_users(slots)

    def reset_user(self, slot: int) -> None:
        """Forget a user whose slot is given away."""
        self.reset_users(np.array([slot]))

    def close_user(self, slot: int) -> None:
        """Begin with a new user in the slot (A4). An event of the old one that comes again still counts once (T7)."""
        newest = self._seen.newest[slot].copy()
        self.reset_user(slot)
        if newest["fingerprint"]:
            self._make_room(1)
            self._remember(int(newest["fingerprint"]) | 1, int(newest["at_ms"]), slot)
            self._seen.newest[slot]["fingerprint"] = kernel.OTHERS

    def _remember(self, fingerprint: int, at_ms: int, slot: int) -> None:
        """As the kernel's `remember`, for the rare user who is closed."""
        table = self._seen.table
        place = (fingerprint >> 1) & (len(table) - 1)
        while int(table[place]["fingerprint"]) not in (0, fingerprint):
            place = (place + 1) & (len(table) - 1)
        self._seen.used[0] += int(table[place]["fingerprint"]) == 0
        table[place] = (fingerprint, at_ms, slot, 0)

    def counts(self) -> dict[str, int]:
        """Totals of patterns since the first start; empty without patterns."""
        return self._store.counts() if self._store is not None else {}

    def take_counts(self) -> dict[str, int]:
        """Return what happened to patterns since this was asked last."""
        return self._store.take_counts() if self._store is not None else {}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint needs."""
        patterns = self._store.arrays() if self._store is not None else {}
        return self._seen._asdict() | {f"pattern_{name}": array for name, array in patterns.items()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self._seen = kernel.SeenIds(**{name: arrays[name].copy() for name in kernel.SeenIds._fields})
        if self._store is not None and "pattern_state" in arrays:
            found = {name[8:]: array for name, array in arrays.items() if name.startswith("pattern_")}
            self._store.restore(found)
            self._users = len(found["flags"])

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
    newest["at_ms"] = kernel.NEVER_MS
    return newest
