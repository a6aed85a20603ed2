"""The reorder buffer by example (T5): what waits, in which order it goes on, and what does not wait for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.definitions import Content, FieldTest, PatternTrigger, UsageTrigger
from engine.effects import Effects
from engine.errors import SettingsError
from engine.model import Drop, RecordKind
from engine.pipeline import Pipeline
from engine.reorder import Reorder
from engine.runtime import checkpoint
from engine.settings import FeedSettings, FeedTable, Settings, default_feeds, load_settings
from tests.world import (
    NOON_MS,
    block_of,
    consent,
    make_pipeline,
    ping,
    profile,
    scenario,
    small_content,
    told,
    usage,
)

MALL = {"lon": 116.4, "lat": 39.9}
AWAY = {"lon": 116.37, "lat": 39.9}
OTHERS = Settings(feeds={**default_feeds(), "app": FeedSettings(reorder_s=3), "dpi": FeedSettings(reorder_s=3)})


class Day:
    """A pipeline fed record by record; `told` are its transitions, decisions and letters."""

    def __init__(self, content: Content | None = None, settings: Settings = OTHERS) -> None:
        self.pipeline: Pipeline = make_pipeline(content, settings)
        self.told: list[bytes] = []
        self.drops = [0] * len(Drop)
        self.position = 0

    def log(self, after_ms: int, *values: Any, kind: int = RecordKind.EVENTS) -> Effects:
        """Append records `after_ms` after noon."""
        block = block_of(values or [b""], position=self.position, append_ms=NOON_MS + after_ms, kinds=kind)
        self.position += len(block)
        effects = self.pipeline.process(block, lambda _: small_content("v2"))
        self.told += told(self.pipeline, effects)
        self.drops = [have + more for have, more in zip(self.drops, effects.drops.tolist(), strict=True)]
        return effects

    def tick(self, after_ms: int) -> Effects:
        return self.log(after_ms, kind=RecordKind.TICK)

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """(kind, fence) of the transitions so far."""
        found = [orjson.loads(line) for line in self.told if b'"crossed_at"' in line and b"decision_id" not in line]
        return [(one["kind"], one["fence"].split("/")[1]) for one in found]


def at(after_ms: int, where: dict[str, float], **more: Any) -> dict[str, Any]:
    return ping("u", NOON_MS + after_ms, where["lon"], where["lat"], **more)


# --- the order --------------------------------------------------------------------------------------------------------


def test_t5_an_older_ping_that_came_later_goes_on_first():
    """Without the buffer the one from before the mall would be late, and the ENTER initial."""
    day = Day()
    day.log(1000, at(900, MALL))
    day.log(2000, at(-60_000, AWAY))
    assert day.kinds == []
    day.tick(4000)
    assert day.kinds == [("enter", "cinema"), ("enter", "mall")]
    assert b'"initial":false' in day.told[0]
    assert day.drops[Drop.LATE] == 0


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ({"accuracy_m": 80}, {"accuracy_m": 5}, "smaller accuracy first"),
        ({"accuracy_m": 5, "id": "b"}, {"accuracy_m": 5, "id": "a"}, "then id, whichever came first"),
    ],
)
def test_t5_of_equal_instants_the_order_of_arrival_does_not_matter(first, second, why):
    lines = []
    first, second = at(900, MALL, **first), at(900, {**MALL, "lon": 116.4005}, **second)
    for one, other in ((first, second), (second, first)):
        day = Day()
        day.log(500, at(-60_000, AWAY, id="before"))
        day.log(1000, one)
        day.log(1001, other)
        day.tick(9000)
        lines.append(day.told)
    assert lines[0] == lines[1], why
    assert b'"accuracy_m":5.0' in lines[0][0], why


def test_t5_events_wait_in_log_time_and_go_on_by_a_tick_with_the_instant_they_were_due():
    day = Day()
    day.log(0, profile("u", NOON_MS, tags=["member"]), consent("u", NOON_MS))
    day.log(1000, usage("u", NOON_MS, id="x", category="ecommerce", props={"amount_fen": 1500}))
    day.tick(3999)
    assert day.pipeline.held_events == 1
    effects = day.tick(60_000)
    assert day.pipeline.held_events == 0
    (decision,) = effects.decisions
    assert (decision.at, decision.outcome) == (NOON_MS + 4000, "offer")


def test_t7_a_repeated_event_counts_once_and_d4_keeps_its_id():
    lines = []
    for settings in (OTHERS, Settings()):
        day = Day(settings=settings)
        day.log(0, profile("u", NOON_MS), consent("u", NOON_MS))
        event = usage("u", NOON_MS, id="x", category="ecommerce", props={"amount_fen": 1500})
        day.log(1000, event)
        day.log(1500, event)
        day.tick(9000)
        assert day.drops[Drop.DUPLICATE] == 1
        lines.append([orjson.loads(line)["decision_id"] for line in day.told if b"decision_id" in line])
    assert lines[0] == lines[1]
    assert len(lines[0]) == 1


def test_a_held_event_does_not_keep_others_and_what_cannot_be_read_is_a_letter_at_once():
    day = Day()
    day.log(0, consent("u", NOON_MS), at(0, MALL), ping("v", NOON_MS, **MALL, feed="default"), b"{broken")
    assert day.kinds == [("enter", "cinema"), ("enter", "mall")]
    assert next(line for line in day.told if line.startswith(b"bad_json")).endswith(b" 3 0")
    assert day.pipeline.held_events == 1


# --- what is not delayed ----------------------------------------------------------------------------------------------


def test_a2_a_consent_withdrawn_while_an_event_waits_counts():
    day = Day()
    day.log(0, at(0, MALL))
    day.log(1000, consent("u", NOON_MS + 1000, "location", granted=False))
    day.tick(9000)
    assert day.kinds == []
    assert day.drops[Drop.NO_LOCATION_CONSENT] == 1


def test_a2_nothing_is_held_of_whom_nothing_may_be_looked_at():
    day = Day()
    day.log(0, consent("u", NOON_MS, "location", granted=False), at(0, MALL))
    assert day.pipeline.held_events == 0
    day.log(1000, consent("u", NOON_MS + 1000, "location"))
    day.tick(9000)
    assert day.kinds == []
    assert day.drops[Drop.NO_LOCATION_CONSENT] == 1


def test_a_pause_counts_for_what_still_waits():
    day = Day()
    day.log(0, profile("u", NOON_MS), consent("u", NOON_MS))
    day.log(100, usage("u", NOON_MS, id="x", category="ecommerce", props={"amount_fen": 1500}))
    day.log(200, b'{"pause":"*","paused":true}', kind=RecordKind.CONTROL)
    (decision,) = day.tick(9000).decisions
    assert decision.reason == "paused"


def test_l10_new_content_judges_what_still_waits_and_a_cell_keeps_its_number():
    cells = FeedSettings(signalling=True, reorder_s=5)
    day = Day(settings=Settings(feeds={**default_feeds(), "signalling": cells}))
    fix = {"type": "ping", "feed": "signalling", "user": "u", "cell": "460-01-1-2", "at": NOON_MS}
    day.log(0, fix)
    day.log(1000, {**fix, "cell": "460-01-1-1", "at": NOON_MS + 1000})
    old = day.pipeline.content.cells
    turned = type(old)(old.ids[::-1], old.lon_e7[::-1], old.lat_e7[::-1], old.radius_m[::-1], old.indoor[::-1])
    day.pipeline.activate(small_content("v2", cells=turned), Effects(0))
    day.tick(9000)
    assert ("enter", "metro") in day.kinds


def test_a4_what_came_before_a_user_closed_belongs_to_the_old_user():
    day = Day()
    day.log(0, profile("u", NOON_MS), consent("u", NOON_MS))
    day.log(1000, usage("u", NOON_MS, id="x", category="ecommerce", props={"amount_fen": 1500}))
    effects = day.log(1500, {"type": "user-closed", "user": "u", "at": NOON_MS + 1500})
    assert [one.outcome for one in effects.decisions] == ["offer"]
    assert effects.closed_at == [(0, 1)]  # the offer came before the close, which cancels it
    assert day.pipeline.held_events == 0


# --- state ------------------------------------------------------------------------------------------------------------


def test_i2_forget_leaves_no_byte_of_what_was_held():
    day = Day()
    day.log(0, usage("secretive", NOON_MS, id="x", app="hidden.app"), usage("v", NOON_MS, id="y", app="shown.app"))
    assert day.pipeline.forget("secretive")
    arrays, _ = day.pipeline.snapshot()
    held = arrays["reorder.text"].tobytes()
    assert b"hidden.app" not in held
    assert b"shown.app" in held
    assert b"hidden.app" not in day.pipeline.reorder._buffer.text.tobytes()
    day.tick(9000)
    assert day.pipeline.held_events == 0


def test_users_of_whom_something_is_held_are_not_evicted():
    hour_ms = 3_600_000
    feeds = {**default_feeds(), "app": FeedSettings(reorder_s=30)}
    day = Day(settings=Settings(feeds=feeds, state_ttl_days=2))
    day.log(hour_ms - 5000, ping("u", NOON_MS - 90 * 24 * hour_ms, **AWAY))
    day.tick(hour_ms)
    assert day.pipeline.users.slot_of("u", intern=False) >= 0
    day.tick(hour_ms + 60_000)
    day.tick(2 * hour_ms)
    assert day.pipeline.users.slot_of("u", intern=False) < 0


def test_a_full_buffer_lets_the_oldest_go_early_and_counts_it():
    day = Day()
    day.pipeline.reorder = Reorder(day.pipeline.feeds, most_events=2)
    day.log(0, at(0, AWAY))
    day.log(100, at(100, AWAY))
    assert day.log(200, at(200, MALL)).hurried == 1
    assert day.pipeline.held_events == 2
    day.pipeline.reorder = Reorder(day.pipeline.feeds, most_text_bytes=250)
    effects = [day.log(300 + n, usage("u", NOON_MS, id=f"x{n}", app="a")) for n in range(4)]
    assert sum(one.hurried for one in effects) == 2
    day.pipeline.reorder = Reorder(day.pipeline.feeds, most_of_a_user=1)
    assert [day.log(400, at(n, AWAY)).hurried for n in range(3)] == [0, 1, 1]


def test_a_feed_that_no_longer_reorders_lets_go_what_a_checkpoint_held():
    day = Day()
    day.log(0, at(0, MALL))
    arrays, objects = day.pipeline.snapshot()
    fresh = make_pipeline(settings=Settings())
    fresh.restore({name: array.copy() for name, array in arrays.items()}, objects)
    effects = fresh.process(block_of([b""], append_ms=NOON_MS + 3000, kinds=RecordKind.TICK))
    assert [len(one) for one in effects.transitions] == [2]


def test_state_follows_feeds_that_move_or_go_between_two_starts():
    """A row of yesterday would be another feed's, or lie behind the last one, where kernels would read."""
    cells = FeedSettings(reorder_s=3, signalling=True, period_s=1800)
    before = Settings(feeds={**default_feeds(), "first": FeedSettings(), "second": cells})
    after = Settings(feeds={**default_feeds(), "second": cells})
    day = Day(settings=before)
    day.log(0, ping("gone", NOON_MS, **MALL, feed="first"), ping("stays", NOON_MS, **MALL, feed="second"))
    day.tick(4000)
    day.log(5000, ping("held", NOON_MS + 5000, **MALL, feed="second"))
    arrays, objects = day.pipeline.snapshot()
    objects = orjson.loads(orjson.dumps(objects))
    fresh = make_pipeline(settings=after)
    fresh.restore({name: array.copy() for name, array in arrays.items()}, objects)
    mine, _ = fresh.snapshot()

    def feed_of(stage: str, user: str) -> str:
        return fresh.feeds.names[mine[stage]["feed"][fresh.users.slot_of(user, intern=False)]]

    assert feed_of("presence.user", "gone") == "default"
    assert feed_of("presence.user", "stays") == "second"
    assert [fresh.feeds.names[row] for row in mine["reorder.event"]["feed"]] == ["second"]
    for name, array in mine.items():
        if array.dtype.names and "feed" in array.dtype.names:
            assert (array["feed"] < len(after.feeds)).all(), name
    assert len(mine.get("behavior.pattern_feed", after.feeds)) == len(after.feeds)


