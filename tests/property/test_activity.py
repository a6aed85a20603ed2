"""Visits a month against a plain dict, however records are cut, over months, restarts and zones (MISSION: activity)."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decide.activity import Activity
from engine.model import TRANSITION, TransitionKind, TransitionReason
from engine.settings import Settings
from tests.property.test_eviction import make_month
from tests.world import block_of, make_pipeline, restarted

DAY_MS = 86_400_000
T0 = 1_767_196_800_000  # 2026-01-01 in Shanghai
ZONE = ZoneInfo("Asia/Shanghai")
KEPT = Settings(state_ttl_days=10_000)
SHORT = Settings(state_ttl_days=2)


def month_of(at_ms: int, zone: ZoneInfo = ZONE) -> int:
    local = datetime.fromtimestamp(at_ms / 1000, zone)
    return local.year * 12 + local.month - 1


visits = st.lists(
    st.tuples(
        st.integers(0, 4),  # user
        st.integers(0, 2),  # fence; the last one is a tile
        st.sampled_from([0, 0, 1, 60_000, DAY_MS // 2, 9 * DAY_MS, 40 * DAY_MS]),  # after the one before
        st.sampled_from([TransitionKind.ENTER, TransitionKind.ENTER, TransitionKind.EXIT, TransitionKind.DWELL]),
        st.sampled_from([TransitionReason.FIX, TransitionReason.OPENED, TransitionReason.RETURNED]),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(visits, st.lists(st.integers(0, 60), max_size=8))
def test_visits_are_counted_as_a_dict_would_and_wherever_rows_are_cut(made, cuts) -> None:
    rows = np.zeros(len(made), TRANSITION)
    model: dict[int, set[tuple[int, int]]] = {}
    now_ms = T0
    for number, (user, fence, after_ms, kind, reason) in enumerate(made):
        now_ms += after_ms
        # Rows of one instant are of one fix: the same event row.
        event = int(rows["event"][number - 1]) if number and not after_ms else number
        rows[number]["user"], rows[number]["fence"], rows[number]["event"] = user, fence, event
        rows[number]["now_ms"] = rows[number]["confirmed_ms"] = now_ms
        rows[number]["kind"], rows[number]["reason"] = kind, reason
        if kind == TransitionKind.ENTER and reason != TransitionReason.RETURNED and fence != 2:
            model.setdefault(month_of(now_ms), set()).add((user, now_ms))
    # A fix belongs to one user, whose rows stand side by side.
    order = np.lexsort((np.arange(len(rows)), rows["user"], rows["now_ms"]))
    rows = rows[order]
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    edges = [edge for edge in edges if edge in (0, len(rows)) or rows["now_ms"][edge] != rows["now_ms"][edge - 1]]
    activity = Activity(8)
    for first, last in itertools.pairwise(edges):
        activity.note(rows[first:last], np.array([True, True, False]), "Asia/Shanghai")
    if not model:
        assert activity.month == -1
        return
    newest = max(model)
    for month in (newest, newest - 1):
        counted = Counter(user for user, _ in model.get(month, ()))
        assert activity.seen(month).tolist() == [min(counted[user], 3) for user in range(8)]
    assert activity.seen(newest + 1).tolist() == [0] * 8
    assert activity.seen(newest - 2) is None
    assert activity.since_ms == min(at_ms for month in model.values() for _, at_ms in month)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.data())
def test_t3_t4_the_pipeline_counts_the_visits_it_reports_however_cut_restarted_and_with_users_forgotten(
    seed: int, data: st.DataObject
) -> None:
    shift_ms = T0 + 20 * DAY_MS - 1_767_326_400_000  # so that a month ends among them
    records = [
        (orjson.loads(orjson.dumps(event | {"at": event["at"] + shift_ms})), now_ms + shift_ms)
        for event, now_ms in make_month(seed)
    ]
    cuts = sorted(set(data.draw(st.lists(st.integers(1, len(records) - 1), max_size=20))))
    whole, model = counted(records, [], KEPT)
    newest = max(model, default=(0, 0))[0]
    for (month, user), instants in model.items():
        if month in (newest, newest - 1):
            assert whole[month][user] == min(len(instants), 3), (month, user)
    assert sum(whole[newest].values()) == sum(min(len(at), 3) for (month, _), at in model.items() if month == newest)
    assert counted(records, cuts, KEPT)[0] == whole
    forgot = counted(records, cuts, SHORT)[0]
    # Who is forgotten is counted no more, and whoever gets the slot begins at nothing.
    assert all(forgot[month].get(user, 0) <= seen for month in forgot for user, seen in whole[month].items())
    assert all(set(forgot[month]) <= set(whole[month]) for month in forgot)


def counted(records, cuts, chosen):
    """Run a pipeline; return visits by month and user as it holds them at the end, and as its transitions tell them."""
    pipeline = make_pipeline(settings=chosen)
    model: dict[tuple[int, str], set[int]] = {}
    for first, last in itertools.pairwise([0, *cuts, len(records)]):
        part = records[first:last]
        effects = pipeline.process(
            block_of([event for event, _ in part], position=first, append_ms=[now_ms for _, now_ms in part])
        )
        for transitions, left in zip(effects.transitions, effects.left, strict=True):
            for row in transitions:
                if row["kind"] == TransitionKind.ENTER and row["reason"] != TransitionReason.RETURNED:
                    user = left.get(int(row["user"])) or pipeline.users.id_of(int(row["user"]))
                    model.setdefault((month_of(int(row["now_ms"])), user), set()).add(int(row["confirmed_ms"]))
        pipeline = restarted(pipeline)
    activity = pipeline.profiles.activity
    held: dict[int, dict[str, int]] = {}
    for month in (activity.month, activity.month - 1):
        seen = activity.seen(month)
        held[month] = {
            pipeline.users.id_of(slot): int(seen[slot])
            for slot in np.flatnonzero(seen[: pipeline.profiles.count]).tolist()
        }
    return held, model


def test_a_month_ends_where_it_ends_in_its_zone_and_a_new_zone_counts_from_the_next_on() -> None:
    activity = Activity(1)

    def visit(at_ms: int, zone: str) -> None:
        row = np.zeros(1, TRANSITION)
        row["kind"], row["now_ms"], row["confirmed_ms"] = TransitionKind.ENTER, at_ms, at_ms
        activity.note(row, np.ones(1, np.bool_), zone)

    visit(T0 - 1, "Asia/Shanghai")
    assert activity.month == 2025 * 12 + 11
    visit(T0, "Asia/Shanghai")
    assert (activity.month, activity.seen(2026 * 12)[0], activity.seen(2025 * 12 + 11)[0]) == (2026 * 12, 1, 1)
    february_ms = T0 + 31 * DAY_MS
    visit(february_ms - 1, "America/New_York")
    assert activity.seen(2026 * 12)[0] == 2
    # In New York it is January for 13 hours more: the month goes on, and ends there.
    visit(february_ms, "America/New_York")
    assert (activity.month, activity.seen(2026 * 12)[0]) == (2026 * 12, 3)
    visit(february_ms + 13 * 3_600_000, "America/New_York")
    assert (activity.month, activity.seen(2026 * 12 + 1)[0], activity.seen(2026 * 12)[0]) == (2026 * 12 + 1, 1, 3)
