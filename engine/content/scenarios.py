"""Scenario and policy files to checked definitions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from engine.content import benefit_model, scenario_model, trigger_model
from engine.content import conditions as condition_model
from engine.content.benefits import BENEFITS_FOLDER, NOTHING, Catalogue
from engine.content.built import NOT_SUPPORTED_YET
from engine.content.faults import Faults, Shown, near_miss
from engine.content.files import ReadLimits, read_yaml
from engine.content.scenario_model import (
    WEEKDAYS,
    CapModel,
    PauseAfterModel,
    PolicyModel,
    QuietHoursModel,
    ScenarioModel,
    ScheduleModel,
)
from engine.content.spans import instant_ms
from engine.content.texts import TextPlaces, placeholders_of
from engine.content.triggers import (
    FenceBook,
    audience_expression,
    conditions,
    contradiction,
    thresholds_by_fence,
    trigger_definition,
)
from engine.definitions import (
    TAG_CLASS,
    Cap,
    Fence,
    GrantTag,
    Limits,
    Lottery,
    OfferDefinition,
    PauseAfter,
    Policy,
    PresenceTrigger,
    QuietHours,
    Reentry,
    Scenario,
    Schedule,
    TriggerDefinition,
)
from engine.model import Mode, Scope

POLICY_FILE = "policy.yaml"
MOST_DWELL_THRESHOLDS = 8

KNOWN_FIELDS = frozenset(
    field.alias or name
    for module in (scenario_model, benefit_model, trigger_model, condition_model)
    for model in vars(module).values()
    if isinstance(model, type) and issubclass(model, BaseModel)
    for name, field in model.model_fields.items()
)

COMMON_CHANNELS = ("sms", "app")
"""Any word may name a channel; one that is nearly one of these is probably a slip."""


def load_policy(folder: Path, limits: ReadLimits, faults: Faults) -> Policy:
    """Read scenarios/policy.yaml; without one the strict defaults stand (quiet hours, no assumed consent)."""
    path = folder / POLICY_FILE
    file = f"{folder.name}/{POLICY_FILE}"
    if not path.is_file():
        faults.warn(file, "$", Shown("no such file"), "the deployment's policy", "without it no universal cap is set")
        return Policy()
    raw = read_yaml(path, file, limits, faults)
    if raw is None:
        return Policy()
    try:
        given = PolicyModel.model_validate(raw)
    except ValidationError as error:
        faults.add_validation(file, "$", error, KNOWN_FIELDS)
        return Policy()
    return Policy(
        time_zone=given.time_zone,
        caps=tuple(_cap(cap, Scope.ALL) for cap in given.caps),
        min_gap_ms=given.min_gap or 0,
        quiet_hours=_quiet_hours(given.quiet_hours) or QuietHours(),
        assumed_consent=frozenset(given.assumed_consent),
        universal_holdout_percent=given.holdout.percent if given.holdout else 0.0,
        holdout_salt=given.holdout.salt if given.holdout else "opportune",
        claim_domains=tuple(given.claim_domains),
        signature=given.signature,
        opt_out_text=given.opt_out_text,
        arbitration_window_ms=given.arbitration_window or 0,
        score_factors=frozenset(given.score.factors) if given.score else Policy().score_factors,
        message_cost_fen=tuple(sorted(given.message_cost_fen.items())),
    )


def load_scenarios(
    folder: Path,
    fences: Sequence[Fence],
    policy: Policy,
    catalogue: Catalogue,
    limits: ReadLimits,
    faults: Faults,
) -> list[Scenario]:
    """Read every scenarios/**/*.yaml but the policy and the benefits, sorted by scenario id."""
    book = FenceBook(fences)
    found: dict[str, Scenario] = {}
    for path in sorted(folder.rglob("*.yaml")):
        if path == folder / POLICY_FILE or path.relative_to(folder).parts[0] == BENEFITS_FOLDER:
            continue
        file = f"{folder.name}/{path.relative_to(folder).as_posix()}"
        scenario = _file(read_yaml(path, file, limits, faults), file, book, policy, catalogue, faults)
        if scenario is None:
            continue
        if scenario.id in found:
            hint = f"it is also in {found[scenario.id].file}"
            faults.add(file, "$.id", scenario.id, "an id used once", hint)
        found.setdefault(scenario.id, scenario)
    for fence, thresholds in thresholds_by_fence({key: one.trigger for key, one in found.items()}).items():
        if len(thresholds) > MOST_DWELL_THRESHOLDS:
            spans = ", ".join(f"{one} s" for one in sorted(thresholds))
            expected = f"at most {MOST_DWELL_THRESHOLDS} different dwell spans at one fence"
            faults.add(folder.name, f"fence {fence}", Shown(f"{len(thresholds)}: {spans}"), expected)
    return [found[key] for key in sorted(found)]


def _file(
    raw: Any, file: str, book: FenceBook, policy: Policy, catalogue: Catalogue, faults: Faults
) -> Scenario | None:
    if raw is None:
        if not any(fault.file == file for fault in faults.all()):
            faults.add(file, "$", Shown("an empty file"), "a scenario")
        return None
    try:
        given = ScenarioModel.model_validate(raw)
    except ValidationError as error:
        faults.add_validation(file, "$", error, KNOWN_FIELDS)
        return None
    before = faults.error_count
    _check_all_built(given, file, faults)
    trigger = trigger_definition(given.trigger, book, file, faults)
    while_ = conditions(given.while_, book, file, faults)
    audience = audience_expression(given.audience) if given.audience else None
    tag = contradiction(audience)
    if tag is not None:
        faults.add(
            file, "$.audience", Shown(f"tag {tag!r} both required and excluded"), "an audience someone can be in"
        )
    schedule = _schedule(given.schedule, policy.time_zone, file, faults)
    quiet = _quiet_hours(given.quiet_hours)
    _check_reachable(trigger, schedule, quiet or policy.quiet_hours, given, book, file, faults)
    has_fence = isinstance(trigger, PresenceTrigger) or bool(given.while_ and given.while_.inside)
    offer = _offer(given, has_fence, policy, catalogue, file, faults)
    if faults.error_count > before:
        return None
    return Scenario(
        id=given.id,
        name=given.name,
        mode=Mode(given.mode),
        trigger=trigger,
        while_=while_,
        offer=offer,
        audience=audience,
        limits=Limits(
            caps=tuple(_cap(cap, Scope.SCENARIO) for cap in given.limits.caps),
            min_gap_ms=given.limits.min_gap or 0,
            bypass=given.limits.bypass_caps,
            counts=given.limits.counts_toward_caps,
            hourly_limit=given.limits.hourly,
            daily_limit=given.limits.daily,
            send_only_to=given.limits.send_only_to,
            pause_after=_pause_after(given.limits.pause_after),
        ),
        reentry=Reentry(given.reentry.policy, given.reentry.cooldown or 0),
        quiet_hours=quiet,
        schedule=schedule,
        priority=given.priority,
        holdout_percent=given.holdout.percent if given.holdout else 0.0,
        substitute=given.holdout.substitute if given.holdout else False,
        max_event_age_ms=given.max_event_age,
        goal=given.goal,
        file=file,
        lottery=Lottery(given.lottery.one_in, given.lottery.salt) if given.lottery else None,
    )


def _offer(
    given: ScenarioModel,
    has_fence: bool,
    policy: Policy,
    catalogue: Catalogue,
    file: str,
    faults: Faults,
) -> OfferDefinition:
    offer = given.offer
    if offer is None:
        assert given.set_tag is not None  # the model has checked: one of the two
        mark = GrantTag(given.set_tag.tag, given.set_tag.span)
        return OfferDefinition("", "", "", TAG_CLASS, ("none",), "", on_grant=mark)
    for at, channel in enumerate(offer.channels):
        if channel in offer.channels[:at]:
            faults.add(file, f"$.offer.channels[{at}]", channel, "each channel once")
        meant = near_miss(channel, COMMON_CHANNELS)
        if meant is not None and meant != channel:
            hint = f"did you mean {meant!r}? This one asks for consent to marketing.{channel}"
            faults.warn(file, f"$.offer.channels[{at}]", channel, "a channel that has a gateway", hint)
    terms = catalogue.terms_of(offer.benefit, given.mode, file, faults)
    benefit = terms[0] if terms else NOTHING
    writer = TextPlaces(
        has_fence=has_fence,
        has_claim_domain=bool(policy.claim_domains),
        benefit_name=benefit.name,
        odds=Lottery(given.lottery.one_in).odds if given.lottery else None,
        has_codes=any(one.stock is not None and one.stock.pool for one in terms) or not terms,
    )
    return OfferDefinition(
        benefit=benefit.id,
        benefit_class=benefit.benefit_class,
        partner=benefit.partner,
        offer_class=offer.offer_class,
        channels=tuple(offer.channels),
        text=offer.text,
        placeholders=placeholders_of(offer, writer, file, faults),
        title=offer.title,
        approver=offer.approver,
        value=benefit.value,
        deadline_s=offer.deadline // 1000 if offer.deadline is not None else None,
        benefit_name=benefit.name,
        fallback_channel=offer.fallback.channel if offer.fallback else None,
        fallback_after_ms=offer.fallback.after if offer.fallback else 0,
        terms=terms,
        on_grant=GrantTag(offer.on_grant.tag, offer.on_grant.span) if offer.on_grant else None,
    )


def _cap(given: CapModel, default_scope: Scope) -> Cap:
    scope = Scope[given.scope.upper()] if given.scope else default_scope
    return Cap(scope, given.at_most, given.calendar or "rolling", given.rolling or 0)


def _pause_after(given: PauseAfterModel | None) -> PauseAfter | None:
    return PauseAfter(given.ignores, given.within, given.span) if given else None


def _quiet_hours(given: QuietHoursModel | None) -> QuietHours | None:
    return QuietHours(given.start % 1440, given.end % 1440, given.policy, given.switch_to) if given else None


def _schedule(given: ScheduleModel, deployment_zone: str, file: str, faults: Faults) -> Schedule:
    zone = given.time_zone or deployment_zone
    from_ms = instant_ms(given.start, zone) if given.start else None
    until_ms = instant_ms(given.until, zone) if given.until else None
    if from_ms is not None and until_ms is not None and from_ms >= until_ms:
        expected = f"an instant after `from` ({given.start})"
        faults.add(file, "$.schedule.until", given.until, expected, "the scenario could never run")
    for at, (start, end) in enumerate(given.hours):
        if start > end:
            hint = "write two: until 24:00 and from 00:00"
            faults.add(file, f"$.schedule.hours[{at}]", Shown("hours past midnight"), "hours within one day", hint)
    days = frozenset(WEEKDAYS.index(day) for day in given.days) if given.days else frozenset(range(7))
    return Schedule(from_ms, until_ms, days, tuple(sorted(given.hours)), zone)


def _check_reachable(
    trigger: TriggerDefinition,
    schedule: Schedule,
    quiet: QuietHours,
    given: ScenarioModel,
    book: FenceBook,
    file: str,
    faults: Faults,
) -> None:
    """Find scenarios that could never make an offer, besides those whose choice of fences is empty."""
    presence = isinstance(trigger, PresenceTrigger)
    policy = quiet.policy or ("discard" if presence else "hold")
    is_marketing = given.offer is not None and given.offer.offer_class == "marketing"
    if schedule.windows and policy == "discard" and is_marketing:
        open_minutes = [minute for start, end in schedule.windows for minute in range(start, end)]
        if open_minutes and all(_is_quiet(minute, quiet) for minute in open_minutes):
            hint = "change the hours, or set quiet_hours policy hold"
            faults.add(file, "$.schedule.hours", Shown("only quiet hours"), "some time that is not quiet", hint)
    if isinstance(trigger, PresenceTrigger) and trigger.fences:
        fences = [book.by_id[fence] for fence in trigger.fences]
        starts = [fence.valid_from_ms for fence in fences]
        ends = [fence.valid_until_ms for fence in fences]
        over = schedule.from_ms is not None and all(end is not None and end <= schedule.from_ms for end in ends)
        early = schedule.until_ms is not None and all(
            start is not None and start >= schedule.until_ms for start in starts
        )
        if over or early:
            hint = "the scenario could never run"
            faults.add(file, "$.schedule", Shown("no time at which a chosen fence is valid"), "such a time", hint)


def _is_quiet(minute: int, quiet: QuietHours) -> bool:
    if quiet.start_minute < quiet.end_minute:
        return quiet.start_minute <= minute < quiet.end_minute
    return minute >= quiet.start_minute or minute < quiet.end_minute


# --- not supported yet ----------------------------------------------------------------------------------------------


def _check_all_built(given: ScenarioModel, file: str, faults: Faults) -> None:
    for path, value, feature in (("offer.fallback", given.offer and given.offer.fallback, "offer.fallback"),):
        _check_built((path, value, feature), file, faults)


def _check_built(what: tuple[str, Any, str], file: str, faults: Faults) -> None:
    path, value, feature = what
    if value is not None and feature in NOT_SUPPORTED_YET:
        hint = "take it out; this version would ignore it"
        faults.add(file, f"$.{path}", Shown(path.rpartition(".")[2]), "nothing: not supported yet", hint)
