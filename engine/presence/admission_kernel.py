"""Which pings count: repeated, late, impossible ones and those that move too fast (T5, T7, L8)."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.distance_kernel import point_distance_m
from engine.kernels import inlined_lean_kernel, lean_kernel
from engine.model import Drop
from engine.presence.layout_kernel import (
    FREE_HELD,
    FREE_HELD_HIT,
    FREE_SAME,
    LIVE_HELD,
    LIVE_HELD_HITS,
    LIVE_SAME,
    NEVER,
    UNUSED_HELD,
    UNUSED_HELD_HITS,
    UNUSED_SAME,
    Rules,
    State,
)

LAT_LIMIT_E7 = 900_000_000
LON_LIMIT_E7 = 1_800_000_000
TOP_SPEED_M_PER_S = 500 / 3.6
METRES_PER_E7_MOST = 0.01117
"""A degree is nowhere longer than 111.7 km."""
ADMIT, ADMIT_HELD_FIRST, HOLD = 100, 101, 102
"""What `admit` answers beside a Drop."""
_DUPLICATE, _LATE, _NULL_ISLAND = int(Drop.DUPLICATE), int(Drop.LATE), int(Drop.NULL_ISLAND)
_OUT_OF_RANGE, _TOO_COARSE, _TOO_FAST = int(Drop.OUT_OF_RANGE), int(Drop.TOO_COARSE), int(Drop.TOO_FAST)


@inlined_lean_kernel
def is_plain(rules: Rules, user: Any, fix: Any) -> bool:
    """Say whether a ping is admitted beyond doubt, at a later instant than the newest; False proves nothing."""
    lon_e7, lat_e7 = abs(0 + fix.lon_e7), abs(0 + fix.lat_e7)
    if lat_e7 > LAT_LIMIT_E7 or lon_e7 > LON_LIMIT_E7 or lon_e7 + lat_e7 == 0:
        return False
    if fix.accuracy_m > rules.feed[fix.feed].max_accuracy_m or user.held >= 0 or user.same >= 0:
        return False
    if user.last_ms == NEVER:
        return True
    passed_ms = fix.at_ms - user.last_ms
    moved_e7 = abs((0 + fix.lon_e7) - user.lon_e7) + abs((0 + fix.lat_e7) - user.lat_e7)
    return bool(passed_ms > 0 and moved_e7 * METRES_PER_E7_MOST * 1000.0 <= TOP_SPEED_M_PER_S * passed_ms)


@inlined_lean_kernel
def agrees(before: Any, fix: Any) -> tuple[float, float]:
    """Say whether the way from one fix to the next, less both radii, needs at most 500 km/h; and how long it is.

    before  anything with lon_e7, lat_e7, accuracy_m; a USER row's instant is `last_ms`, so the caller compares instants
    """
    distance_m = point_distance_m(before.lon_e7, before.lat_e7, fix.lon_e7, fix.lat_e7)
    return distance_m, distance_m - np.float64(before.accuracy_m) - fix.accuracy_m


@lean_kernel
def admit(state: State, rules: Rules, fix: Any) -> int:
    """Decide about a ping: a Drop, or ADMIT, ADMIT_HELD_FIRST (the held fix was right), HOLD."""
    if abs(fix.lat_e7) > LAT_LIMIT_E7 or abs(fix.lon_e7) > LON_LIMIT_E7:
        return _OUT_OF_RANGE
    if fix.cell < 0 and fix.lon_e7 == 0 and fix.lat_e7 == 0:
        return _NULL_ISLAND
    if fix.accuracy_m > rules.feed[fix.feed].max_accuracy_m:
        return _TOO_COARSE
    user = state.user[fix.user]
    if user.last_ms == NEVER:
        return ADMIT
    if fix.at_ms < user.last_ms:
        return _LATE
    if fix.at_ms == user.last_ms and is_known(state, user, fix.id_hash):
        return _DUPLICATE
    metres, excess_m = agrees(user, fix)
    fits_old = excess_m <= TOP_SPEED_M_PER_S * (fix.at_ms - user.last_ms) / 1000.0
    if user.held < 0:
        return ADMIT if fits_old else HOLD
    held = state.held[user.held]
    if held.at_ms == fix.at_ms and held.id_hash == fix.id_hash:
        return _DUPLICATE
    held_metres, held_excess_m = agrees(held, fix)
    fits_held = fix.at_ms >= held.at_ms and held_excess_m <= TOP_SPEED_M_PER_S * (fix.at_ms - held.at_ms) / 1000.0
    if fits_held and (not fits_old or held_metres < metres):
        return ADMIT_HELD_FIRST
    discard_held(state, user)
    return ADMIT if fits_old else HOLD


@inlined_lean_kernel
def is_known(state: State, user: Any, id_hash: int) -> bool:
    """Say whether a ping of the user's newest instant had this id."""
    if user.last_hash == id_hash:
        return True
    row = user.same
    while row >= 0:
        if state.same[row].id_hash == id_hash:
            return True
        row = state.same[row].next
    return False