def test_checkpoints_from_before_the_buffer_are_read_and_later_ones_hold_it(tmp_path: Path):
    day = Day()
    day.log(0, at(0, MALL))
    arrays, objects = day.pipeline.snapshot()
    path = checkpoint.write(tmp_path, checkpoint.Checkpoint(7, NOON_MS, arrays, {"pipeline": objects}))
    kept = checkpoint.read(path)
    assert isinstance(kept, checkpoint.Checkpoint)
    fresh = make_pipeline(settings=OTHERS)
    fresh.restore(kept.arrays, kept.objects["pipeline"])
    assert fresh.held_events == 1
    older = {name: array for name, array in kept.arrays.items() if not name.startswith("reorder.")}
    fresh = make_pipeline(settings=OTHERS)
    fresh.restore(older, kept.objects["pipeline"])
    assert fresh.held_events == 0


def test_the_end_of_a_recording_loses_nothing():
    day = Day()
    day.log(0, at(0, MALL))
    last = day.pipeline.finish()
    assert [len(one) for one in last.transitions] == [2]
    assert last.now_ms == NOON_MS + 3000


def test_t8_a_timer_waits_for_what_may_still_be_sorted():
    """An answer in time must not be taken for an absence because it was held."""
    opened, paid = (UsageTrigger((FieldTest("app", "==", one),)) for one in ("cart", "pay"))
    absence = PatternTrigger("absence", (opened, paid), 10_000, 1, state_hash="absence")
    content = small_content(scenarios=(scenario("left", absence),))
    answers = []
    for pays in (True, False):
        day = Day(content)
        day.log(0, usage("u", NOON_MS, id="x", app="cart"))
        if pays:
            day.log(11_500, usage("u", NOON_MS + 9900, id="y", app="pay"))
        for second in range(12, 30):
            day.tick(1000 * second)
        answers.append(sum(b'"absence"' in line for line in day.told))
    assert answers == [0, 1]


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", ["-1", "31", "3600"])
def test_a_wait_beyond_30_s_is_refused_with_what_to_do(monkeypatch, seconds):
    monkeypatch.setenv("OPPORTUNE_FEEDS__SIGNALLING__REORDER_S", seconds)
    with pytest.raises(
        SettingsError, match=rf"feeds.signalling.reorder_s: .*{seconds} s is neither 0 nor between 0.001 and 30.*2 to 5"
    ):
        load_settings()


def test_the_expected_delay_of_a_feed_includes_what_its_events_wait():
    table = FeedTable({"a": FeedSettings(expected_delay_s=2, reorder_s=3), "b": FeedSettings()})
    assert table.array["expected_delay_ms"].tolist() == [5000, 2000]
    assert table.array["reorder_ms"].tolist() == [3000, 0]
