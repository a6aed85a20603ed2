"""Candidates without a decision of their own: they wait for competitors, or belong to a run of refusals (D2, D5)."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from tests.simulation import judge
from tests.simulation.judge import Trigger
from tests.simulation.plan import KEY, TENANT
from tests.simulation.walk import Wanted, Wants

if TYPE_CHECKING:
    from tests.simulation.auditor import Auditor


class Run:
    """Equal refusals of one user and scenario: the first is written, the others counted (D5)."""

    def __init__(self, decision_id: str, reason: str) -> None:
        self.decision_id = decision_id
        self.reason = reason
        self.swallowed = 0
        self.uncertain = 0  # so many more it may have swallowed


def swallow(auditor: Auditor, wants: Wants, before: dict[Wanted, bool | None], is_mixed: bool) -> None:
    """Candidates without a decision wait for competitors, or belong to a run of refusals.

    is_mixed  several things happened in the record: one may have opened or shut a gate for another
    """
    every = [(one, True) for one in wants.sure.elements()] + [(one, False) for one in wants.maybe.elements()]
    after = passing(auditor, [one for one, _ in every], wants) if is_mixed else before
    for one, is_sure in sorted(every, key=lambda each: wants.now_ms[each[0]]):
        passes = before.get(one, False) if before.get(one) is after.get(one) else None
        _swallow_one(auditor, one, wants, passes, is_sure)


def _swallow_one(auditor: Auditor, one: Wanted, wants: Wants, passes: bool | None, is_sure: bool) -> None:
    """`passes` None: what else happened in the record may have opened or shut a gate for it."""
    user, scenario, key, at_ms = one
    run = auditor.runs.get((user, scenario))
    if passes is not False:
        is_sure = is_sure and passes is True
        auditor.waiting.gather(one, Trigger("", key, at_ms, None), wants.now_ms[one], auditor.city.window_ms, is_sure)
        if passes:
            return
    if not is_sure:
        if run is not None:
            run.uncertain += 1
    elif run is None:
        auditor.say(f"candidate of {scenario} to {user} at {at_ms} ({key}) has no outcome")
    else:
        run.swallowed += 1


def passing(auditor: Auditor, some: list[Wanted], wants: Wants) -> dict[Wanted, bool | None]:
    """Of each candidate whether no gate objects as things are; then it waits until the window ends (D2)."""
    return {one: _passes(auditor, one, wants) for one in some} if auditor.city.window_ms else {}


def _passes(auditor: Auditor, one: Wanted, wants: Wants) -> bool | None:
    user, scenario, key, at_ms = one
    plan, who, now_ms = auditor.city.by_id[scenario], auditor.person(user), wants.now_ms[one]
    if plan.is_tag:
        return False
    if plan.lottery is not None and key.endswith("?"):
        return None  # who draws by an id that the engine made
    fence = key.partition("|")[0] if plan.is_presence else None
    is_silent = (user, scenario, at_ms) in wants.silent
    trigger = Trigger("", key, at_ms, fence, (user, key, at_ms) in wants.stale, is_silent)
    offer_id = id_of(user, scenario, key, at_ms)
    found = judge.objections(auditor.city, plan, who, trigger, now_ms, now_ms, plan.reachable, offer_id)
    is_barred = auditor.is_paused(plan) or auditor.book.bars(plan, who.number, now_ms)
    return not found and not is_barred and not auditor.answers.is_paused(user, plan, now_ms)


def close_run(auditor: Auditor, decision: dict[str, Any], wants: Wants) -> None:
    user, scenario = decision["user"], decision["scenario"]
    run = auditor.runs.get((user, scenario))
    if run is None or run.decision_id != decision["decision_id"] or run.reason != decision["reason"]:
        auditor.say(f"a run of {scenario} to {user} is closed that is not open")
        return
    missing = decision["count"] - 1 - run.swallowed
    for wanted in (wants.sure, wants.maybe):
        for one in list(wanted):
            while missing > run.uncertain and one[:2] == (user, scenario) and wanted[one] > 0:
                wanted[one] -= 1
                missing -= 1
    is_right = 0 <= missing <= run.uncertain
    auditor.check(is_right, f"a run of {scenario} to {user} counts {decision['count']}, {missing} too many")
    run.swallowed = run.uncertain = 0


def id_of(user: str, scenario: str, key: str, at_ms: int) -> str:
    """The id is a function of the trigger (D4)."""
    made = blake2b(f"{TENANT}\0{scenario}\0{user}\0{key}".encode(), key=KEY, digest_size=10)
    return f"{at_ms & (1 << 48) - 1:012x}{made.hexdigest()}"
