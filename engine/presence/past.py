"""What users were inside of in the course of a batch, for who asks when the batch is over (B4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Past:
    """Entries in log order, each told before what it names could change it; sorted by user when first asked.

    chunks  PAST[...] each, as the kernel wrote them: of an entry the first row has fence -1
    """

    def __init__(self, chunks: Sequence[np.ndarray]) -> None:
        self._chunks = chunks
        self._by_user: np.ndarray | None = None

    def after(self, user: int, row: int, by_timer: bool, now_ms: int) -> np.ndarray | None:
        """Return the fences' rows of the first entry behind this moment; None: nothing has changed since.

        Timers before an event come before it, by their `now`; what came with an event is judged when all of it is done.
        """
        if not self._chunks:
            return None
        if self._by_user is None:
            rows = np.concatenate(self._chunks)
            self._by_user = rows[np.argsort(rows["user"], kind="stable")]
            self._users = np.ascontiguousarray(self._by_user["user"])
        first, last = np.searchsorted(self._users, (user, user + 1))
        mine = self._by_user[first:last]
        is_behind = mine["row"] > row
        if by_timer:
            is_behind |= (mine["row"] == row) & ((mine["by_timer"] == 0) | (mine["now_ms"] > now_ms))
        behind = mine[is_behind]
        if not len(behind):
            return None
        starts = np.flatnonzero(behind["fence"] < 0)
        return behind[1 : starts[1] if len(starts) > 1 else len(behind)]
