"""Fences, feeds and thresholds as the arrays that the kernel reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine.definitions import Fence, Shape
from engine.geometry_kernel import CELLS, FenceArrays
from engine.presence.crossing_kernel import fill_slots
from engine.presence.layout_kernel import BOX, DWELLS, FEED_RULE, MAYBE_BITS, NEVER, RULE, TILE_SHIFT, Rules, Tiles
from engine.presence.table import transition_table
from engine.settings import FeedTable

TTL_MS, SIGNALLING_TTL_MS = 30 * 60_000, 3 * 3_600_000
SILENCE_MS = 10 * 60_000
GAP_MS, SIGNALLING_GAP_MS = 60 * 60_000, 3 * 3_600_000
_MOST_TILES = 4096
_HALF_TURN_E7 = 1_800_000_000
_ALWAYS = np.array([[NEVER, -NEVER]], np.int64)


def compile_rules(
    fences: Sequence[Fence],
    arrays: FenceArrays,
    feeds: FeedTable,
    dwell_thresholds: Mapping[int, Sequence[int]],
    open_intervals: Mapping[int, np.ndarray],
) -> Rules:
    """Compile everything that stays the same until the next activation.

    dwell_thresholds  fence row -> seconds (P4); raises ValueError for more than 8 of one fence
    open_intervals    fence row -> int64[K, 2] of [start, end) in epoch ms; a row that is absent is always open
    """
    rule = np.zeros(len(fences), RULE)
    dwell_ms = np.zeros((len(fences), DWELLS), np.int64)
    for row, fence in enumerate(fences):
        one = rule[row]
        one["enter_delay_ms"] = -1 if fence.enter_delay_s is None else round(fence.enter_delay_s * 1000)
        one["exit_delay_ms"] = -1 if fence.exit_delay_s is None else round(fence.exit_delay_s * 1000)
        one["added_ms"] = NEVER
        one["margin_m"] = min(max(0.1 * float(arrays.row["characteristic_m"][row]), 20.0), 200.0)
        one["min_confidence"] = fence.min_confidence
        one["is_cell_set"] = fence.shape is Shape.CELLS
        one["is_tiling"] = fence.tiling and fence.shape is not Shape.CELLS
        thresholds = sorted(set(dwell_thresholds.get(row, ())))
        if len(thresholds) > DWELLS:
            raise ValueError(f"fence {fence.id} has {len(thresholds)} dwell thresholds; at most {DWELLS} are possible")
        one["dwells"] = len(thresholds)
        dwell_ms[row, : len(thresholds)] = np.array(thresholds, np.int64) * 1000
    rules = Rules(
        rule, dwell_ms, np.zeros((0, 2), np.int64), feed_rules(feeds), transition_table(), fence_tiles(arrays)
    )
    return with_hours(rules, fences, open_intervals)


def with_hours(rules: Rules, fences: Sequence[Fence], open_intervals: Mapping[int, np.ndarray]) -> Rules:
    """Take other opening hours, cut to each fence's validity (L9)."""
    spans: list[np.ndarray] = []
    place = 0
    for row, fence in enumerate(fences):
        given = open_intervals.get(row)
        bounds = (fence.valid_from_ms, fence.valid_until_ms)
        one = rules.fence[row]
        one["has_hours"] = given is not None or bounds != (None, None)
        if not one["has_hours"]:
            continue
        joined = _joined(_ALWAYS if given is None else given, *bounds)
        one["hours_start"], one["hours_end"] = place, place + len(joined)
        place += len(joined)
        spans.append(joined)
    hours = np.concatenate(spans) if spans else np.zeros((0, 2), np.int64)
    return rules._replace(hours=np.ascontiguousarray(hours))


def _joined(spans: np.ndarray, valid_from_ms: int | None, valid_until_ms: int | None) -> np.ndarray:
    """Cut spans to the validity, drop empty ones and join those that touch."""
    kept: list[list[int]] = []
    for start, end in sorted(spans.tolist()):
        start = start if valid_from_ms is None else max(start, valid_from_ms)
        end = end if valid_until_ms is None else min(end, valid_until_ms)
        if start >= end:
            continue
        if kept and start <= kept[-1][1]:
            kept[-1][1] = max(end, kept[-1][1])
        else:
            kept.append([start, end])
    return np.array(kept, np.int64).reshape(-1, 2)


def feed_rules(feeds: FeedTable) -> np.ndarray:
    """What each feed means for presence: FEED_RULE in feed order (P2, P4, P7, T8)."""
    feed = np.zeros(len(feeds.array), FEED_RULE)
    signalling = feeds.array["signalling"] != 0
    period_ms = feeds.array["period_ms"]
    feed["delay_ms"] = feeds.array["expected_delay_ms"]
    feed["ttl_ms"] = np.where(signalling, np.maximum(period_ms * 5 // 2, SIGNALLING_TTL_MS), TTL_MS)
    feed["silence_ms"] = np.where(signalling, period_ms * 2, SILENCE_MS)
    feed["gap_ms"] = np.where(signalling, SIGNALLING_GAP_MS, GAP_MS)
    feed["max_accuracy_m"] = feeds.array["max_accuracy_m"]
    return feed


def fence_tiles(arrays: FenceArrays) -> Tiles:
    """Sort the bounding boxes of shape fences into tiles, for CROSS (P8)."""
    row = arrays.row
    west, east = (row["origin_lon_e7"].astype(np.int64) + row[name] for name in ("min_x", "max_x"))
    south, north = (row["origin_lat_e7"].astype(np.int64) + row[name] for name in ("min_y", "max_y"))
    columns = (east >> TILE_SHIFT) - (west >> TILE_SHIFT) + 1
    rows = (north >> TILE_SHIFT) - (south >> TILE_SHIFT) + 1
    has_shape = row["shape"] != CELLS
    tiled = has_shape & (columns * rows <= _MOST_TILES) & (west >= -_HALF_TURN_E7) & (east <= _HALF_TURN_E7)
    fence = np.repeat(np.arange(len(row)), np.where(tiled, columns * rows, 0))
    first = np.cumsum(np.where(tiled, columns * rows, 0)) - np.where(tiled, columns * rows, 0)
    number = np.arange(len(fence)) - first[fence]
    column = (west[fence] >> TILE_SHIFT) + number // rows[fence]
    key = (column << 32) + (south[fence] >> TILE_SHIFT) + number % rows[fence]
    order = np.lexsort((fence, key))
    keys, start = np.unique(key[order], return_index=True)
    box = np.zeros(len(fence), BOX)
    for name, values in (("west", west), ("east", east), ("south", south), ("north", north)):
        box[name] = values[fence[order]]
    box["fence"] = fence[order]
    wide = np.flatnonzero(has_shape & ~tiled).astype(np.int32)
    maybe = np.zeros(MAYBE_BITS // 64, np.uint64)
    slot = np.full(1 << max(4, (2 * len(keys)).bit_length()), -1, np.int32)
    tiles = Tiles(keys.astype(np.int64), np.append(start, len(fence)).astype(np.int64), box, wide, maybe, slot)
    fill_slots(tiles)
    return tiles
