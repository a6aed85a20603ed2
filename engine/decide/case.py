"""One candidate on its way to its outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from engine.model import Trigger


class Case(msgspec.Struct, gc=False):
    """One candidate on its way through the gates; what a gate finds out for later ones is kept here.

    arrived_ms  `now` when the trigger came; earlier than now_ms for a held candidate
    channels    that consent allows, in order of preference
    release_ms  > 0: held until then
    outcome, reason, values, channel   how it ended; reason alone: refused by `gate`

    A msgspec struct, because one is made for every candidate: a third of the cost of a class with slots.
    """

    plan: Any
    slot: int
    user_id: str
    trigger: Trigger
    now_ms: int
    arrived_ms: int
    channels: tuple[str, ...]
    offer_id: str = ""
    release_ms: int = 0
    reason: str | None = None
    gate: Any = None
    outcome: str = ""
    text: str | None = None
    score: float = 0.0
    is_withheld: bool = False
    factors: Any = None
    values: Any = None
    channel: str = ""
    code: str | None = None

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
