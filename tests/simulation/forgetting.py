"""Forget a user as `opportune forget` does: out of the state, the ledger, every checkpoint and the journal (I2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import orjson

from engine.console.forgetting import blanked

if TYPE_CHECKING:
    from tests.simulation.live import Live, Snapshot


def forget(live: Live, user: str) -> None:
    """Do it between two records, with everything journaled processed; what is left of the user goes into the story."""
    live.pipeline.forget(user)
    live.ledger.forget(user)
    live.snapshots = [live.take_snapshot()]
    live.journal.rewrite(lambda payload: blanked(payload, user))
    live.story.forgotten.append((live.journal.end, user))
    live.story.traces += traces(live, live.snapshots[0], user.encode())


def written(array: np.ndarray) -> list[np.ndarray]:
    """What was ever written to an array: what lies between the fields of a row is whatever was in the memory."""
    return [array] if array.dtype.names is None else [array[name] for name in array.dtype.names]


def traces(live: Live, snapshot: Snapshot, user: bytes) -> Iterator[str]:
    """Where the bytes of a user's id still stand."""
    for path in sorted(live.folder.rglob("*")):
        if path.is_file() and user in path.read_bytes():
            yield path.name
    for name, array in (snapshot.arrays | snapshot.caps_arrays).items():
        if any(user in part.tobytes() for part in written(array)):
            yield f"checkpoint {name}"
    if user in snapshot.objects or user in orjson.dumps(snapshot.caps_objects.decode()):
        yield "checkpoint objects"
