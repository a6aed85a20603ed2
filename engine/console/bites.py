"""How many rows of an import make a bite: learned from the answers, the cost of a row apart from that of a request."""

from __future__ import annotations

FIRST_ROWS, FEWEST_ROWS, MOST_ROWS = 100, 20, 4000
_PAIRS = 3
_STEP = 2.0


class BiteSize:
    """Says how many rows come next; `learn` is told how long they took.

    A request costs something whatever it brings: the way there, the wait for a core, the commit. Were that shared out
    among the rows, small bites would make rows look dear, and bites would shrink until only the fixed cost is left. So
    whole bites and half ones take turns, some of each at one size: what the quickest whole one took longer than the
    quickest half one is what its further rows cost. The quickest, because what else a busy machine does only adds.
    """

    def __init__(self, bite_s: float) -> None:
        self._bite_s = bite_s
        self._whole = FIRST_ROWS
        self._pairs = 1  # the first guess is renewed at once
        self._seen: list[tuple[int, float]] = []  # rows and seconds: whole, half, whole, ...

    @property
    def rows(self) -> int:
        return self._whole if len(self._seen) % 2 == 0 else self._whole // 2

    def learn(self, rows: int, took_s: float) -> None:
        """Take one answer; after some of each size the next size is chosen, at most twice or half the last."""
        self._seen.append((rows, took_s))
        if len(self._seen) < 2 * self._pairs:
            return
        whole, half = (min(self._seen[first::2], key=lambda seen: seen[1]) for first in (0, 1))
        self._seen.clear()
        self._pairs = _PAIRS
        further_rows, further_s = whole[0] - half[0], whole[1] - half[1]
        if further_rows <= 0:
            return  # bites were cut short by their bytes, or the table ends
        wanted = _STEP * self._whole if further_s <= 0 else self._bite_s * further_rows / further_s
        wanted = min(max(wanted, self._whole / _STEP), self._whole * _STEP)
        self._whole = int(min(max(wanted, FEWEST_ROWS), MOST_ROWS))
