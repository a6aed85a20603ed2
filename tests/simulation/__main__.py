"""Run seeds from the command line and print what occurred."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import msgspec

from tests.simulation.run import Verdict, run_seed
from tests.simulation.seeds import print_end, print_verdict, run_seeds
from tests.simulation.sizes import SIZES
from tests.simulation.tables import print_tables


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    parser.add_argument("--size", choices=list(SIZES), help="of every world; without it large ones come in turn")
    parser.add_argument("--most", type=int, default=20, help="violations to print of a seed")
    parser.add_argument("--processes", type=int, help="default: one for every processor")
    parser.add_argument("--verdicts", type=Path, help="write the verdicts here, one JSON object a line")
    asked = parser.parse_args()
    started = time.perf_counter()
    verdicts: list[Verdict] = []
    size = SIZES[asked.size] if asked.size else None
    seeds = range(asked.first, asked.first + asked.seeds)
    small = partial(run_seed, asked.first, SIZES["small"])
    for verdict in run_seeds(partial(run_seed, size=size), seeds, asked.processes, load=small):
        verdicts.append(verdict)
        print_verdict(
            verdict,
            f"{verdict.size:6}  {verdict.digest}  {verdict.events:6} events  {verdict.records:5} records  "
            f"{verdict.messages:4} messages  {len(verdict.faults):2} faults",
            asked.most,
        )
    if asked.verdicts:
        asked.verdicts.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in verdicts))
    print_tables(verdicts)
    events = sum(one.events for one in verdicts)
    print(f"{len(verdicts)} seeds, {events:,} events in {time.perf_counter() - started:.0f} s")
    return print_end(verdicts)


if __name__ == "__main__":
    sys.exit(main())
