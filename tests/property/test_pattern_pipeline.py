"""Patterns through the whole pipeline: decisions, their keys and evidence (D4, D5), conditions (B4), T3 and T4."""

from __future__ import annotations

import itertools
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.definitions import Content, FieldTest, PatternTrigger, PresenceTrigger, Scenario, UsageTrigger, While
from engine.model import Block, RecordKind, TransitionKind
from engine.settings import FeedSettings, Settings
from tests.world import (
    NOON_MS,
    block_between,
    block_of,
    consent,
    make_pipeline,
    ping,
    profile,
    restarted,
    scenario,
    small_content,
    told,
    usage,
)

S = 1000
OPEN = UsageTrigger((FieldTest("category", "==", "ecommerce"),))
TAXI = UsageTrigger((FieldTest("category", "==", "taxi"),))
BUY = UsageTrigger((FieldTest("category", "==", "ecommerce"), FieldTest("props.fen", "range", (1, None))))
MALL = ("national/mall",)


def pattern(kind: str, steps: Any, within_s: int, **more: Any) -> PatternTrigger:
    steps = steps if isinstance(steps, tuple) else (steps,)
    return PatternTrigger(kind, steps, within_s * S, state_hash=f"{kind}{steps}{within_s}{more}", **more)


def patterned(*scenarios: Scenario) -> Content:
    return small_content(scenarios=tuple(sorted(scenarios, key=lambda one: one.id)))


CINEMA = ("national/cinema",)
EITHER = (*CINEMA, *MALL)
JOINED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "enter": (PresenceTrigger("enter", MALL), CINEMA),
    "exit": (PresenceTrigger("exit", CINEMA), MALL),
    "dwell": (PresenceTrigger("dwell", MALL, 180), CINEMA),
    "visits": (pattern("count", PresenceTrigger("enter", EITHER), 3600, at_least=2), CINEMA),
    "moves": (pattern("distinct", PresenceTrigger("exit", EITHER), 3600, at_least=2, field="fence"), EITHER),
    "shop-then-enter": (pattern("sequence", (OPEN, PresenceTrigger("enter", MALL)), 900), CINEMA),
    "exit-then-shop": (pattern("sequence", (PresenceTrigger("exit", CINEMA), OPEN), 900), MALL),
    "no-taxi": (pattern("absence", (PresenceTrigger("exit", CINEMA), TAXI), 120), MALL),
    "no-cart": (pattern("absence", (OPEN, BUY), 90), EITHER),
    "stays": (pattern("absence", (PresenceTrigger("enter", MALL), PresenceTrigger("exit", MALL)), 240), CINEMA),
}
"""Conditions on where the user is, with triggers that are no usage event, or need not be (B4)."""

EVERY = patterned(
    scenario("count", pattern("count", OPEN, 60, at_least=3)),
    scenario("sum", pattern("sum", BUY, 300, at_least=1500, field="props.fen")),
    scenario("distinct", pattern("distinct", OPEN, 300, at_least=2, field="app")),
    scenario("sequence", pattern("sequence", (PresenceTrigger("enter", MALL), OPEN), 600)),
    scenario("taxi", pattern("absence", (PresenceTrigger("exit", MALL), TAXI), 300)),
    scenario("cart", pattern("absence", (OPEN, BUY), 120, same="app")),
    scenario("shop-inside", OPEN, while_=While(inside=MALL)),
    scenario("often-inside", pattern("count", OPEN, 120, at_least=2), while_=While(inside=("national/cinema", *MALL))),
    scenario(
        "arrive-shopper", PresenceTrigger("enter", MALL), while_=While(pattern=pattern("count", OPEN, 900, at_least=2))
    ),
    scenario("taxi-after-shopping", TAXI, while_=While(pattern=pattern("count", OPEN, 900, at_least=1))),
    scenario("arrive", PresenceTrigger("enter", (*MALL, "national/cinema"))),
    scenario("shop", OPEN),
    *(scenario(f"join-{name}", trigger, while_=While(inside=fences)) for name, (trigger, fences) in JOINED.items()),
)


