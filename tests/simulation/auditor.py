"""Judge a run from the world's own records, with no code of the engine.

It walks the log record by record with its own model of users, grants and pauses, works out which candidates there
must be, and holds every decision, transition, dead letter, drop and message against the rules. What it reads of the
engine is only what the engine said (`told`).
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from hashlib import blake2b
from typing import Any

import orjson

from tests.simulation import judge
from tests.simulation.day import Expected
from tests.simulation.deliveries import check_deliveries, check_replays
from tests.simulation.ground import FUTURE_MS, Person, is_opt_out, matches
from tests.simulation.judge import Trigger
from tests.simulation.limits import Book, Grant
from tests.simulation.plan import KEY, TENANT, City, Plan
from tests.simulation.story import LogRecord, Story, Told

EVENTS, CONTENT, CONTROL = 1, 3, 4
NO_LOCATION, NO_USAGE = 7, 8  # drop codes
SILENT = {"closed", "opened", "gap", "expired", "removed", "returned"}
REASONS = {
    "granted", "not_live", "too_old", "no_profile", "audience", "no_consent", "opted_out", "dnd", "suppressed",
    "reentry", "quiet_hours", "not_drawn", "stale_presence", "outscored",
    "min_gap", "stock", "budget", "missing_value", "bad_value",
    "deadline", "paused", "feed_silent", "store_unavailable", "holdout", "duplicate",
    "cap:all", "cap:channel", "cap:scenario", "cap:category", "cap:partner", "cap:deployment",
}  # fmt: skip
OUTCOMES = {"granted": "offer", "holdout": "withheld", "outscored": "lost", "deadline": "expired"}
Wanted = tuple[str, str, str, int]
"""A candidate that must be decided: user, scenario, trigger key, instant of the trigger."""


class Run:
    """Equal refusals of one user and scenario: the first is written, the others counted (D5)."""

    def __init__(self, decision_id: str, reason: str) -> None:
        self.decision_id = decision_id
        self.reason = reason
        self.swallowed = 0


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
        self.inside: dict[tuple[str, str], bool] = {}
        self.runs: dict[tuple[str, str], Run] = {}
        self.held: dict[str, tuple[Trigger, int]] = {}
        self.seen_ids: set[str] = set()
        self.granted_ids: dict[str, dict[str, Any]] = {}
        self.shadow_ids: set[str] = set()
        self.transitions: set[tuple[Any, ...]] = set()
        # For the hand-over: what held from when on.
        self.consent_log: dict[tuple[str, str], list[tuple[int, bool | None]]] = defaultdict(list)
        self.pause_log: dict[str, list[tuple[int, bool]]] = defaultdict(list)
        self.closed_log: dict[str, list[int]] = defaultdict(list)
        self.late_starts: set[str] = set()
        self._where = ""

    @property
    def user_count(self) -> int:
        return len(self.people)

    def audit(self) -> None:
        for row, (record, told) in enumerate(zip(self.story.records, self.told, strict=True)):
            self._where = f"record {row} at {record.position}"
            self.now_ms = max(self.now_ms, record.append_ms)
            self._follow(record, told)
        self._where = "at the end"
        for line in self.closing:
            self._close_run(orjson.loads(line), Counter())
        for (user, scenario), run in self.runs.items():
            self.check(run.swallowed == 0, f"{run.swallowed} refusals of {scenario} to {user} are in no decision")
        for decision_id in self.held:
            self.say(f"held candidate {decision_id} never ended")
        self._check_expected()
        check_replays(self)
        check_deliveries(self)

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
        wanted: Counter[Wanted] = Counter()
        changes: list[dict[str, Any]] = []
        if record.kind == EVENTS:
            changes = self._read(record, told, wanted)
        else:
            self.check(told.events == 0 and not told.dead, "a record without events gave some")
        triggers = self._follow_transitions(told, wanted)
        decisions = _as_reserved([orjson.loads(line) for line in told.decisions])
        for row, decision in enumerate(decisions):
            self._judge(decision, decisions[:row] + decisions[row + 1 :], wanted, triggers, record)
        self._swallow(wanted)
        for event in changes:
            self._apply(event)
        if record.kind == CONTENT:
            self.city = self.cities[orjson.loads(record.payload)["version"]]
        elif record.kind == CONTROL:
            self._control(orjson.loads(record.payload))

    def _read(self, record: LogRecord, told: Told, wanted: Counter[Wanted]) -> list[dict[str, Any]]:
        """Read the record's events again; return those that change what is known of users."""
        dead, whole, changes = set(), 0, []
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
                without[NO_LOCATION] += not who.says("location", self.city.assumed)
            elif event["type"] == "usage":
                if not who.says("usage", self.city.assumed):
                    without[NO_USAGE] += 1
                elif who.admit_usage(event["feed"], event.get("id") or line.decode(), event["at"]):
                    self._want_usage(event, wanted)
                else:
                    repeated += 1
            else:
                changes.append(event)
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
        return changes

    def _want_usage(self, event: dict[str, Any], wanted: Counter[Wanted]) -> None:
        for plan in self.city.plans:
            if not plan.is_presence and matches(plan.trigger[1], event):
                # The id of an event without one is a hash of the engine's own.
                identity = event.get("id", "?")
                wanted[event["user"], plan.id, f"{event['feed']}|{identity}", event["at"]] += 1

    def _follow_transitions(self, told: Told, wanted: Counter[Wanted]) -> dict[tuple[str, str, int], bool]:
        """Check that visits alternate, and work out the candidates; return which triggers are too uncertain."""
        stale: dict[tuple[str, str, int], bool] = {}
        chosen: dict[tuple[Any, ...], dict[str, tuple[float, str, int]]] = {}
        place = {one.id: one for city in self.cities.values() for one in city.places}
        for row, one in zip(told.rows, told.transitions, strict=True):
            user, fence, kind, reason, crossed_ms, confirmed_ms, now_ms, threshold_s, by_timer, is_stale = one
            self.transitions.add((user, fence, kind, reason, crossed_ms, confirmed_ms))
            if kind in ("enter", "exit"):
                was_inside = self.inside.get((user, fence), False)
                self.check(was_inside == (kind == "exit"), f"{kind} of {user} and {fence} does not alternate")
                self.inside[user, fence] = kind == "enter"
            elif kind == "dwell":
                self.check(self.inside.get((user, fence), False), f"dwell of {user} outside of {fence}")
                self.check(confirmed_ms - crossed_ms >= threshold_s * 1000, f"dwell of {user} in {fence} too early")
            if reason in SILENT or kind == "cross":
                continue
            key = f"{fence}|{kind}|{crossed_ms}|{max(threshold_s, 0)}"
            stale[user, key, confirmed_ms] = is_stale and kind == "enter"
            for plan in self.city.plans:
                if plan.trigger[0] != kind or fence not in plan.trigger[1]:
                    continue
                if kind == "dwell" and plan.trigger[2] != threshold_s:
                    continue
                group = chosen.setdefault((row, user, now_ms, by_timer), {})
                best = group.get(plan.id)
                if best is None or (place[fence].size_m, fence) < best[:2]:
                    group[plan.id] = (place[fence].size_m, fence, confirmed_ms)
                    group[plan.id + "|"] = (0.0, key, confirmed_ms)
        for (_, user, _, _), group in chosen.items():
            for name, (_, key, at_ms) in group.items():
                if name.endswith("|"):
                    wanted[user, name[:-1], key, at_ms] += 1
        return stale

    # --- one decision -----------------------------------------------------------------------------------------------

    def _judge(
        self,
        decision: dict[str, Any],
        others: list[dict[str, Any]],
        wanted: Counter[Wanted],
        stale: dict[tuple[str, str, int], bool],
        record: LogRecord,
    ) -> None:
        if decision["count"] > 1:
            self._close_run(decision, wanted)
            return
        reason, outcome, user, scenario = (decision[name] for name in ("reason", "outcome", "user", "scenario"))
        self.reasons[f"{outcome} {reason}"] += 1
        self.check(reason in REASONS, f"unknown reason {reason}")
        expected = OUTCOMES.get(reason, "refused")
        self.check(outcome == expected or (reason, outcome) == ("quiet_hours", "held"), f"{reason} ended as {outcome}")
        self.check(decision["content_version"] == self.city.version, f"decided under {decision['content_version']}")
        told = decision["trigger"]
        trigger_id = blake2b(f"{TENANT}\0{scenario}\0{user}\0{told['key']}".encode(), key=KEY, digest_size=10)
        own_id = f"{told['at'] & (1 << 48) - 1:012x}{trigger_id.hexdigest()}"
        self.check(decision["decision_id"] == own_id, f"id {decision['decision_id']} is not a function of its trigger")
        waiting = self.held.pop(decision["decision_id"], None)
        if waiting is not None:
            trigger, arrived_ms = waiting
        else:
            is_stale = stale.get((user, told["key"], told["at"]), False)
            trigger = Trigger(told["kind"], told["key"], told["at"], told["fence"], is_stale)
            arrived_ms = decision["at"]
            if not self._take(wanted, (user, scenario, told["key"], told["at"])):
                self.say(f"{outcome} {reason} of {scenario} to {user} without a trigger {told['key']}")
            again = decision["decision_id"] in self.seen_ids and self.person(user).lives == 0
            self.check(not again or reason == "duplicate", f"{decision['decision_id']} decided a second time")
        self.seen_ids.add(decision["decision_id"])
        if outcome == "refused" and waiting is None and reason != "duplicate":
            run = self.runs.get((user, scenario))
            self.check(run is None or not run.swallowed, f"a run of {scenario} to {user} was never closed")
            self.runs[user, scenario] = Run(decision["decision_id"], reason)
        plan = self.city.by_id.get(scenario)
        if plan is None:
            self.check(reason in ("not_live", "opted_out"), f"{reason} for {scenario}, which is not in the content")
            return
        if outcome in ("offer", "withheld"):
            self._judge_grant(decision, plan, trigger, arrived_ms)
        else:
            if outcome == "held":
                self.held[decision["decision_id"]] = (trigger, arrived_ms)
            self._judge_refusal(decision, plan, trigger, arrived_ms, others, record)

    def _judge_grant(self, decision: dict[str, Any], plan: Plan, trigger: Trigger, arrived_ms: int) -> None:
        """Nothing may speak against an offer, nor against one that was only withheld."""
        who, at_ms, channel = self.person(decision["user"]), decision["at"], decision["values"]["channel"]
        is_withheld, is_shadow = decision["outcome"] == "withheld", plan.mode == "shadow"
        label = f"{decision['outcome']} of {plan.id} to {who.name}"
        self.check(channel in plan.channels, f"{label} on channel {channel}")
        found = judge.objections(self.city, plan, who, trigger, at_ms, arrived_ms, (channel,))
        zone = who.zone or self.city.home_zone
        found |= self.book.objections(self.city, plan, who.subject, zone, at_ms, channel, is_withheld)
        if plan.mode == "paused" or {plan.id, "*"} & self.paused or plan.id in self.auto_paused:
            found.add("paused")
        if self._is_outage():
            found.add("store_unavailable")
        self.check(not found, f"{label} in spite of {sorted(found)}")
        in_arm = judge.is_held_out(self.city, plan, who.name)
        self.check(in_arm == is_withheld, f"{label}, in the holdout: {in_arm}")
        self.check(bool(decision["values"].get("shadow")) == is_shadow, f"{label}: shadow is not said")
        if is_shadow:
            self.shadow_ids.add(decision["decision_id"])
            return
        if decision["decision_id"] in self.book.by_id:
            self.say(f"{label}: id granted twice")
            return
        self.book.add(Grant(decision["decision_id"], who.subject, at_ms, plan, channel, is_withheld))
        if not is_withheld:
            self.granted_ids[decision["decision_id"]] = decision

    def _judge_refusal(
        self,
        decision: dict[str, Any],
        plan: Plan,
        trigger: Trigger,
        arrived_ms: int,
        others: list[dict[str, Any]],
        record: LogRecord,
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
        elif reason == "outscored":
            self.check(values.get("held") in self.held, f"{label}: nothing is held")
        elif reason == "opted_out" and values.get("closed"):
            closing = record.kind == EVENTS and orjson.loads(record.payload)["type"] in (
                "user-closed",
                "address-changed",
            )
            self.check(closing, f"{label}: nobody was closed")
        elif not self._is_true(reason, decision["outcome"], plan, name, trigger, decision["at"], arrived_ms):
            self.say(f"{label} is not true")

    def _is_true(
        self, reason: str, outcome: str, plan: Plan, name: str, trigger: Trigger, at_ms: int, arrived_ms: int
    ) -> bool:
        """Whether a refusal's reason holds at this place of the log."""
        who = self.person(name)
        if reason == "store_unavailable":
            return self._is_outage()
        zone = who.zone or self.city.home_zone
        withheld = judge.is_held_out(self.city, plan, name)
        limits: set[str] = set()
        for channel in plan.channels:
            limits |= self.book.objections(self.city, plan, who.subject, zone, at_ms, channel, withheld)
        if reason == "paused":
            if "paused" in limits:
                self.auto_paused.add(plan.id)
            return plan.mode == "paused" or bool({plan.id, "*"} & self.paused) or plan.id in self.auto_paused
        if reason.startswith("cap:") or reason in ("min_gap", "reentry"):
            return reason in limits
        if reason == "quiet_hours" and outcome != "held" and plan.may_hold:
            return False
        return reason in judge.objections(self.city, plan, who, trigger, at_ms, arrived_ms, plan.channels)

    def _is_outage(self) -> bool:
        position = int(self._where.split()[-1])
        return any(first <= position < end for first, end in self.story.outages)

    # --- counting refusals ------------------------------------------------------------------------------------------

    def _take(self, wanted: Counter[Wanted], candidate: Wanted) -> bool:
        for one in (candidate, (*candidate[:2], candidate[2].partition("|")[0] + "|?", candidate[3])):
            if wanted[one] > 0:
                wanted[one] -= 1
                return True
        return False

    def _swallow(self, wanted: Counter[Wanted]) -> None:
        """Candidates without a decision of their own must belong to a run of refusals."""
        for (user, scenario, key, at_ms), count in wanted.items():
            if not count:
                continue
            run = self.runs.get((user, scenario))
            if run is None:
                self.say(f"candidate of {scenario} to {user} at {at_ms} ({key}) has no outcome")
            else:
                run.swallowed += count

    def _close_run(self, decision: dict[str, Any], wanted: Counter[Wanted]) -> None:
        user, scenario = decision["user"], decision["scenario"]
        run = self.runs.get((user, scenario))
        if run is None or run.decision_id != decision["decision_id"] or run.reason != decision["reason"]:
            self.say(f"a run of {scenario} to {user} is closed that is not open")
            return
        missing = decision["count"] - 1 - run.swallowed
        for one in list(wanted):
            while missing > 0 and one[:2] == (user, scenario) and wanted[one] > 0:
                wanted[one] -= 1
                missing -= 1
        self.check(missing == 0, f"a run of {scenario} to {user} counts {decision['count']}, {missing} too many")
        run.swallowed = 0

    # --- what changes users -----------------------------------------------------------------------------------------

    def _apply(self, event: dict[str, Any]) -> None:
        who, kind, at_ms = self.person(event["user"]), event["type"], event["at"]
        if kind == "profile":
            who.take_profile(event)
            self._link(who)
        elif kind == "consent":
            self._say(who, event["purpose"], event["granted"], at_ms)
        elif kind == "inbound-message" and is_opt_out(event["text"]):
            self._say(who, f"marketing.{event['channel']}", False, at_ms)
        elif kind in ("user-closed", "address-changed") and event["id"] not in who.closings:
            who.closings.add(event["id"])
            who.close(self.now_ms)
            self.closed_log[who.name].append(self.now_ms)
            for name, purpose in list(self.consent_log):
                if name == who.name:
                    self.consent_log[name, purpose].append((self.now_ms, None))
            for user, fence in list(self.inside):
                if user == who.name:
                    del self.inside[user, fence]
            for key in [key for key in self.runs if key[0] == who.name]:
                run = self.runs.pop(key)
                self.check(run.swallowed == 0, f"a run of {key[1]} to {key[0]} was not closed with the user")
        elif kind == "receipt":
            self.book.hear(event["offer_id"], event["state"])

    def _say(self, who: Person, purpose: str, granted: bool, at_ms: int) -> None:
        """A yes or no of one number; a no is the person's, on whichever number it was said (A4)."""
        if who.take_consent(purpose, granted, at_ms):
            self.consent_log[who.name, purpose].append((self.now_ms, granted))
        if not granted and at_ms > who.void_ms:
            self._refuse_for(who.person, purpose, at_ms)

    def _link(self, who: Person) -> None:
        """A number given to a person: their refusals become each other's."""
        for purpose, (granted, at_ms) in list(who.consents.items()):
            if not granted:
                self._refuse_for(who.person, purpose, at_ms)
        for (person, purpose), at_ms in list(self.refusals.items()):
            if person == who.person:
                self._refuse_for(person, purpose, at_ms)

    def _refuse_for(self, person: str | None, purpose: str, at_ms: int) -> None:
        if person is None:
            return
        newest = self.refusals[person, purpose] = max(at_ms, self.refusals.get((person, purpose), at_ms))
        for one in self.people.values():
            if one.person == person and one.hear_person(purpose, newest):
                self.consent_log[one.name, purpose].append((self.now_ms, False))

    def _control(self, control: dict[str, Any]) -> None:
        name, is_paused = control["pause"], control["paused"]
        self.pause_log[name].append((self.now_ms, is_paused))
        if is_paused:
            self.paused.add(name)
            return
        self.paused.discard(name)
        self.auto_paused = set() if name == "*" else self.auto_paused - {name}

    def _check_expected(self) -> None:
        """What scripted users did must have been seen, unless the service was down meanwhile."""
        for one in self.expected:
            came = self._is_prompt(one)
            found = (one.user, one.fence, one.kind, one.reason, one.crossed_ms, one.confirmed_ms) in self.transitions
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


def _as_reserved(decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Order what one instant brought a user as the ledger was asked: shadow, then withheld, then what took the slot."""
    ordered: list[dict[str, Any]] = []
    for _, group in itertools.groupby(decisions, key=lambda one: (one["user"], one["at"])):
        ordered += sorted(group, key=lambda one: ("shadow" not in one["values"], one["outcome"] != "withheld"))
    return ordered
