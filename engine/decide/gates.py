"""The gates of rule D1, in order: pure questions to one case, compiled once per scenario.

A gate returns the reason of its refusal, or None. Handed a dictionary, it also writes down what it compared: that is
what a decision stores as `values`, and what explain prints. A gate that has nothing to ask of a scenario is not
compiled for it.
"""

from __future__ import annotations

from hashlib import blake2b

from engine.claim_token import token_maker
from engine.decide.audience import compile_expression, compile_findings, expression_text
from engine.decide.case import Case, Gate, Values
from engine.decide.compose import Refusal, Sources, compile_text
from engine.decide.profiles import DENIED, DO_NOT_DISTURB, GRANTED, KNOWN, ProfileTable
from engine.decide.responses import Responses
from engine.decide.timing_gates import reachable_channels
from engine.definitions import Expression, HasTag, PatternTrigger, Policy, Scenario, Stage
from engine.model import CODE_MARK, Mode, Reason

GATES = (
    "mode",
    "match",
    "validity",
    "audience",
    "consent",
    "suppression",
    "reentry",
    "quiet_hours",
    "lottery",
    "compose",
    "arbitration",
    "arm",
    "reservation",
)
"""Every step a candidate passes, in order; the last three look at several candidates of one user at once."""

SUPPRESSED_TAG = "suppressed"
_NOT_LIVE, _TOO_OLD, _NO_PROFILE = Reason.NOT_LIVE.value, Reason.TOO_OLD.value, Reason.NO_PROFILE.value
_AUDIENCE, _NO_CONSENT, _OPTED_OUT = Reason.AUDIENCE.value, Reason.NO_CONSENT.value, Reason.OPTED_OUT.value
_DND, _SUPPRESSED, _REENTRY = Reason.DND.value, Reason.SUPPRESSED.value, Reason.REENTRY.value
_PAUSED, _NOT_DRAWN = Reason.PAUSED.value, Reason.NOT_DRAWN.value
_FEED_SILENT = Reason.FEED_SILENT.value


def mode_gate(scenario: Scenario, pauses: frozenset[str]) -> Gate | None:
    """D8: draft and paused scenarios speak to nobody; `pauses` are scenario ids paused by hand or limit, or *.

    Neither does one whose benefit, or a part of it, is not running.
    """
    idle = next((one for one in scenario.offer.terms if one.stage is not Stage.RUNNING), None)
    if scenario.mode is Mode.DRAFT:
        answer = _NOT_LIVE
    elif scenario.mode is Mode.PAUSED or scenario.id in pauses or "*" in pauses:
        answer = _PAUSED
    elif idle is not None:
        answer = _PAUSED if idle.stage is Stage.PAUSED else _NOT_LIVE
    else:
        return None

    def gate(case: Case, values: Values | None) -> str | None:
        if values is not None:
            values["mode"] = scenario.mode.value
            values["paused"] = sorted(pauses & {scenario.id, "*"})
            if idle is not None:
                values |= {"benefit": idle.id, "stage": idle.stage.value}
        return answer

    return gate


def match_gate(scenario: Scenario) -> Gate | None:
    """T8: missing data is not behavior. An absence that a silent feed could not have answered is refused."""
    if not (isinstance(scenario.trigger, PatternTrigger) and scenario.trigger.kind == "absence"):
        return None

    def gate(case: Case, values: Values | None) -> str | None:
        silent_s = case.trigger.values.get("silent_s")
        if values is not None:
            values |= {key: case.trigger.values.get(key) for key in ("opened_at", "due_at")}
            values["silent_s"] = silent_s
        return _FEED_SILENT if silent_s is not None else None

    return gate