def make_day(seed: int, records: int = 160) -> list[tuple[Any, int, int]]:
    """Records (value, append_ms, kind) of an eventful hour of four users."""
    dice = random.Random(seed)
    now_ms, made = NOON_MS, []
    for number in range(records):
        now_ms += dice.choice((0, 200, 1000, 5000, 20_000, 60_000))
        user = f"u{dice.randrange(4)}"
        at_ms = now_ms - dice.choice((0, 0, 0, 500, 3000, 30_000, 700_000))
        what = dice.random()
        if what < 0.4:
            lon = 116.4 + dice.choice((0, 0, 0.0004, 0.0011, 0.003, 0.01))
            value: Any = {**ping(user, at_ms, lon, 39.9), "id": f"p{number}"}
        elif what < 0.85:
            value = usage(
                user,
                at_ms,
                category=dice.choice(("ecommerce", "ecommerce", "taxi")),
                app=dice.choice(("taobao", "jd")),
                props={"fen": dice.choice((0, 500, 900))} if dice.random() < 0.7 else None,
            )
            if dice.random() < 0.9:
                value["id"] = f"e{dice.randrange(number + 1)}" if dice.random() < 0.1 else f"e{number}"
        elif what < 0.93:
            value = consent(user, at_ms)
        elif what < 0.95:
            value = profile(user, at_ms, tags=["member"])
        elif what < 0.96:
            value = {"type": "user-closed", "user": user, "at": at_ms}
        else:
            made.append((b"", now_ms, RecordKind.TICK))
            continue
        made.append((value, now_ms, RecordKind.EVENTS))
    middle = len(made) // 2
    made.insert(middle, (b'{"version":"v2"}', made[middle][1], RecordKind.CONTENT))
    made.append((b"", now_ms + 900_000, RecordKind.TICK))
    return made


def load(payload: bytes) -> Content:
    version = orjson.loads(payload)["version"]
    return small_content(version, scenarios=EVERY.scenarios[2:])


def run(records: list[tuple[Any, int, int]], cuts: list[int], *, restart_at: int | None = None) -> list[bytes]:
    pipeline, lines = make_pipeline(EVERY), []
    for first, last in itertools.pairwise([0, *cuts, len(records)]):
        effects = pipeline.process(block_between(records, first, last), load)
        lines += [line for line in told(pipeline, effects) if b"decision_id" in line]
        if restart_at is not None and first <= restart_at < last:
            pipeline = restarted(pipeline)
    return lines


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_t4_any_split_of_the_same_records_gives_the_same_decisions(seed: int, data: Any):
    records = make_day(seed)
    whole = run(records, [])
    cuts = sorted(set(data.draw(st.lists(st.integers(1, len(records) - 1), max_size=40))))
    assert run(records, cuts) == whole
    assert run(records, list(range(1, len(records)))) == whole


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), restart_at=st.integers(0, 150))
def test_t3_a_restart_from_a_snapshot_changes_nothing(seed: int, restart_at: int):
    records = make_day(seed)
    every = list(range(1, len(records)))
    assert run(records, every, restart_at=restart_at) == run(records, every)


def test_the_made_up_days_reach_every_scenario():
    """Guards the tests above: they prove nothing about what never happens."""
    text = b"\n".join(line for seed in range(12) for line in run(make_day(seed), []))
    for one in EVERY.scenarios:
        assert f'"{one.id}"'.encode() in text, one.id


# --- inside, whatever the trigger (B4, P7) ---------------------------------------------------------------------------

TTL_MS = 1_800_000
TWINS = patterned(
    *(scenario(f"join-{name}", trigger, while_=While(inside=fences)) for name, (trigger, fences) in JOINED.items()),
    *(scenario(f"bare-{name}", trigger) for name, (trigger, _) in JOINED.items()),
)
Known = tuple[str, str, str, int, int]  # twin, user, key, without its scenario, now_ms, position


def listen(pipeline: Any, hear: Any) -> None:
    """Let `hear(candidate, name)` be told of every candidate."""
    decide = pipeline.decider.decide

    def listening(candidates: Any) -> Any:
        for one in candidates:
            hear(one, pipeline.content.scenarios[one.scenario].id.partition("/")[2])
        return decide(candidates)

    pipeline.decider.decide = listening


def known(one: Any, name: str) -> Known:
    trigger = one.trigger
    key = trigger.key.partition("|")[2] if trigger.kind == "pattern" else trigger.key
    return name.partition("-")[2], one.user_id, key, one.now_ms, one.position


def joined_at_once(records: list[tuple[Any, int, int]]) -> tuple[dict[Known, str], list[int]]:
    """The candidates whose condition held, with the fence of their evidence, and when timers told something."""
    pipeline, found, timers = make_pipeline(TWINS), {}, set()

    def hear(one: Any, name: str) -> None:
        if name.startswith("join-"):
            assert known(one, name) not in found
            found[known(one, name)] = one.trigger.values["inside"]
        elif one.position < 0:
            timers.add(one.now_ms)

    listen(pipeline, hear)
    pipeline.process(block_between(records, 0, len(records)))
    return found, sorted(timers)


