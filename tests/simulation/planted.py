"""Defects planted in the engine on purpose: each must be caught by the auditor within a few seeds.

A defect is a function that patches the engine through pytest's `monkeypatch`, or through anything with its `setattr`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, islice
from typing import Any

import msgspec
import numpy as np

from engine.behavior import behavior
from engine.decide import gates, plan, runs, timing_gates, wave
from engine.decide.decider import Decider
from engine.decide.local_time import LocalTime
from engine.decide.profiles import ProfileTable
from engine.decide.recorder import Recorder
from engine.decode import decoder
from engine.ledger import claiming, handoff
from engine.ledger.caps import Caps
from engine.ledger.dispatch import Claim
from engine.ledger.embedded import EmbeddedLedger
from engine.model import TransitionKind, TransitionReason
from engine.pipeline import Pipeline
from engine.presence import Presence
from engine.runtime.source import JournalSource
from tests.simulation.faults import draw

Plant = Callable[[Any], None]
PLANTED: dict[str, Plant] = {}
NEEDS: dict[str, str] = {}
"""The fault without which a defect cannot show: nobody dies twice who never dies."""


def plants(function: Plant) -> Plant:
    PLANTED[function.__name__] = function
    return function


def plants_with(fault: str) -> Callable[[Plant], Plant]:
    def note(function: Plant) -> Plant:
        NEEDS[function.__name__] = fault
        return plants(function)

    return note


def seeds_for(name: str, most: int) -> list[int]:
    """The first seeds whose faults let this defect show."""
    wanted = NEEDS.get(name)
    usable = (seed for seed in range(1000) if wanted is None or wanted in draw(seed, 24).kinds)
    return list(islice(usable, most))


def _with_rules(patch: Any, change: Callable[[Any], Any]) -> None:
    """Let every rule pass through `change` on its way to the ledger; None leaves it out."""
    reserve = Caps.reserve

    def patched(self: Caps, requests: Any, made: Any) -> Any:
        changed = []
        for request in requests:
            options = tuple(
                msgspec.structs.replace(option, rules=tuple(new for one in option.rules if (new := change(one))))
                for option in request.options
            )
            changed.append(msgspec.structs.replace(request, options=options))
        return reserve(self, changed, made)

    patch.setattr(Caps, "reserve", patched)


@plants
def cap_off_by_one(patch: Any) -> None:
    _with_rules(
        patch, lambda rule: msgspec.structs.replace(rule, most=rule.most + 1) if rule.reason[:3] == "cap" else rule
    )


@plants
def rolling_window_an_hour_short(patch: Any) -> None:
    def shorter(rule: Any) -> Any:
        if rule.reason not in ("cap:all", "cap:scenario", "cap:channel"):
            return rule
        return msgspec.structs.replace(rule, since_ms=rule.since_ms + 3_600_000)

    _with_rules(patch, shorter)


@plants
def minimum_gap_forgotten(patch: Any) -> None:
    _with_rules(patch, lambda rule: None if rule.reason == "min_gap" else rule)


@plants
def hourly_limit_forgotten(patch: Any) -> None:
    _with_rules(patch, lambda rule: None if rule.reason == "paused" else rule)


@plants
def calendar_caps_in_utc(patch: Any) -> None:
    window_start = LocalTime.window_start
    patch.setattr(LocalTime, "window_start", lambda self, window, zone, at: window_start(self, window, "UTC", at))


@plants
def release_lost(patch: Any) -> None:
    patch.setattr(EmbeddedLedger, "release", lambda self, offer_id: None)


@plants
def every_outcome_released(patch: Any) -> None:
    patch.setattr("engine.pipeline.facts._DEFINITE_FAILURES", frozenset({"rejected", "failed", "expired", "delivered"}))


@plants_with("crash")
def record_replayed_twice(patch: Any) -> None:
    seek = JournalSource.seek

    def one_too_early(self: JournalSource, partition: int, position: int) -> None:
        seek(self, partition, position)
        if position >= 0:
            self._next = position

    patch.setattr(JournalSource, "seek", one_too_early)


@plants_with("crash")
def caps_lost_in_a_crash(patch: Any) -> None:
    def forget(self: EmbeddedLedger, arrays: Any, objects: Any) -> None:
        self._made.clear()
        self.caps = Caps()

    patch.setattr(EmbeddedLedger, "restore", forget)


@plants_with("content_change")
def version_in_the_offer_id(patch: Any) -> None:
    compile_plan, make = plan.compile_plan, plan.offer_id_maker

    def with_version(row: int, scenario: Any, content: Any, *args: Any, **more: Any) -> Any:
        patch.setattr(plan, "offer_id_maker", lambda key, tenant, name: make(key, tenant, name + content.version))
        return compile_plan(row, scenario, content, *args, **more)

    patch.setattr("engine.decide.decider.compile_plan", with_version)


@plants
def consent_never_asked(patch: Any) -> None:
    patch.setattr(gates, "consent_gate", lambda *_: lambda case, values: None)
    patch.setattr(claiming, "_has_consent", lambda *_: True)


@plants_with("claim_unavailable")
def consent_not_asked_at_the_claim(patch: Any) -> None:
    patch.setattr(claiming, "_has_consent", lambda *_: True)


@plants
def opt_out_ignored(patch: Any) -> None:
    patch.setattr(ProfileTable, "apply_inbound", lambda *_: None)


@plants
def opt_out_of_one_number_alone(patch: Any) -> None:
    patch.setattr(ProfileTable, "_refuse_for_person", lambda *_: None)


@plants_with("claim_unavailable")
def refusals_of_a_person_not_told_to_the_claim(patch: Any) -> None:
    patch.setattr(ProfileTable, "take_bound", lambda self: [])


@plants
def do_not_disturb_ignored(patch: Any) -> None:
    patch.setattr(gates, "DO_NOT_DISTURB", 0)


@plants
def quiet_hours_in_utc(patch: Any) -> None:
    between = LocalTime.is_between
    patch.setattr(LocalTime, "is_between", lambda self, start, end, zone, at: between(self, start, end, "UTC", at))


@plants
def quiet_hours_of_the_fence_ignored(patch: Any) -> None:
    gate = timing_gates.quiet_gate

    def deaf(*args: Any) -> Any:
        asked = gate(*args)

        def without_fence(case: Any, values: Any) -> Any:
            trigger = case.trigger
            case.trigger = msgspec.structs.replace(trigger, time_zone=None)
            try:
                return asked(case, values)
            finally:
                case.trigger = trigger

        return asked and without_fence

    patch.setattr(timing_gates, "quiet_gate", deaf)


@plants
def holdout_salted_anew_in_every_run(patch: Any) -> None:
    make, number = plan.arm_maker, count()
    patch.setattr(plan, "arm_maker", lambda salt, *rest: make(f"{salt}{next(number)}", *rest))


@plants
def withheld_offers_sent(patch: Any) -> None:
    patch.setattr(wave, "_WITHHELD", "offer")
    patch.setattr(wave, "_HOLDOUT", "granted")


@plants
def shadow_offers_sent(patch: Any) -> None:
    init = plan.Plan.__init__

    def live(self: Any, *args: Any) -> None:
        init(self, *args)
        self.is_shadow = False

    patch.setattr(plan.Plan, "__init__", live)


def _without(patch: Any, unwanted: Callable[[np.ndarray], np.ndarray]) -> None:
    """Let presence keep some of its transitions to itself."""
    advance = Presence.advance

    def patched(self: Presence, *args: Any, **named: Any) -> np.ndarray:
        transitions = advance(self, *args, **named)
        return transitions[~unwanted(transitions)]

    patch.setattr(Presence, "advance", patched)


@plants
def exit_forgotten(patch: Any) -> None:
    _without(patch, lambda rows: (rows["kind"] == TransitionKind.EXIT) & (rows["reason"] == TransitionReason.FIX))


@plants
def timers_never_fire(patch: Any) -> None:
    _without(patch, lambda rows: rows["reason"] == TransitionReason.TIMER)


@plants
def closing_time_ignored(patch: Any) -> None:
    patch.setattr(Pipeline, "_hours", lambda self, now_ms: setattr(self, "_hours_end_ms", 1 << 62) or {})


@plants_with("duplicate")
def repeated_events_counted(patch: Any) -> None:
    patch.setattr(behavior.kernel, "admit_usage", lambda *_: None)


@plants
def uncertain_arrivals_offered(patch: Any) -> None:
    patch.setattr(timing_gates, "is_stale", lambda trigger: False)


@plants_with("claim_unavailable")
def deadline_ignored_at_the_claim(patch: Any) -> None:
    claim = EmbeddedLedger.claim
    patch.setattr(EmbeddedLedger, "claim", lambda self, claims, now_ms: claim(self, claims, 0))


@plants
def claimed_twice(patch: Any) -> None:
    claim = claiming.claim

    def again(cursor: Any, asking: Any, claims: Any) -> Any:
        answers = claim(cursor, asking, claims)
        for (key, _), answer in zip(claims, answers, strict=True):
            if answer == Claim.CLAIMED and key[-1] % 4 == 0:
                cursor.execute("INSERT OR IGNORE INTO outbox VALUES (?)", (key,))
        return [Claim.CLAIMED if answer == Claim.ALREADY else answer for answer in answers]

    patch.setattr(claiming, "claim", again)


@plants_with("crash_after_submit")
def unknown_sent_again_after_a_crash(patch: Any) -> None:
    def forgive(cursor: Any, epoch: int) -> int:
        for (key,) in cursor.execute("SELECT offer_id FROM submitting").fetchall():
            cursor.execute("DELETE FROM dispatches WHERE offer_id = ?", (key,))
            cursor.execute("INSERT OR IGNORE INTO outbox VALUES (?)", (key,))
        return 0

    patch.setattr(handoff, "settle_submitting", forgive)


@plants_with("pause")
def pause_ignored(patch: Any) -> None:
    patch.setattr(Decider, "pause", lambda *_: None)
    patch.setattr(handoff, "put_pauses", lambda *_: None)


@plants
def refusals_lost_in_a_run(patch: Any) -> None:
    close = runs._close

    def one_less(run: Any, out: Any) -> None:
        run.count -= run.count > 2
        close(run, out)

    patch.setattr(runs, "_close", one_less)


@plants
def held_candidates_forgotten(patch: Any) -> None:
    hold = Recorder._hold

    def drop(self: Recorder, case: Any) -> None:
        hold(self, case)
        if case.slot % 2:
            self.held.take_user(case.slot)

    patch.setattr(Recorder, "_hold", drop)


@plants_with("content_change")
def presence_lost_when_content_changes(patch: Any) -> None:
    activate = Presence.activate

    def forget(self: Presence, *args: Any, **more: Any) -> Any:
        removed = activate(self, *args, **more)
        for slot in range(len(self._state.user)):
            self.reset_user(slot)
        return removed

    patch.setattr(Presence, "activate", forget)


@plants
def consent_outlives_the_user(patch: Any) -> None:
    close = ProfileTable.close

    def keep(self: ProfileTable, slot: int, at_ms: int) -> None:
        kept = {name: column.view[slot] for name, column in self.purposes.items()}
        close(self, slot, at_ms)
        for name, packed in kept.items():
            self.purposes[name].view[slot] = packed

    patch.setattr(ProfileTable, "close", keep)


@plants_with("clock_plus_hour")
def events_of_tomorrow_accepted(patch: Any) -> None:
    patch.setattr(decoder, "MAX_AHEAD_MS", 1 << 60)


@plants_with("poison")
def dead_letters_dropped(patch: Any) -> None:
    patch.setattr(decoder._Sheet, "bury", lambda *_: None)


@plants
def offers_lost_between_processing_and_outbox(patch: Any) -> None:
    put = handoff.put_offers

    def most(cursor: Any, offers: Any, *rest: Any) -> None:
        put(cursor, [one for one in offers if one.offer_id[-1] != "0"], *rest)

    patch.setattr(handoff, "put_offers", most)
