"""Kernels of usage events: each counted once (T7), none too late (T5), matched to the triggers they may start (B1)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from engine.kernels import kernel
from engine.model import Drop, EventType

FIELD_APP, FIELD_CATEGORY, FIELD_ACTION = 0, 1, 2
_USAGE = int(EventType.USAGE)
_DUPLICATE = int(Drop.DUPLICATE)
_LATE = int(Drop.LATE)


class SeenIds(NamedTuple):
    """Ids of usage events whose instant is not yet late, as an open-addressing table (power of two, 0 is empty).

    fingerprint  uint64[C]  of id and user
    at_ms        int64[C]
    user         int32[C]
    newest_ms    int64[U]   newest usage instant of each user, the line that `late` is measured from
    used         int64[1]   slots that were ever filled since the last sweep
    """

    fingerprint: np.ndarray
    at_ms: np.ndarray
    user: np.ndarray
    newest_ms: np.ndarray
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
def admit_usage(events: np.ndarray, lateness_ms: np.ndarray, keep_ms: int, seen: SeenIds) -> None:
    """Mark repeated and late usage events, remember the rest.

    events       EVENT[N]     `drop` is written
    lateness_ms  int64[F]     allowed lateness of each feed
    keep_ms      the largest of them: how long an id can matter
    seen         has room for N more ids (the caller sweeps or grows it)

    An entry older than its user's newest instant minus `keep_ms` can never match again: it is dead, and reused.
    Cost: one probe chain per usage event.  Oracle: tests/property/test_behavior.py.
    """
    mask = np.int64(seen.fingerprint.shape[0] - 1)
    for row in range(events.shape[0]):
        event = events[row]
        if event.type != _USAGE or event.drop != 0:
            continue
        user = event.user
        newest = seen.newest_ms[user]
        if event.at_ms < newest - lateness_ms[event.feed]:
            events[row].drop = _LATE
            continue
        fingerprint = mix(event.id_hash ^ mix(np.uint64(user + 1)))
        if fingerprint == np.uint64(0):
            fingerprint = np.uint64(1)
        slot = np.int64(fingerprint & np.uint64(mask))
        reuse = np.int64(-1)
        found = False
        while seen.fingerprint[slot] != np.uint64(0):
            is_dead = seen.at_ms[slot] < seen.newest_ms[seen.user[slot]] - keep_ms
            if seen.fingerprint[slot] == fingerprint:
                # A dead entry counts as forgotten whether or not it was swept, or batches would matter (T4).
                found = not is_dead
                if is_dead:
                    reuse = slot
                break
            if reuse < 0 and is_dead:
                reuse = slot
            slot = (slot + 1) & mask
        if found:
            events[row].drop = _DUPLICATE
            continue
        if reuse >= 0:
            slot = reuse
        else:
            seen.used[0] += 1
        seen.fingerprint[slot] = fingerprint
        seen.at_ms[slot] = event.at_ms
        seen.user[slot] = user
        if event.at_ms > newest:
            seen.newest_ms[user] = event.at_ms


@kernel
def move_living(old: SeenIds, keep_ms: int, fresh: SeenIds) -> None:
    """Copy the entries that can still matter into an empty table."""
    mask = np.int64(fresh.fingerprint.shape[0] - 1)
    for row in range(old.fingerprint.shape[0]):
        if old.fingerprint[row] == np.uint64(0) or old.at_ms[row] < old.newest_ms[old.user[row]] - keep_ms:
            continue
        slot = np.int64(old.fingerprint[row] & np.uint64(mask))
        while fresh.fingerprint[slot] != np.uint64(0):
            slot = (slot + 1) & mask
        fresh.fingerprint[slot] = old.fingerprint[row]
        fresh.at_ms[slot] = old.at_ms[row]
        fresh.user[slot] = old.user[row]
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
