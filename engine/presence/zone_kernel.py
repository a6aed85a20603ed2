"""Where a fix stands against one fence (L7, P3), and what is known from before (P2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from engine.geometry_kernel import FenceArrays, signed_distance_m
from engine.kernels import inlined_lean_kernel
from engine.model import FINE_ACCURACY_M, Confidence
from engine.presence.layout_kernel import BEYOND, CELL_FIX, DAY_MS, IN_ENOUGH, NEAR, NEVER, UNSURE

NO_EVIDENCE = 255
_HIGH = int(Confidence.HIGH)
_LOW = int(Confidence.LOW)


class Zone(NamedTuple):
    """IN_ENOUGH, UNSURE, NEAR, BEYOND or NO_EVIDENCE; whether the fix is OUT; the distance; the confidence."""

    zone: int
    is_out: bool
    distance_m: float
    confidence: int


@inlined_lean_kernel
def zone_of_hit(rule: Any, hit: Any, accuracy_m: float) -> Zone:
    """Judge a fix by the hit that locate found: it touches the fence, or its cell is a member."""
    if hit.inside != 0:
        if rule.is_tiling != 0 or hit.confidence >= rule.min_confidence:
            return Zone(IN_ENOUGH, False, hit.distance_m, 0 + hit.confidence)
        return Zone(UNSURE, False, hit.distance_m, 0 + hit.confidence)
    if rule.is_tiling != 0:
        return Zone(BEYOND, True, hit.distance_m, 0)
    return zone_outside(rule, hit.distance_m, accuracy_m)


@inlined_lean_kernel
def zone_outside(rule: Any, distance_m: float, accuracy_m: float) -> Zone:
    """Judge a point outside a shape fence by its signed distance."""
    is_out = distance_m <= -accuracy_m
    zone = BEYOND if distance_m < -(rule.margin_m + min(accuracy_m, 200.0)) else NEAR
    return Zone(zone, is_out, distance_m, 0 if is_out else _LOW)


@inlined_lean_kernel
def zone_without_hit(rule: Any, fences: FenceArrays, fence: int, fix: Any) -> Zone:
    """Judge a fix that locate did not report for this fence: its point is outside, its cell no member."""
    if rule.is_cell_set != 0:
        if fix.cell >= 0:
            return Zone(BEYOND, True, np.nan, 0)
        return Zone(NO_EVIDENCE, False, np.nan, 0)
    distance_m = signed_distance_m(fences, fence, fix.lon_e7, fix.lat_e7)
    if rule.is_tiling != 0:
        return Zone(BEYOND, True, distance_m, 0)
    return zone_outside(rule, distance_m, fix.accuracy_m)


@inlined_lean_kernel
def is_exact(rule: Any, fix: Any) -> bool:
    """Say whether this fix's OUT is always known, also without memory of the pair."""
    if rule.is_cell_set != 0:
        return bool(fix.cell >= 0)
    return bool(rule.is_tiling != 0 or fix.is_fine != 0)


@inlined_lean_kernel
def witness_before(user: Any, rule: Any, fences: FenceArrays, fence: int) -> int:
    """Instant of the last fix that is known to have been OUT of a fence of which nothing is remembered, or NEVER.

    user  USER row, before the fix that is being judged
    """
    witness_ms = NEVER
    if user.last_ms == NEVER:
        return witness_ms
    if rule.is_tiling != 0:
        witness_ms = user.last_ms
    elif rule.is_cell_set != 0:
        if user.cell_age_ms < DAY_MS:
            witness_ms = user.last_ms - user.cell_age_ms
    else:
        if user.fine_age_ms < DAY_MS:
            witness_ms = user.last_ms - user.fine_age_ms
        if user.fine_age_ms > 0:
            distance_m = signed_distance_m(fences, fence, user.lon_e7, user.lat_e7)
            if distance_m <= -np.float64(user.accuracy_m):
                witness_ms = user.last_ms
    return witness_ms if witness_ms > rule.added_ms else NEVER


@inlined_lean_kernel
def describe_fix(fix: Any, event: Any, row: int) -> None:
    """Fill the FIX row from an EVENT."""
    fix.at_ms = event.at_ms
    fix.now_ms = event.now_ms
    fix.id_hash = event.id_hash
    fix.lon_e7 = event.lon_e7
    fix.lat_e7 = event.lat_e7
    fix.accuracy_m = event.accuracy_m
    fix.cell = event.cell
    fix.user = event.user
    fix.event = row
    fix.hits = -1
    fix.feed = event.feed
    fix.method = event.method
    fix.is_cell = 1 if event.cell >= 0 or event.method == 3 else 0
    fix.is_fine = 1 if event.accuracy_m <= FINE_ACCURACY_M else 0


@inlined_lean_kernel
def note_fix(user: Any, fix: Any) -> None:
    """Make this fix the user's newest; ages stop counting at a day, where they no longer matter."""
    if user.last_ms == NEVER:
        user.fine_age_ms = DAY_MS
        user.cell_age_ms = DAY_MS
        user.left_age_ms = DAY_MS
        passed_ms = 0
    else:
        passed_ms = min(fix.at_ms - user.last_ms, DAY_MS)
    user.fine_age_ms = 0 if fix.is_fine != 0 else min(user.fine_age_ms + passed_ms, DAY_MS)
    user.cell_age_ms = 0 if fix.cell >= 0 else min(user.cell_age_ms + passed_ms, DAY_MS)
    user.left_age_ms = min(user.left_age_ms + passed_ms, DAY_MS)
    if fix.cell >= 0 and fix.cell != user.cell:
        user.previous_cell = user.cell
        user.cell = fix.cell
        user.left_age_ms = 0
    user.last_ms = fix.at_ms
    user.lon_e7 = fix.lon_e7
    user.lat_e7 = fix.lat_e7
    user.accuracy_m = fix.accuracy_m
    user.feed = fix.feed
    user.method = fix.method
    if fix.is_cell != 0:
        user.flags |= CELL_FIX
    else:
        user.flags &= ~CELL_FIX & 255
