"""Recorded events through the live pipeline with limits and stock of its own, and what came of it in numbers.

Nothing is stored or sent: caps, gaps, re-entry, stock and holdout are decided in memory by the code that decides them
live. The same events with two contents give two tallies, which `engine.console.backtest_report` compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.clock import monotonic_s
from engine.decide.profiles import ProfileTable
from engine.decide.records import Decision
from engine.definitions import Content
from engine.deliver.sms import count_segments, finish_text
from engine.effects import Effects
from engine.ledger.caps import Caps, GrantRow
from engine.ledger.pool import Lease
from engine.ledger.stock import Stock
from engine.model import Drop, ReserveAnswer, ReserveRequest
from engine.pipeline import Pipeline
from engine.runtime import collector
from engine.settings import Settings

MOST_EVENTS = 4096
SLOT_MS = 900_000
"""Offers are counted by quarters of an hour, which every zone's hours are made of."""


class ShadowLedger:
    """Caps and stock in memory: the answers of a ledger, and nothing of its storage.

    endless_codes  a pool is never empty: for recordings that hold no leases
    """

    def __init__(self, *, endless_codes: bool) -> None:
        self.caps = Caps()
        self.stock = Stock(endless_codes=endless_codes)
        self._made: list[GrantRow] = []

    def reserve(self, requests: Sequence[ReserveRequest]) -> list[ReserveAnswer]:
        answers = self.stock.reserve(requests, self.caps, self._made)
        self._made.clear()
        return answers

    def release(self, offer_id: str) -> None:
        if self.caps.release(offer_id):
            self.stock.release(offer_id)

    def delivered(self, offer_id: str) -> None:
        self.caps.delivered(offer_id)

    def lease_codes(self, pool: str, first: int, count: int, epoch: int) -> None:
        self.stock.lease(pool, first, count, epoch)

    def recall_codes(self, pool: str, epoch: int) -> None:
        self.stock.recall(pool, epoch)

    def spend_codes(self, pool: str, spans: Sequence[Sequence[int]]) -> None:
        self.stock.spend(pool, spans)

    def accept_return(self, pool: str, spans: Sequence[Sequence[int]]) -> None:
        self.stock.accept_return(pool, spans)

    def leases(self) -> list[Lease]:
        return []


@dataclass
class Segment:
    """Users of one organisation or tag: who got offers, and how many."""

    users: set[str] = field(default_factory=set)
    offers: int = 0


@dataclass
class Tally:
    """What one run of the events came to. Shadow scenarios are counted as if they were live.

    outcomes  by (scenario, outcome, reason); a candidate that was held counts once more when it is released
    by_slot   offers by (scenario, quarter of an hour since the epoch)
    by_fence  offers by (scenario, fence)
    segments  by ("organisation" | "tag", name)
    refused_users  users by (scenario, reason) of what limits and stock refused
    exhausted_ms   by benefit, when stock or budget refused first
    """

    content: Content
    events: int = 0
    dead: int = 0
    candidates: int = 0
    seconds: float = 0.0
    first_ms: int = 0
    last_ms: int = 0
    users: int = 0
    types: Counter[int] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    transitions: int = 0
    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    by_slot: Counter[tuple[str, int]] = field(default_factory=Counter)
    by_fence: Counter[tuple[str, str]] = field(default_factory=Counter)
    segments: dict[tuple[str, str], Segment] = field(default_factory=dict)
    refused_users: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    messages: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (scenario, channel)
    parts: Counter[tuple[str, str]] = field(default_factory=Counter)  # SMS segments, else messages
    given: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (scenario, benefit)
    exhausted_ms: dict[str, int] = field(default_factory=dict)


Progress = Callable[[int, Tally], None]


