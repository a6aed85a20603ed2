"""The activity rate of organisation subtrees: whose share of users was seen often enough in a month (MISSION)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engine.report.sheet import FEWEST, Sheet

ENOUGH = 3
"""Visits, or messages received, in a month that make a user active."""
WANTED = 0.9

COLUMNS = ("organisation", "month", "users", "active", "rate", "wanted")


class Subtree(NamedTuple):
    """An organisation path, who belongs below it or to it, and how many of them were active."""

    organisation: str
    users: int
    active: int


def activity_sheet(subtrees: Sequence[Subtree], month: str, notes: Sequence[str] = ()) -> Sheet:
    """Return one row a subtree. Few people are somebody, active or not: neither figure tells of 1 to 9 (FAULTS A13)."""
    rows = [(one.organisation, month, *_told(one.users, one.active)) for one in subtrees]
    return Sheet("activity rate", COLUMNS, rows, notes)


def _told(users: int, active: int) -> tuple[object, object, float | None, str]:
    """Users, active ones, rate, and whether as many are active as are wanted; bounds where a figure is hidden."""
    if not users:
        return 0, 0, None, ""
    if users < FEWEST:
        return f"<{FEWEST}", "", None, ""
    if active in (0, users) or min(active, users - active) >= FEWEST:
        return users, active, active / users, "yes" if active / users >= WANTED else "no"
    if users < 2 * FEWEST:
        return users, "", None, ""  # either side is small, and saying which would tell of it
    least, most = (1, FEWEST - 1) if active < FEWEST else (users - FEWEST + 1, users - 1)
    bound = f"<{FEWEST}" if active < FEWEST else f">{least - 1}"
    return users, bound, None, "no" if most / users < WANTED else "yes" if least / users >= WANTED else ""
