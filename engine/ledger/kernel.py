"""Caps in memory: grants in one pool, linked newest first per subject, and the questions rules ask of them.

The caller (caps.py) makes room first and checks everything; kernels trust. Hashes are never 0, which marks an empty
place in the open-addressing tables (linear probing, place = high bits of hash x size).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from engine.hashing_kernel import hash_bytes
from engine.kernels import kernel

GRANT = np.dtype(
    [
        ("at_ms", "i8"),  # the log's now at reservation
        ("scenario", "i4"),
        ("next", "i4"),  # the subject's grant before this one, -1 none
        ("category", "i2"),
        ("partner", "i2"),
        ("channel", "u1"),
        ("flags", "u1"),  # COUNTS | WITHHELD | RELEASED | KEEP | DELIVERED
        ("spare", "u2"),
    ]
)
COUNTS, WITHHELD, RELEASED, KEEP, SHADOW, DELIVERED = 1, 2, 4, 8, 16, 32
PASSED, UNTRIED, REPEATED = -1, -2, -3
ALL, CHANNEL, SCENARIO, CATEGORY, PARTNER, DEPLOYMENT = 0, 1, 2, 3, 4, 5
MINUTE_MS = 60_000
MINUTES = 1560
"""Deployment counters reach 26 hours back: a calendar day of 25 hours and one to spare."""


class CapArrays(NamedTuple):
    """Everything caps are decided from.

    subject_key    uint64[S]  hash of the subject, 0 empty
    subject_head   int32[S]   newest grant of that subject
    grants         GRANT[G]   the first `counters[USED]` are in use
    offer_key      uint64[O]  offer ids of the replay horizon, mixed to 64 bits (`mix_offer`); 0 empty
    offer_grant    int32[O]   the grant that the id made
    minutes        int32[C, MINUTES]  per scenario the grants of each minute, a ring by minute of the epoch
    newest_minute  int64[C]   newest minute of that ring
    counters       int64[8]   see USED ...
    """

    subject_key: Any
    subject_head: Any
    grants: Any
    offer_key: Any
    offer_grant: Any
    minutes: Any
    newest_minute: Any
    counters: Any


USED, SUBJECTS, OFFERS, LONGEST_MS, NEXT_SWEEP_MS = 0, 1, 2, 3, 4


class Batch(NamedTuple):
    """Requests in columns, and the answers. Spans are given by their ends; each begins where the one before ended.

    Requests: subject uint64[N] hashed, now_ms int64[N], option_end int64[N].
    Options: offer uint64[M, 2] both halves of the id, rule_end int64[M], mark int64[M] (see `mark_of`),
    option_flags uint8[M] COUNTS | WITHHELD | SHADOW.
    Rules: since_ms int64[K], most int64[K], scope uint8[K], uncounted_too uint8[K].
    Out, overwritten:
    granted     int64[N]  index of the granted option within its request, or -1
    flags       int64[N]  flags of the grant that was made, -1 none made, -2 offer id granted before
    refused_by  int64[M]  which of the option's rules refused, or PASSED, UNTRIED, REPEATED
    """

    subject: Any
    now_ms: Any
    option_end: Any
    offer: Any
    rule_end: Any
    mark: Any
    option_flags: Any
    since_ms: Any
    most: Any
    scope: Any
    uncounted_too: Any
    granted: Any
    flags: Any
    refused_by: Any


def mark_of(scenario: int, category: int, partner: int, channel: int) -> int:
    """Pack what scopes ask about: 24 bits, 15, 15 and 8."""
    return scenario << 38 | category << 23 | partner << 8 | channel


@kernel
def place_of(key: Any, size: int) -> Any:
    """Map a hash to 0..size-1 by its high 32 bits, so that sizes need not be powers of two."""
    return np.int64(((key >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32))


@kernel
def find_subject(state: Any, key: Any) -> Any:
    """Return the place of this subject, or where it would go."""
    size = len(state.subject_key)
    place = place_of(key, size)
    while state.subject_key[place] != np.uint64(0) and state.subject_key[place] != key:
        place += 1
        if place == size:
            place = 0
    return place


@kernel
def mix_offer(high: Any, low: Any) -> Any:
    """Mix both halves of an offer id to 64 bits, never 0.

    The low half alone is a keyed hash; the high one is mixed in for ids that were not made by it. Two of a billion ids
    share 64 bits once in 37 such deployments; the later of them is then refused as a duplicate: never one too many.
    """
    mixed = low ^ (high * np.uint64(0x9E3779B97F4A7C15))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed if mixed != np.uint64(0) else np.uint64(1)


@kernel
def find_offer(state: Any, key: Any) -> Any:
    """Return the place of this offer id (mixed), or where it would go."""
    size = len(state.offer_key)
    place = place_of(key, size)
    while state.offer_key[place] != np.uint64(0) and state.offer_key[place] != key:
        place += 1
        if place == size:
            place = 0
    return place


@kernel
def count_deployment(state: Any, scenario: int, since_ms: int, now_ms: int) -> Any:
    """Count what one scenario sent to anyone since then, in whole minutes, the minute of `since_ms` + 1 included."""
    newest = state.newest_minute[scenario]
    first = max((since_ms + 1) // MINUTE_MS, newest - MINUTES + 1)
    total = 0
    for minute in range(first, min(newest, now_ms // MINUTE_MS) + 1):
        total += state.minutes[scenario, minute % MINUTES]
    return total


@kernel
def add_deployment(state: Any, scenario: int, at_ms: int, change: int) -> None:
    """Count one grant more or less; a minute older than the ring is forgotten."""
    minute = at_ms // MINUTE_MS
    newest = state.newest_minute[scenario]
    if minute > newest:
        for passed in range(max(newest + 1, minute - MINUTES + 1), minute + 1):
            state.minutes[scenario, passed % MINUTES] = 0
        state.newest_minute[scenario] = minute
    elif minute <= newest - MINUTES:
        return
    state.minutes[scenario, minute % MINUTES] += change


@kernel
def refuses(state: Any, batch: Any, rule: int, head: int, mark: int, is_withheld: bool, now_ms: int) -> Any:
    """Say whether a rule refuses: at least `most` grants of its scope lie after `since_ms`.

    rule  row of batch; head  newest grant of the subject; mark, is_withheld  of the option that asks
    Cost: grants of the subject that are newer than `since_ms`, at most until `most` are found.
    """
    since_ms, most, scope = batch.since_ms[rule], batch.most[rule], batch.scope[rule]
    uncounted_too = batch.uncounted_too[rule] != 0
    if scope == DEPLOYMENT:
        return count_deployment(state, mark >> 38, since_ms, now_ms) >= most
    found = 0
    grant = head
    while found < most and grant >= 0:
        one = state.grants[grant]
        if one.at_ms <= since_ms:
            return False
        grant = one.next
        if one.flags & RELEASED:
            continue
        if not uncounted_too and (not one.flags & COUNTS or (one.flags & WITHHELD and not is_withheld)):
            continue
        if (
            scope == ALL
            or (scope == CHANNEL and one.channel == mark & 0xFF)
            or (scope == SCENARIO and one.scenario == mark >> 38)
            or (scope == CATEGORY and one.category == mark >> 23 & 0x7FFF)
            or (scope == PARTNER and one.partner == mark >> 8 & 0x7FFF)
        ):
            found += 1
    return found >= most


@kernel
def reserve(state: Any, batch: Any, first: int) -> Any:
    """Grant each request from `first` on its first option whose rules all pass; return where it stopped.

    It stops before the first request at or past counters[NEXT_SWEEP_MS]: the caller sweeps and goes on, so that what
    is swept depends on the log alone and not on how requests were grouped (T4).
    Room for as many grants, subjects and offers as there are requests has been made. No allocation.
    """
    counters = state.counters
    request_end = batch.option_end[first - 1] if first > 0 else 0
    for row in range(first, len(batch.now_ms)):
        now_ms = batch.now_ms[row]
        if now_ms >= counters[NEXT_SWEEP_MS]:
            return row
        start, request_end = request_end, batch.option_end[row]
        batch.granted[row] = -1
        batch.flags[row] = -1
        for k in range(start, request_end):
            offer = mix_offer(batch.offer[k, 0], batch.offer[k, 1])
            batch.refused_by[k] = UNTRIED
            if state.offer_key[find_offer(state, offer)] == offer:
                batch.granted[row] = k - start
                batch.flags[row] = -2
                for before in range(start, k):
                    batch.refused_by[before] = REPEATED
                break
        if batch.flags[row] == -2:
            continue
        subject = find_subject(state, batch.subject[row])
        head = state.subject_head[subject] if state.subject_key[subject] == batch.subject[row] else -1
        for k in range(start, request_end):
            option_flags = np.int64(batch.option_flags[k])
            mark = batch.mark[k]
            verdict = PASSED
            flags = option_flags & (COUNTS | WITHHELD)
            rule_start = batch.rule_end[k - 1] if k > 0 else 0
            for r in range(rule_start, batch.rule_end[k]):
                since_ms = batch.since_ms[r]
                if since_ms <= 0:
                    flags |= KEEP
                elif batch.scope[r] != DEPLOYMENT:
                    counters[LONGEST_MS] = max(counters[LONGEST_MS], now_ms - since_ms)
                if verdict == PASSED and refuses(state, batch, r, head, mark, option_flags & WITHHELD != 0, now_ms):
                    verdict = r - rule_start
            batch.refused_by[k] = verdict
            if verdict != PASSED:
                continue
            batch.granted[row] = k - start
            if not option_flags & SHADOW:
                batch.flags[row] = flags
                add_grant(state, batch.subject[row], batch.offer[k, 0], batch.offer[k, 1], mark, flags, now_ms)
            break
    return len(batch.now_ms)


@kernel
def add_grant(state: Any, subject_key: Any, high: Any, low: Any, mark: Any, flags: Any, at_ms: int) -> None:
    """Write one grant: pool, subject, offer id and deployment counter."""
    counters = state.counters
    subject = find_subject(state, subject_key)
    if state.subject_key[subject] != subject_key:
        state.subject_key[subject] = subject_key
        state.subject_head[subject] = -1
        counters[SUBJECTS] += 1
    grant = counters[USED]
    counters[USED] += 1
    one = state.grants[grant]
    one.at_ms = at_ms
    one.scenario = mark >> 38
    one.category = mark >> 23 & 0x7FFF
    one.partner = mark >> 8 & 0x7FFF
    one.channel = mark & 0xFF
    one.flags = flags
    one.next = state.subject_head[subject]
    state.subject_head[subject] = grant
    offer = mix_offer(high, low)
    place = find_offer(state, offer)
    state.offer_key[place] = offer
    state.offer_grant[place] = grant
    counters[OFFERS] += 1
    if not flags & WITHHELD:
        add_deployment(state, mark >> 38, at_ms, 1)


@kernel
def release(state: Any, high: Any, low: Any) -> Any:
    """Give a grant back; say whether there was one to give back. What was delivered is never given back (G1)."""
    offer = mix_offer(high, low)
    place = find_offer(state, offer)
    if state.offer_key[place] != offer:
        return False
    one = state.grants[state.offer_grant[place]]
    if one.flags & (RELEASED | DELIVERED):
        return False
    one.flags |= RELEASED
    if not one.flags & WITHHELD:
        add_deployment(state, one.scenario, one.at_ms, -1)
    return True


@kernel
def deliver(state: Any, high: Any, low: Any) -> None:
    """Remember that the message of a grant arrived: from now on it keeps what it took."""
    offer = mix_offer(high, low)
    place = find_offer(state, offer)
    if state.offer_key[place] == offer:
        state.grants[state.offer_grant[place]].flags |= DELIVERED


@kernel
def copy_live(old: Any, new: Any, oldest_ms: int, oldest_offer_ms: int, forgotten: Any) -> None:
    """Copy what still matters into empty arrays: grants after `oldest_ms` or KEEP, offer ids after `oldest_offer_ms`.

    A released grant is copied only while its offer id is, which must go on answering "duplicate". Order within a
    subject stays. `forgotten` is the hash of a subject to leave out, 0 none. The counters SUBJECTS, OFFERS and USED
    of `new` are filled; its pool must not be smaller than what is copied.
    Cost: O(places of the tables + grants).
    """
    moved = np.full(old.counters[USED], -1, np.int32)
    used = 0
    for place in range(len(old.subject_key)):
        key = old.subject_key[place]
        if key == np.uint64(0) or key == forgotten:
            continue
        last = -1
        grant = old.subject_head[place]
        while grant >= 0:
            one = old.grants[grant]
            young = one.at_ms > oldest_offer_ms
            if young or ((one.at_ms > oldest_ms or one.flags & KEEP) and not one.flags & RELEASED):
                new.grants[used] = one
                new.grants[used].next = -1
                moved[grant] = used
                if last < 0:
                    target = find_subject(new, key)
                    new.subject_key[target] = key
                    new.subject_head[target] = used
                    new.counters[SUBJECTS] += 1
                else:
                    new.grants[last].next = used
                last = used
                used += 1
            grant = one.next
    new.counters[USED] = used
    for place in range(len(old.offer_key)):
        offer = old.offer_key[place]
        if offer == np.uint64(0):
            continue
        grant = old.offer_grant[place]
        if moved[grant] < 0 or old.grants[grant].at_ms <= oldest_offer_ms:
            continue
        target = find_offer(new, offer)
        new.offer_key[target] = offer
        new.offer_grant[target] = moved[grant]
        new.counters[OFFERS] += 1


@kernel
def hash_spans(buffer: Any, end: Any, hashes: Any) -> None:
    """Hash texts that lie one after another in a uint8 buffer; end int64[N], hashes uint64[N] out.

    The same as engine.hashing_kernel.hash_bytes of each.
    """
    start = 0
    for row in range(len(end)):
        hashes[row] = hash_bytes(buffer, start, end[row])
        start = end[row]
