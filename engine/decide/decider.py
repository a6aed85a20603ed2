"""Candidates in, decisions out: gates, arbitration, arms, one reservation, one outcome each (rules D1-D5).

Deterministic and without I/O: time comes with the candidates, counting is the ledger's. However candidates are cut into
calls, the decisions are the same, as long as the candidates of one event come in one call (T4).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from engine.decide.case import Case, Gate
from engine.decide.contest import Contest, hold_contest, passing
from engine.decide.explain import Trace, explain_again, explain_case
from engine.decide.held import Held
from engine.decide.local_time import LocalTime
from engine.decide.plan import FACTORS, Plan, Propensity, Rules, compile_plan
from engine.decide.profiles import ProfileTable
from engine.decide.recorder import Recorder
from engine.decide.records import Decision
from engine.decide.responses import Responses
from engine.decide.wave import Alarm, Group, build_group, request_alone, settle_alone, settle_group
from engine.definitions import Content
from engine.errors import StoreUnavailable
from engine.model import Candidate, Outcome, Reason, ReserveAnswer, ReserveRequest, Trigger

Reserve = Callable[[Sequence[ReserveRequest]], list[ReserveAnswer]]

MOST_IN_A_WAVE = 256
MOST_REMEMBERED = 65_536
_HASH_BITS = 80
_TIDY_MS = 3_600_000
_HASH = (1 << _HASH_BITS) - 1
_OFFER_ID = re.compile("[0-9a-f]{32}")
_DEADLINE, _REFUSED = Reason.DEADLINE.value, Outcome.REFUSED.value


class Decider:
    """Decides for one partition.

    id_key      keys the offer ids, 16-64 bytes
    reserve     decides requests in order, each against what the earlier ones wrote; may raise StoreUnavailable
    factors     those of the score that are switched on, less what the policy switches off
    propensity  a model to ask instead of the profile's numbers; a function of profile and scenario alone (T3)
    """

    def __init__(
        self,
        content: Content,
        profiles: ProfileTable,
        tenant: str,
        id_key: bytes,
        reserve: Reserve,
        *,
        factors: frozenset[str] = frozenset(FACTORS),
        propensity: Propensity | None = None,
    ) -> None:
        self.content = content
        self.profiles = profiles
        self.tenant = tenant
        self.reserve = reserve
        self.factors = factors
        self.propensity = propensity
        self._id_key = id_key
        self.pauses: set[str] = set()
        self._by_limit: set[str] = set()  # those of them that nobody asked for (C7)
        self.alarms: list[Alarm] = []
        self.recorder = Recorder(tenant, content.version)
        self._reserved: dict[int, int] = {}  # slot << 20 | row -> now_ms << 80 | hash in the offer id, 0: arrived
        self.responses = Responses()
        self._tidy_ms = 0
        self._wave: list[Group | Case] = []
        self._requests: list[ReserveRequest] = []
        self._busy: set[int] = set()
        self._blast_since: tuple[int, int] | None = None
        self._hold_due_ms = 1 << 62
        self._compile()

    # --- content, pauses, users -------------------------------------------------------------------------------------

    def _compile(self) -> None:
        content = self.content
        self.profiles.assumed = content.policy.assumed_consent
        self.clock = LocalTime(content.policy.time_zone)
        self._shapes: dict[Any, Rules] = {}
        self._tag_gates: dict[tuple[str, ...], Gate] = {}
        self._window_ms = content.policy.arbitration_window_ms
        self.responses.compile(content.scenarios)
        self._fence_names = {fence.id: fence.name for fence in content.fences}
        self._fence_zones = {fence.id: fence.time_zone for fence in content.fences}
        self.plans = _Plans(self._compile_row)
        self._has_limits = any(one.limits.is_limited for one in content.scenarios)
        self._reentry_rows = [row for row, one in enumerate(content.scenarios) if one.reentry.policy != "every"]
        self._row = {scenario.id: row for row, scenario in enumerate(content.scenarios)}

    def _compile_row(self, row: int) -> Plan:
        return compile_plan(
            row,
            self.content.scenarios[row],
            self.content,
            self.profiles,
            self.clock,
            tenant=self.tenant,
            id_key=self._id_key,
            pauses=frozenset(self.pauses),
            reserved=self._reserved,
            fence_names=self._fence_names,
            shapes=self._shapes,
            tag_gates=self._tag_gates,
            factors=self.factors & self.content.policy.score_factors,
            propensity=self.propensity,
            responses=self.responses,
        )

    def compile_all(self) -> None:
        """Compile every scenario now, where nobody waits; each is otherwise compiled at its first use."""
        for row in range(len(self.content.scenarios)):
            self.plans[row]

    def activate(self, content: Content) -> list[Decision]:
        """Take new content from the next candidate on; held candidates and runs follow their scenarios by id."""
        old = [scenario.id for scenario in self.content.scenarios]
        self.content = content
        self.recorder.content_version = content.version
        row_of_id = {scenario.id: row for row, scenario in enumerate(content.scenarios)}
        row_of = {row: row_of_id[name] for row, name in enumerate(old) if name in row_of_id}
        closed: list[Decision] = []
        self.recorder.runs.rename_rows(row_of, closed)
        moved = {
            key >> 20 << 20 | row_of[key & 0xFFFFF]: last
            for key, last in self._reserved.items()
            if key & 0xFFFFF in row_of
        }
        self._reserved.clear()
        self._reserved.update(moved)
        self.responses.rename_rows(row_of)
        self._compile()
        return closed

    def pause(self, scenario: str, paused: bool) -> None:
        """Pause or resume a scenario, or all with `*` (D8); resuming all leaves what was paused by name.

        Resuming, one or all, ends automatic pauses too.
        """
        if paused:
            self.pauses.add(scenario)
            self._by_limit.discard(scenario)
        elif scenario == "*":
            self.pauses -= {"*"} | self._by_limit
            self._by_limit.clear()
        else:
            self.pauses.discard(scenario)
            self._by_limit.discard(scenario)
        if scenario == "*":
            self.plans.clear()
        elif scenario in self._row:
            self.plans.pop(self._row[scenario], None)

    def close(self, slot: int, now_ms: int) -> list[Decision]:
        """Start a new user in the slot (A4): void consent, cancel what is held, forget what was remembered."""
        out: list[Decision] = []
        for held in self.recorder.held.take_user(slot):
            row = self._row.get(held.scenario)
            if row is not None:
                case = self._case(self.plans[row], held, now_ms)
                out.append(self.recorder.record(case, _REFUSED, Reason.OPTED_OUT.value, {"closed": True}))
        for row in range(len(self.content.scenarios)):
            self.recorder.runs.end(slot << 20 | row, out)
            self._reserved.pop(slot << 20 | row, None)
        self.responses.forget(slot)
        self.profiles.close(slot, now_ms)
        return out

    def bound_slots(self) -> set[int]:
        """Slots that something here speaks of: a candidate that waits, a reservation that re-entry asks for."""
        return self.recorder.held.slots() | {key >> 20 for key in self._reserved}

    def released(self, slot: int, offer_id: str) -> None:
        """Forget a reservation that was given back: it no longer stands in the way of re-entry (C2).

        The tag that it set stays.
        """
        for key in self._remembered(slot, offer_id):
            del self._reserved[key]

    def arrived(self, slot: int, offer_id: str) -> None:
        """Let a reservation stand in the way of re-entry whatever fails afterwards (G1)."""
        for key in self._remembered(slot, offer_id):
            self._reserved[key] = self._reserved[key] >> _HASH_BITS << _HASH_BITS

    def _remembered(self, slot: int, offer_id: str) -> list[int]:
        """List the keys under which re-entry remembers an offer that may still be given back."""
        if _OFFER_ID.fullmatch(offer_id) is None:
            return []
        hashed = _hash_of(offer_id)
        keys = [slot << 20 | row for row in self._reentry_rows]
        return [key for key in keys if (stored := self._reserved.get(key)) is not None and stored & _HASH == hashed]

    # --- deciding ---------------------------------------------------------------------------------------------------

    def decide(self, candidates: Sequence[Candidate]) -> list[Decision]:
        """Decide candidates in log order; what is due before them comes out before them.

        Consecutive candidates with the same user, position, item and now_ms arbitrate with each other.
        """
        plans, start, end = self.plans, 0, len(candidates)
        held, busy, has_limits = self.recorder.held, self._busy, self._has_limits
        while start < end:
            first = candidates[start]
            user, now_ms, stop = first.user, first.now_ms, start + 1
            while stop < end:
                other = candidates[stop]
                if (
                    other.user != user
                    or other.position != first.position
                    or other.now_ms != now_ms
                    or other.item != first.item
                ):
                    break
                stop += 1
            if now_ms >= held.due_ms or now_ms >= self._hold_due_ms:
                self._release(now_ms)
            # Before cases are made: a flush may pause a scenario, which compiles its plan anew.
            if user in busy:
                self._flush()
            if has_limits:
                self._flush_at_new_window(now_ms)
            if stop == start + 1:
                plan = plans[first.scenario]
                self._enter_alone(Case(plan, user, first.user_id, first.trigger, now_ms, now_ms, plan.channels))
            else:
                self._enter(
                    [
                        Case(plan := plans[one.scenario], user, one.user_id, one.trigger, now_ms, now_ms, plan.channels)
                        for one in candidates[start:stop]
                    ]
                )
            start = stop
        self._flush()
        return self.recorder.take()

    def release_due(self, now_ms: int) -> list[Decision]:
        """Release what was held until now or earlier, each at its own instant, and close runs that are an hour old.

        Call it before anything of a later instant is applied.
        """
        self._release(now_ms)
        self._flush()
        self.recorder.pass_time(now_ms)
        if now_ms >= self._tidy_ms:
            self._tidy_ms = now_ms + _TIDY_MS
            self.profiles.drop_expired_tags(now_ms)
            self.responses.drop_settled(now_ms)
        return self.recorder.take()

    def finish(self) -> list[Decision]:
        """Close every run, at the end of a recording."""
        out: list[Decision] = []
        self.recorder.runs.close_all(out)
        return out

    def _release(self, now_ms: int) -> None:
        self._flush()
        while (due := self.recorder.held.pop_due(now_ms)) is not None:
            release_ms, ready = due
            self.recorder.pass_time(release_ms)
            cases = []
            for held in ready:
                row = self._row.get(held.scenario)
                if row is not None:
                    cases.append(self._case(self.plans[row], held, release_ms))
                else:
                    self.recorder.out.append(self.recorder.gone(held, release_ms))
            if cases:
                self._enter(cases)
            self._flush()

    @staticmethod
    def _case(plan: Plan, held: Held, now_ms: int) -> Case:
        case = Case(plan, held.slot, held.user_id, held.trigger, now_ms, held.arrived_ms, plan.channels)
        case.offer_id = held.offer_id
        return case

    def _enter_alone(self, case: Case) -> None:
        """As `_enter`, for the most frequent case: one candidate, with nobody to compete with."""
        plan = case.plan
        if plan.is_limited or plan.has_channel_cap or (self._window_ms and case.now_ms == case.arrived_ms):
            self._enter([case])
            return
        wave = self._wave
        for gate in plan.gates:
            reason = gate(case, None)
            if reason is not None:
                case.reason = reason
                case.gate = gate
                if wave:
                    wave.append(case)
                    if case.release_ms and case.release_ms < self._hold_due_ms:
                        self._hold_due_ms = case.release_ms
                else:
                    if case.now_ms >= self.recorder.runs.due_ms:
                        self.recorder.pass_time(case.now_ms)
                    self.recorder.refuse_by_gate(case)
                return
        if plan.remembers:
            self._busy.add(case.slot)
        wave.append(case)
        self._requests.append(request_alone(case, self.profiles, self.content.policy.time_zone))
        if len(self._requests) >= MOST_IN_A_WAVE:
            self._flush()

    def _enter(self, cases: list[Case]) -> None:
        """Send the candidates of one user and instant through the gates, and into the wave or straight to their end."""
        survivors = 0
        for case in cases:
            for gate in case.plan.gates:
                reason = gate(case, None)
                if reason is not None:
                    case.reason = reason
                    case.gate = gate
                    break
            else:
                survivors += 1
        if self._window_ms and cases[0].now_ms == cases[0].arrived_ms:
            cases = self._gather(cases)
            survivors = len(cases)
            if not survivors:
                return
        elif not survivors and not self._wave:
            self.recorder.pass_time(cases[0].now_ms)
            for case in cases:
                self.recorder.refuse_by_gate(case)
            return
        group = build_group(cases, survivors, self.profiles, self.content.policy.time_zone)
        if survivors:
            if group.remembers:
                self._busy.add(cases[0].slot)
            self._requests += group.requests
        self._wave.append(group)
        for case in cases:
            if case.release_ms and case.release_ms < self._hold_due_ms:
                self._hold_due_ms = case.release_ms
        if group.may_substitute or len(self._requests) >= MOST_IN_A_WAVE:
            self._flush()

    def _gather(self, cases: list[Case]) -> list[Case]:
        """Let what passed the gates wait for competitors, end the rest; return those that compete with nobody (D2)."""
        self._flush()
        self.recorder.pass_time(cases[0].now_ms)
        tags = []
        for case in cases:
            if case.reason is not None:
                self.recorder.refuse_by_gate(case)
            elif case.plan.is_tag:
                tags.append(case)
            else:
                self.recorder.gather(case, self._window_ms)
        return tags

    def _flush_at_new_window(self, now_ms: int) -> None:
        """Let no wave span two windows of a deployment limit: a pause that the first brings must bind the second."""
        home = self.content.policy.time_zone
        since = (self.clock.window_start("hour", home, now_ms), self.clock.window_start("day", home, now_ms))
        if since != self._blast_since:
            if self._blast_since is not None:
                self._flush()
            self._blast_since = since

    def _flush(self) -> None:
        """Ask the ledger once for all groups of the wave, and emit their decisions in order."""
        if not self._wave:
            return
        wave, requests, recorder = self._wave, self._requests, self.recorder
        self._wave, self._requests = [], []
        self._busy.clear()
        answers = self.ask(requests)
        asked = 0
        for group in wave:
            if group.now_ms >= recorder.runs.due_ms:
                recorder.pass_time(group.now_ms)
            if isinstance(group, Case):
                if group.reason is not None:
                    recorder.refuse_by_gate(group)
                else:
                    settle_alone(self, group, requests[asked], None if answers is None else answers[asked])
                    asked += 1
                continue
            last = asked + len(group.requests)
            settle_group(self, group, None if answers is None else answers[asked:last])
            asked = last
        self._hold_due_ms = 1 << 62

    def ask(self, requests: list[ReserveRequest]) -> list[ReserveAnswer] | None:
        """Return the answers, or None where the ledger has none: then nothing is sent (C4)."""
        if not requests:
            return []
        try:
            return self.reserve(requests)
        except StoreUnavailable:
            return None

    # --- what settling a group asks for ---------------------------------------------------------------------------

    def remember(self, case: Case, *, is_offer: bool) -> None:
        """Let the user's next candidate know what was granted, or withheld: re-entry, the tag, whether it is answered.

        What re-entry remembers is bounded: the oldest half is forgotten when it is too much.
        """
        plan, slot, now_ms = case.plan, case.slot, case.now_ms
        if is_offer and plan.on_grant is not None:
            self.profiles.set_tag(slot, plan.on_grant.tag, now_ms + plan.on_grant.span_ms)
        if is_offer and plan.watches:
            self.responses.offered(slot, plan.row, case.id(), now_ms, plan.ends_ms(case))
        if not plan.has_reentry:
            return
        remembered = self._reserved
        remembered[case.slot << 20 | case.plan.row] = case.now_ms << _HASH_BITS | _hash_of(case.id())
        if len(remembered) > MOST_REMEMBERED:
            for key in list(remembered)[: MOST_REMEMBERED // 2]:
                del remembered[key]

    def pause_by_limit(self, case: Case, values: dict[str, Any]) -> None:
        """Pause a scenario that reached its hourly or daily limit, and raise the alarm once (C7)."""
        scenario = case.plan.scenario.id
        if scenario not in self.pauses:
            self.alarms.append(Alarm(scenario, case.now_ms, values))
            self.pause(scenario, True)
            self._by_limit.add(scenario)

    def take_alarms(self) -> list[Alarm]:
        """Return and forget the alarms raised since the last call."""
        alarms, self.alarms = self.alarms, []
        return alarms

    # --- explaining -------------------------------------------------------------------------------------------------

    def explain(self, candidate: Candidate) -> Trace:
        """Tell gate by gate what would happen to a candidate, and change nothing."""
        plan = self.plans[candidate.scenario]
        now_ms = candidate.now_ms
        case = Case(plan, candidate.user, candidate.user_id, candidate.trigger, now_ms, now_ms, plan.channels)
        return explain_case(case, self.profiles, self.content.policy.time_zone, self.reserve)

    def explain_user(self, slot: int, user_id: str, now_ms: int, rows: Iterable[int] | None = None) -> list[Trace]:
        """Tell for these scenarios, or for all, what would happen if the trigger came now, and when it could again."""
        zone = self.content.policy.time_zone
        traces = []
        for row in range(len(self.content.scenarios)) if rows is None else rows:
            case_at = partial(self._case_at, row, slot, user_id)
            trace = explain_case(case_at(now_ms), self.profiles, zone, self.reserve)
            trace.again = explain_again(case_at, now_ms, self.profiles, zone, self.reserve)
            traces.append(trace)
        return traces

    def contenders(self, slot: int, user_id: str, now_ms: int, rows: Iterable[int]) -> list[Case]:
        """Return those of these scenarios that would compete if their triggers came now, or that wait to do so (D2)."""
        gathering = {one.scenario: one for one in self.recorder.held.of_user(slot) if one.gathers}
        cases = []
        for row in rows:
            held = gathering.get(self.plans[row].id)
            if held is None:
                cases.append(self._case_at(row, slot, user_id, now_ms))
            else:
                cases.append(self._case(self.plans[row], held, now_ms))
        return passing(cases)

    def contest(self, slot: int, contenders: list[Case], now_ms: int) -> Contest:
        """Say who of the contenders of one user would win, and who waits already; nothing is written."""
        waiting, zone = self.recorder.held.of_user(slot), self.content.policy.time_zone
        return hold_contest(contenders, waiting, self._window_ms, now_ms, self.profiles, zone, self.reserve)

    def _case_at(self, row: int, slot: int, user_id: str, at_ms: int) -> Case:
        """The case of a trigger that comes at an instant.

        A trigger that knows a fence is judged at the first of them: texts and quiet hours ask which one it was.
        """
        plan = self.plans[row]
        asked, fences = plan.scenario.trigger, plan.scenario.places
        fence = fences[0] if fences else None
        zone = self._fence_zones.get(fence) if fence is not None else None
        trigger = Trigger(
            kind=getattr(asked, "kind", "usage"), key=f"explain|{at_ms}", at_ms=at_ms, fence=fence, time_zone=zone
        )
        return Case(plan, slot, user_id, trigger, at_ms, at_ms, plan.channels)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what must survive a restart, as plain objects fit for JSON."""
        return {
            "scenarios": [scenario.id for scenario in self.content.scenarios],
            "pauses": sorted(self.pauses),
            "by_limit": sorted(self._by_limit),
            "held": self.recorder.held.state(),
            "runs": self.recorder.runs.state(),
            "responses": self.responses.state(),
            "reserved": [[key, last >> _HASH_BITS, f"{last & _HASH:020x}"] for key, last in self._reserved.items()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state; call it after the profile table was restored, and with the content it was saved under."""
        assert state["scenarios"] == [scenario.id for scenario in self.content.scenarios], "another content"
        self.pauses = set(state["pauses"])
        self._by_limit = set(state["by_limit"])
        self.recorder.held.restore(state["held"])
        self.recorder.runs.restore(state["runs"])
        self.responses.restore(state["responses"])
        self._reserved.clear()
        self._reserved.update({key: at_ms << _HASH_BITS | int(hashed, 16) for key, at_ms, hashed in state["reserved"]})
        self._compile()


class _Plans(dict[int, Plan]):
    """Scenarios by row, each compiled at its first use: ten thousand at once would hold up the log for a second."""

    def __init__(self, compile_row: Callable[[int], Plan]) -> None:
        self._compile_row = compile_row

    def __missing__(self, row: int) -> Plan:
        plan = self[row] = self._compile_row(row)
        return plan


def _hash_of(offer_id: str) -> int:
    return int(offer_id[12:], 16)