def run(
    source: Any,
    content: Content,
    settings: Settings,
    *,
    id_key: bytes,
    endless_codes: bool,
    load_content: Callable[[bytes], Content] | None = None,
    prepare: Callable[[Pipeline], None] | None = None,
    on_effects: Callable[[Effects], None] | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Take a source to its end.

    load_content  of content records in the log; None: `content` stays in force throughout
    prepare       sets the state that the recording began with
    on_effects    told every batch's effects
    """
    ledger = ShadowLedger(endless_codes=endless_codes)
    pipeline = Pipeline(content, settings, ledger, id_key=id_key)
    if prepare is not None:
        prepare(pipeline)
    counting = _Counting(content, pipeline.profiles, pipeline.users.slot_of)
    tally = counting.tally
    collector.settle()
    started = monotonic_s()
    while blocks := source.poll(MOST_EVENTS):
        for block in blocks:
            effects = pipeline.process(block, load_content)
            counting.add(effects)
            if on_effects is not None:
                on_effects(effects)
        if progress is not None:
            progress(getattr(source, "done_bytes", 0), tally)
    last = pipeline.finish()
    counting.add(last)
    if on_effects is not None:
        on_effects(last)
    tally.seconds = monotonic_s() - started
    tally.last_ms = pipeline.now_ms
    tally.users = pipeline.users.live
    return tally


class _Counting:
    """Adds batches to a tally."""

    def __init__(self, content: Content, profiles: ProfileTable, slot_of: Callable[..., int]) -> None:
        self.tally = Tally(content)
        self._profiles = profiles
        self._slot_of = slot_of
        self._text_of = {one.id: one.offer.text for one in content.scenarios}
        self._benefit_of = {one.id: one.offer.benefit for one in content.scenarios}

    def add(self, effects: Effects) -> None:
        tally = self.tally
        if not tally.first_ms and effects.events:
            tally.first_ms = effects.first_ms
        tally.events += effects.events
        tally.dead += len(effects.dead)
        tally.candidates += effects.candidates
        tally.transitions += sum(map(len, effects.transitions))
        for kind, number in effects.types.items():
            tally.types[kind] += number
        if effects.drops[1:].any():
            for drop in Drop:
                if drop and effects.drops[drop]:
                    tally.drops[drop.name.lower()] += int(effects.drops[drop])
        if effects.decisions:
            self.count_decisions(effects.decisions)

    def count_decisions(self, decisions: Sequence[Decision]) -> None:
        outcomes = self.tally.outcomes
        for one in decisions:
            scenario, reason = one.scenario, one.reason
            if one.count > 1:  # the end of a run whose first was counted
                outcomes[scenario, one.outcome, reason] += one.count - 1
                continue
            outcomes[scenario, one.outcome, reason] += 1
            if one.outcome == "offer":
                self._count_offer(one)
            elif reason[:4] == "cap:" or reason in ("min_gap", "stock", "budget"):
                self.tally.refused_users.setdefault((scenario, reason), set()).add(one.user)
                if reason in ("stock", "budget"):
                    benefit = self._benefit_of.get(scenario, "")
                    self.tally.exhausted_ms.setdefault(benefit, one.at)

    def _count_offer(self, one: Decision) -> None:
        tally, scenario = self.tally, one.scenario
        tally.by_slot[scenario, one.at // SLOT_MS] += 1
        if one.trigger.fence is not None:
            tally.by_fence[scenario, one.trigger.fence] += 1
        channel = str(one.values.get("channel", ""))
        tally.messages[scenario, channel] += 1
        text = one.offer.text if one.offer is not None else self._text_of.get(scenario, "")
        tally.parts[scenario, channel] += self._parts(channel, text)
        benefit = self._benefit_of.get(scenario, "")
        tally.given[scenario, benefit] += 1
        for key in self._segments(one.user):
            segment = tally.segments.get(key)
            if segment is None:
                segment = tally.segments[key] = Segment()
            segment.users.add(one.user)
            segment.offers += 1

    def _parts(self, channel: str, text: str) -> int:
        """Messages on the wire: an SMS may take several. A text in shadow is counted with its placeholders unfilled."""
        if channel != "sms":
            return 1
        policy = self.tally.content.policy
        return count_segments(finish_text(text, signature=policy.signature, opt_out=policy.opt_out_text)).segments

    def _segments(self, user: str) -> list[tuple[str, str]]:
        """The organisation, to its second level, and the tags of a user now."""
        slot, profiles = self._slot_of(user, intern=False), self._profiles
        if slot < 0 or slot >= profiles.count:
            return []
        found = []
        organisation = profiles.organisation.get(slot) if profiles.organisation is not None else None
        if organisation:
            found.append(("organisation", "/".join(organisation.split("/")[:2])))
        for row, word in enumerate(profiles.tag_words):
            held = int(word.view[slot])
            while held:
                bit = held & -held
                held ^= bit
                found.append(("tag", profiles.tags.texts[row * 64 + bit.bit_length() - 1]))
        found += [("tag", name) for name in profiles.dynamic.get(slot, ())]
        return found
