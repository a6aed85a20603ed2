"""Many seeds at once, on every processor: verdicts come back in the order of the seeds."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeVar

from engine.runtime.warm import warm

V = TypeVar("V")
MUCH = 500_000
"""Objects made and not let go of since garbage was last collected; fewer are too many where they hold large arrays."""


def run_seeds(
    run: Callable[[int], V],
    seeds: range,
    processes: int | None = None,
    *,
    load: Callable[[], object],
    much: int = MUCH,
) -> Iterator[V]:
    """Simulate and audit every seed.

    Workers are forked once the kernels are loaded, so call it where no other thread runs.

    load  runs something small first: whatever else is loaded at its first use is shared by all
    """
    processes = min(processes or len(os.sched_getaffinity(0)), len(seeds))
    warm()
    load()
    gc.collect()
    gc.freeze()
    if processes < 2:
        yield from map(partial(_run, run, much), seeds)
        return
    with multiprocessing.get_context("fork").Pool(processes, gc.disable) as pool:
        yield from pool.imap(partial(_run, run, much), seeds, chunksize=1)


class Told(Protocol):
    """What every verdict tells."""

    seed: int
    violations: list[str]

    @property
    def command(self) -> str: ...


def print_verdict(verdict: Told, said: str, most: int) -> None:
    """Print one line of a seed; then what is wrong, `most` lines of it, and how to see it again."""
    broken = len(verdict.violations)
    print(f"seed {verdict.seed:5} {said}  {f'{broken} VIOLATIONS' if broken else 'ok'}", flush=True)
    for line in verdict.violations[:most]:
        print(f"    {line[:300]}")
    if broken:
        print(f"    again: {verdict.command}")


def print_end(verdicts: Sequence[Told]) -> int:
    """Print which seeds failed; return the exit code."""
    failed = [str(one.seed) for one in verdicts if one.violations]
    if failed:
        print(f"{len(failed)} of {len(verdicts)} seeds failed: {', '.join(failed)}")
    return 1 if failed else 0


def _run(run: Callable[[int], V], much: int, seed: int) -> V:
    """Run one seed; garbage is collected between seeds, when there is much of it."""
    verdict = run(seed)
    if gc.get_count()[0] > much:
        gc.collect()
    return verdict
