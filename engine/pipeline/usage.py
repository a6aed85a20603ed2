"""From usage events that match a trigger to candidates, in log order; cost grows with the matches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from engine.behavior import Behavior
from engine.behavior.plan import Plan
from engine.definitions import Content
from engine.model import Candidate, Trigger
from engine.pipeline.batch import Batch
from engine.pipeline.fired import FiredMaker
from engine.settings import FeedTable


class UsageMaker:
    """Knows which scenario waits for which usage events, and reads those that matched; made anew for each content."""

    def __init__(
        self, content: Content, plan: Plan, conditions: FiredMaker, behavior: Behavior, feeds: FeedTable
    ) -> None:
        self._scenarios = plan.usage
        self._apps = content.apps
        self._conditions = conditions
        self._behavior = behavior
        self._feed_names = feeds.names

    def merge(
        self,
        made_rows: list[int],
        made: list[Candidate],
        matches: tuple[np.ndarray, np.ndarray],
        inside: dict[int, list[int]],
        batch: Batch,
        user_id: Callable[[int], str],
    ) -> tuple[list[int], list[Candidate]]:
        """Add the candidates of usage events to others that were made; list (rows, candidates) in log order.

        By event row, what timers fired before it first.

        matches  int32[M] rows of events and int32[M] numbers of triggers, by row
        inside   event row -> fence rows its user was inside of
        """
        usage_rows, numbers = matches
        if numbers.max() >= len(self._scenarios):  # the rest are steps of patterns
            own = numbers < len(self._scenarios)
            usage_rows, numbers = usage_rows[own], numbers[own]
        rows: list[int] = []
        merged: list[Candidate] = []
        at, end = 0, len(made)
        for row, number in zip(usage_rows.tolist(), numbers.tolist(), strict=True):
            while at < end and made_rows[at] <= row:
                rows.append(made_rows[at])
                merged.append(made[at])
                at += 1
            candidate = self._from_usage(batch, row, number, inside, user_id)
            if candidate is not None:
                rows.append(row)
                merged.append(candidate)
        return rows + made_rows[at:], merged + made[at:]

    def _from_usage(
        self, batch: Batch, row: int, number: int, inside: dict[int, list[int]], user_id: Callable[[int], str]
    ) -> Candidate | None:
        scenario = self._scenarios[number]
        if not self._conditions.may_hold(scenario, row, inside):
            return None
        event = batch.events[row]
        if self._behavior.needs_event(number):
            read = batch.usage(event)
            if not self._behavior.passes(number, read):
                return None
        else:
            read = batch.names(row)
        user, (position, item) = int(event["user"]), batch.place(row)
        trigger, now_ms = self.trigger(event, read), int(event["now_ms"])
        return Candidate(scenario, user, user_id(user), trigger, now_ms, position, item)

    def trigger(self, event: Any, read: Any) -> Trigger:
        """Make the trigger of one usage event; its key is feed and event id (D4)."""
        feed, identity = self._feed_names[event["feed"]], read.id or f"{int(event['id_hash']):016x}"
        values = {name: text for name in ("app", "category", "action") if (text := getattr(read, name))}
        if not read.category and event["category_hash"]:
            values["category"] = self._apps.category_of(read.app)
        return Trigger("usage", f"{feed}|{identity}", int(event["at_ms"]), None, None, (), values)
