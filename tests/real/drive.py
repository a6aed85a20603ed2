"""Run pings through the engine's own stages, and say where its transitions differ from the oracle's."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from engine.content.hours import open_intervals
from engine.definitions import CellTable, Fence
from engine.locate.index import FenceIndex
from engine.model import EVENT, HIT, Confidence, EventType, Method, TransitionKind, TransitionReason
from engine.presence import Presence
from engine.settings import FeedSettings, FeedTable
from tests.oracle.locate_oracle import accuracy_of
from tests.oracle.presence_oracle import PresenceOracle
from tests.oracle.visit_oracle import Feed

Transition = dict[str, Any]
DAY_MS = 86_400_000

FEEDS = {
    "app": FeedSettings(),
    "owntracks": FeedSettings(period_s=300),
    "signalling": FeedSettings(period_s=1800, expected_delay_s=30, signalling=True),
}
NO_CELLS = CellTable((), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0), np.zeros(0, bool))

EXACT = (
    "kind",
    "fence",
    "crossed_at",
    "confirmed_at",
    "initial",
    "gap_s",
    "threshold_s",
    "duration_s",
    "reason",
    "confidence",
    "method",
)


def oracle_feeds(feeds: Mapping[str, FeedSettings]) -> dict[str, Feed]:
    """The same declarations in the oracle's own words."""
    return {
        name: Feed(
            period_ms=round(feed.period_s * 1000),
            expected_delay_ms=round(feed.expected_delay_s * 1000),
            max_accuracy_m=math.inf if feed.max_accuracy_m is None else feed.max_accuracy_m,
            signalling=feed.signalling,
        )
        for name, feed in feeds.items()
    }


def span_of(pings: Sequence[Mapping[str, Any]], end_now_ms: int) -> tuple[int, int]:
    """The instants between which opening hours may matter."""
    return min(ping["at_ms"] for ping in pings) - 2 * DAY_MS, end_now_ms + 2 * DAY_MS


def identity(ping: Mapping[str, Any]) -> int:
    """64 bits for T7: of feed and id, or of everything the ping says."""
    if ping["id"] is not None:
        said: tuple[Any, ...] = (ping["feed"], ping["id"])
    else:
        said = tuple(ping[key] for key in ("feed", "user", "at_ms", "lon_e7", "lat_e7", "accuracy_m", "method", "cell"))
    return int.from_bytes(hashlib.blake2b(repr(said).encode(), digest_size=8).digest(), "little") | 1


def events_of(
    pings: Sequence[Mapping[str, Any]], users: Mapping[str, int], feeds: FeedTable, cells: CellTable
) -> np.ndarray:
    """EVENT rows as the decoder would give them."""
    row_of_cell = {cell: row for row, cell in enumerate(cells.ids)}
    events = np.zeros(len(pings), EVENT)
    for event, ping in zip(events, pings, strict=True):
        event["at_ms"], event["now_ms"] = ping["at_ms"], ping["now_ms"]
        event["id_hash"] = identity(ping)
        event["lon_e7"], event["lat_e7"] = ping["lon_e7"], ping["lat_e7"]
        event["accuracy_m"] = accuracy_of(ping["accuracy_m"], ping["method"])
        event["user"] = users[ping["user"]]
        event["cell"] = -1 if ping["cell"] is None else row_of_cell[ping["cell"]]
        event["feed"] = feeds.row[ping["feed"]]
        event["method"] = Method[(ping["method"] or "unknown").upper()]
        event["type"] = EventType.PING
    if len(events):
        events["now_ms"] = np.maximum.accumulate(events["now_ms"])
    return events


def run_engine(
    fences: Sequence[Fence],
    pings: Sequence[Mapping[str, Any]],
    thresholds: Mapping[str, Sequence[int]],
    end_now_ms: int,
    cells: CellTable = NO_CELLS,
    cuts: Iterable[int] = (),
) -> list[Transition]:
    """What locate and presence make of the pings, cut into batches before each row of `cuts`.

    fences  sorted by id, as the rows of a fence set are
    """
    feeds = FeedTable(FEEDS)
    index = FenceIndex.build(fences, cells)
    row_of_fence = {fence.id: row for row, fence in enumerate(fences)}
    hours = {
        row: open_intervals(fence, *span_of(pings, end_now_ms))
        for row, fence in enumerate(fences)
        if fence.opening_hours or fence.valid_from_ms is not None or fence.valid_until_ms is not None
    }
    presence = Presence(
        tuple(fences),
        index.arrays,
        feeds,
        {row_of_fence[fence]: tuple(sorted(spans)) for fence, spans in thresholds.items()},
        open_intervals=hours,
    )
    names = list(dict.fromkeys(ping["user"] for ping in pings))
    presence.ensure(len(names))
    events = events_of(pings, {name: slot for slot, name in enumerate(names)}, feeds, cells)
    bounds = [0, *sorted(set(cuts)), len(events)]
    out: list[Transition] = []
    for start, end in itertools.pairwise(bounds):
        if end > start:
            batch = events[start:end].copy()
            hit_start, hits = index.locate(batch)
            out += as_dicts(presence.advance(batch, hit_start, hits, int(batch["now_ms"][-1])), fences, names)
    nothing = presence.advance(np.zeros(0, EVENT), np.zeros(1, np.int64), np.zeros(0, HIT), end_now_ms)
    return out + as_dicts(nothing, fences, names)


