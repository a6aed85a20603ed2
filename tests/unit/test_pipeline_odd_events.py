"""Events with odd values, through all stages: a dead letter or no effect, never an exception (FAULTS F2).

An exception would stop the service at this record again after every restart.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine.model import DeadReason
from tests.world import NOON_MS, block_of, consent, make_pipeline, profile, told, usage

TEXTS = (
    "",
    "a",
    "x" * 300,
    "\0",
    "\n",
    "😀",
    "*",
    "-1",
    "0x1",
    "f" * 32,
    "F" * 33,
    "_" * 32,
    "GMT+14",
    "../UTC",
    " td ",
)
NUMBERS = (0, -0.0, -1, 1e308, 5e-324, 2**63 - 1, -(2**63), True, False, None)
FIELDS = {
    "ping": ("lon", "lat", "accuracy_m", "method", "cell"),
    "usage": ("app", "category", "action", "props"),
    "profile": ("tags", "attributes", "person", "organisation", "home", "time_zone", "dnd", "province"),
    "consent": ("purpose", "granted", "source"),
    "receipt": ("state", "offer_id", "dispatch_id", "code"),
    "redemption": ("offer_id", "benefit", "amount_fen"),
    "inbound-message": ("channel", "text"),
    "user-closed": (),
    "address-changed": (),
}
PLAUSIBLE: dict[str, tuple[Any, ...]] = {
    "state": ("rejected", "failed", "expired", "delivered"),
    "purpose": ("marketing.sms", "location", "usage"),
    "granted": (True, False),
    "channel": ("sms",),
    "text": ("TD", "退订"),
    "tags": (["member"], []),
    "category": ("ecommerce",),
    "app": ("iqiyi",),
    "props": ({"amount_fen": 1200}, {"amount_fen": "x"}),
    "lon": (116.4, 116.41),
    "lat": (39.9,),
    "cell": ("460-01-1-1",),
}


def odd_value(dice: random.Random, depth: int = 0) -> Any:
    chance = dice.random()
    if chance < 0.4 or depth == 3:
        return dice.choice(TEXTS)
    if chance < 0.8:
        return dice.choice(NUMBERS)
    if chance < 0.9:
        return [odd_value(dice, depth + 1) for _ in range(dice.randrange(3))]
    return {dice.choice((*TEXTS, "lon", "lat")): odd_value(dice, depth + 1) for _ in range(dice.randrange(3))}


def odd_event(dice: random.Random, now_ms: int) -> dict[str, Any]:
    kind = dice.choice(tuple(FIELDS))
    event: dict[str, Any] = {
        "type": kind,
        "user": f"u{dice.randrange(3)}",
        "at": now_ms - dice.choice((0, 500, 70_000)),
    }
    if kind in ("ping", "usage"):
        event["feed"] = "dpi" if kind == "usage" else "app"
    if dice.random() < 0.3:
        event["id"] = dice.choice(TEXTS)
    for name in FIELDS[kind]:
        if (dice.random() < 0.55 and name in PLAUSIBLE) or name == "state":
            event[name] = dice.choice(PLAUSIBLE[name])
        elif dice.random() < 0.4:
            event[name] = odd_value(dice)
    return event


@pytest.mark.parametrize("clock", ["log", "events"])
@pytest.mark.parametrize("seed", range(4))
def test_no_event_whatever_it_says_stops_the_pipeline(seed, clock):
    dice, pipeline, now_ms = random.Random(seed), make_pipeline(), NOON_MS
    for number in range(150):
        now_ms += dice.choice((0, 100, 5000, 600_000))
        events = [odd_event(dice, now_ms) for _ in range(4)]
        if clock == "events" and number == 149:
            events.append({"type": "user-closed", "user": "u1", "at": 7_258_118_399_999})
        append_ms = now_ms if clock == "log" else -1
        told(pipeline, pipeline.process(block_of(events, position=4 * number, append_ms=append_ms)))


@pytest.mark.parametrize("offer_id", ["hello", "-1", "f" * 33, "_" * 32, "\0", "退订"])
def test_a_receipt_for_an_offer_of_somebody_else_changes_nothing(offer_id):
    """F20: gateways report what they like."""
    event = {"type": "receipt", "user": "u1", "at": NOON_MS, "state": "failed", "offer_id": offer_id}
    effects = make_pipeline().process(block_of([event], append_ms=NOON_MS))
    assert (effects.decisions, effects.dead) == ([], [])


def test_a_bad_clock_is_a_dead_letter_before_calendars_end():
    events = [usage("u1", "9999-12-31T23:59:59Z", app="iqiyi"), usage("u1", NOON_MS, app="iqiyi")]
    effects = make_pipeline().process(block_of(events))
    assert [letter.reason for letter in effects.dead] == [DeadReason.BAD_TIME]
    assert effects.now_ms == NOON_MS


def test_a_recording_may_leap_over_a_century():
    """Opening hours are compiled some weeks ahead, again and again."""
    pipeline, month_ms = make_pipeline(), 30 * 86_400_000
    events = [usage("u1", 150_000_000_000 + number * month_ms, app="iqiyi") for number in range(2000)]
    assert pipeline.process(block_of(events)).now_ms == 150_000_000_000 + 1999 * month_ms


def test_new_tags_and_purposes_are_bounded_and_a_no_still_counts():
    """A1, A2: each costs memory for every user; a no that has no room here goes to the claim store."""
    pipeline = make_pipeline()
    events = [profile("u1", NOON_MS, tags=[f"t{number}" for number in range(5000)])]
    events += [consent("u1", NOON_MS, f"marketing.c{number}") for number in range(300)]
    events += [consent("u1", NOON_MS, "marketing.late", granted=False)]
    effects = pipeline.process(block_of(events, append_ms=NOON_MS))
    assert len(pipeline.profiles.tag_words) == 4096 // 64
    assert len(pipeline.profiles.purposes) == 256
    assert (effects.consents[-1].purpose, effects.consents[-1].granted) == ("marketing.late", False)
    assert len(effects.consents) < 300