@inlined_lean_kernel
def remember_id(state: State, user: Any, fix: Any) -> None:
    """Keep this fix's id for as long as its instant is the user's newest; called before `last_ms` moves on."""
    control = state.control
    if fix.at_ms == user.last_ms:
        row = control[FREE_SAME]
        if row >= 0:
            control[FREE_SAME] = state.same[row].next
        else:
            row = state.same.shape[0] - control[UNUSED_SAME]
            control[UNUSED_SAME] -= 1
        control[LIVE_SAME] += 1
        state.same[row].id_hash = user.last_hash
        state.same[row].next = user.same
        user.same = row
    elif user.same >= 0:
        forget_ids(state, user)
    user.last_hash = fix.id_hash


@lean_kernel
def forget_ids(state: State, user: Any) -> None:
    """Give the further ids of the user's newest instant back."""
    row = user.same
    while row >= 0:
        following = state.same[row].next
        state.same[row].next = state.control[FREE_SAME]
        state.control[FREE_SAME] = row
        state.control[LIVE_SAME] -= 1
        row = following
    user.same = -1


@lean_kernel
def hold(state: State, fix: Any, hits: np.ndarray, first: int, last: int) -> None:
    """Keep a fix that is too fast, with its hits in order, until the next one decides."""
    control = state.control
    row = control[FREE_HELD]
    if row >= 0:
        control[FREE_HELD] = state.held[row].hits
    else:
        row = state.held.shape[0] - control[UNUSED_HELD]
        control[UNUSED_HELD] -= 1
    control[LIVE_HELD] += 1
    state.held[row] = fix
    head = -1
    for number in range(last - 1, first - 1, -1):
        place = control[FREE_HELD_HIT]
        if place >= 0:
            control[FREE_HELD_HIT] = state.held_hit[place].next
        else:
            place = state.held_hit.shape[0] - control[UNUSED_HELD_HITS]
            control[UNUSED_HELD_HITS] -= 1
        control[LIVE_HELD_HITS] += 1
        kept = state.held_hit[place]
        kept.distance_m = hits[number].distance_m
        kept.fence = hits[number].fence
        kept.confidence = hits[number].confidence
        kept.inside = hits[number].inside
        kept.next = head
        head = place
    state.held[row].hits = head
    state.user[fix.user].held = row


@lean_kernel
def release_held(state: State, user: Any) -> None:
    """Give the held fix's rows back."""
    control = state.control
    row = user.held
    place = state.held[row].hits
    while place >= 0:
        following = state.held_hit[place].next
        state.held_hit[place].next = control[FREE_HELD_HIT]
        control[FREE_HELD_HIT] = place
        control[LIVE_HELD_HITS] -= 1
        place = following
    state.held[row].hits = control[FREE_HELD]
    control[FREE_HELD] = row
    control[LIVE_HELD] -= 1
    user.held = -1


@lean_kernel
def discard_held(state: State, user: Any) -> None:
    """Drop the held fix for good, counted."""
    state.counts[_TOO_FAST] += 1
    release_held(state, user)
