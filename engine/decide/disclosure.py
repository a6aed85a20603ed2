"""What may be told of how many people there are: nothing about a few (FAULTS A13).

Hiding counts below ten is not enough: two large counts that differ by three tell of three people. So a set that
differs from one told before by fewer than ten users gets the answer that one got. Chains of cleverly chosen sets can
still find somebody; what is left to them is to ask often.
"""

from __future__ import annotations

from collections import deque

import numpy as np

FEWEST = 10


def shown(users: int) -> int | str:
    """Hide small counts: few people are somebody. Nobody is nobody."""
    return users if users == 0 or users >= FEWEST else f"<{FEWEST}"


class Disclosure:
    """Answers counts of sets of users and remembers the sets, a bit a user.

    most  sets remembered; 64 of a million users take 8 MB
    """

    def __init__(self, most: int = 64) -> None:
        self._told: deque[tuple[np.ndarray, int]] = deque(maxlen=most)

    def tell(self, members: np.ndarray) -> int | str:
        """Return the count of a set (bool[N] over the slots) as it may be shown."""
        users = int(np.count_nonzero(members))
        if users < FEWEST:
            return shown(users)
        bits = np.packbits(members)
        for before, answer in self._told:
            if _difference(bits, before) < FEWEST:
                return answer
        self._told.append((bits, users))
        return users


def _difference(one: np.ndarray, other: np.ndarray) -> int:
    """Count the users who are in one set and not in the other; slots that one does not know are in neither."""
    if len(one) < len(other):
        one, other = other, one
    common = np.bitwise_xor(one[: len(other)], other)
    return int(np.bitwise_count(common).sum()) + int(np.bitwise_count(one[len(other) :]).sum())
