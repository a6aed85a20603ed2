"""Stock, money and codes recounted by the auditor from grants, receipts and the records that lease codes (rule O3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.limits import window_start
from tests.simulation.plan import City, Plan
from tests.simulation.terms import Benefit


@dataclass
class Taken:
    """What one offer holds of one benefit."""

    offer_id: str
    benefit: str
    cost_fen: int
    subject: str
    day_ms: int


@dataclass
class Pool:
    """Numbers by what became of them."""

    leases: list[tuple[int, int, int]] = field(default_factory=list)  # first, end, epoch
    free: set[int] = field(default_factory=set)
    expired: set[int] = field(default_factory=set)
    held: dict[int, str] = field(default_factory=dict)  # number -> offer


class Shelf:
    """What is left to give, by the plainest way of counting: through everything that was given, every time."""

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.pools: dict[str, Pool] = {}
        self.codes: dict[str, tuple[str, int]] = {}  # by offer

    def control(self, record: dict[str, Any]) -> bool:
        """Take a record about codes; say whether it was one."""
        if "lease" in record:
            pool = self.pools.setdefault(record["lease"], Pool())
            first, end = record["first"], record["first"] + record["count"]
            if (first, end, record["epoch"]) not in pool.leases:
                pool.leases.append((first, end, record["epoch"]))
                pool.expired -= set(range(first, end))
                pool.free |= set(range(first, end)) - set(pool.held)
        elif "recall" in record:
            pool = self.pools.setdefault(record["recall"], Pool())
            gone = [one for one in pool.leases if one[2] <= record["epoch"]]
            pool.leases = [one for one in pool.leases if one not in gone]
            numbers = {number for first, end, _ in gone for number in range(first, end)}
            pool.free -= numbers
            pool.expired |= numbers
        return "lease" in record or "recall" in record or "returned" in record or "spent" in record

    def objections(self, city: City, plan: Plan, subject: str, at_ms: int) -> set[str]:
        """Every reason of stock for which the ledger must refuse."""
        limited = [one for one in city.terms_of(plan) if one.is_limited]
        found: set[str] = set()
        day_ms = window_start("day", city.home_zone, at_ms)
        pools = [one.pool for one in limited if one.pool]
        if pools and not (pools[0] in self.pools and self.pools[pools[0]].free):
            found.add("stock")
        for one in limited:
            found |= self._exceeded(one, subject, day_ms)
        return found

    def _exceeded(self, one: Benefit, subject: str, day_ms: int) -> set[str]:
        every = [taken for taken in self.taken if taken.benefit == one.id]
        today = [taken for taken in every if taken.day_ms == day_ms]
        mine = [taken for taken in every if taken.subject == subject]
        found = set()
        for most, given in ((one.total, every), (one.per_day, today), (one.per_user, mine)):
            if most is not None and len(given) >= most:
                found.add("stock")
        for most_fen, given in (
            (one.budget_fen, every),
            (one.budget_per_day_fen, today),
            (one.budget_per_user_fen, mine),
        ):
            if most_fen is not None and sum(taken.cost_fen for taken in given) + one.cost_fen > most_fen:
                found.add("budget")
        return found

    def take(self, city: City, plan: Plan, offer_id: str, subject: str, at_ms: int, code: str | None) -> Iterable[str]:
        """Write down what a grant takes; yield what is wrong with the code that it got."""
        limited = [one for one in city.terms_of(plan) if one.is_limited]
        day_ms = window_start("day", city.home_zone, at_ms)
        self.taken += [Taken(offer_id, one.id, one.cost_fen, subject, day_ms) for one in limited]
        pools = [one.pool for one in limited if one.pool]
        if not pools:
            if code is not None:
                yield f"a code {code} that nothing asks for"
            return
        name, _, number = (code or "").partition("#")
        if name != pools[0]:
            yield f"no code of {pools[0]}, but {code}"
            return
        pool = self.pools.setdefault(name, Pool())
        if int(number) in pool.held:
            yield f"code {code} that {pool.held[int(number)]} holds"
        elif int(number) not in pool.free:
            yield f"code {code} that was not leased"
        elif int(number) != min(pool.free):
            yield f"code {code}, not the lowest that is free"
        pool.free.discard(int(number))
        pool.held[int(number)] = offer_id
        self.codes[offer_id] = name, int(number)

    def release(self, offer_id: str) -> None:
        """A definite failure gives everything back."""
        self.taken = [one for one in self.taken if one.offer_id != offer_id]
        name, number = self.codes.pop(offer_id, ("", -1))
        if name:
            pool = self.pools[name]
            del pool.held[number]
            if number not in pool.expired:
                pool.free.add(number)

    def forget(self, subject: str) -> None:
        """What was given stays given, to nobody."""
        for one in self.taken:
            if one.subject == subject:
                one.subject = ""
