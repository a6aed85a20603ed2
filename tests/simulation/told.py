"""Turn what a block brought about into the plain form in which the auditor sees it."""

from __future__ import annotations

from engine.decide.records import Decision, encode
from engine.effects import Effects
from engine.model import TransitionKind, TransitionReason
from engine.pipeline import Pipeline
from tests.simulation.story import Told

_KINDS = {int(kind): kind.name.lower() for kind in TransitionKind}
_REASONS = {int(reason): reason.name.lower() for reason in TransitionReason}


def tell(pipeline: Pipeline, effects: Effects) -> Told:
    told = Told(events=effects.events, drops=effects.drops.tolist())
    for transitions, fences, left in zip(effects.transitions, effects.fences, effects.left, strict=True):
        for row in transitions:
            told.transitions.append(
                (
                    left.get(int(row["user"])) or pipeline.users.id_of(int(row["user"])),
                    fences[row["fence"]].id,
                    _KINDS[int(row["kind"])],
                    _REASONS[int(row["reason"])],
                    int(row["crossed_ms"]),
                    int(row["confirmed_ms"]),
                    int(row["now_ms"]),
                    int(row["threshold_s"]),
                    bool(row["by_timer"]),
                    bool(row["initial"] or row["wide_gap"]),
                )
            )
            told.rows.append(int(row["event"]))
    told.decisions = tell_decisions(effects.decisions)
    told.offers = [
        (one.offer_id, one.user_id, one.scenario, one.channel, one.text, one.deadline_ms, one.code)
        for one in effects.offers
    ]
    told.dead = [(letter.position, letter.item, letter.reason.value) for letter in effects.dead]
    told.consents = [(one.user_id, one.purpose, one.granted) for one in effects.consents]
    told.alarms = [(alarm.scenario, alarm.at_ms) for alarm in effects.alarms]
    return told


def tell_decisions(decisions: list[Decision]) -> list[bytes]:
    return [encode(decision) for decision in decisions]
