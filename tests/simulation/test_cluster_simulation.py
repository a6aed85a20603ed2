"""A cluster's day under crashes, zombies and rebalances loses and doubles nothing, seed after seed (T3, D7, F1-F4)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.runtime.cluster.partition import Partition
from engine.runtime.cluster.worker import Worker
from tests.cluster_parts import Shard
from tests.simulation.cluster import FAULTS, run_cluster_seed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    # In a process of its own: here a warning of the compiler would be an error.
    subprocess.run([sys.executable, "-c", "from engine.runtime.warm import warm; warm()"], cwd=ROOT, check=True)


def simulate(first: int, seeds: int) -> str:
    """Run seeds as a person would, in processes of their own; return what was told."""
    command = [sys.executable, "-m", "tests.simulation.cluster", str(first), str(seeds)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{' '.join(command)}\n{run.stdout[-4000:]}{run.stderr[-4000:]}"
    return run.stdout


def test_two_hundred_days_of_a_cluster_break_no_rule() -> None:
    told = simulate(0, 200)
    assert told.count("  ok\n") == 200
    assert sum(map(int, re.findall(r" (\d+) messages", told))) >= 1_000
    for fault in FAULTS:
        assert len(re.findall(rf"'{fault}': [1-9]", told)) > 100, fault


@pytest.mark.long
def test_a_thousand_more_days_of_a_cluster_break_no_rule() -> None:
    assert simulate(10_000, 1_000).count("  ok\n") == 1_000


def test_the_same_seed_gives_the_same_day() -> None:
    assert run_cluster_seed(1) == run_cluster_seed(1)


def _begins_too_late(patch: pytest.MonkeyPatch) -> None:
    def seek(self: Worker, partition: Partition) -> None:
        self.source.seek(partition.number, partition.done + 3)

    patch.setattr(Worker, "_seek", seek)


def _claims_are_no_claims(patch: pytest.MonkeyPatch) -> None:
    claim = Shard.claim

    def lenient(self: Shard, claims: Any, now_ms: int) -> Any:
        claim(self, claims, now_ms)
        return ["claimed"] * len(claims)

    def outbox(self: Shard, limit: int) -> Any:
        known = self.__dict__.setdefault("all_ever", {})
        known.update({one.offer_id: one for one in type(self).__mro__[2].outbox(self, limit)})
        return list(known.values())

    patch.setattr(Shard, "claim", lenient)
    patch.setattr(Shard, "outbox", outbox)


@pytest.mark.parametrize("plant", [_begins_too_late, _claims_are_no_claims])
def test_defects_planted_in_the_worker_are_found(plant: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        assert any(run_cluster_seed(seed).violations for seed in range(3))