def joined_one_by_one(records: list[tuple[Any, int, int]], timers: list[int]) -> dict[Known, str]:
    """The same by the words of the rule: stop at every instant, and look at the visits of who is spoken to."""
    pipeline, found = make_pipeline(TWINS), {}
    before: dict[int, list[Any]] = {}
    spoken: list[tuple[Any, str, list[Any]]] = []
    moved_ms: dict[tuple[int, str, str, int], int] = {}  # confirmed_at by user, fence, kind, crossed_at

    feeds = pipeline.feeds
    delay_ms = dict(zip(feeds.names, feeds.array["expected_delay_ms"].tolist(), strict=True))

    def hear(one: Any, name: str) -> None:
        if name.startswith("bare-"):
            spoken.append((one, name, pipeline.presence.open_visits(one.user)))

    def take(one: Block, record_ms: int | None) -> None:
        """Process a record or tick; record_ms: the user's own time, None for a tick."""
        known_before = set(moved_ms)
        for moves in pipeline.process(one).transitions:
            for move in moves:
                fence, kind = pipeline.content.fences[move["fence"]].id, TransitionKind(move["kind"]).name.lower()
                moved_ms[int(move["user"]), fence, kind, int(move["crossed_ms"])] = int(move["confirmed_ms"])
        for candidate, name, visits in spoken:
            of, trigger = JOINED[name.partition("-")[2]], candidate.trigger
            at_ms, is_early = trigger.values.get("confirmed_at", trigger.at_ms), False
            if trigger.kind == "pattern":
                parts = trigger.key.split("|")
                at_ms = record_ms
                if len(parts) == 4:
                    at_ms = moved_ms[candidate.user, parts[1], parts[2], int(parts[3])]
            if candidate.position < 0 and record_ms is not None:
                # In the user's own time, before the record is taken, unless it is what opened or entered.
                is_early = at_ms <= record_ms
                if trigger.kind == "absence":
                    opens, answer = of[0].steps
                    is_early = at_ms + delay_ms["dpi" if isinstance(answer, UsageTrigger) else "app"] <= record_ms
                    if not isinstance(opens, UsageTrigger):
                        opened = candidate.user, opens.fences[0], opens.kind, trigger.values["opened_at"]
                        is_early &= opened in known_before
            inside = [
                each["fence"]
                for each in (before.get(candidate.user, []) if is_early else visits)
                if each["state"] in ("INSIDE", "EXITING")
                and each["fence"] in of[1]
                and at_ms - each["last_fix_at"] < TTL_MS
            ]
            if inside:
                found[known(candidate, name)] = min(inside, key=EITHER.index)  # the cinema is the smaller
        spoken.clear()

    listen(pipeline, hear)
    now_ms = 0
    for place, (value, append_ms, _) in enumerate(records):
        for at_ms in [*(each for each in timers if now_ms <= each <= append_ms), append_ms]:
            take(block_of([b""], position=10_000, append_ms=at_ms, kinds=RecordKind.TICK), None)
        now_ms = append_ms
        before = {user: pipeline.presence.open_visits(user) for user in range(pipeline.users.count)}
        take(block_between(records, place, place + 1), value["at"] if isinstance(value, dict) else None)
    return found


def make_stay(seed: int) -> list[tuple[Any, int, int]]:
    """As `make_day`, of users who move between cinema, mall and street, and at times fall silent."""
    dice = random.Random(seed)
    records = [one for one in make_day(seed, 200) if one[2] != RecordKind.CONTENT]
    where, shift_ms, moved = {}, 0, []
    for value, append_ms, kind in records:
        if dice.random() < 0.01:
            shift_ms += 1_700_000
        if isinstance(value, dict):
            value = {**value, "at": value["at"] + shift_ms}
            if value.get("type") == "ping":
                user = value["user"]
                if dice.random() < 0.4:
                    where[user] = dice.choice((116.4, 116.4, 116.4004, 116.4011, 116.42))
                value["lon"] = where.setdefault(user, 116.42)
        moved.append((value, append_ms + shift_ms, kind))
    return moved


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_b4_p7_inside_joins_every_trigger_as_the_visits_are_at_that_instant(seed: int):
    records = make_stay(seed)
    found, timers = joined_at_once(records)
    assert found == joined_one_by_one(records, timers)


