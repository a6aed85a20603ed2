"""Crowd alarms: a fence that says `crowd_at` tells when so many are inside, and when they have gone (rule P9)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import structlog

from engine import metrics
from engine.definitions import Fence

log = structlog.get_logger("opportune.service")

_GONE_SHARE = 0.9
"""An alarm ends below this share of its number, so that people at the door do not ring it again and again."""


class CrowdWatch:
    """Remember which fences are crowded; told of the counts about once a second."""

    def __init__(self) -> None:
        self.crowded: frozenset[str] = frozenset()

    def look(self, fences: Sequence[Fence], counts: np.ndarray) -> None:
        """Compare counts, int[F] by fence row, with what the fences say; log and show what began and ended."""
        crowded = set()
        for row, fence in enumerate(fences):
            if fence.crowd_at is None:
                continue
            users = int(counts[row])
            limit = fence.crowd_at * (_GONE_SHARE if fence.id in self.crowded else 1.0)
            if users >= limit:
                crowded.add(fence.id)
                if fence.id not in self.crowded:
                    log.warning("crowd", fence=fence.id, users=users, crowd_at=fence.crowd_at)
                    metrics.CROWD_ALARMS.inc()
        for fence_id in self.crowded - crowded:
            log.info("crowd has gone", fence=fence_id)
        self.crowded = frozenset(crowded)
        metrics.CROWDED_FENCES.set(len(crowded))
