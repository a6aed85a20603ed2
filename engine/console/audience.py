"""How many users an audience would reach, over all profiles, and nothing about a few of them (A1, FAULTS A13)."""

from __future__ import annotations

import threading
from typing import Any

import structlog

from engine.content.expressions import read_expression
from engine.decide.audience import expression_text
from engine.decide.counting import Counter
from engine.decide.disclosure import Disclosure
from engine.definitions import Every, Expression, HasTag, Scenario
from engine.errors import UnknownScenario
from engine.pipeline import Pipeline

log = structlog.get_logger("opportune.audience")


class AudienceCount:
    """Counts over the profiles of one pipeline; safe beside the thread that changes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pipeline: Pipeline | None = None
        self._disclosure = Disclosure()

    def count(
        self, pipeline: Pipeline, *, scenario: str | None = None, expression: str | None = None
    ) -> dict[str, Any]:
        """Count a scenario's audience, or that of an expression (YAML or JSON); neither: everybody with a profile.

        Raises ContentError for an expression that cannot be read, UnknownScenario.
        """
        channels = sorted({channel for one in pipeline.content.scenarios for channel in one.offer.channels})
        asked: Expression | None = None
        if scenario is not None:
            found = _scenario(pipeline, scenario)
            asked, channels = whole_audience(found), list(found.offer.channels)
        elif expression is not None:
            asked = read_expression(expression)
        with self._lock:
            if self._pipeline is not pipeline:
                # Slots are of this pipeline: sets told before mean nothing in another.
                self._pipeline, self._counter, self._disclosure = pipeline, Counter(pipeline.profiles), Disclosure()
            reach = self._counter.reach(asked, pipeline.now_ms, channels)
            tell = self._disclosure.tell
            told = {
                "audience": "everybody with a profile" if asked is None else expression_text(asked),
                "profiles": tell(reach.known),
                "users": tell(reach.matching),
                "reachable": {channel: tell(mask) for channel, mask in reach.by_channel.items()},
            }
        # An expression may name anything: it stays out of the log.
        log.info("audience counted", by="scenario" if scenario else "expression" if expression else "profiles")
        return told


def whole_audience(scenario: Scenario) -> Expression | None:
    """Return what the audience gate asks: `send_only_to` and the audience."""
    parts: list[Expression] = []
    if scenario.limits.send_only_to:
        parts.append(HasTag(scenario.limits.send_only_to))
    if scenario.audience is not None:
        parts.append(scenario.audience)
    return Every(tuple(parts)) if parts else None


def _scenario(pipeline: Pipeline, name: str) -> Scenario:
    known = {one.id: one for one in pipeline.content.scenarios}
    if name in known:
        return known[name]
    raise UnknownScenario(name, known)
