"""Compare every transition of the real traces with the oracle.

    python -m tests.real.compare [--data ../shared/data] [--only geolife,tokyo] [--replay]

Prints one line a set and every first difference of a user; exit status 1 where there is one. `--replay` goes through
the command `opportune replay` (bytes, decoder, pipeline) instead of locate and presence alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from tests.real.drive import differences, not_alternating, run_engine, run_oracle
from tests.real.replay import on_the_wire, run_replay
from tests.real.sets import SETS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
    parser.add_argument("--only", default=",".join(SETS))
    parser.add_argument("--replay", action="store_true")
    chosen = parser.parse_args()
    wrong = 0
    for name in chosen.only.split(","):
        real = SETS[name](chosen.data)
        started = time.perf_counter()
        log = (real.fences, real.pings, real.thresholds, real.end_now_ms)
        engine = run_replay(*log, real.usage) if chosen.replay else run_engine(*log)
        engine_s, started = time.perf_counter() - started, time.perf_counter()
        oracle = run_oracle(*log)
        oracle_s = time.perf_counter() - started
        found = differences(engine, on_the_wire(oracle) if chosen.replay else oracle)
        wrong += len(found)
        kinds = Counter(one["kind"] for one in oracle)
        print(
            f"{name}: {len(real.pings)} pings, {len(real.fences)} fences, {len(engine)} transitions "
            f"({', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}), "
            f"{len(found)} users differ, {not_alternating(engine)} alternation errors; "
            f"engine {engine_s:.1f} s, oracle {oracle_s:.1f} s"
        )
        for line in found:
            print("  " + line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
