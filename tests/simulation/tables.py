"""What occurred over all seeds, as tables; and what cannot occur yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tests.simulation.faults import EVERY
from tests.simulation.run import Verdict

UNREACHABLE = {"cap:deployment": "limits over the deployment refuse as `paused`"}
"""Reasons of the closed list that no content can bring about in this version."""


def print_tables(verdicts: Iterable[Verdict]) -> None:
    reasons: Counter[str] = Counter()
    happened: Counter[str] = Counter()
    dead: Counter[str] = Counter()
    faults = Counter(dict.fromkeys(EVERY, 0))
    for verdict in verdicts:
        reasons.update(verdict.reasons)
        happened.update(verdict.happened)
        faults.update(verdict.faults)
        dead.update(verdict.dead)
    print("\noutcomes and reasons")
    for key, count in sorted(reasons.items(), key=lambda one: one[0].split()[::-1]):
        outcome, reason = key.split()
        print(f"  {reason:18} {outcome:9} {count:9}")
    for reason, why in UNREACHABLE.items():
        print(f"  {reason:18} {'-':9} not reachable: {why}")
    print("\nfaults: seeds that drew them, times they happened in the service")
    for kind, count in sorted(faults.items()):
        print(f"  {kind:36} {count:5} {happened[kind] or '':>7}")
    print("\ndead letters")
    for reason, count in sorted(dead.items()):
        print(f"  {reason:18} {count:9}")
