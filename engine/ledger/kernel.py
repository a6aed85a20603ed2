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
        ("flags", "u1"),  # COUNTS | WITHHELD | RELEASED | KEEP
        ("spare", "u2"),
    ]
)
REQUEST = np.dtype([("subject", "u8"), ("now_ms", "i8"), ("option_start", "i4"), ("option_end", "i4")])
OPTION = np.dtype(
    [
        ("high", "u8"),  # offer id, both halves
        ("low", "u8"),
        ("rule_start", "i4"),
        ("rule_end", "i4"),
        ("scenario", "i4"),
        ("category", "i2"),
        ("partner", "i2"),
        ("channel", "u1"),
        ("flags", "u1"),  # COUNTS | WITHHELD | SHADOW
        ("spare", "u2"),
        ("refused_by", "i4"),  # out: which of its rules refused, PASSED, UNTRIED or REPEATED
    ]
)
RULE = np.dtype([("since_ms", "i8"), ("most", "i4"), ("scope", "u1"), ("uncounted_too", "u1"), ("spare", "u2")])

COUNTS, WITHHELD, RELEASED, KEEP, SHADOW = 1, 2, 4, 8, 16
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
    offer_high     uint64[O]  offer ids of the replay horizon; high and low both 0: empty
    offer_low      uint64[O]
    offer_grant    int32[O]   the grant that the id made
    minutes        int32[C, MINUTES]  per scenario the grants of each minute, a ring by minute of the epoch
    newest_minute  int64[C]   newest minute of that ring
    counters       int64[8]   see USED ...
    """

    subject_key: Any
    subject_head: Any
    grants: Any
    offer_high: Any
    offer_low: Any
    offer_grant: Any
    minutes: Any
    newest_minute: Any
    counters: Any


USED, SUBJECTS, OFFERS, LONGEST_MS, NEXT_SWEEP_MS = 0, 1, 2, 3, 4


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
def find_offer(state: Any, high: Any, low: Any) -> Any:
    """Return the place of this offer id, or where it would go."""
    size = len(state.offer_low)
    # The low half is a keyed hash, the high half mostly time; the product spreads ids that tests make up.
    place = place_of((low ^ high) * np.uint64(0x9E3779B97F4A7C15), size)
    while (state.offer_low[place] != np.uint64(0) or state.offer_high[place] != np.uint64(0)) and not (
        state.offer_low[place] == low and state.offer_high[place] == high
    ):
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
def refuses(state: Any, head: int, option: Any, rule: Any, now_ms: int) -> Any:
    """Say whether a rule refuses an option: at least `most` grants of its scope lie after `since_ms`.

    Cost: grants of the subject that are newer than `since_ms`, at most until `most` are found.
    """
    if rule.scope == DEPLOYMENT:
        return count_deployment(state, option.scenario, rule.since_ms, now_ms) >= rule.most
    found = 0
    grant = head
    while found < rule.most and grant >= 0:
        one = state.grants[grant]
        if one.at_ms <= rule.since_ms:
            return False
        grant = one.next
        if one.flags & RELEASED:
            continue
        if not rule.uncounted_too:
            if not one.flags & COUNTS:
                continue
            if one.flags & WITHHELD and not option.flags & WITHHELD:
                continue
        if (
            rule.scope == ALL
            or (rule.scope == CHANNEL and one.channel == option.channel)
            or (rule.scope == SCENARIO and one.scenario == option.scenario)
            or (rule.scope == CATEGORY and one.category == option.category)
            or (rule.scope == PARTNER and one.partner == option.partner)
        ):
            found += 1
    return found >= rule.most


@kernel
def reserve(state: Any, requests: Any, options: Any, rules: Any, granted: Any, made: Any) -> Any:
    """Grant each request its first option whose rules all pass; return how many requests were done.

    requests  REQUEST[N], options OPTION[M], rules RULE[K]: joined, in order; options[:].refused_by is filled
    granted   int32[N]  out: index of the option within its request, or -1
    made      int32[N]  out: the grant it made, -1 none, -2 where the offer id was granted before

    Stops before the first request at or past counters[NEXT_SWEEP_MS]: the caller sweeps and goes on, so that what is
    swept depends on the log alone and not on how requests were grouped (T4).
    Room for N more grants, subjects and offers has been made. No allocation.
    """
    counters = state.counters
    for row in range(len(requests)):
        request = requests[row]
        now_ms = request.now_ms
        if now_ms >= counters[NEXT_SWEEP_MS]:
            return row
        granted[row] = -1
        made[row] = -1
        repeated = False
        for k in range(request.option_start, request.option_end):
            place = find_offer(state, options[k].high, options[k].low)
            if state.offer_low[place] == options[k].low and state.offer_high[place] == options[k].high:
                granted[row] = k - request.option_start
                made[row] = -2
                repeated = True
                for before in range(request.option_start, k):
                    options[before].refused_by = REPEATED
                break
        if repeated:
            continue
        subject = find_subject(state, request.subject)
        known = state.subject_key[subject] == request.subject
        head = state.subject_head[subject] if known else -1
        for k in range(request.option_start, request.option_end):
            option = options[k]
            verdict = PASSED
            keep = False
            for r in range(option.rule_start, option.rule_end):
                since_ms = rules[r].since_ms
                if since_ms <= 0:
                    keep = True
                elif rules[r].scope != DEPLOYMENT:
                    counters[LONGEST_MS] = max(counters[LONGEST_MS], now_ms - since_ms)
                if verdict == PASSED and refuses(state, head, option, rules[r], now_ms):
                    verdict = r - option.rule_start
            options[k].refused_by = verdict
            if verdict != PASSED:
                continue
            granted[row] = k - request.option_start
            if not option.flags & SHADOW:
                made[row] = add_grant(state, request.subject, option, now_ms, keep)
            break
    return len(requests)


@kernel
def add_grant(state: Any, subject_key: Any, option: Any, at_ms: int, keep: bool) -> Any:
    """Write one grant: pool, subject, offer id and deployment counter; return its place in the pool."""
    counters = state.counters
    subject = find_subject(state, subject_key)
    if state.subject_key[subject] != subject_key:
        state.subject_key[subject] = subject_key
        state.subject_head[subject] = -1
        counters[SUBJECTS] += 1
    grant = counters[USED]
    counters[USED] += 1
    flags = option.flags & (COUNTS | WITHHELD)
    if keep:
        flags |= KEEP
    one = state.grants[grant]
    one.at_ms = at_ms
    one.scenario = option.scenario
    one.category = option.category
    one.partner = option.partner
    one.channel = option.channel
    one.flags = flags
    one.next = state.subject_head[subject]
    state.subject_head[subject] = grant
    place = find_offer(state, option.high, option.low)
    state.offer_high[place] = option.high
    state.offer_low[place] = option.low
    state.offer_grant[place] = grant
    counters[OFFERS] += 1
    if not flags & WITHHELD:
        add_deployment(state, option.scenario, at_ms, 1)
    return grant


@kernel
def release(state: Any, high: Any, low: Any) -> Any:
    """Give a grant back; say whether there was one to give back."""
    place = find_offer(state, high, low)
    if state.offer_low[place] != low or state.offer_high[place] != high:
        return False
    one = state.grants[state.offer_grant[place]]
    if one.flags & RELEASED:
        return False
    one.flags |= RELEASED
    if not one.flags & WITHHELD:
        add_deployment(state, one.scenario, one.at_ms, -1)
    return True


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
    for place in range(len(old.offer_low)):
        if old.offer_low[place] == np.uint64(0) and old.offer_high[place] == np.uint64(0):
            continue
        grant = old.offer_grant[place]
        if moved[grant] < 0 or old.grants[grant].at_ms <= oldest_offer_ms:
            continue
        target = find_offer(new, old.offer_high[place], old.offer_low[place])
        new.offer_high[target] = old.offer_high[place]
        new.offer_low[target] = old.offer_low[place]
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
