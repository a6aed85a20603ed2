"""What goes wrong between a phone and the journal, and what happens to the service itself; drawn from the seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from tests.simulation.day import Day, Event, change
from tests.simulation.plan import HOUR_MS, START_MS

IN_TRANSIT = (
    "late",
    "lagging_user",
    "duplicate",
    "reorder",
    "clock_plus_hour",
    "clock_minus_hour",
    "clock_plus_year",
    "poison",
    "feed_down",
    "profile_import",
)
IN_SERVICE = (
    "redelivered_record",
    "crash",
    "crash_torn_journal",
    "crash_between_commit_and_dispatch",
    "crash_between_claim_and_submit",
    "crash_after_submit",
    "crash_between_grant_and_stock",
    "crash_between_lease_and_log",
    "crash_before_early_receipt_is_told",
    "crash_between_redeem_and_log",
    "receipt_before_answer",
    "redemption_twice",
    "link_scanned_again",
    "codes_recalled",
    "forget",
    "caps_rebuilt_from_ledger",
    "content_change",
    "reserve_unavailable",
    "commit_unavailable",
    "claim_unavailable",
    "gateway_unknown",
    "gateway_rejects",
    "receipt_twice",
    "pause",
)
EVERY = IN_TRANSIT + IN_SERVICE

# Both wait for the engine: tests/simulation/test_findings.py has an example of each that fails.
PAUSES_OVERLAP = True
CLOSED_TWICE = True

SCRIPTED_SPAN = (START_MS + 5 * HOUR_MS, START_MS + 5 * HOUR_MS + 2_100_000)
"""A store that fails does so here for once: scripted users get offers meanwhile, and think better of it."""

POISON = (
    b'{"type":"ping","feed":"app","user":"u1","at":',
    b'{"type":"ping","feed":"app","user":"u1","at":1767310000,"lon":116.4,"lat":39.9}',
    b'{"type":"ping","feed":"app","user":"u1","at":"2026-01-02T08:00:00","lon":116.4,"lat":39.9}',
    b'{"type":"ping","feed":"app","user":"u1","at":1767310000000,"lon":NaN,"lat":39.9}',
    b'{"type":"ping","feed":"app","user":"u1","at":1767310000000,"lon":116.4}',
    b'{"type":"ping","feed":"signalling","user":"u1","at":1767310000000,"cell":"c-nowhere"}',
    b'{"type":"usage","feed":"dpi","user":"u1","at":1767310000000,"action":"open"}',
    b'{"type":"usage","feed":"nobody","user":"u1","at":1767310000000,"app":"iqiyi"}',
    b'{"type":"consent","user":"u1","at":1767310000000,"purpose":"marketing.sms","granted":"yes"}',
    b'{"type":"consent","user":"u1","at":1767310000000,"purpose":"everything","granted":true}',
    b'{"type":"wave","user":"u1","at":1767310000000}',
    b'{"v":9,"type":"ping","feed":"app","user":"u1","at":1767310000000,"lon":116.4,"lat":39.9}',
    b'{"type":"ping","feed":"app","at":1767310000000,"lon":116.4,"lat":39.9}',
    b'{"type":"usage","feed":"dpi","user":"u1","at":1767310000000,"app":"iqiyi","props":'
    + b"[" * 40
    + b"]" * 40
    + b"}",
    b'{"type":"profile","user":"u2","at":1767310000000,"time_zone":"Mars/Phobos","dnd":true}',
    b"42",
    b'{"type":"usage","feed":"dpi","user":7,"at":1767310000000,"app":"iqiyi"}',
)


@dataclass
class Crash:
    """When, and at which step of the loop; how long the service stays down."""

    at_ms: int
    step: str  # appended | processed | drawn | committed | claimed | submitted | early | leased | redeemed | told
    down_ms: int
    torn: bool = False
    snapshot: str = "newest"  # newest | older | none
    rebuild_caps: bool = False


@dataclass
class Trouble:
    """The faults of one seed, as far as they happen to the service."""

    kinds: tuple[str, ...]
    crashes: list[Crash] = field(default_factory=list)
    contents: list[tuple[int, str]] = field(default_factory=list)
    controls: list[tuple[int, str, bool]] = field(default_factory=list)
    spans: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # of stores that do not answer
    redeliver: float = 0.0
    gateway_unknown: float = 0.0
    gateway_rejects: float = 0.0
    receipt_twice: float = 0.0
    receipt_early: float = 0.0
    redemption_twice: float = 0.0
    link_again: float = 0.1
    recalls: list[int] = field(default_factory=list)
    forgets: list[tuple[int, str]] = field(default_factory=list)

    def is_down(self, what: str, now_ms: int) -> bool:
        return any(start <= now_ms < end for start, end in self.spans.get(what, ()))


def draw(seed: int, hours: int) -> Trouble:
    """Choose the kinds of a seed: at least five, and a crash of some sort in most."""
    dice = random.Random(f"{seed}/faults")
    kinds = set(dice.sample(IN_TRANSIT, dice.randrange(2, 5))) | set(dice.sample(IN_SERVICE, dice.randrange(4, 8)))
    # Round robin, so that few seeds already bring every kind.
    kinds |= {EVERY[seed % len(EVERY)], EVERY[(3 * seed + 7) % len(EVERY)]}
    trouble = Trouble(tuple(kind for kind in EVERY if kind in kinds))
    span_ms = hours * HOUR_MS

    def some_time() -> int:
        return START_MS + dice.randrange(span_ms // 20, span_ms * 17 // 20)

    steps = {
        "crash": ("appended", "processed"),
        "crash_torn_journal": ("appended", "processed"),
        "crash_between_commit_and_dispatch": ("committed",),
        "crash_between_claim_and_submit": ("claimed",),
        "crash_after_submit": ("submitted",),
        "crash_between_grant_and_stock": ("drawn",),
        "crash_between_lease_and_log": ("leased",),
        "crash_before_early_receipt_is_told": ("early",),
        "crash_between_redeem_and_log": ("redeemed", "told"),
    }
    for kind, choice in steps.items():
        for _ in range(dice.choice((1, 1, 2)) if kind in kinds else 0):
            trouble.crashes.append(
                Crash(
                    some_time(),
                    dice.choice(choice),
                    dice.choice((200, 5_000, 60_000, 900_000)),
                    kind == "crash_torn_journal",
                    dice.choice(("newest", "newest", "older")),
                    "caps_rebuilt_from_ledger" in kinds and dice.random() < 0.7,
                )
            )
    if "caps_rebuilt_from_ledger" in kinds:
        early = START_MS + dice.randrange(span_ms // 20, span_ms // 5)
        trouble.crashes.append(Crash(early, "processed", 1_000, snapshot="none"))
        trouble.crashes.append(Crash(some_time(), "processed", 1_000, rebuild_caps=True))
    trouble.crashes.sort(key=lambda crash: crash.at_ms)
    if "content_change" in kinds:
        first = some_time()
        trouble.contents = [(first, "v2"), (first + dice.randrange(HOUR_MS, 6 * HOUR_MS), "v3")]
    if "pause" in kinds:
        trouble.controls = _pauses(dice, some_time)
    for what in ("reserve_unavailable", "commit_unavailable", "claim_unavailable"):
        if what in kinds:
            at, minutes = some_time(), dice.choice((3, 15, 40))
            trouble.spans[what] = [SCRIPTED_SPAN, (at, at + minutes * 60_000)]
    trouble.redeliver = 0.02 if "redelivered_record" in kinds else 0.0
    trouble.gateway_unknown = 0.2 if "gateway_unknown" in kinds else 0.0
    trouble.gateway_rejects = 0.2 if "gateway_rejects" in kinds else 0.02
    trouble.receipt_twice = 0.5 if "receipt_twice" in kinds else 0.0
    trouble.redemption_twice = 0.6 if "redemption_twice" in kinds else 0.0
    trouble.link_again = 0.7 if "link_scanned_again" in kinds else 0.1
    if kinds & {"receipt_before_answer", "crash_before_early_receipt_is_told"}:
        trouble.receipt_early = 0.4
    if "forget" in kinds:
        trouble.forgets = [(START_MS + dice.randrange(2 * HOUR_MS, 5 * HOUR_MS), "w-gone")]
    if "codes_recalled" in kinds:
        trouble.recalls = sorted(some_time() for _ in range(2))
        # Nothing is claimed meanwhile, so that offers wait that hold codes of the leases that end.
        around = [(at - 1_800_000, at + 600_000) for at in trouble.recalls]
        trouble.spans["claim_unavailable"] = [*trouble.spans.get("claim_unavailable", ()), *around]
    return trouble


def _pauses(dice: random.Random, some_time: Callable[[], int]) -> list[tuple[int, str, bool]]:
    """Some scenarios are paused by themselves, and for a while everything is."""
    pauses = [(some_time(), name, minutes) for name, minutes in (("sim/flash", 200), ("sim/dwell-mall", 240))]
    at = some_time()
    pauses += [(at, "sim/watch-live", 400), (at + HOUR_MS, "*", 25)]
    if not PAUSES_OVERLAP:
        shift = START_MS + HOUR_MS - min(at for at, _, _ in pauses)
        pauses = [(at + max(0, shift), name, minutes) for at, name, minutes in pauses if name != "*"]
        pauses.append((START_MS + dice.randrange(HOUR_MS // 3), "*", 25))
    return [
        change for at, name, minutes in pauses for change in ((at, name, True), (at + minutes * 60_000, name, False))
    ]


def spoil(seed: int, day: Day, kinds: tuple[str, ...]) -> list[Event]:
    """Return the day's events as they arrive."""
    dice = random.Random(f"{seed}/transit")
    lagging = set(dice.sample(day.users, 2)) if "lagging_user" in kinds else set()
    sources = dice.sample(day.users, min(6, len(day.users)))
    skews = {
        "clock_plus_hour": (sources[:2], HOUR_MS),
        "clock_minus_hour": (sources[2:4], -HOUR_MS),
        "clock_plus_year": (sources[4:], 365 * 24 * HOUR_MS),
    }
    since = START_MS + dice.randrange(2, 8) * HOUR_MS
    down_ms = START_MS + dice.randrange(HOUR_MS, 3 * HOUR_MS)
    up_ms = down_ms + 100 * 60_000 if "feed_down" in kinds else down_ms
    events: list[Event] = []
    for event in day.events:
        if event.is_fixed or isinstance(event.value, bytes):
            events.append(event)
            continue
        value: dict[str, Any] = event.value
        if value["type"] in ("ping", "usage"):
            event = _in_transit(dice, event, value, kinds, lagging)
            for kind, (users, skew_ms) in skews.items():
                if kind in kinds and value["user"] in users and since <= value["at"] < since + 4 * HOUR_MS:
                    event = replace(event, value={**value, "at": value["at"] + skew_ms})
            if value["feed"] == "dpi" and down_ms <= event.arrival_ms < up_ms:
                event = replace(event, arrival_ms=up_ms + dice.randrange(30_000))
        events.append(event)
        closes = value["type"] in ("user-closed", "address-changed")
        if closes and not CLOSED_TWICE:
            event = replace(event, is_fixed=True)
        if "duplicate" in kinds and not event.is_fixed and dice.random() < (0.5 if closes else 0.04):
            delay_ms = dice.choice((0, 300, 5_000, 50_000, 1_500_000))
            events.append(replace(event, arrival_ms=event.arrival_ms + delay_ms))
    if "profile_import" in kinds:
        events += [one for _ in range(3) for one in _import(dice, day)]
    if "poison" in kinds:
        for number in range(40):
            arrival_ms = START_MS + dice.randrange(20 * HOUR_MS)
            events.append(Event(arrival_ms, POISON[number % len(POISON)], is_poison=True))
    events.sort(key=lambda event: (event.arrival_ms, _order(event)))
    return events


def _import(dice: random.Random, day: Day) -> Iterator[Event]:
    """Profiles of many at once, at the very instant at which one of them does something that scenarios wait for."""
    usage = [one for one in day.events if isinstance(one.value, dict) and one.value["type"] == "usage"]
    arrival_ms = dice.choice(usage).arrival_ms
    for name in day.users[:20]:
        value: dict[str, Any] = {"type": "profile", "user": name, "at": arrival_ms, **change(dice)}
        yield Event(arrival_ms, value)


def _in_transit(
    dice: random.Random, event: Event, value: dict[str, Any], kinds: tuple[str, ...], lagging: set[str]
) -> Event:
    delay_ms = 0
    if value["user"] in lagging:
        delay_ms = 780_000
    elif "late" in kinds and dice.random() < 0.05:
        delay_ms = dice.choice((20_000, 100_000, 400_000, 900_000, 2_400_000))
    elif "reorder" in kinds and dice.random() < 0.1:
        delay_ms = dice.choice((1_000, 10_000, 70_000))
    return replace(event, arrival_ms=event.arrival_ms + delay_ms)


def _order(event: Event) -> bytes:
    return event.value if isinstance(event.value, bytes) else orjson.dumps(event.value)
