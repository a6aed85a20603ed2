"""What the engine says of a block, in plain objects: the only form in which the auditor sees the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.decide.records import Decision, encode
from engine.model import TransitionKind, TransitionReason
from engine.pipeline import Effects, Pipeline


@dataclass
class Told:
    """Everything one block brought about.

    transitions  user, fence, kind, reason, crossed_ms, confirmed_ms, now_ms, threshold_s, by_timer, is_stale
    rows         of each transition the event row: which came from the same fix (only for records taken one by one)
    decisions    as JSON, as they are stored
    """

    transitions: list[tuple[Any, ...]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    decisions: list[bytes] = field(default_factory=list)
    offers: list[tuple[str, str, str, str, str, int]] = field(default_factory=list)
    dead: list[tuple[int, int, str]] = field(default_factory=list)
    consents: list[tuple[str, str, bool | None]] = field(default_factory=list)
    alarms: list[tuple[str, int]] = field(default_factory=list)
    events: int = 0
    drops: list[int] = field(default_factory=list)

    def add(self, other: Told) -> None:
        for name in ("transitions", "rows", "decisions", "offers", "dead", "consents", "alarms"):
            getattr(self, name).extend(getattr(other, name))
        self.events += other.events
        self.drops = [a + b for a, b in zip(self.drops, other.drops, strict=True)] if self.drops else list(other.drops)


COMPARED = ("transitions", "decisions", "offers", "dead", "consents", "alarms", "events", "drops")
_KINDS = {int(kind): kind.name.lower() for kind in TransitionKind}
_REASONS = {int(reason): reason.name.lower() for reason in TransitionReason}


def tell(pipeline: Pipeline, effects: Effects) -> Told:
    told = Told(events=effects.events, drops=[int(count) for count in effects.drops])
    for transitions, fences in zip(effects.transitions, effects.fences, strict=True):
        for row in transitions:
            told.transitions.append(
                (
                    pipeline.users.id_of(int(row["user"])),
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
        (one.offer_id, one.user_id, one.scenario, one.channel, one.text, one.deadline_ms) for one in effects.offers
    ]
    told.dead = [(letter.position, letter.item, letter.reason.value) for letter in effects.dead]
    told.consents = [(one.user_id, one.purpose, one.granted) for one in effects.consents]
    told.alarms = [(alarm.scenario, alarm.at_ms) for alarm in effects.alarms]
    return told


def tell_decisions(decisions: list[Decision]) -> list[bytes]:
    return [encode(decision) for decision in decisions]
