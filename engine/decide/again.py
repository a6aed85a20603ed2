"""When a user could get a scenario again, if nothing changes but time (rules B5, C1, C5).

Time opens gates in two ways: quiet hours and schedules end at a minute, which is looked for minute by minute; windows
of caps, gaps and cooldowns move on, and what they count falls, so that the first free instant is found by halving.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from engine.decide.case import Case
from engine.decide.wave import build_request, in_shadow
from engine.errors import StoreUnavailable
from engine.model import Reason, ReserveRequest

if TYPE_CHECKING:
    from engine.decide.plan import Plan

MINUTE_MS = 60_000
MOST_DAYS = 8
"""How far ahead the end of quiet hours or of a schedule's pause is looked for: a week, and a day for clock changes."""
HORIZON_MS = 63 * 86_400_000
"""How far ahead limits are asked: the longest calendar window is a month, the longest usual rolling one sixty days."""
_MOST_STEPS = 32


class Again(msgspec.Struct):
    """The first instant at which nothing stands against it but what may happen until then.

    at     epoch ms; None where no lapse of time opens the way
    after  what has to pass, in order: reasons of docs/decisions.md
    until  the reason that time does not lift, if there is one
    """

    at: int | None
    after: list[str]
    until: str | None = None


def find_again(
    plan: Plan,
    case_at: Callable[[int], Case],
    now_ms: int,
    subject: str,
    zone: str,
    reserve: Callable[[list[ReserveRequest]], Any],
) -> Again:
    """Look ahead from `now_ms`; nothing is written.

    case_at  makes the case of a trigger that comes at an instant
    reserve  answers as of now; it is asked in shadow, with the rules of later instants
    """
    at_ms, after = now_ms, list[str]()
    for _ in range(_MOST_STEPS):
        case, values = case_at(at_ms), dict[str, Any]()
        gate, reason = next(
            ((gate, reason) for _, gate in plan.named_gates if (reason := gate(case, values)) is not None), (None, None)
        )
        if reason is None:
            found = _first_free(case_at, at_ms, now_ms, subject, zone, reserve)
            if isinstance(found, str):
                return Again(None, after, found)
            free_ms, refused_by = found
            if free_ms == at_ms:
                return Again(at_ms, after)
            after.append(refused_by)
            at_ms = free_ms
            continue
        assert gate is not None
        opens_ms = _opens(gate, reason, values, case_at, at_ms)
        if opens_ms is None:
            return Again(None, after, reason)
        after.append(reason)
        at_ms = opens_ms
    return Again(None, after, after[-1])


def _opens(gate: Any, reason: str, values: dict[str, Any], case_at: Callable[[int], Case], at_ms: int) -> int | None:
    """Return the first instant after `at_ms` at which a gate no longer gives this reason, None if time is no help."""
    if reason == Reason.REENTRY:
        return int(values["last"]) + int(values["cooldown_ms"]) if values["policy"] == "cooldown" else None
    if reason not in (Reason.QUIET_HOURS, Reason.NOT_LIVE, Reason.DEADLINE):
        return None
    if reason == Reason.NOT_LIVE and "weekdays" not in values:
        begins_ms = values.get("from")
        return int(begins_ms) if begins_ms is not None and begins_ms > at_ms else None
    first = at_ms // MINUTE_MS + 1
    for minute in range(first, first + MOST_DAYS * 1440):
        if gate(case_at(minute * MINUTE_MS), None) != reason:
            return minute * MINUTE_MS
    return None


def _first_free(
    case_at: Callable[[int], Case],
    at_ms: int,
    now_ms: int,
    subject: str,
    zone: str,
    reserve: Callable[[list[ReserveRequest]], Any],
) -> tuple[int, str] | str:
    """Return the first instant from `at_ms` on at which limits let it pass, and what refused before; or a reason."""

    def refusal(instant_ms: int) -> str | None:
        case = case_at(instant_ms)
        request, _ = build_request(subject, [case], zone, case.user_id, instant_ms)
        answer = reserve([msgspec.structs.replace(in_shadow(request), now_ms=now_ms)])[0]
        return None if answer.granted >= 0 else str(answer.refusals[0])

    try:
        reason = refusal(at_ms)
        if reason is None:
            return at_ms, ""
        refused_ms, free_ms = at_ms, at_ms + HORIZON_MS
        if (lasting := refusal(free_ms)) is not None:
            return lasting
        while free_ms - refused_ms > 1:
            middle_ms = (refused_ms + free_ms) // 2
            if refusal(middle_ms) is None:
                free_ms = middle_ms
            else:
                refused_ms = middle_ms
    except StoreUnavailable:
        return Reason.STORE_UNAVAILABLE.value
    return free_ms, reason
