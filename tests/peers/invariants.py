"""What must hold whatever a fault test does (G1, G2, D6, A3): counted by peers and the rig, over all tests of a run.

Not one message to a handset twice, none a second after its user's opt-out was taken, none after its deadline, none
lost without a final state.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

OPT_OUT_GRACE_MS = 1_000


@dataclass
class Tally:
    """How many messages were looked at, for the summary of a run."""

    messages: int = 0
    offers: int = 0
    opt_outs: int = 0

    def add(self, other: Mapping[str, int]) -> None:
        """Add what another process counted."""
        for name, count in other.items():
            setattr(self, name, getattr(self, name) + count)

    def __str__(self) -> str:
        return (
            f"delivery invariants: {self.messages:,} messages to handsets, none twice, none past its deadline; "
            f"{self.opt_outs:,} opt-outs kept within a second; {self.offers:,} offers, each with a final state "
            "or in the outbox"
        )


TALLY = Tally()


class Handsets:
    """What a peer let through to handsets. `key` says which message it was: repeated, it came twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: Counter[Hashable] = Counter()
        self._late: list[Hashable] = []

    def got(self, key: Hashable, *, at_ms: int = 0, deadline_ms: int | None = None) -> None:
        with self._lock:
            self._seen[key] += 1
            TALLY.messages += 1
            if deadline_ms is not None and at_ms > deadline_ms:
                self._late.append(key)

    @property
    def seen(self) -> Counter[Hashable]:
        with self._lock:
            return Counter(self._seen)

    def check(self) -> None:
        """Raise where a message came twice or after its deadline."""
        twice = [key for key, count in self.seen.items() if count > 1]
        assert not twice, f"{len(twice)} messages reached a handset twice, such as {twice[:3]}"
        assert not self._late, f"{len(self._late)} messages came after their deadline, such as {self._late[:3]}"


def check_opt_outs(taken_ms: dict[str, int], reached: list[tuple[str, int]]) -> None:
    """See that nobody who opted out (user: when it was acknowledged) was reached (user, when) a second later."""
    TALLY.opt_outs += len(taken_ms)
    late = [
        (user, at_ms - taken_ms[user])
        for user, at_ms in reached
        if user in taken_ms and at_ms > taken_ms[user] + OPT_OUT_GRACE_MS
    ]
    assert not late, f"{len(late)} messages after an opt-out, such as {late[:3]} (user, ms later)"
