"""Kernels of usage events: each counted once (T7), none too late (T5), matched to the triggers they may start (B1)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from engine.hashing_kernel import address_of
from engine.kernels import kernel
from engine.model import Drop, EventType
from engine.prefetch_kernel import prefetch

FIELD_APP, FIELD_CATEGORY, FIELD_ACTION = 0, 1, 2
_USAGE = int(EventType.USAGE)
_DUPLICATE = int(Drop.DUPLICATE)
_LATE = int(Drop.LATE)


SEEN = np.dtype([("fingerprint", "u8"), ("at_ms", "i8"), ("user", "i4"), ("spare", "i4")])
"""One remembered id; fingerprint 0 is an empty slot."""

_AHEAD = 24  # events between asking for memory and using it: about one memory latency


NEWEST = np.dtype([("at_ms", "i8"), ("fingerprint", "u8")])
"""A user's newest usage event.  Bit 0 of the fingerprint says that the table may hold others that still matter."""
NEWEST_BYTES = NEWEST.itemsize
NEVER_MS = -(1 << 62)
OTHERS, IDENTITY = np.uint64(1), ~np.uint64(1)


class SeenIds(NamedTuple):
    """Ids of usage events whose instant is not yet late: each user's newest, and others in an open-addressing table.

    table   SEEN[C]     C a power of two; by the fingerprint of id and user
    newest  NEWEST[U]   the instant is the line that `late` is measured from
    used    int64[1]    slots of the table that were ever filled since the last sweep
    """

    table: np.ndarray
    newest: np.ndarray
    used: np.ndarray


class TriggerTable(NamedTuple):
    """Usage triggers, found by the hash of one field and verified on the others.

    slot_key     uint64[C]      open addressing over (field, hash), 0 is empty
    slot_list    int32[C]       row of list_start
    list_start   int32[L + 1]   triggers of one key: list_trigger[list_start[l]:list_start[l + 1]]
    list_trigger int32[...]
    test_start   int32[T + 1]   tests of trigger t; all must hold
    test_field   int32[...]     FIELD_*
    value_start  int32[tests + 1]
    value        uint64[...]    a test holds when the field's hash is one of its values
    """

    slot_key: np.ndarray
    slot_list: np.ndarray
    list_start: np.ndarray
    list_trigger: np.ndarray
    test_start: np.ndarray
    test_field: np.ndarray
    value_start: np.ndarray
    value: np.ndarray


@kernel
def mix(value: np.uint64) -> np.uint64:
    """Spread the bits of a 64-bit value (the finaliser of SplitMix64)."""
    value = np.uint64(value)
    value ^= value >> np.uint64(30)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    return value


@kernel
def _fingerprint(id_hash: np.uint64, user: int) -> np.uint64:
    return mix(id_hash ^ mix(np.uint64(user + 1))) | np.uint64(1)


@kernel
def admit_usage(events: np.ndarray, lateness_ms: np.ndarray, keep_ms: int, seen: SeenIds) -> None:
    """Mark repeated and late usage events, remember the rest.

    events       EVENT[N]     `drop` is written
    lateness_ms  int64[F]     allowed lateness of each feed
    keep_ms      the largest of them: how long an id can matter
    seen         has room for N more ids (the caller sweeps or grows it)

    An entry older than its user's newest instant minus `keep_ms` is dead: where its own id comes again it counts as
    forgotten whether or not it was swept, or batches would matter (T4).  Most users open one app in a minute: for them
    the table is not asked.
    Cost: one cache line per usage event, asked for ahead.  Oracle: tests/property/test_behavior.py.
    """
    line = address_of(seen.newest)
    count = events.shape[0]
    for row in range(count):
        if row + _AHEAD < count:
            coming = events[row + _AHEAD]
            if coming.type == _USAGE:
                prefetch(line + np.int64(coming.user) * NEWEST_BYTES)
        event = events[row]
        if event.type != _USAGE or event.drop != 0:
            continue
        newest = seen.newest[event.user]
        if event.at_ms < newest.at_ms - lateness_ms[event.feed]:
            events[row].drop = _LATE
            continue
        fingerprint = _fingerprint(event.id_hash, event.user)
        if (fingerprint ^ newest.fingerprint) & IDENTITY == 0 and newest.fingerprint != 0:
            events[row].drop = _DUPLICATE
            continue
        if newest.fingerprint & OTHERS and is_in_table(seen, fingerprint, newest.at_ms - keep_ms):
            events[row].drop = _DUPLICATE
            continue
        if event.at_ms <= newest.at_ms:
            remember(seen, fingerprint, event.at_ms, event.user)
            newest.fingerprint |= OTHERS
            continue
        # Of a closed user the table holds what the next one may send again.
        others = newest.fingerprint & OTHERS if newest.at_ms == NEVER_MS else np.uint64(0)
        if newest.fingerprint != 0 and newest.at_ms >= event.at_ms - keep_ms:
            remember(seen, newest.fingerprint, newest.at_ms, event.user)
            others = OTHERS
        newest.at_ms = event.at_ms
        newest.fingerprint = (fingerprint & IDENTITY) | others


