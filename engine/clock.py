"""The only module that reads wall time. Everything else is handed a number."""

from __future__ import annotations

import time


def wall_ms() -> int:
    """Return the wall clock as UTC epoch milliseconds."""
    return time.time_ns() // 1_000_000


def monotonic_s() -> float:
    """Return a clock that never steps, for measuring how long something took."""
    return time.perf_counter()
