"""Deciding against slow oracles: batches, caps, calendar windows (rules T3, T4, C1-C3, C5)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.decide import encode
from engine.decide.local_time import LocalTime, calendar_window
from engine.definitions import Cap, GrantTag, HasTag, Limits, QuietHours, Reentry, Scenario
from engine.model import Candidate, Mode, Scope
from tests.oracle.decide_world import DAY_MS, HOUR_MS, MINUTE_MS, NOON_MS, World, candidate, profile, scenario

USERS = 5
WINDOWS_MS = st.sampled_from([0, 0, 2000, 90_000])
MIXED: tuple[Scenario, ...] = (
    scenario("a/plain"),
    scenario("a/vip", audience=HasTag("vip"), priority=3),
    scenario("a/once", reentry=Reentry("once"), priority=2),
    scenario("a/cool", reentry=Reentry("cooldown", HOUR_MS)),
    scenario("a/night", quiet_hours=QuietHours()),
    scenario("a/night2", quiet_hours=QuietHours(12 * 60 + 1, 12 * 60 + 2), priority=2, reentry=Reentry("once")),
    scenario("a/blast", limits=Limits(hourly_limit=2)),
    scenario("a/blast-vip", limits=Limits(hourly_limit=1), audience=HasTag("vip"), priority=4),
    scenario("a/shadow", mode=Mode.SHADOW),
    scenario("a/paused", mode=Mode.PAUSED),
    scenario("a/split", holdout_percent=50, substitute=True, priority=5),
    scenario("a/tags", offer__on_grant=GrantTag("tagged", 2 * HOUR_MS), priority=1.5),
    scenario("a/tagged", audience=HasTag("tagged"), priority=6),
    scenario("a/push", offer__channels=("push", "sms"), limits=Limits(caps=(Cap(Scope.CHANNEL, 2, "day"),))),
)


def mixed_world(window_ms: int = 0) -> World:
    policy = {"caps": (Cap(Scope.ALL, 6, "rolling", 6 * HOUR_MS),), "min_gap_ms": MINUTE_MS}
    world = World(*MIXED, users=USERS, arbitration_window_ms=window_ms, **policy)
    world.profiles.apply_profile(0, profile(tags=("vip",)), NOON_MS)
    world.profiles.apply_profile(1, profile(person="family", time_zone="America/New_York"), NOON_MS)
    world.profiles.apply_profile(2, profile(person="family"), NOON_MS)
    return world


@st.composite
def streams(draw: st.DrawFn) -> list[list[Candidate]]:
    """Draw events in log order; each is the candidates of one user at one instant."""
    now_ms, events = NOON_MS, []
    for position in range(draw(st.integers(1, 40))):
        now_ms += draw(st.sampled_from([0, 0, 1, 1000, 20_000, MINUTE_MS, 15 * MINUTE_MS, HOUR_MS, 11 * HOUR_MS]))
        user = draw(st.integers(0, USERS - 1))
        rows = draw(st.lists(st.integers(0, len(MIXED) - 1), min_size=1, max_size=4, unique=True))
        events.append([candidate(user, now_ms, row, position=position, key=f"app|{position}") for row in sorted(rows)])
    return events


def play(events: list[list[Candidate]], cuts: set[int], window_ms: int = 0) -> list[bytes]:
    """Decide the events in batches that end at the cuts, letting time pass at the end of each."""
    world, batch, lines = mixed_world(window_ms), [], []
    for number, event in enumerate(events):
        batch += event
        if number in cuts or number == len(events) - 1:
            lines += world.decider.decide(batch) + world.decider.release_due(batch[-1].now_ms)
            batch = []
    end_ms = events[-1][0].now_ms + 2 * DAY_MS
    lines += world.decider.release_due(end_ms) + world.decider.finish()
    lines += [str((one.scenario, one.at_ms)) for one in world.decider.take_alarms()]
    lines += [str((one.option.offer_id, one.at_ms)) for one in world.ledger.grants]
    return [line.encode() if isinstance(line, str) else encode(line) for line in lines]


@settings(max_examples=100, deadline=None)
@given(streams(), st.sets(st.integers(0, 39)), WINDOWS_MS)
def test_any_split_of_the_candidates_gives_the_same_bytes(
    events: list[list[Candidate]], cuts: set[int], window_ms: int
) -> None:  # T4
    whole = play(events, set(), window_ms)
    assert play(events, cuts, window_ms) == play(events, set(range(40)), window_ms) == whole


@settings(max_examples=60, deadline=None)
@given(streams(), st.integers(0, 39), WINDOWS_MS)
def test_a_restart_anywhere_changes_nothing(events: list[list[Candidate]], at: int, window_ms: int) -> None:  # T3
    at = min(at, len(events) - 1)
    plain = play(events, {at}, window_ms)
    world, lines = mixed_world(window_ms), []
    for number, event in enumerate(events):
        lines += world.decider.decide(event)
        if number in (at, len(events) - 1):
            lines += world.decider.release_due(event[-1].now_ms)
        if number == at:
            state, ledger, profiles = world.decider.state(), world.ledger, world.profiles
            alarms = world.decider.take_alarms()
            world = mixed_world(window_ms)
            world.ledger.grants = ledger.grants
            world.profiles.restore(profiles.arrays(), profiles.objects())
            world.decider.restore(state)
            world.decider.alarms = alarms
    lines += world.decider.release_due(events[-1][0].now_ms + 2 * DAY_MS) + world.decider.finish()
    assert [encode(line) for line in lines] == [line for line in plain if line.startswith(b'{"v"')]


@settings(max_examples=60, deadline=None)
@given(streams(), st.integers(0, USERS - 1), WINDOWS_MS)
def test_explain_foretells_the_arbitration_that_comes_when_all_triggers_come(
    events: list[list[Candidate]], user: int, window_ms: int
) -> None:  # D2: whatever was granted, waits or is paused before
    world = mixed_world(window_ms)
    for event in events:
        world.decider.decide(event)
    now_ms = events[-1][0].now_ms + 1
    world.decider.release_due(now_ms)
    rows = range(len(MIXED))
    before = (world.decider.state(), len(world.ledger.grants))
    told = world.decider.contest(user, world.decider.contenders(user, f"u{user}", now_ms, rows), now_ms)
    assert (world.decider.state(), len(world.ledger.grants)) == before
    world.decider.take_alarms()
    made = world.decider.decide([candidate(user, now_ms, row, position=1 << 40, key="app|now") for row in rows])
    # Of a window the end is told as if nothing changed until then; limits by time may.
    expected = {one.scenario: (one.outcome, one.reason) for one in told.competitors}
    if not window_ms:
        came = {one.scenario: (one.outcome, str(one.reason)) for one in made if one.scenario in expected}
        # A refusal that repeats the one before is counted there, and is no decision of its own (D5).
        assert {name: how for name, how in expected.items() if name in came} == came
        assert all(how[0] == "refused" for name, how in expected.items() if name not in came)
    else:
        gathered = {one.scenario for one in world.decider.recorder.held.of_user(user) if one.gathers}
        assert gathered - {"a/shadow"} == set(expected)
    speaks = [one.scenario for one in told.competitors if one.outcome in ("offer", "withheld")]
    assert told.winner == (speaks[0] if speaks else None)


@settings(max_examples=60, deadline=None)
@given(streams())
def test_every_candidate_ends_exactly_once_and_offers_are_what_the_ledger_granted(
    events: list[list[Candidate]],
) -> None:  # D5
    world = mixed_world()
    decisions = world.decider.decide([one for event in events for one in event])
    decisions += world.decider.release_due(events[-1][0].now_ms + 2 * DAY_MS) + world.decider.finish()
    final: dict[str, str] = {}
    counted: dict[str, int] = {}
    for one in decisions:
        if one.decision_id in final and one.count == 1:
            assert final[one.decision_id] == "held"  # only a held candidate has a second, different record
        final[one.decision_id] = one.outcome
        counted[one.decision_id] = one.count
    assert sum(counted.values()) == sum(len(event) for event in events)
    assert "held" not in final.values()
    sent = {one.offer.offer_id for one in decisions if one.offer is not None}
    assert sent == {one.option.offer_id for one in world.ledger.grants if not one.option.withheld}


@settings(max_examples=40, deadline=None)
@given(streams())
def test_explain_never_changes_what_follows(events: list[list[Candidate]]) -> None:
    quiet, asked = mixed_world(), mixed_world()
    for event in events:
        for one in event:
            asked.decider.explain(one)
        assert [encode(one) for one in asked.decider.decide(event)] == [
            encode(one) for one in quiet.decider.decide(event)
        ]


# --- calendar windows against a walk over minutes ----------------------------------------------------------------

ZONES = ("Asia/Shanghai", "America/New_York", "Africa/Cairo", "Asia/Kathmandu", "America/Havana", "Asia/Beirut")


def label(window: str, zone: str, at_ms: int) -> tuple[int, ...]:
    local = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(ZoneInfo(zone))
    offset = local.utcoffset()
    assert offset is not None
    return {
        "hour": (local.year, local.month, local.day, local.hour, local.fold),
        "day": (local.year, local.month, local.day),
        "week": tuple(local.isocalendar()[:2]),
        "month": (local.year, local.month),
    }[window]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(ZONES),
    st.sampled_from(["hour", "day"]),
    st.one_of(st.integers(0, 525_600), st.sampled_from([94_000, 94_500, 436_000, 437_500, 160_000])),
)
def test_a_window_starts_where_a_walk_back_by_minutes_leaves_it(zone: str, window: str, minute: int) -> None:  # C1
    at_ms = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000) + minute * MINUTE_MS
    walked, wanted = at_ms, label(window, zone, at_ms)
    while label(window, zone, walked - MINUTE_MS) == wanted:
        walked -= MINUTE_MS
    assert calendar_window(window, zone, at_ms)[0] == walked


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ZONES), st.sampled_from(["day", "week", "month"]), st.integers(0, 3650 * 24))
def test_windows_follow_each_other_without_gap_or_overlap(zone: str, window: str, hour: int) -> None:  # C1
    at_ms = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1000) + hour * HOUR_MS
    start_ms, end_ms = calendar_window(window, zone, at_ms)
    assert start_ms <= at_ms < end_ms
    assert calendar_window(window, zone, end_ms)[0] == end_ms
    assert calendar_window(window, zone, start_ms - 1)[1] == start_ms
    assert label(window, zone, start_ms) == label(window, zone, at_ms) == label(window, zone, end_ms - 1)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(ZONES),
    st.sampled_from(ZONES),
    st.integers(0, 1439),
    st.integers(60, 600),
    st.integers(0, 525_600),
)
def test_a_release_is_the_first_minute_that_is_quiet_nowhere(
    zone: str, other: str, start: int, length: int, minute: int
) -> None:  # C5
    end = (start + length) % 1440
    at_ms = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000) + minute * MINUTE_MS

    def is_quiet(now_ms: int) -> bool:
        for name in (zone, other):
            local = datetime.fromtimestamp(now_ms / 1000, UTC).astimezone(ZoneInfo(name))
            since = (local.hour * 60 + local.minute - start) % 1440
            if since < length:
                return True
        return False

    walked = at_ms
    while is_quiet(walked):
        walked += MINUTE_MS
    assert LocalTime("UTC").end_of_quiet(start, end, (zone, other), at_ms) == walked


# --- caps against counting by hand ---------------------------------------------------------------------------------

CAPS = {
    "rolling": Cap(Scope.ALL, 2, "rolling", 3 * HOUR_MS),
    "day": Cap(Scope.ALL, 4, "day"),
    "week": Cap(Scope.SCENARIO, 6, "week"),
}


class CapsMachine(RuleBasedStateMachine):
    """Drives one decider for days and counts, by the plain text of C1, what it may send."""

    @initialize()
    def start(self) -> None:
        self.world = World(
            scenario("a/a", limits=Limits(caps=(CAPS["week"],))),
            scenario("a/b", limits=Limits(caps=(CAPS["week"],)), reentry=Reentry("cooldown", 2 * HOUR_MS)),
            users=3,
            caps=(CAPS["rolling"], CAPS["day"]),
            min_gap_ms=10 * MINUTE_MS,
        )
        for slot in (0, 1):
            self.world.profiles.apply_profile(slot, profile(person="one"), NOON_MS)
        self.now_ms = NOON_MS
        self.sent: list[tuple[str, int, str, str]] = []

    def subject(self, user: int) -> str:
        return "one" if user < 2 else "two"

    def may_send(self, user: int, name: str) -> bool:
        mine = [(at_ms, one) for subject, at_ms, one, _ in self.sent if subject == self.subject(user)]
        today = datetime.fromtimestamp(self.now_ms / 1000, UTC) + timedelta(hours=8)
        days = [datetime.fromtimestamp(at_ms / 1000, UTC) + timedelta(hours=8) for at_ms, _ in mine]
        same_week = [
            one for (_, one), day in zip(mine, days, strict=True) if day.isocalendar()[:2] == today.isocalendar()[:2]
        ]
        return (
            sum(self.now_ms - at_ms < 3 * HOUR_MS for at_ms, _ in mine) < 2
            and sum(day.date() == today.date() for day in days) < 4
            and same_week.count(name) < 6
            and not any(self.now_ms - at_ms < 10 * MINUTE_MS for at_ms, _ in mine)
            and not (name == "a/b" and any(self.now_ms - at_ms < 2 * HOUR_MS and one == name for at_ms, one in mine))
        )

    @rule(minutes=st.sampled_from([1, 9, 10, 45, 119, 120, 180, 400, 1000]))
    def wait(self, minutes: int) -> None:
        self.now_ms += minutes * MINUTE_MS

    @rule(user=st.integers(0, 2), row=st.integers(0, 1))
    def trigger(self, user: int, row: int) -> None:
        self.now_ms += 1
        name = ("a/a", "a/b")[row]
        expected = self.may_send(user, name)
        offers = [one.offer for one in self.world.decide(candidate(user, self.now_ms, row)) if one.offer]
        assert bool(offers) is expected
        if offers:
            self.sent.append((self.subject(user), self.now_ms, name, offers[0].offer_id))

    @precondition(lambda self: self.sent)
    @rule(choice=st.integers(0, 99))
    def give_back(self, choice: int) -> None:
        subject, at_ms, name, offer_id = self.sent.pop(choice % len(self.sent))
        self.world.ledger.release(offer_id)
        for slot in range(3):
            self.world.decider.released(slot, offer_id)
        assert (subject, at_ms, name, offer_id) not in self.sent

    @invariant()
    def nothing_is_sent_beyond_the_books(self) -> None:
        if hasattr(self, "world"):
            assert len(self.world.ledger.grants) == len(self.sent)


TestCaps = CapsMachine.TestCase
TestCaps.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
