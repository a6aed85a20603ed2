"""Who ignores offers, counted by the auditor from the beginning whenever it asks (docs/contracts.md, Ignores)."""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulation.plan import Plan


@dataclass
class Offered:
    offer_id: str
    ends_ms: int
    is_received: bool = False
    is_answered: bool = False


class Answers:
    """Offers of scenarios that are paused for who ignores them, by user and scenario."""

    def __init__(self) -> None:
        self.offers: dict[tuple[str, str], list[Offered]] = {}
        self.plans: dict[str, Plan] = {}

    def offered(self, user: str, plan: Plan, offer_id: str, ends_ms: int) -> None:
        self.plans[plan.id] = plan
        self.offers.setdefault((user, plan.id), []).append(Offered(offer_id, ends_ms))

    def received(self, user: str, offer_id: str, now_ms: int) -> None:
        for one in self._open(user, now_ms):
            one.is_received |= one.offer_id == offer_id

    def answered(self, user: str, offer_id: str | None, benefit: str | None, now_ms: int) -> None:
        for (name, plan), offers in self.offers.items():
            for one in offers:
                is_meant = one.offer_id == offer_id if offer_id else self.plans[plan].benefit == benefit
                if name == user and one.ends_ms > now_ms and is_meant:
                    one.is_answered = True

    def _open(self, user: str, now_ms: int) -> list[Offered]:
        mine = [one for (name, _), offers in self.offers.items() if name == user for one in offers]
        return [one for one in mine if one.ends_ms > now_ms]

    def is_paused(self, user: str, plan: Plan, now_ms: int) -> bool:
        if plan.pause_after is None:
            return False
        most, within_ms, pause_ms = plan.pause_after
        offers = self.offers.get((user, plan.id), ())
        ends = sorted(
            one.ends_ms for one in offers if one.is_received and not one.is_answered and one.ends_ms <= now_ms
        )
        recent: list[int] = []
        until_ms = 0
        for end_ms in ends:
            recent = [at_ms for at_ms in recent if at_ms > end_ms - within_ms] + [end_ms]
            if len(recent) >= most:
                until_ms, recent = end_ms + pause_ms, []
        return now_ms < until_ms

    def forget(self, user: str) -> None:
        for key in [key for key in self.offers if key[0] == user]:
            del self.offers[key]
