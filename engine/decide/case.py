"""One candidate on its way to its outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engine.model import Trigger

if TYPE_CHECKING:
    from engine.decide.plan import Plan


class Case:
    """One candidate on its way through the gates; what a gate finds out for later ones is kept here.

    arrived_ms  `now` when the trigger came; earlier than now_ms for a held candidate
    channels    that consent allows, in order of preference
    release_ms  > 0: held until then
    outcome, reason, values, channel   how it ended; reason alone: refused by `gate`
    """

    __slots__ = (
        "arrived_ms",
        "channel",
        "channels",
        "factors",
        "gate",
        "is_withheld",
        "now_ms",
        "offer_id",
        "outcome",
        "plan",
        "reason",
        "release_ms",
        "score",
        "slot",
        "text",
        "trigger",
        "user_id",
        "values",
    )

    def __init__(self, plan: Plan, slot: int, user_id: str, trigger: Trigger, now_ms: int, arrived_ms: int) -> None:
        self.plan = plan
        self.slot = slot
        self.user_id = user_id
        self.trigger = trigger
        self.now_ms = now_ms
        self.arrived_ms = arrived_ms
        self.factors: dict[str, float]
        self.values: dict[str, Any]
        self.channel: str
        self.channels: tuple[str, ...] = plan.channels
        self.release_ms = 0
        self.reason: str | None = None
        self.gate: Gate | None = None
        self.outcome = ""
        self.text: str | None = None
        self.offer_id = ""
        self.score = 0.0
        self.is_withheld = False

    def end(self, outcome: str, reason: str, values: dict[str, Any], channel: str = "") -> None:
        """Note how the case ended."""
        self.outcome = outcome
        self.reason = reason
        self.values = values
        self.channel = channel

    def id(self) -> str:
        """Return the offer id, hashed at the first call."""
        if not self.offer_id:
            self.offer_id = self.plan.make_id(self.user_id, self.trigger.key, self.trigger.at_ms)
        return self.offer_id


Values = dict[str, Any]
Gate = Callable[[Case, Values | None], str | None]
