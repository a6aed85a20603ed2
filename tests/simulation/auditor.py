"""Judge a run from the world's own records, with no code of the engine.

It walks the log record by record with its own model of users, grants and pauses, works out which candidates there
must be, and holds every decision, transition, dead letter, drop and message against the rules. What it reads of the
engine is only what the engine said (`told`).
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import Any

import orjson

from tests.simulation import changes, judge, ranking, unanswered
from tests.simulation.answers import Answers
from tests.simulation.day import Expected
from tests.simulation.deliveries import check_deliveries, check_replays
from tests.simulation.ground import FUTURE_MS, Person
from tests.simulation.judge import Trigger
from tests.simulation.limits import Book, Grant
from tests.simulation.links import Links
from tests.simulation.plan import City, Plan
from tests.simulation.redeemed import Redeemed
from tests.simulation.stocktaking import Shelf
from tests.simulation.story import LogRecord, Story, Told
from tests.simulation.waiting import Waiting
from tests.simulation.walk import Heard, Walk, Wants

EVENTS, CONTENT, CONTROL = 1, 3, 4
NO_LOCATION, NO_USAGE = 7, 8  # drop codes
REASONS = {
    "granted", "not_live", "too_old", "no_profile", "audience", "no_consent", "opted_out", "dnd", "suppressed",
    "reentry", "quiet_hours", "not_drawn", "stale_presence", "outscored",
    "min_gap", "stock", "budget", "missing_value", "bad_value",
    "deadline", "paused", "feed_silent", "store_unavailable", "holdout", "duplicate",
    "cap:all", "cap:channel", "cap:scenario", "cap:category", "cap:partner", "cap:deployment",
}  # fmt: skip
OUTCOMES = {"granted": "offer", "holdout": "withheld", "outscored": "lost", "deadline": "expired"}


class Auditor:
    """`violations` lists what is wrong, each with its place in the log."""

    def __init__(
        self, cities: tuple[City, ...], story: Story, told: list[Told], closing: list[bytes], expected: list[Expected]
    ) -> None:
        self.cities = {city.version: city for city in cities}
        self.city = cities[0]
        self.story = story
        self.told = told
        self.closing = closing
        self.expected = expected
        self.violations: list[str] = []
        self.reasons: Counter[str] = Counter()
        self.book = Book()
        self.people: dict[str, Person] = {}
        self.refusals: dict[tuple[str, str], int] = {}  # of a person, by purpose: the newest (A4)
        self.now_ms = -1
        self.paused: set[str] = set()
        self.auto_paused: set[str] = set()
        self.walk = Walk(cities, self.city, self.say)
        self.shelf = Shelf()
        self.answers = Answers()
        self.redeemed = Redeemed()
        self.links = Links()
        self.waiting = Waiting()
        self.runs: dict[tuple[str, str], unanswered.Run] = {}
        self.seen_ids: set[str] = set()
        self.granted_ids: dict[str, dict[str, Any]] = {}
        self.shadow_ids: set[str] = set()
        # For the hand-over: what held from when on.
        self.consent_log: dict[tuple[str, str], list[tuple[int, bool | None]]] = defaultdict(list)
        self.pause_log: dict[str, list[tuple[int, bool]]] = defaultdict(list)
        self.closed_log: dict[str, list[int]] = defaultdict(list)
        self.recalls: dict[str, list[int]] = defaultdict(list)  # of leases, by pool
        self.told_states: dict[tuple[str, str], int] = {}  # of offers, by receipts: the first record that told it
        self.decided: dict[str, str] = {}  # whom each decision is about
        self.gone: set[str] = set()  # decisions about users who were forgotten since
        self.texts: dict[str, str] = {one[0]: one[4] for each in told for one in each.offers}
        self._where, self.position = "", -1

    @property
    def user_count(self) -> int:
        return len(self.people)

    def audit(self) -> None:
        forgotten = list(self.story.forgotten)
        for where in self.story.traces:
            self.say(f"a user who was forgotten still stands in {where}")
        for row, (record, told) in enumerate(zip(self.story.records, self.told, strict=True)):
            self._where, self.position = f"record {row} at {record.position}", record.position
            self.now_ms = max(self.now_ms, record.append_ms)
            while forgotten and forgotten[0][0] <= record.position:
                changes.forget(self, forgotten.pop(0)[1])
            self._follow(record, told)
        self._where = "at the end"
        for line in self.closing:
            unanswered.close_run(self, orjson.loads(line), Wants())
        for (user, scenario), run in self.runs.items():
            self.check(run.swallowed == 0, f"{run.swallowed} refusals of {scenario} to {user} are in no decision")
        for what in self.waiting.left():
            self.say(f"{what} never ended")
        for what in self.redeemed.differences(self.story):
            self.say(what)
        self._check_expected()
        check_replays(self)
        check_deliveries(self)
        self.links.check(self)

    def check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.say(otherwise)

    def say(self, what: str) -> None:
        if len(self.violations) < 200:
            self.violations.append(f"{self._where}: {what}")

    def person(self, name: str) -> Person:
        if name not in self.people:
            self.people[name] = Person(name)
        return self.people[name]

    # --- one record -------------------------------------------------------------------------------------------------

    def _follow(self, record: LogRecord, told: Told) -> None:
        heard: list[Heard] = []
        altering: list[dict[str, Any]] = []
        if record.kind == EVENTS:
            heard, altering = self._read(record, told)
        else:
            self.check(told.events == 0 and not told.dead, "a record without events gave some")
        # Where nobody could be read no time passes: what is due comes with the next record, as of its own instant.
        is_heard = record.kind != EVENTS or bool(heard or altering)
        wants = self.walk.follow(heard, told, self.now_ms, passes_time=is_heard)
        before = unanswered.passing(self, [*wants.sure, *wants.maybe], wants)
        codes = {one[0]: one[6] for one in told.offers}
        decisions = self._as_reserved([orjson.loads(line) for line in told.decisions])
        marks: list[tuple[str, str, int]] = []
        moment: Any = None
        for row, decision in enumerate(decisions):
            here = self._moment(decision)
            if here != moment:
                # A tag is seen from the user's next event on.
                self._put_tags(marks)
                moment = here
            self._judge(decision, decisions[:row] + decisions[row + 1 :], wants, record, codes, marks)
        self._put_tags(marks)
        unanswered.swallow(self, wants, before, len(heard) != 1 or bool(told.transitions))
        for event in altering:
            changes.apply(self, event)
        if record.kind == CONTENT:
            self.city = self.cities[orjson.loads(record.payload)["version"]]
            self.walk.activate(self.city)
        elif record.kind == CONTROL:
            changes.control(self, orjson.loads(record.payload))

    def _put_tags(self, marks: list[tuple[str, str, int]]) -> None:
        for user, tag, until_ms in marks:
            self.person(user).set_tag(tag, until_ms)
        marks.clear()

    def _moment(self, decision: dict[str, Any]) -> tuple[Any, ...]:
        """What arbitrates together: what one event brought a user, or what is released to him at an instant."""
        user, at_ms, told = decision["user"], decision["at"], decision["trigger"]
        is_released = self.waiting.is_released(decision)
        return user, at_ms, "released" if is_released else told["at"]

    def _as_reserved(self, decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Order what competed as the ledger was asked: tags, shadow, withheld, then what took the slot."""
        ordered: list[dict[str, Any]] = []
        for _, group in itertools.groupby(decisions, key=self._moment):
            ordered += sorted(group, key=self._turn)
        return ordered

    def _turn(self, decision: dict[str, Any]) -> tuple[bool, ...]:
        plan = self.city.by_id.get(decision["scenario"])
        is_tag = plan is not None and plan.is_tag
        return decision["count"] == 1, not is_tag, "shadow" not in decision["values"], decision["outcome"] != "withheld"

    def _read(self, record: LogRecord, told: Told) -> tuple[list[Heard], list[dict[str, Any]]]:
        """Read the record's events again; return what is heard of users, and what changes what is known of them."""
        dead, whole, altering = set(), 0, []
        heard: list[Heard] = []
        without = Counter({NO_LOCATION: 0, NO_USAGE: 0})
        repeated = 0
        for item, line in enumerate(record.payload.split(b"\n")):
            if item in record.poison:
                dead.add((record.position, item))
                continue
            event = orjson.loads(line)
            if event["at"] > self.now_ms + FUTURE_MS:
                dead.add((record.position, item))
                continue
            whole += 1
            who = self.person(event["user"])
            if event["type"] == "ping":
                is_allowed = bool(who.says("location", self.city.assumed))
                without[NO_LOCATION] += not is_allowed
                heard.append(Heard(event, is_allowed))
            elif event["type"] == "usage":
                counts = False
                if not who.says("usage", self.city.assumed):
                    without[NO_USAGE] += 1
                else:
                    counts = who.admit_usage(
                        event.get("feed", "default"), event.get("id") or line.decode(), event["at"]
                    )
                    repeated += not counts
                heard.append(Heard(event, counts))
            else:
                altering.append(event)
        found = {(position, item) for position, item, _ in told.dead}
        self.check(found == dead, f"dead letters {sorted(found ^ dead)} differ from the events that cannot be read")
        self.check(told.events == whole, f"{told.events} events counted of {whole} acknowledged")
        for code, count in without.items():
            # A ping may be dropped for another reason first, never for consent that there is.
            is_right = told.drops[code] == count if code == NO_USAGE else told.drops[code] <= count
            self.check(is_right, f"{told.drops[code]} events dropped for want of consent {code}, {count} had none")
        self.check(
            told.drops[1] + told.drops[2] >= repeated, f"{repeated} usage events came again or late, and counted"
        )
        return heard, altering

    # --- one decision -----------------------------------------------------------------------------------------------

    def _judge(
        self,
        decision: dict[str, Any],
        others: list[dict[str, Any]],
        wants: Wants,
        record: LogRecord,
        codes: dict[str, str | None],
        marks: list[tuple[str, str, int]],
    ) -> None:
        if decision["count"] > 1:
            unanswered.close_run(self, decision, wants)
            return
        reason, outcome, user, scenario = (decision[name] for name in ("reason", "outcome", "user", "scenario"))
        self.reasons[f"{outcome} {reason}"] += 1
        self.check(reason in REASONS, f"unknown reason {reason}")
        expected = OUTCOMES.get(reason, "refused")
        self.check(outcome == expected or (reason, outcome) == ("quiet_hours", "held"), f"{reason} ended as {outcome}")
        self.check(decision["content_version"] == self.city.version, f"decided under {decision['content_version']}")
        told = decision["trigger"]
        own_id = unanswered.id_of(user, scenario, told["key"], told["at"])
        self.check(decision["decision_id"] == own_id, f"id {decision['decision_id']} is not a function of its trigger")
        waiting = self.waiting.take(decision)
        if waiting is not None:
            trigger, arrived_ms, due_ms = waiting
            self.check(
                due_ms in (None, decision["at"]) or reason == "opted_out",
                f"{decision['decision_id']} released at {decision['at']}, not {due_ms}",
            )
        else:
            is_stale = (user, told["key"], told["at"]) in wants.stale
            is_silent = (user, scenario, told["at"]) in wants.silent
            trigger = Trigger(told["kind"], told["key"], told["at"], told["fence"], is_stale, is_silent)
            arrived_ms = decision["at"]
            if not wants.take((user, scenario, told["key"], told["at"])):
                self.say(f"{outcome} {reason} of {scenario} to {user} without a trigger {told['key']}")
            again = decision["decision_id"] in self.seen_ids and self.person(user).lives == 0
            self.check(not again or reason == "duplicate", f"{decision['decision_id']} decided a second time")
        self.seen_ids.add(decision["decision_id"])
        self.decided[decision["decision_id"]] = user
        self.gone.discard(decision["decision_id"])
        if outcome == "refused" and waiting is None and reason != "duplicate":
            run = self.runs.get((user, scenario))
            self.check(run is None or not run.swallowed, f"a run of {scenario} to {user} was never closed")
            self.runs[user, scenario] = unanswered.Run(decision["decision_id"], reason)
        plan = self.city.by_id.get(scenario)
        if plan is None:
            self.check(reason in ("not_live", "opted_out"), f"{reason} for {scenario}, which is not in the content")
            return
        if outcome in ("offer", "withheld"):
            self._judge_grant(decision, plan, trigger, arrived_ms, codes, marks)
        else:
            if outcome == "held":
                self.waiting.hold(decision, trigger, arrived_ms)
            self._judge_refusal(decision, plan, trigger, arrived_ms, others, record, wants)

    def _judge_grant(
        self,
        decision: dict[str, Any],
        plan: Plan,
        trigger: Trigger,
        arrived_ms: int,
        codes: dict[str, str | None],
        marks: list[tuple[str, str, int]],
    ) -> None:
        """Nothing may speak against an offer, nor against one that was only withheld."""
        who, at_ms, offer_id = self.person(decision["user"]), decision["at"], decision["decision_id"]
        channel = "none" if plan.is_tag else decision["values"]["channel"]
        is_withheld, is_shadow = decision["outcome"] == "withheld", plan.mode == "shadow"
        label = f"{decision['outcome']} of {plan.id} to {who.name}"
        self.check(plan.is_tag or channel in plan.reachable, f"{label} on channel {channel}")
        found = judge.objections(self.city, plan, who, trigger, at_ms, arrived_ms, (channel,), offer_id)
        found |= self._limits(plan, who, at_ms, channel, is_withheld)
        if self.is_paused(plan):
            found.add("paused")
        if self.answers.is_paused(who.name, plan, at_ms):
            found.add("suppressed")
        if self._is_outage():
            found.add("store_unavailable")
        self.check(not found, f"{label} in spite of {sorted(found)}")
        in_arm = judge.is_held_out(self.city, plan, who.name)
        self.check(in_arm == is_withheld, f"{label}, in the holdout: {in_arm}")
        self.check(bool(decision["values"].get("shadow")) == is_shadow, f"{label}: shadow is not said")
        score = ranking.score_of(plan, who, decision)
        self.check(decision["values"]["score"] == score, f"{label}: score {decision['values']['score']} is not {score}")
        if is_shadow:
            self.shadow_ids.add(offer_id)
            return
        if offer_id in self.book.by_id:
            self.say(f"{label}: id granted twice")
            return
        self.book.add(Grant(offer_id, who.subject, who.number, at_ms, plan, channel, is_withheld))
        if is_withheld:
            return
        if plan.tag is not None:
            marks.append((who.name, plan.tag[0], at_ms + plan.tag[1]))
        if plan.is_tag:
            return
        self.granted_ids[offer_id] = decision
        for what in self.shelf.take(self.city, plan, offer_id, who.subject, at_ms, codes.get(offer_id)):
            self.say(f"{label}: {what}")
        if plan.pause_after is not None:
            valid_ms = [one.valid_for_ms for one in self.city.terms_of(plan)[:1] if one.valid_for_ms is not None]
            ends_ms = at_ms + valid_ms[0] if valid_ms else trigger.at_ms + plan.deadline_ms
            self.answers.offered(who.name, plan, offer_id, ends_ms)

    def _limits(self, plan: Plan, who: Person, at_ms: int, channel: str, is_withheld: bool) -> set[str]:
        """Every reason for which the ledger must refuse."""
        zone = who.zone or self.city.home_zone
        found = self.book.objections(self.city, plan, who.subject, zone, at_ms, channel, is_withheld)
        return found | self.shelf.objections(self.city, plan, who.subject, at_ms)

    def _judge_refusal(
        self,
        decision: dict[str, Any],
        plan: Plan,
        trigger: Trigger,
        arrived_ms: int,
        others: list[dict[str, Any]],
        record: LogRecord,
        wants: Wants,
    ) -> None:
        """A refusal must be true: a limit that is not reached may not be named."""
        reason, values, name = decision["reason"], decision["values"], decision["user"]
        label = f"{decision['outcome']} {reason} of {plan.id} to {name}"
        if reason == "duplicate":
            self.check(decision["decision_id"] in self.book.by_id, f"{label}: never granted before")
        elif reason == "outscored" and "winner" in values:
            winners = [one for one in others if one["user"] == name and one["scenario"] == values["winner"]]
            won = any(one["outcome"] in ("offer", "withheld") for one in winners)
            self.check(won or any(one["reason"] == "duplicate" for one in winners), f"{label}: no such winner")
            who = self.person(name)
            mine = ranking.place(plan, who, decision)
            for one in winners[:1]:
                is_better = ranking.place(self.city.by_id[one["scenario"]], who, one) < mine
                self.check(is_better, f"{label}: {one['scenario']} has no better score")
        elif reason == "outscored":
            waits = self.waiting.holds(name, plan.id, values.get("held")) or wants.holds(name, plan.id)
            self.check(waits, f"{label}: nothing is held")
        elif reason == "opted_out" and values.get("closed"):
            closing = record.kind == EVENTS and orjson.loads(record.payload)["type"] in (
                "user-closed",
                "address-changed",
            )
            self.check(closing, f"{label}: nobody was closed")
        elif not self._is_true(decision, plan, trigger, arrived_ms):
            self.say(f"{label} is not true")

    def _is_true(self, decision: dict[str, Any], plan: Plan, trigger: Trigger, arrived_ms: int) -> bool:
        """Whether a refusal's reason holds at this place of the log."""
        reason, outcome, at_ms = decision["reason"], decision["outcome"], decision["at"]
        who = self.person(decision["user"])
        if reason == "store_unavailable":
            return self._is_outage()
        withheld = judge.is_held_out(self.city, plan, who.name)
        limits: set[str] = set()
        for channel in plan.reachable:
            limits |= self._limits(plan, who, at_ms, channel, withheld)
        if reason == "paused":
            if "paused" in limits:
                self.auto_paused.add(plan.id)
            return self.is_paused(plan)
        if reason.startswith("cap:") or reason in ("min_gap", "reentry", "stock", "budget"):
            return reason in limits
        if reason == "suppressed" and self.answers.is_paused(who.name, plan, at_ms):
            return True
        if reason == "quiet_hours" and outcome != "held" and plan.may_hold:
            return False
        offer_id = decision["decision_id"]
        return reason in judge.objections(self.city, plan, who, trigger, at_ms, arrived_ms, plan.reachable, offer_id)

    def is_paused(self, plan: Plan) -> bool:
        return plan.mode == "paused" or bool({plan.id, "*"} & self.paused) or plan.id in self.auto_paused

    def _is_outage(self) -> bool:
        return any(first <= self.position < end for first, end in self.story.outages)

    def _check_expected(self) -> None:
        """What scripted users did must have been seen, unless the service was down meanwhile."""
        for one in self.expected:
            came = self._is_prompt(one)
            found = (one.user, one.fence, one.kind, one.reason, one.crossed_ms, one.confirmed_ms) in self.walk.seen
            self.check(found or not came, f"{one} did not happen")

    def _is_prompt(self, expected: Expected) -> bool:
        """Whether the user's fixes were journaled when they came, and the log went on at the due instant."""
        prompt = True
        for record in self.story.records:
            if record.kind == EVENTS and f'"{expected.user}"'.encode() in record.payload:
                for line in record.payload.split(b"\n"):
                    if f'"{expected.user}"'.encode() in line:
                        prompt &= record.append_ms - orjson.loads(line)["at"] < 60_000
        return prompt
