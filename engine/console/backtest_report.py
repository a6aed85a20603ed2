"""A backtest's tallies as one plain report (docs/backtest.md), small counts hidden: what JSON, tables and page show."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from engine.decide.disclosure import FEWEST, shown
from engine.runtime.backtest import SLOT_MS, Tally

VERSION = 1
_OUTCOMES = ("offer", "withheld", "held", "lost", "refused", "expired")
_HOUR_MS = 3_600_000


def build_report(tallies: list[tuple[str, Tally]], files: list[str]) -> dict[str, Any]:
    """Put one or two named tallies of the same events into a report; two are compared, the second with the first."""
    first = tallies[0][1]
    sides = [_side(name, tally) for name, tally in tallies]
    return {
        "v": VERSION,
        "files": files,
        "time_zone": first.content.policy.time_zone,
        "from": first.first_ms,
        "until": first.last_ms,
        "events": first.events,
        "dead_letters": first.dead,
        "users": first.users,
        "dropped": dict(sorted(first.drops.items())),
        "sides": sides,
        "difference": _difference(tallies, sides) if len(tallies) == 2 else None,
    }


def _side(name: str, tally: Tally) -> dict[str, Any]:
    content = tally.content
    costs = dict(content.policy.message_cost_fen)
    benefits = {one.id: one for one in content.benefits}
    scenarios: list[dict[str, Any]] = []
    for one in content.scenarios:
        by_outcome: Counter[str] = Counter()
        for (scenario, outcome, _), number in tally.outcomes.items():
            if scenario == one.id:
                by_outcome[outcome] += number
        message_fen = sum(
            number * costs.get(channel, 0) for (scenario, channel), number in tally.parts.items() if scenario == one.id
        )
        benefit = benefits.get(one.offer.benefit)
        offers = by_outcome["offer"]
        scenarios.append(
            {
                "id": one.id,
                "name": one.name,
                "mode": one.mode.value,
                **{outcome: by_outcome[outcome] for outcome in _OUTCOMES},
                "messages": sum(number for (key, _), number in tally.messages.items() if key == one.id),
                "message_parts": sum(number for (key, _), number in tally.parts.items() if key == one.id),
                "message_cost_fen": message_fen,
                "benefit": one.offer.benefit,
                "benefit_cost_fen": offers * benefit.cost_fen if benefit else 0,
                "face_value_fen": offers * benefit.face_value_fen if benefit else 0,
            }
        )
    scenarios.sort(key=lambda row: (-row["offer"], row["id"]))
    summed = (*_OUTCOMES, "messages", "message_parts", "message_cost_fen", "benefit_cost_fen", "face_value_fen")
    return {
        "name": name,
        "content_version": content.version,
        "seconds": round(tally.seconds, 3),
        "events_per_s": round(tally.events / max(tally.seconds, 1e-9)),
        "candidates": tally.candidates,
        "transitions": tally.transitions,
        "totals": {key: sum(row[key] for row in scenarios) for key in summed},
        "scenarios": scenarios,
        "reasons": [
            {"scenario": scenario, "outcome": outcome, "reason": reason, "count": number}
            for (scenario, outcome, reason), number in sorted(tally.outcomes.items())
        ],
        "hours": _hours(tally),
        "fences": _fences(tally),
        "pressure": {"limits": _limits(tally), "stock": _stock(tally)},
        "segments": [
            {"kind": kind, "name": name, "users": shown(len(one.users)), "offers": _among(one.offers, len(one.users))}
            for (kind, name), one in sorted(tally.segments.items(), key=lambda item: (item[0][0], -item[1].offers))
        ],
    }


def _among(offers: int, users: int) -> int | str:
    """Offers to a few users tell of those few as well."""
    return shown(offers) if users >= FEWEST or not users else f"<{FEWEST}"


def _hours(tally: Tally) -> list[dict[str, Any]]:
    """Offers by scenario and local hour; `hour` is the instant it begins."""
    zone = ZoneInfo(tally.content.policy.time_zone)
    found: Counter[tuple[int, str]] = Counter()
    for (scenario, slot), number in tally.by_slot.items():
        at_ms = slot * SLOT_MS
        minute = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone).minute
        found[at_ms - minute * 60_000, scenario] += number
    return [
        {"hour": hour, "scenario": scenario, "offers": number} for (hour, scenario), number in sorted(found.items())
    ]


def _fences(tally: Tally) -> list[dict[str, Any]]:
    names = {fence.id: fence.name for fence in tally.content.fences}
    found: Counter[str] = Counter()
    for (_, fence), number in tally.by_fence.items():
        found[fence] += number
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return [{"fence": fence, "name": names.get(fence, ""), "offers": shown(number)} for fence, number in ordered]


def _limits(tally: Tally) -> list[dict[str, Any]]:
    """What caps and gaps refused, and of how many users; the largest first."""
    rows = []
    for (scenario, outcome, reason), number in tally.outcomes.items():
        if outcome == "refused" and (reason.startswith("cap:") or reason == "min_gap"):
            users = len(tally.refused_users.get((scenario, reason), ()))
            rows.append({"scenario": scenario, "reason": reason, "refused": number, "users": shown(users)})
    return sorted(rows, key=lambda row: (-row["refused"], row["scenario"], row["reason"]))


def _stock(tally: Tally) -> list[dict[str, Any]]:
    """Benefits with a limit: given, of how many, and when they first ran out."""
    given: Counter[str] = Counter()
    for (_, benefit), number in tally.given.items():
        given[benefit] += number
    users = {one.offer.benefit for one in tally.content.scenarios}
    refused: Counter[str] = Counter()
    benefit_of = {one.id: one.offer.benefit for one in tally.content.scenarios}
    for (scenario, _, reason), number in tally.outcomes.items():
        if reason in ("stock", "budget"):
            refused[benefit_of.get(scenario, "")] += number
    rows = []
    for one in tally.content.benefits:
        if one.id not in users or one.stock is None:
            continue
        limit = one.stock
        rows.append(
            {
                "benefit": one.id,
                "name": one.name,
                "given": given[one.id],
                "total": limit.total,
                "per_day": limit.per_day,
                "cost_fen": given[one.id] * one.cost_fen,
                "budget_fen": limit.budget_fen,
                "refused": refused[one.id],
                "exhausted_at": tally.exhausted_ms.get(one.id),
            }
        )
    return sorted(rows, key=lambda row: (-row["refused"], -row["given"], row["benefit"]))


def _difference(tallies: list[tuple[str, Tally]], sides: list[dict[str, Any]]) -> dict[str, Any]:
    """The second side less the first, by scenario, reason and segment."""
    one, other = (tally for _, tally in tallies)
    offers = [{row["id"]: row["offer"] for row in side["scenarios"]} for side in sides]
    reasons = [_by_reason(tally) for tally in (one, other)]
    segments = [
        {(row["kind"], row["name"]): (row["users"], row["offers"]) for row in side["segments"]} for side in sides
    ]
    totals = [side["totals"] for side in sides]
    return {
        "totals": [_row({"what": what}, totals[0][what], totals[1][what]) for what in totals[0]],
        "scenarios": _rows(offers, lambda key: {"scenario": key}),
        "reasons": _rows(reasons, lambda key: {"outcome": key[0], "reason": key[1]}),
        "segments": _rows(
            [{key: offers for key, (_, offers) in side.items()} for side in segments],
            lambda key: {"kind": key[0], "name": key[1]},
        ),
    }


def _by_reason(tally: Tally) -> dict[tuple[str, str], int]:
    found: Counter[tuple[str, str]] = Counter()
    for (_, outcome, reason), number in tally.outcomes.items():
        found[outcome, reason] += number
    return dict(found)


def _rows(sides: list[dict[Any, Any]], named: Any) -> list[dict[str, Any]]:
    rows = [_row(named(key), sides[0].get(key, 0), sides[1].get(key, 0)) for key in {**sides[0], **sides[1]}]
    return sorted(rows, key=lambda row: (-abs(row["change"] or 0), str(row)))


def _row(named: dict[str, Any], before: int | str, after: int | str) -> dict[str, Any]:
    """A change is told where both counts are, and where it is not itself a few people's."""
    change = after - before if isinstance(before, int) and isinstance(after, int) else None
    return {**named, "before": before, "after": after, "change": change}
