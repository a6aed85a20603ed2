"""What scenarios of the city are made of beside places: benefits with their stock, and patterns of behavior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Benefit:
    """What an offer gives, and how much there is of it (O3); None: no limit. Money in fen."""

    id: str
    cost_fen: int = 0
    total: int | None = None
    per_day: int | None = None
    per_user: int | None = None
    budget_fen: int | None = None
    budget_per_day_fen: int | None = None
    budget_per_user_fen: int | None = None
    pool: str | None = None
    valid_for_ms: int | None = None

    @property
    def is_limited(self) -> bool:
        limits = (self.total, self.per_day, self.per_user)
        money = (self.budget_fen, self.budget_per_day_fen, self.budget_per_user_fen)
        return self.pool is not None or any(one is not None for one in (*limits, *money))


@dataclass(frozen=True)
class Test:
    """One question to a usage event (B1)."""

    __test__ = False  # nothing for pytest

    field: str
    op: str
    value: Any


@dataclass(frozen=True)
class Step:
    """A usage event that passes `tests`, or, where there are none, a transition."""

    tests: tuple[Test, ...] = ()
    kind: str = ""
    fences: tuple[str, ...] = ()
    min_confidence: None = None


@dataclass(frozen=True)
class Pattern:
    """count, sum, distinct of one step; a sequence of steps; the absence of the second after the first (B2, B3)."""

    kind: str
    steps: tuple[Step, ...]
    within_ms: int
    at_least: float = 1.0
    field: str = ""
    same: str = ""


def opened(**fields: Any) -> Step:
    """A usage event with these fields."""
    return Step(tuple(Test(name, "==", value) for name, value in fields.items()))


def moved(kind: str, *fences: str) -> Step:
    return Step((), kind, fences)