def audience_gate(scenario: Scenario, profiles: ProfileTable) -> Gate | None:
    """A1, and `send_only_to` (C7). Without an audience nothing need be known of the user."""
    parts: list[Expression] = []
    if scenario.limits.send_only_to:
        parts.append(HasTag(scenario.limits.send_only_to))
    if scenario.audience is not None:
        parts.append(scenario.audience)
    if not parts:
        return None
    tests = tuple(compile_expression(part, profiles) for part in parts)
    findings = tuple(compile_findings(part, profiles) for part in parts)
    wanted = " and ".join(expression_text(part) for part in parts)
    flags = profiles.flags

    def gate(case: Case, values: Values | None) -> str | None:
        slot, now_ms = case.slot, case.now_ms
        if slot >= profiles.count or not flags.view[slot] & KNOWN:
            if values is not None:
                values["wanted"] = wanted
            return _NO_PROFILE
        if values is not None:
            values["wanted"] = wanted
            for finding in findings:
                values |= finding(slot, now_ms)
        for test in tests:
            if not test(slot, now_ms):
                return _AUDIENCE
        return None

    return gate


def consent_gate(scenario: Scenario, policy: Policy, profiles: ProfileTable) -> Gate:
    """A2: do-not-disturb, then `marketing.<channel>` for each channel in order of preference; service skips consent."""
    channels = reachable_channels(scenario, policy)
    is_service = scenario.offer.offer_class == "service"
    flags = profiles.flags
    purposes = tuple((one, f"marketing.{one}", profiles.purpose_column(f"marketing.{one}")) for one in channels)
    columns = tuple(column for _, _, column in purposes)

    def gate(case: Case, values: Values | None) -> str | None:
        slot = case.slot
        if slot < profiles.count:
            is_disturbing = flags.view[slot] & DO_NOT_DISTURB
            if values is None and not is_disturbing:
                # Most have agreed to every channel: nothing to sort out.
                for column in columns:
                    if column.view[slot] & 3 != GRANTED:
                        break
                else:
                    return None
        else:
            is_disturbing = 0
        if is_disturbing:
            if values is not None:
                values["dnd"] = True
            return _DND
        if is_service:
            if values is not None:
                values["class"] = "service"
            return None
        allowed = []
        is_denied = False
        for channel, purpose, column in purposes:
            state = column.view[slot] & 3 if slot < profiles.count else 0
            if state == GRANTED or (state != DENIED and purpose in profiles.assumed):
                allowed.append(channel)
            elif state == DENIED:
                is_denied = True
        if values is not None:
            for _, purpose, column in purposes:
                packed = column.view[slot] if slot < profiles.count else 0
                said = packed & 3
                values[purpose] = (
                    "granted"
                    if said == GRANTED
                    else "denied"
                    if said == DENIED
                    else "assumed"
                    if purpose in profiles.assumed
                    else "none"
                )
                if said:
                    values[f"{purpose}.at"] = packed >> 16
        if not allowed:
            return _OPTED_OUT if is_denied else _NO_CONSENT
        case.channels = channels if len(allowed) == len(channels) else tuple(allowed)
        return None

    return gate


def suppression_gate(
    scenario: Scenario,
    row: int,
    policy: Policy,
    profiles: ProfileTable,
    responses: Responses,
    tag_gates: dict[tuple[str, ...], Gate],
) -> Gate:
    """Who ignored the scenario's offers is left alone by it for a while; then the tags.

    tag_gates  what asks for the tags, by channels: the same for all scenarios that have the same
    """
    channels = reachable_channels(scenario, policy)
    if channels not in tag_gates:
        tag_gates[channels] = _suppression_by_tag(channels, profiles)
    by_tag = tag_gates[channels]
    rule = scenario.limits.pause_after
    if rule is None:
        return by_tag

    def gate(case: Case, values: Values | None) -> str | None:
        pause = responses.paused_until(case.slot, row, case.now_ms)
        if pause is None:
            return by_tag(case, values)
        if values is not None:
            values |= {"ignores": pause.ignores, "within_ms": rule.within_ms, "until": pause.until_ms}
        return _SUPPRESSED

    return gate


