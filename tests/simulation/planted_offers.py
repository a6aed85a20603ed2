"""Defects planted in what offers are made of: stock, codes, tags, windows, patterns, answers, lots (see `planted`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from engine.behavior import Behavior, compile_plan
from engine.claim_token import ClaimToken, token_reader
from engine.console.claims import Claims
from engine.decide import gates, plan, timing_gates, wave
from engine.decide.profiles import ProfileTable
from engine.decide.responses import Responses
from engine.decode.events import Redemption
from engine.definitions import FieldTest, PatternTrigger, UsageTrigger
from engine.ledger import claiming, links
from engine.ledger.embedded import EmbeddedLedger
from engine.ledger.pool import CodePool
from engine.ledger.stock import Stock
from engine.model import CODES, Reason, Short
from engine.pipeline import facts
from engine.pipeline.fired import FiredMaker
from tests.simulation.planted import plants, plants_with


def _with_refusals(patch: Any, keeps: Callable[[Short], bool]) -> None:
    """Let stock refuse only what `keeps` says."""
    short = Stock._short

    def patched(self: Stock, *asked: Any) -> Short | None:
        found = short(self, *asked)
        return found if found is None or keeps(found) else None

    patch.setattr(Stock, "_short", patched)


@plants
def stock_oversold(patch: Any) -> None:
    _with_refusals(patch, lambda found: found.limit == CODES or found.reason != Reason.STOCK)


@plants
def budgets_forgotten(patch: Any) -> None:
    _with_refusals(patch, lambda found: found.reason != Reason.BUDGET)


@plants
def code_given_twice(patch: Any) -> None:
    draw = CodePool.draw

    def keep(self: CodePool) -> int:
        number = draw(self)
        if number % 2:
            self.give_back(number)
        return number

    patch.setattr(CodePool, "draw", keep)


@plants
def code_of_a_failure_lost(patch: Any) -> None:
    patch.setattr(CodePool, "give_back", lambda *_: None)


@plants
def daily_stock_in_utc(patch: Any) -> None:
    compile_take = plan.compile_take
    patch.setattr(plan, "compile_take", lambda offer, clock, zone: compile_take(offer, clock, "UTC"))


@plants_with("crash")
def stock_lost_in_a_crash(patch: Any) -> None:
    patch.setattr(Stock, "restore", lambda *_: None)


@plants_with("codes_recalled")
def recalled_codes_sent(patch: Any) -> None:
    patch.setattr(claiming, "_is_expired", lambda *_: False)


@plants
def tags_never_seen(patch: Any) -> None:
    patch.setattr(ProfileTable, "set_tag", lambda *_: None)


@plants
def tags_never_expire(patch: Any) -> None:
    set_tag = ProfileTable.set_tag
    patch.setattr(ProfileTable, "set_tag", lambda self, slot, tag, _: set_tag(self, slot, tag, 1 << 60))


@plants
def arbitration_won_by_the_first(patch: Any) -> None:
    patch.setattr(wave, "rank", lambda cases: sorted(cases, key=lambda case: case.trigger.at_ms))


@plants
def propensity_ignored(patch: Any) -> None:
    compile_score = plan._compile_score

    def without(scenario: Any, profiles: Any, factors: frozenset[str], model: Any) -> Any:
        return compile_score(scenario, profiles, factors - {"propensity"}, model)

    patch.setattr(plan, "_compile_score", without)


@plants
def ignores_never_counted(patch: Any) -> None:
    patch.setattr(Responses, "received", lambda *_: None)


@plants
def redemptions_are_no_answer(patch: Any) -> None:
    patch.setattr(Responses, "answered", lambda *_: None)


@plants
def switched_channel_forgotten(patch: Any) -> None:
    gate = timing_gates.quiet_gate

    def stubborn(*args: Any) -> Any:
        asked = gate(*args)

        def keep(case: Any, values: Any) -> Any:
            channels = case.channels
            answer = asked(case, values)
            case.channels = channels
            return answer

        return asked and keep

    patch.setattr(timing_gates, "quiet_gate", stubborn)


@plants
def everybody_wins_the_lottery(patch: Any) -> None:
    patch.setattr(gates, "lottery_gate", lambda *_: None)


@plants
def organisation_by_its_first_letters(patch: Any) -> None:
    patch.setattr("engine.decide.audience.is_below", lambda held, path: held is not None and held.startswith(path))


@plants
def catalogue_of_apps_ignored(patch: Any) -> None:
    patch.setattr(Behavior, "set_apps", lambda *_: None)


def _with_patterns(patch: Any, change: Callable[[PatternTrigger], PatternTrigger]) -> None:
    """Let every pattern be compiled as `change` makes it."""

    def patched(content: Any, *rest: Any) -> Any:
        scenarios = tuple(
            replace(one, trigger=change(one.trigger)) if isinstance(one.trigger, PatternTrigger) else one
            for one in content.scenarios
        )
        return compile_plan(replace(content, scenarios=scenarios), *rest)

    patch.setattr("engine.pipeline.stages.compile_plan", patched)


@plants
def patterns_look_back_too_far(patch: Any) -> None:
    _with_patterns(patch, lambda one: replace(one, within_ms=one.within_ms + 1_800_000) if one.kind == "count" else one)


@plants
def patterns_need_one_more(patch: Any) -> None:
    _with_patterns(patch, lambda one: replace(one, at_least=one.at_least + 1) if one.kind == "distinct" else one)


@plants
def answers_to_absences_unheard(patch: Any) -> None:
    nothing = UsageTrigger((FieldTest("app", "==", "no such app"),))
    _with_patterns(patch, lambda one: replace(one, steps=(one.steps[0], nothing)) if one.kind == "absence" else one)


@plants_with("feed_down")
def silence_of_feeds_taken_for_behavior(patch: Any) -> None:
    patch.setattr(gates, "match_gate", lambda *_: None)


@plants
def conditions_of_a_trigger_ignored(patch: Any) -> None:
    patch.setattr(FiredMaker, "may_hold", lambda *_: True)
    patch.setattr(FiredMaker, "_holds", lambda *_: True)


@plants_with("redemption_twice")
def redemptions_counted_twice(patch: Any) -> None:
    redeemed, number = facts._redeemed, count()

    def another(feeds: Any, read: Any) -> Any:
        return replace(redeemed(feeds, read), key=next(number).to_bytes(16, "big"))

    patch.setattr(facts, "_redeemed", another)


@plants
def refunds_counted_as_redemptions(patch: Any) -> None:
    redeemed = facts._redeemed
    patch.setattr(facts, "_redeemed", lambda feeds, read: replace(redeemed(feeds, read), is_refund=False))


@plants_with("receipt_before_answer")
def early_receipts_forgotten(patch: Any) -> None:
    patch.setattr(EmbeddedLedger, "matched_late", lambda self: [])


def _with_tokens(patch: Any, change: Callable[[ClaimToken], ClaimToken]) -> None:
    """Let every genuine token pass through `change` before the desk of claim links sees it."""

    def reader(id_key: bytes) -> Callable[[str], ClaimToken | None]:
        read = token_reader(id_key)
        return lambda token: None if (said := read(token)) is None else change(said)

    patch.setattr("engine.console.claims.token_reader", reader)


@plants
def links_never_expire(patch: Any) -> None:
    _with_tokens(patch, lambda said: replace(said, until_ms=said.until_ms + 30 * 86_400_000))


@plants_with("link_scanned_again")
def links_redeemed_at_every_till(patch: Any) -> None:
    redeem = EmbeddedLedger.redeem_link
    patch.setattr(EmbeddedLedger, "redeem_link", lambda *asked: (redeem(*asked)[0], True))


@plants
def forged_links_redeemed(patch: Any) -> None:
    patch.setattr("engine.claim_token.hmac.compare_digest", lambda *_: True)


@plants_with("crash_between_redeem_and_log")
def redemptions_by_link_never_told(patch: Any) -> None:
    async def nothing(self: Claims) -> None:
        return None

    patch.setattr(Claims, "tell_forgotten", nothing)


@plants
def links_of_failed_messages_redeemed(patch: Any) -> None:
    patch.setattr(links, "NOT_SENT", frozenset())


@plants
def redeemed_codes_given_again(patch: Any) -> None:
    arrived = facts._arrived
    deaf = lambda *asked: None if isinstance(asked[-1], Redemption) else arrived(*asked)  # noqa: E731
    patch.setattr(facts, "_arrived", deaf)
