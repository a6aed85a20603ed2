"""What an offer takes of stock, as a question to the ledger (rule O3), and what a refusal says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.decide.local_time import LocalTime
from engine.definitions import BenefitDefinition, OfferDefinition
from engine.model import CODES, NO_LIMIT, STOCK_LIMITS, Short, StockLine, Take


def compile_take(offer: OfferDefinition, clock: LocalTime, zone: str) -> Callable[[int], Take] | None:
    """Return what tells the take of an instant; None where nothing of the offer is limited.

    zone  whose days the daily limits count
    """
    limited = [one for one in offer.terms if one.stock is not None]
    if not limited:
        return None
    lines = tuple(_line(one) for one in limited)
    pools = [one.stock.pool for one in limited if one.stock is not None and one.stock.pool]
    pool = pools[0] if pools else None
    last = Take(lines, pool, -1)

    def take(now_ms: int) -> Take:
        nonlocal last
        day_ms = clock.window_start("day", zone, now_ms)
        if day_ms != last.day_ms:
            last = Take(lines, pool, day_ms)
        return last

    return take


def stock_values(take: Take, short: Short | None = None) -> dict[str, Any]:
    """Say what was asked, for the values of a refusal: the limits there are, and first the one that failed.

    short  None where nothing failed, or where a replay does not know any more what did
    """
    lines = []
    for line in take.lines:
        limits = {name: getattr(line, name) for name in STOCK_LIMITS if getattr(line, name) < NO_LIMIT}
        lines.append({"benefit": line.benefit, "cost_fen": line.cost_fen, **limits})
    values = {"day": take.day_ms, "stock": lines, **({"codes": take.pool} if take.pool else {})}
    return values if short is None else {"failed": _failed(short), **values}


def _failed(short: Short) -> dict[str, Any]:
    whose = "pool" if short.limit == CODES else "benefit"
    return {whose: short.name, "limit": short.limit, "most": short.most, "used": short.used, "asked": short.asked}


def _line(one: BenefitDefinition) -> StockLine:
    assert one.stock is not None
    limits = {name: limit for name in STOCK_LIMITS if (limit := getattr(one.stock, name)) is not None}
    return StockLine(one.id, one.cost_fen, **limits)