def as_dicts(transitions: np.ndarray, fences: Sequence[Fence], names: Sequence[str]) -> list[Transition]:
    """TRANSITION rows in the form of the contracts."""

    def or_none(value: Any, absent: bool) -> Any:
        return None if absent else value

    return [
        {
            "user": names[one["user"]],
            "fence": fences[one["fence"]].id,
            "kind": TransitionKind(one["kind"]).name.lower(),
            "crossed_at": int(one["crossed_ms"]),
            "confirmed_at": int(one["confirmed_ms"]),
            "initial": bool(one["initial"]),
            "gap_s": or_none(int(one["gap_ms"]) / 1000, one["gap_ms"] < 0),
            "threshold_s": or_none(int(one["threshold_s"]), one["threshold_s"] < 0),
            "duration_s": or_none(int(one["duration_ms"]) / 1000, one["duration_ms"] < 0),
            "reason": TransitionReason(one["reason"]).name.lower(),
            "confidence": Confidence(one["confidence"]).name,
            "method": or_none(Method(one["method"]).name.lower(), one["method"] == Method.UNKNOWN),
            "distance_m": or_none(float(one["distance_m"]), bool(np.isnan(one["distance_m"]))),
            "accuracy_m": or_none(float(one["accuracy_m"]), bool(np.isnan(one["accuracy_m"]))),
        }
        for one in transitions
    ]


def run_oracle(
    fences: Sequence[Fence],
    pings: Sequence[Mapping[str, Any]],
    thresholds: Mapping[str, Sequence[int]],
    end_now_ms: int,
) -> list[Transition]:
    oracle = PresenceOracle(fences, oracle_feeds(FEEDS), thresholds, span_of(pings, end_now_ms))
    return oracle.run(pings, end_now_ms)


def differences(engine: Sequence[Transition], oracle: Sequence[Transition], most: int = 20) -> list[str]:
    """Say where the two differ, user by user in the order given; metres may differ by max(0.1 m, 0.1 %)."""
    found: list[str] = []
    by_user: dict[str, tuple[list[Transition], list[Transition]]] = defaultdict(lambda: ([], []))
    for side, transitions in enumerate((engine, oracle)):
        for one in transitions:
            by_user[one["user"]][side].append(one)
    for user, (mine, theirs) in sorted(by_user.items()):
        for place in range(max(len(mine), len(theirs))):
            here = mine[place] if place < len(mine) else None
            there = theirs[place] if place < len(theirs) else None
            wrong = unequal_fields(here, there)
            if wrong:
                found.append(f"{user} #{place} {wrong}\n  engine {here}\n  oracle {there}")
                break
        if len(found) >= most:
            break
    return found


def unequal_fields(engine: Transition | None, oracle: Transition | None) -> list[str]:
    if engine is None or oracle is None:
        return ["one side has no more"]
    wrong = [name for name in EXACT if engine[name] != oracle[name]]
    for name in ("distance_m", "accuracy_m"):
        ours, other = engine[name], oracle[name]
        if ours is None or other is None:
            if ours is not other:
                wrong.append(name)
        elif ours != other and not abs(ours - other) <= max(0.1, 0.001 * abs(other)):
            wrong.append(name)
    return wrong


def not_alternating(transitions: Iterable[Transition]) -> int:
    """How often ENTER and EXIT of one user and fence fail to take turns (P6)."""
    inside: dict[tuple[str, str], bool] = {}
    wrong = 0
    for one in transitions:
        if one["kind"] in ("enter", "exit"):
            key = (one["user"], one["fence"])
            wrong += inside.get(key, False) == (one["kind"] == "enter")
            inside[key] = one["kind"] == "enter"
    return wrong