def test_the_made_up_stays_hold_and_break_every_condition():
    """Guards the test above: of every trigger some are inside and some are not."""
    held: set[str] = set()
    bare: dict[str, int] = {}
    joined: dict[str, int] = {}
    for seed in range(25):
        pipeline = make_pipeline(TWINS)

        def hear(one: Any, name: str) -> None:
            kind, _, of = name.partition("-")
            counted = bare if kind == "bare" else joined
            counted[of] = counted.get(of, 0) + 1
            if kind == "join":
                held.add(of)

        listen(pipeline, hear)
        records = make_stay(seed)
        pipeline.process(block_between(records, 0, len(records)))
    assert held == set(JOINED)
    assert all(joined[name] < bare[name] for name in JOINED), (joined, bare)


# --- one by one -----------------------------------------------------------------------------------------------------


class World:
    """A pipeline to which records are told one by one; what was decided, by scenario."""

    def __init__(self, *scenarios: Scenario, feeds: dict[str, FeedSettings] | None = None) -> None:
        settings = Settings(feeds=feeds) if feeds else Settings()
        self.pipeline = make_pipeline(patterned(*scenarios), settings)
        self.position = 0
        self.decisions: list[Any] = []
        self.tell(consent("u1", NOON_MS), 0)

    def tell(self, value: Any, at_s: float, kind: RecordKind = RecordKind.EVENTS) -> list[Any]:
        one = block_of([value], position=self.position, append_ms=NOON_MS + int(at_s * S), kinds=kind)
        self.position += 1
        found = [
            orjson.loads(line) for line in told(self.pipeline, self.pipeline.process(one)) if b"decision_id" in line
        ]
        self.decisions += found
        return found

    def shop(self, at_s: float, *, late_s: float = 0, **more: Any) -> list[Any]:
        more = {"category": "ecommerce", "app": "taobao", "id": f"e{self.position}", **more}
        return self.tell(usage("u1", NOON_MS + int((at_s - late_s) * S), **more), at_s)

    def be(self, at_s: float, lon: float) -> list[Any]:
        return self.tell({**ping("u1", NOON_MS + int(at_s * S), lon, 39.9), "id": f"p{self.position}"}, at_s)

    def tick(self, at_s: float) -> list[Any]:
        return self.tell(b"", at_s, RecordKind.TICK)


AWAY, THERE = 116.42, 116.4


def test_b2_d4_the_third_opening_in_a_minute_completes_a_count_and_names_itself():
    world = World(scenario("count", pattern("count", OPEN, 60, at_least=3)))
    assert world.shop(1) == world.shop(61) == world.shop(62) == []
    (decision,) = world.shop(119, id="third")
    assert decision["outcome"] == "offer"
    trigger = decision["trigger"]
    assert (trigger["kind"], trigger["key"]) == ("pattern", "national/count|dpi|third")
    assert trigger["values"] | {"first_at": 0, "last_at": 0} == {
        "pattern": "count",
        "within_s": 60.0,
        "count": 3,
        "at_least": 3,
        "first_at": 0,
        "last_at": 0,
        "app": "taobao",
        "category": "ecommerce",
        "action": "open",
    }
    assert world.shop(120) == []  # B5: it holds still


def test_t5_a_late_event_completes_a_pattern_at_its_own_instant_and_never_twice():
    world = World(scenario("count", pattern("count", OPEN, 20, at_least=3)))
    assert world.shop(10) == world.shop(28) == world.shop(60) == []
    (decision,) = world.shop(61, late_s=40)  # at 21: 10, 21 and 28 lie within 20 s
    assert decision["trigger"]["values"]["last_at"] == NOON_MS + 28 * S
    assert world.shop(62, late_s=40) == []


def test_b3_t8_leaving_without_a_taxi_is_an_absence_told_when_it_is_due():
    world = World(scenario("taxi", pattern("absence", (PresenceTrigger("exit", MALL), TAXI), 300)))
    world.tell(usage("u2", NOON_MS, category="other"), 0)
    for at_s in (0, 60):
        world.be(at_s, THERE)
    for at_s in (120, 180):
        world.be(at_s, AWAY)
    world.tell(usage("u2", NOON_MS + 400 * S, category="other"), 400)
    assert world.tick(424.9) == []  # due at 120 + 300, and dpi may be 5 s late
    (decision,) = world.tick(425)
    assert (decision["outcome"], decision["trigger"]["kind"]) == ("offer", "absence")
    assert decision["trigger"]["values"]["opened_at"] == NOON_MS + 120 * S
    assert len(decision["trigger"]["key"]) == 16


