"""The reorder buffer as a list that is searched anew at every step (T5): slow, and plain enough to read as the rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FOREVER_MS = 1 << 62


@dataclass
class Waiting:
    user: Any
    key: tuple[Any, ...]  # (at, accuracy, id)
    due_ms: int
    what: Any


@dataclass
class PlainReorder:
    """`gone` lists (now_ms, what) in the order in which events went on."""

    held: list[Waiting] = field(default_factory=list)  # in order of arrival
    gone: list[tuple[int, Any]] = field(default_factory=list)

    def arrive(self, now_ms: int, user: Any, key: tuple[Any, ...], hold_ms: int, what: Any) -> None:
        self.pass_time(now_ms)
        if hold_ms == 0:
            self.gone.append((now_ms, what))
        else:
            self.held.append(Waiting(user, key, now_ms + hold_ms, what))

    def pass_time(self, now_ms: int) -> None:
        """At each due instant the due event goes on, after all of its user that sort before it."""
        while due := [one for one in self.held if one.due_ms <= now_ms]:
            first = min(due, key=lambda one: one.due_ms)
            mates = [one for one in self.held if one.user == first.user and one.key < first.key]
            self.let_go([*sorted(mates, key=lambda one: one.key), first], first.due_ms)

    def close(self, user: Any, now_ms: int) -> None:
        self.pass_time(now_ms)
        self.let_go(sorted((one for one in self.held if one.user == user), key=lambda one: one.key), now_ms)

    def let_go(self, chosen: list[Waiting], now_ms: int) -> None:
        for one in chosen:
            self.held = [other for other in self.held if other is not one]
            self.gone.append((now_ms, one.what))
