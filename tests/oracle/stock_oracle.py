"""Stock in the plainest words: a list of what was taken, counted anew for each question (rule O3)."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.model import Option, ReserveRequest, Take


@dataclass
class Taken:
    offer_id: str
    subject: str
    at_ms: int
    take: Take
    number: int | None
    released: bool = False


@dataclass
class StockOracle:
    """`leased` numbers by pool; `expired` ones are given to nobody any more."""

    taken: list[Taken] = field(default_factory=list)
    leased: dict[str, set[int]] = field(default_factory=dict)
    expired: dict[str, set[int]] = field(default_factory=dict)

    def copy(self) -> StockOracle:
        return StockOracle(
            [Taken(**vars(one)) for one in self.taken],
            {pool: set(numbers) for pool, numbers in self.leased.items()},
            {pool: set(numbers) for pool, numbers in self.expired.items()},
        )

    def free(self, pool: str) -> list[int]:
        out = {one.number for one in self.taken if not one.released and one.take.pool == pool}
        return sorted(self.leased.get(pool, set()) - self.expired.get(pool, set()) - out)

    def lacking(self, option: Option, subject: str) -> tuple[str, str, int, int, int] | None:
        """Whose limit fails first and which: how much there is, how much of it is used, and how much more is asked."""
        take = option.take
        if take is None:
            return None
        if take.pool is not None and not self.free(take.pool):
            leased = len(self.leased.get(take.pool, set()) - self.expired.get(take.pool, set()))
            return take.pool, "codes", leased, leased, 1
        for line in take.lines:
            given = [
                (one, cost)
                for one in self.taken
                if not one.released
                for cost in [other.cost_fen for other in one.take.lines if other.benefit == line.benefit]
            ]
            today = [pair for pair in given if pair[0].take.day_ms == take.day_ms]
            own = [pair for pair in given if pair[0].subject == subject]
            for name, some in (
                ("total", given),
                ("per_day", today),
                ("budget_fen", given),
                ("budget_per_day_fen", today),
                ("per_user", own),
                ("budget_per_user_fen", own),
            ):
                is_money = name.startswith("budget")
                used = sum(cost for _, cost in some) if is_money else len(some)
                asked = line.cost_fen if is_money else 1
                if used + asked > getattr(line, name):
                    return line.benefit, name, getattr(line, name), used, asked
        return None

    def refusal(self, option: Option, subject: str) -> str | None:
        lacking = self.lacking(option, subject)
        return None if lacking is None else "budget" if lacking[1].startswith("budget") else "stock"

    def grant(self, option: Option, request: ReserveRequest) -> str | None:
        if option.take is None or option.withheld or option.shadow:
            return None
        pool = option.take.pool
        number = self.free(pool)[0] if pool is not None else None
        self.taken.append(Taken(option.offer_id, request.subject, request.now_ms, option.take, number))
        return None if number is None else f"{pool}#{number}"

    def code_of(self, offer_id: str) -> str | None:
        for one in self.taken:
            if one.offer_id == offer_id and not one.released and one.number is not None:
                return f"{one.take.pool}#{one.number}"
        return None
