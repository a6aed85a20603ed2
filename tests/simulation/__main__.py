"""Run seeds from the command line and print what occurred."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.faults import EVERY
from tests.simulation.run import run_seed
from tests.simulation.tables import print_tables


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    parser.add_argument("--most", type=int, default=20, help="violations to print of a seed")
    asked = parser.parse_args()
    reasons: Counter[tuple[str, str]] = Counter()
    faults: Counter[str] = Counter(dict.fromkeys(EVERY, 0))
    happened: Counter[str] = Counter()
    dead: Counter[str] = Counter()
    failed = []
    for seed in range(asked.first, asked.first + asked.seeds):
        started = time.perf_counter()
        verdict = run_seed(seed)
        seconds = time.perf_counter() - started
        print(
            f"seed {seed:5}  {verdict.digest}  {verdict.events:6} events  {verdict.records:5} records  "
            f"{verdict.messages:4} messages  {len(verdict.faults):2} faults  {seconds:5.1f} s  "
            f"{'ok' if not verdict.violations else f'{len(verdict.violations)} VIOLATIONS'}",
            flush=True,
        )
        for line in verdict.violations[: asked.most]:
            print(f"    {line}")
        if verdict.violations:
            failed.append(verdict)
            print(f"    again: {verdict.command}")
        reasons += verdict.reasons
        faults.update(verdict.faults)
        happened.update(verdict.happened)
        dead += verdict.dead
    print_tables(reasons, faults, happened, dead)
    if failed:
        print(f"{len(failed)} of {asked.seeds} seeds failed: {', '.join(str(one.seed) for one in failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