@kernel
def is_in_table(seen: SeenIds, fingerprint: np.uint64, oldest_ms: int) -> bool:
    """Say whether the table holds this id, made at `oldest_ms` or later."""
    place = slot_of(seen.table, fingerprint)
    return bool(seen.table[place].fingerprint != 0 and seen.table[place].at_ms >= oldest_ms)


@kernel
def remember(seen: SeenIds, fingerprint: np.uint64, at_ms: int, user: int) -> None:
    """Put an id into the table; where it stands already, dead, its instant is renewed."""
    entry = seen.table[slot_of(seen.table, fingerprint)]
    if entry.fingerprint == 0:
        seen.used[0] += 1
    entry.fingerprint = fingerprint | OTHERS
    entry.at_ms = at_ms
    entry.user = user


@kernel
def slot_of(table: np.ndarray, fingerprint: np.uint64) -> int:
    """Place of an id in the table, or of the gap where it would stand."""
    mask = np.int64(table.shape[0] - 1)
    fingerprint = np.uint64(fingerprint) | OTHERS
    slot = np.int64(fingerprint >> np.uint64(1)) & mask
    while table[slot].fingerprint != 0 and table[slot].fingerprint != fingerprint:
        slot = (slot + 1) & mask
    return int(slot)


@kernel
def count_living(seen: SeenIds, keep_ms: int) -> int:
    """Count the entries that can still matter."""
    living = 0
    for row in range(seen.table.shape[0]):
        entry = seen.table[row]
        if entry.fingerprint != np.uint64(0) and entry.at_ms >= seen.newest[entry.user].at_ms - keep_ms:
            living += 1
    return living


@kernel
def move_living(old: SeenIds, keep_ms: int, fresh: SeenIds) -> None:
    """Copy the entries that can still matter into an empty table."""
    for row in range(old.table.shape[0]):
        entry = old.table[row]
        if entry.fingerprint == np.uint64(0) or entry.at_ms < old.newest[entry.user].at_ms - keep_ms:
            continue
        fresh.table[slot_of(fresh.table, entry.fingerprint)] = entry
        fresh.used[0] += 1


@kernel
def _holds(event: Any, triggers: TriggerTable, trigger: int) -> bool:
    for test in range(triggers.test_start[trigger], triggers.test_start[trigger + 1]):
        field = triggers.test_field[test]
        if field == 0:
            actual = event.app_hash
        elif field == 1:
            actual = event.category_hash
        else:
            actual = event.action_hash
        one_of = False
        for place in range(triggers.value_start[test], triggers.value_start[test + 1]):
            if triggers.value[place] == actual:
                one_of = True
                break
        if not one_of:
            return False
    return True


@kernel
def match_usage(
    events: np.ndarray, triggers: TriggerTable, first_row: int, out_row: np.ndarray, out_trigger: np.ndarray
) -> tuple[int, int]:
    """List (event row, trigger) of every usage event that passes a trigger's hashed tests, in event order.

    Returns (matches written, the row to go on from); it stops before a row that might not fit, so the caller
    empties the buffers and calls again.  Cost: three probes per event, then the tests of the triggers found.
    """
    mask = np.int64(triggers.slot_key.shape[0] - 1)
    written = 0
    for row in range(first_row, events.shape[0]):
        event = events[row]
        if event.type != _USAGE or event.drop != 0:
            continue
        before = written
        for field in range(3):
            if field == 0:
                key = event.app_hash
            elif field == 1:
                key = event.category_hash
            else:
                key = event.action_hash
            if key == np.uint64(0):
                continue
            key = mix(key + np.uint64(field))
            slot = np.int64(key & np.uint64(mask))
            while triggers.slot_key[slot] != np.uint64(0):
                if triggers.slot_key[slot] == key:
                    chosen = triggers.slot_list[slot]
                    for place in range(triggers.list_start[chosen], triggers.list_start[chosen + 1]):
                        trigger = triggers.list_trigger[place]
                        if _holds(event, triggers, trigger):
                            if written == out_row.shape[0]:
                                return before, row
                            out_row[written] = row
                            out_trigger[written] = trigger
                            written += 1
                    break
                slot = (slot + 1) & mask
    return written, events.shape[0]
