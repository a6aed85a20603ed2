"""The day it is in a deployment's zone: daily quotas of gateways are counted by it."""

from __future__ import annotations

from datetime import datetime, time
from zoneinfo import ZoneInfo


def day_number(now_ms: int, zone: str) -> int:
    """Number the day."""
    return datetime.fromtimestamp(now_ms / 1000, ZoneInfo(zone)).date().toordinal()


def midnight_ms(now_ms: int, zone: str) -> int:
    """Return when the day began."""
    day = datetime.fromtimestamp(now_ms / 1000, ZoneInfo(zone)).date()
    return int(datetime.combine(day, time.min, ZoneInfo(zone)).timestamp() * 1000)
