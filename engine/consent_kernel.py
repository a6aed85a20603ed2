"""No consent, no processing: pings and usage events of users who did not agree are dropped before all else (A2)."""

from __future__ import annotations

import numpy as np

from engine.kernels import kernel
from engine.model import Drop, EventType

GRANTED, DENIED = 1, 2  # low two bits of a consent column; 0 is no record
_PING, _USAGE = int(EventType.PING), int(EventType.USAGE)
_NO_LOCATION, _NO_USAGE = int(Drop.NO_LOCATION_CONSENT), int(Drop.NO_USAGE_CONSENT)


@kernel
def drop_without_consent(
    events: np.ndarray, location: np.ndarray, usage: np.ndarray, location_assumed: bool, usage_assumed: bool
) -> None:
    """Set `drop` in EVENT[N] where the purpose is not granted.

    location, usage  int64[U]  consent columns; only the low two bits are read
    *_assumed        the deployment applies the purpose to users without a record

    Cost: one read per event.
    """
    for row in range(events.shape[0]):
        if events[row].drop != 0:
            continue
        if events[row].type == _PING:
            state = location[events[row].user] & 3
            if state != GRANTED and (state == DENIED or not location_assumed):
                events[row].drop = _NO_LOCATION
        elif events[row].type == _USAGE:
            state = usage[events[row].user] & 3
            if state != GRANTED and (state == DENIED or not usage_assumed):
                events[row].drop = _NO_USAGE
