"""The plan of the city as the content that the engine takes."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from engine.definitions import (
    TAG_CLASS,
    AppTable,
    BenefitDefinition,
    Cap,
    CellTable,
    Compare,
    Content,
    Every,
    Expression,
    Fence,
    FieldTest,
    GrantTag,
    HasTag,
    InOrganisation,
    Limits,
    Lottery,
    Neither,
    OfferDefinition,
    PatternTrigger,
    PauseAfter,
    Placeholder,
    Policy,
    PresenceTrigger,
    QuietHours,
    Reentry,
    Scenario,
    Schedule,
    Shape,
    Some,
    StockLimits,
    UsageTrigger,
    While,
)
from engine.model import Mode, Scope
from tests.simulation.campaigns import CLAIM_DOMAIN
from tests.simulation.plan import City, Limit, Place, Plan, Tower, degrees
from tests.simulation.terms import Benefit, Pattern, Step


def build_content(city: City) -> Content:
    """Make what content loading would; places and towers are those of every seed, and so the same objects."""
    fences, cells = _fences(city.places), _cells(city.towers)
    policy = Policy(
        time_zone=city.home_zone,
        caps=tuple(map(_cap, city.limits)),
        min_gap_ms=city.min_gap_ms,
        quiet_hours=QuietHours(*city.quiet),
        assumed_consent=city.assumed,
        universal_holdout_percent=city.universal_holdout,
        holdout_salt=city.salt,
        arbitration_window_ms=city.window_ms,
        claim_domains=(CLAIM_DOMAIN,),
    )
    apps = AppTable(*zip(*sorted(city.apps), strict=True))
    benefits = {one.id: _benefit(one) for one in city.benefits}
    scenarios = tuple(_scenario(plan, benefits) for plan in city.plans)
    return Content(city.version, fences, cells, scenarios, policy, tuple(benefits.values()), apps)


@cache
def _fences(places: tuple[Place, ...]) -> tuple[Fence, ...]:
    """Fences are sorted by id."""
    return tuple(sorted(map(_fence, places), key=lambda fence: fence.id))


@cache
def _cells(towers: tuple[Tower, ...]) -> CellTable:
    places = [degrees(tower.east_m, tower.north_m) for tower in towers]
    return CellTable(
        tuple(tower.id for tower in towers),
        np.array([round(lon * 1e7) for lon, _ in places], np.int32),
        np.array([round(lat * 1e7) for _, lat in places], np.int32),
        np.array([tower.radius_m for tower in towers]),
        np.zeros(len(places), bool),
    )


def _fence(place: Place) -> Fence:
    lon, lat = degrees(place.east_m, place.north_m)
    more: dict[str, Any] = {
        "cells": place.cells,
        "opening_hours": place.hours,
        "time_zone": place.time_zone,
        "enter_delay_s": place.enter_delay_s,
        "exit_delay_s": place.exit_delay_s,
        "state_hash": repr(place),
        "lon": lon,
        "lat": lat,
    }
    name = place.id.partition("/")[2]
    if place.radius_m:
        centre = np.array([[round(lon * 1e7), round(lat * 1e7)]], np.int64)
        return Fence(place.id, name, "place", Shape.CIRCLE, ((centre,),), place.radius_m, **more)
    if place.half_m:
        half = place.half_m
        corners = [
            degrees(place.east_m + east * half, place.north_m + north * half)
            for east, north in ((-1, -1), (1, -1), (1, 1), (-1, 1))
        ]
        ring = np.array([[round(lon * 1e7), round(lat * 1e7)] for lon, lat in corners], np.int64)
        return Fence(place.id, name, "place", Shape.POLYGON, ((ring,),), **more)
    return Fence(place.id, name, "place", Shape.CELLS, **more)


def _cap(limit: Limit) -> Cap:
    return Cap(Scope[limit.scope.upper()], limit.most, limit.window, limit.span_ms)


def _benefit(one: Benefit) -> BenefitDefinition:
    stock = None
    if one.is_limited:
        limits = ("total", "per_day", "per_user", "budget_fen", "budget_per_day_fen", "budget_per_user_fen", "pool")
        stock = StockLimits(**{name: getattr(one, name) for name in limits})
    return BenefitDefinition(
        one.id, one.id, "living", "national/demo", cost_fen=one.cost_fen, valid_for_ms=one.valid_for_ms, stock=stock
    )


def _trigger(plan: Plan) -> Any:
    kind = plan.trigger[0]
    if kind == "usage":
        return UsageTrigger(tuple(FieldTest(*test) for test in plan.trigger[1]))
    if kind == "pattern":
        return _pattern(plan.trigger[1])
    return PresenceTrigger(*plan.trigger)


def _pattern(one: Pattern) -> PatternTrigger:
    steps = tuple(map(_step, one.steps))
    return PatternTrigger(one.kind, steps, one.within_ms, one.at_least, one.field, one.same, state_hash=repr(one))


def _step(one: Step) -> UsageTrigger | PresenceTrigger:
    if one.kind:
        return PresenceTrigger(one.kind, one.fences)
    return UsageTrigger(tuple(FieldTest(test.field, test.op, test.value) for test in one.tests))


def _offer(plan: Plan, benefits: dict[str, BenefitDefinition]) -> OfferDefinition:
    mark = None if plan.tag is None else GrantTag(*plan.tag)
    if plan.is_tag:
        return OfferDefinition("", "", "", TAG_CLASS, ("none",), "", on_grant=mark)
    places = [Placeholder("who", f"attribute:{name}", max_length=8) for name in plan.needs]
    places += [Placeholder(name, name) for name in ("code", "claim_url") if f"{{{name}}}" in plan.text]
    return OfferDefinition(
        benefit=plan.benefit,
        benefit_class=plan.category,
        partner=plan.partner,
        offer_class="service" if plan.service else "marketing",
        channels=plan.channels,
        text=plan.text,
        placeholders=tuple(places),
        approver="an approver" if plan.service else None,
        value=plan.value,
        deadline_s=plan.deadline_s,
        terms=tuple(benefits[name] for name in plan.takes),
        on_grant=mark,
    )


def _scenario(plan: Plan, benefits: dict[str, BenefitDefinition]) -> Scenario:
    limits = Limits(
        caps=tuple(map(_cap, plan.limits)),
        min_gap_ms=plan.min_gap_ms,
        bypass=plan.bypass,
        counts=plan.counts,
        hourly_limit=plan.hourly,
        daily_limit=plan.daily,
        send_only_to=plan.send_only_to,
        pause_after=PauseAfter(*plan.pause_after) if plan.pause_after else None,
    )
    while_ = While(plan.inside, _pattern(plan.asked) if plan.asked else None) if plan.inside or plan.asked else None
    reentry = Reentry("once") if plan.once else Reentry("cooldown", plan.cooldown_ms) if plan.cooldown_ms else Reentry()
    return Scenario(
        id=plan.id,
        name=plan.id,
        mode=Mode(plan.mode),
        trigger=_trigger(plan),
        offer=_offer(plan, benefits),
        audience=None if plan.audience is None else _expression(plan.audience),
        limits=limits,
        reentry=reentry,
        quiet_hours=QuietHours(*plan.quiet, plan.switch_to) if plan.quiet else None,
        schedule=Schedule(weekdays=frozenset(plan.weekdays), windows=plan.windows),
        priority=plan.priority,
        holdout_percent=plan.holdout,
        substitute=plan.substitute,
        max_event_age_ms=plan.max_age_ms,
        lottery=Lottery(*plan.lottery) if plan.lottery else None,
        while_=while_,
    )


def _expression(told: tuple[Any, ...]) -> Expression:
    word = told[0]
    if word == "tag":
        return HasTag(told[1])
    if word == "organisation":
        return InOrganisation(told[1])
    if word == "attribute":
        return Compare(*told[1:])
    return {"all": Every, "any": Some, "none": Neither}[word](tuple(map(_expression, told[1])))
