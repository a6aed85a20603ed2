"""Many seeds at once, on every processor: verdicts come back in the order of the seeds."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator
from functools import partial

from engine.runtime.warm import warm
from tests.simulation.run import Verdict, run_seed
from tests.simulation.sizes import SIZES, Size

MUCH = 500_000
"""Objects made and not let go of since garbage was last collected."""


def run_seeds(seeds: range, size: Size | None = None, processes: int | None = None) -> Iterator[Verdict]:
    """Simulate and audit every seed.

    Workers are forked once the kernels are loaded, so call it where no other thread runs.
    """
    processes = min(processes or len(os.sched_getaffinity(0)), len(seeds))
    warm()
    run_seed(seeds[0], SIZES["small"])  # whatever else is loaded at its first use is shared by all
    gc.collect()
    gc.freeze()
    if processes < 2:
        yield from map(partial(_run, size), seeds)
        return
    with multiprocessing.get_context("fork").Pool(processes, gc.disable) as pool:
        yield from pool.imap(partial(_run, size), seeds, chunksize=1)


def _run(size: Size | None, seed: int) -> Verdict:
    """Run one seed; garbage is collected between seeds, when there is much of it."""
    verdict = run_seed(seed, size)
    if gc.get_count()[0] > MUCH:
        gc.collect()
    return verdict
