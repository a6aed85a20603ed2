"""Turns ended cases into decisions in order: runs of refusals, held candidates, ordinary outcomes (rules C6, D5)."""

from __future__ import annotations

from typing import Any

from engine.decide.case import Case
from engine.decide.held import Held, HeldQueue
from engine.decide.records import Decision, DecisionTrigger
from engine.decide.runs import Runs
from engine.model import Outcome, Reason

_DEADLINE, _REFUSED = Reason.DEADLINE.value, Outcome.REFUSED.value
_EXPIRED, _HELD, _LOST = Outcome.EXPIRED.value, Outcome.HELD.value, Outcome.LOST.value
_OUTSCORED, _QUIET = Reason.OUTSCORED.value, Reason.QUIET_HOURS.value


class Recorder:
    """Collects decisions in `out` until somebody takes them."""

    def __init__(self, tenant: str, content_version: str) -> None:
        self.tenant = tenant
        self.content_version = content_version
        self.runs = Runs()
        self.held = HeldQueue()
        self.out: list[Decision] = []

    def take(self) -> list[Decision]:
        """Return what was decided since the last call."""
        out, self.out = self.out, []
        return out

    def pass_time(self, now_ms: int) -> None:
        """Close the runs that are an hour old."""
        if now_ms >= self.runs.due_ms:
            self.runs.close_due(now_ms, self.out)

    def refuse_by_gate(self, case: Case) -> None:
        """Emit what a gate refused: held, expired, or one of a run of equal refusals."""
        if case.release_ms:
            self._hold(case)
            return
        reason = case.reason
        assert reason is not None
        if case.now_ms == case.arrived_ms:
            run = self.runs.open.get(case.slot << 20 | case.plan.row)
            if run is not None and run.reason == reason:
                run.count += 1
                run.last_ms = case.now_ms
                return
        values: dict[str, Any] = {}
        if case.gate is not None:
            case.gate(case, values)
        self.refuse_with(case, reason, values)

    def refuse_with(self, case: Case, reason: str, values: dict[str, Any]) -> None:
        """Emit a refusal, or count it where it continues a run of equal ones."""
        if reason == _DEADLINE:
            self.emit(case, _EXPIRED, reason, values)
        elif case.now_ms != case.arrived_ms:
            # The second record of a held candidate is never swallowed by a run (C6).
            self.emit(case, _REFUSED, reason, values)
        else:
            key = case.slot << 20 | case.plan.row
            run = self.runs.open.get(key)
            if run is not None and run.reason == reason:
                run.count += 1
                run.last_ms = case.now_ms
                return
            if run is not None:
                self.runs.end(key, self.out)
            decision = self.record(case, _REFUSED, reason, values)
            self.runs.start(key, decision, self.out)
            self.out.append(decision)

    def gather(self, case: Case, window_ms: int) -> None:
        """Let a candidate wait for competitors until the user's window ends; nothing is decided yet (D2)."""
        other = self.held.find(case.slot, case.plan.id)
        if other is not None:
            self.emit(case, _LOST, _OUTSCORED, {"held": other.offer_id})
            return
        release_ms = self.held.gathering_until(case.slot) or case.now_ms + window_ms
        words = (case.id(), case.plan.id, case.slot, case.user_id, case.trigger, case.arrived_ms)
        self.held.push(Held(*words, release_ms=release_ms, quiet_ends_ms=release_ms, gathers=True))

    def _hold(self, case: Case) -> None:
        scenario = case.plan.scenario.id
        other = self.held.find(case.slot, scenario)
        if other is not None:
            # The one that waits already is the earlier trigger, and wins.
            self.emit(case, _LOST, _OUTSCORED, {"held": other.offer_id})
            return
        values: dict[str, Any] = {}
        assert case.gate is not None
        case.gate(case, values)
        self.held.push(
            Held(
                offer_id=case.id(),
                scenario=scenario,
                slot=case.slot,
                user_id=case.user_id,
                trigger=case.trigger,
                arrived_ms=case.arrived_ms,
                release_ms=case.release_ms,
                quiet_ends_ms=values["ends"],
            )
        )
        self.emit(case, _HELD, _QUIET, values)

    def emit(self, case: Case, outcome: str, reason: str, values: dict[str, Any]) -> Decision:
        """Emit an outcome that is no refusal; it ends a run of refusals."""
        key = case.slot << 20 | case.plan.row
        if key in self.runs.open:
            self.runs.end(key, self.out)
        decision = self.record(case, outcome, reason, values)
        self.out.append(decision)
        return decision

    def record(self, case: Case, outcome: str, reason: str, values: dict[str, Any]) -> Decision:
        trigger, now_ms = case.trigger, case.now_ms
        return Decision(
            1,
            self.tenant,
            case.offer_id or case.id(),
            outcome,
            reason,
            case.user_id,
            case.plan.id,
            DecisionTrigger(trigger.kind, trigger.key, trigger.at_ms, trigger.fence, trigger.values),
            now_ms,
            self.content_version,
            values,
            1,
            now_ms,
            now_ms,
        )

    def gone(self, held: Held, now_ms: int) -> Decision:
        """Decide a held candidate whose scenario is no longer in the content."""
        trigger = held.trigger
        return Decision(
            1,
            self.tenant,
            held.offer_id,
            _REFUSED,
            Reason.NOT_LIVE.value,
            held.user_id,
            held.scenario,
            DecisionTrigger(trigger.kind, trigger.key, trigger.at_ms, trigger.fence, trigger.values),
            now_ms,
            self.content_version,
            {"removed": True},
            1,
            now_ms,
            now_ms,
        )
