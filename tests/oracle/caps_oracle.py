"""A ledger of plain lists: every grant ever made, counted anew for each question. Slow and obvious."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.model import Option, ReserveAnswer, ReserveRequest, Rule, Scope


@dataclass
class Granted:
    option: Option
    subject: str
    at_ms: int


class CapsOracle:
    """Answers reservations in order, and remembers all it granted."""

    def __init__(self) -> None:
        self.grants: list[Granted] = []
        self.requests: list[ReserveRequest] = []
        self.calls = 0

    def reserve(self, requests: Sequence[ReserveRequest]) -> list[ReserveAnswer]:
        self.calls += 1
        self.requests += requests
        return [self._answer(request) for request in requests]

    def release(self, offer_id: str) -> None:
        self.grants = [one for one in self.grants if one.option.offer_id != offer_id]

    def _answer(self, request: ReserveRequest) -> ReserveAnswer:
        refusals: list[str] = []
        for number, option in enumerate(request.options):
            if any(one.option.offer_id == option.offer_id for one in self.grants):
                return ReserveAnswer(number, tuple(refusals), True, option.code)
            reason = next((rule.reason for rule in option.rules if self._is_full(rule, option, request)), None)
            if reason is None:
                if not option.shadow:
                    self.grants.append(Granted(option, request.subject, request.now_ms))
                return ReserveAnswer(number, tuple(refusals), False, option.code)
            refusals.append(reason)
        return ReserveAnswer(-1, tuple(refusals))

    def _is_full(self, rule: Rule, option: Option, request: ReserveRequest) -> bool:
        counted = 0
        for one in self.grants:
            if one.at_ms <= rule.since_ms:
                continue
            if rule.scope is not Scope.DEPLOYMENT and one.subject != request.subject:
                continue
            if not rule.uncounted_too and not (one.option.counts and (option.withheld or not one.option.withheld)):
                continue
            same = {
                Scope.ALL: True,
                Scope.CHANNEL: one.option.channel == option.channel,
                Scope.SCENARIO: one.option.scenario == option.scenario,
                Scope.CATEGORY: one.option.category == option.category,
                Scope.PARTNER: one.option.partner == option.partner,
                Scope.DEPLOYMENT: one.option.scenario == option.scenario,
            }[rule.scope]
            counted += same
        return counted >= rule.most