def _suppression_by_tag(channels: tuple[str, ...], profiles: ProfileTable) -> Gate:
    """A user tagged `suppressed`, or `suppressed.<channel>`, gets nothing there: complaints, disputes, staff lists."""
    everywhere = compile_expression(HasTag(SUPPRESSED_TAG), profiles)
    names = {channel: f"{SUPPRESSED_TAG}.{channel}" for channel in channels}
    by_channel = {channel: compile_expression(HasTag(name), profiles) for channel, name in names.items()}
    places = [profiles.tag_place(name) for name in (SUPPRESSED_TAG, *names.values())]
    words = tuple({id(column): column for column, _ in places}.values())
    masks = tuple((word, sum(mask for column, mask in places if column is word)) for word in words)
    dynamic = profiles.dynamic

    def gate(case: Case, values: Values | None) -> str | None:
        slot, now_ms = case.slot, case.now_ms
        if slot >= profiles.count:
            return None
        if values is None and slot not in dynamic:
            for word, mask in masks:
                if word.view[slot] & mask:
                    break
            else:
                return None
        if everywhere(slot, now_ms):
            if values is not None:
                values[SUPPRESSED_TAG] = True
            return _SUPPRESSED
        hit = [channel for channel in case.channels if by_channel[channel](slot, now_ms)]
        if values is not None:
            values |= {names[channel]: True for channel in hit} or {SUPPRESSED_TAG: False}
        if hit:
            case.channels = tuple(channel for channel in case.channels if channel not in hit)
            return None if case.channels else _SUPPRESSED
        return None

    return gate


def reentry_gate(scenario: Scenario, row: int, reserved: dict[int, int]) -> Gate | None:
    """B5: granted and withheld offers of this scenario count, from the reservation.

    reserved  by slot << 20 | scenario row the instant of the last reservation << 80 | the hash in its offer id, for
              those still remembered; the ledger knows all of them and is asked again when reserving
    """
    policy = scenario.reentry.policy
    if policy == "every":
        return None
    cooldown_ms = scenario.reentry.cooldown_ms

    def gate(case: Case, values: Values | None) -> str | None:
        last = reserved.get(case.slot << 20 | row)
        last_ms = last >> 80 if last is not None else None
        if values is not None:
            values |= {"policy": policy, "last": last_ms}
            if policy == "cooldown":
                values["cooldown_ms"] = cooldown_ms
        if last_ms is None or (policy == "cooldown" and case.now_ms - last_ms >= cooldown_ms):
            return None
        return _REENTRY

    return gate


def lottery_gate(scenario: Scenario) -> Gate | None:
    """Draw by a salted hash of the offer id: the same in every replay, another for every trigger."""
    lottery = scenario.lottery
    if lottery is None:
        return None
    one_in = lottery.one_in
    start = blake2b(f"lottery\0{lottery.salt}\0{scenario.id}\0".encode(), digest_size=8)

    def gate(case: Case, values: Values | None) -> str | None:
        digest = start.copy()
        digest.update(case.id().encode())
        # Multiplied, not divided: every ticket of `one_in` is as likely to within one in 2^64.
        ticket = int.from_bytes(digest.digest(), "big") * one_in >> 64
        if values is not None:
            values |= {"one_in": one_in, "ticket": ticket, "wins": 0}
        return None if ticket == 0 else _NOT_DRAWN

    return gate


def compose_gate(
    scenario: Scenario,
    policy: Policy,
    profiles: ProfileTable,
    fence_names: dict[str, str],
    is_fixed: bool,
    id_key: bytes,
) -> Gate | None:
    """O1: an offer whose text cannot be written is refused before it competes. `id_key` signs the claim link."""
    if is_fixed:
        return None
    offer = scenario.offer
    fill = compile_text(offer)
    domain = policy.claim_domains[0] if policy.claim_domains else None
    needs_link = domain is not None and any(one.source == "claim_url" for one in offer.placeholders)
    sign = token_maker(id_key)
    terms = offer.terms[0] if offer.terms else None

    def link(case: Case) -> str:
        until_ms = terms.usable_until_ms(case.now_ms) if terms is not None else None
        return f"https://{domain}/{sign(case.id(), until_ms)}"

    def gate(case: Case, values: Values | None) -> str | None:
        slot = case.slot
        written = fill(
            Sources(
                attribute=lambda name: profiles.attribute(slot, name) if slot < profiles.count else None,
                fence_name=fence_names.get(case.trigger.fence or ""),
                benefit_name=offer.benefit,
                code=CODE_MARK,
                claim_url=link(case) if needs_link else None,
            )
        )
        if isinstance(written, Refusal):
            if values is not None:
                values |= written.detail
            return written.reason.value
        case.text = written
        return None

    return gate