def test_b3_a_taxi_between_the_crossing_and_its_confirmation_answers():
    world = World(scenario("taxi", pattern("absence", (PresenceTrigger("exit", MALL), TAXI), 300)))
    for at_s in (0, 60):
        world.be(at_s, THERE)
    world.be(120, AWAY)
    world.tell(usage("u1", NOON_MS + 130 * S, category="taxi"), 130)
    world.be(180, AWAY)
    world.tell(usage("u2", NOON_MS + 400 * S, category="other"), 400)
    assert world.tick(500) == []


def test_t8_an_absence_that_a_silent_feed_could_not_have_answered_is_refused():
    world = World(scenario("cart", pattern("absence", (OPEN, BUY), 300)))
    world.shop(0)
    (decision,) = world.tick(310)
    assert (decision["outcome"], decision["reason"]) == ("refused", "feed_silent")
    assert decision["values"]["silent_s"] == 305.0


def test_t8_a_feed_that_is_silent_for_a_day_is_given_up():
    world = World(scenario("cart", pattern("absence", (OPEN, BUY), 300)))
    day_s = 86_400
    for at_s, feed in ((0, "segment"), (day_s - 100, "dpi"), (day_s, "dpi")):
        world.tell({**usage("u2", NOON_MS + at_s * S, category="other"), "feed": feed}, at_s)
    world.shop(day_s)
    world.tell(usage("u2", NOON_MS + (day_s + 250) * S, category="other"), day_s + 250)
    (decision,) = world.tick(day_s + 305)
    assert decision["reason"] != "feed_silent"


def test_b4_p7_inside_a_mall_and_opened_a_shopping_app():
    world = World(scenario("inside", OPEN, while_=While(inside=(*MALL, "national/cinema"))))
    assert world.shop(0) == []
    world.be(10, AWAY)
    world.be(60, THERE)
    (decision,) = world.shop(70)
    assert decision["trigger"]["fence"] == "national/cinema"  # the smaller of the two
    assert decision["trigger"]["values"]["inside"] == "national/cinema"
    assert world.shop(60 + 1800) == []  # SUSPENDED is not inside


def test_b4_arriving_counts_only_for_who_opened_a_shopping_app_before():
    join = While(pattern=pattern("count", OPEN, 600, at_least=2))
    world = World(scenario("arrive", PresenceTrigger("enter", MALL), while_=join))
    world.be(0, AWAY)
    assert world.be(60, THERE) == []
    for at_s in (120, 180):
        world.be(at_s, AWAY)
    world.shop(190)
    world.shop(200)
    (decision,) = world.be(240, THERE)
    assert decision["trigger"]["values"]["while_count"] == 2


def test_l10_new_content_keeps_the_state_of_unchanged_patterns():
    kept = scenario("count", pattern("count", OPEN, 600, at_least=3))
    world = World(kept)
    world.shop(1)
    world.shop(2)
    more = patterned(scenario("a", pattern("count", TAXI, 60, at_least=3)), kept)
    world.tell(b"{}", 3, RecordKind.TICK)
    world.pipeline.activate(more, world.pipeline.process(block_of([])))
    assert len(world.shop(4)) == 1


@pytest.mark.parametrize("act", ["closed", "forgotten"])
def test_i2_a_user_who_leaves_takes_the_state_along(act: str):
    world = World(scenario("count", pattern("count", OPEN, 600, at_least=3)))
    world.shop(1)
    world.shop(2)
    if act == "closed":
        world.tell({"type": "user-closed", "user": "u1", "at": NOON_MS + 3 * S}, 3)
    else:
        assert world.pipeline.forget("u1")
    world.tell(consent("u1", NOON_MS + 4 * S), 4)
    assert world.pipeline.behavior.counts()["states"] == 0
    assert world.shop(5) == []


def test_b2_a_sum_takes_numbers_that_are_not_negative_and_passes_over_everything_else():
    world = World(scenario("sum", pattern("sum", OPEN, 300, at_least=100, field="props.fen")))
    for number, worth in enumerate((60, -50, -0.001, "60", True, None, {"fen": 60})):
        assert world.shop(1 + number, props={"fen": worth}) == [], worth
    assert world.shop(20) == []
    (decision,) = world.shop(21, props={"fen": 40})
    assert decision["trigger"]["values"]["sum"] == 100
