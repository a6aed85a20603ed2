"""Transitions as they are written out (docs/contracts.md, Transition): JSON, one object a line, never coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import numpy as np
import orjson

from engine.definitions import Fence
from engine.model import TransitionReason
from engine.pipeline.candidates import CONFIDENCE_NAMES, KIND_NAMES, METHOD_NAMES

_REASON_NAMES = {int(reason): reason.name.lower() for reason in TransitionReason}


def transition_lines(
    transitions: np.ndarray, tenant: str, fences: Sequence[Fence], user_id: Callable[[int], str]
) -> Iterator[bytes]:
    """Yield TRANSITION[N] as lines of JSON."""
    for row in transitions:
        distance_m, accuracy_m = float(row["distance_m"]), float(row["accuracy_m"])
        yield orjson.dumps(
            {
                "v": 1,
                "tenant": tenant,
                "user": user_id(int(row["user"])),
                "fence": fences[row["fence"]].id,
                "kind": KIND_NAMES[int(row["kind"])],
                "crossed_at": rfc3339(int(row["crossed_ms"])),
                "confirmed_at": rfc3339(int(row["confirmed_ms"])),
                "initial": bool(row["initial"]),
                "gap_s": int(row["gap_ms"]) / 1000 if row["gap_ms"] >= 0 else None,
                "threshold_s": int(row["threshold_s"]) if row["threshold_s"] >= 0 else None,
                "duration_s": int(row["duration_ms"]) / 1000 if row["duration_ms"] >= 0 else None,
                "reason": _REASON_NAMES[int(row["reason"])],
                "confidence": CONFIDENCE_NAMES[int(row["confidence"])],
                "method": METHOD_NAMES[int(row["method"])],
                "distance_m": round(distance_m, 2) if math.isfinite(distance_m) else None,
                "accuracy_m": round(accuracy_m, 2) if math.isfinite(accuracy_m) else None,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )


def rfc3339(instant_ms: int) -> str:
    """Write an instant as RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(instant_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
