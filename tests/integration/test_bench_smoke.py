"""Every benchmark runs in its smoke size through the documented command, and names its figures as promised."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import names

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 600
"""Kernels may have to be compiled first; on a warm cache all together take a minute."""

PROMISED = {
    "pipeline": (
        "pipeline.realistic.1000000.events_per_s",
        "pipeline.worst.events_per_s",
        "pipeline.patterns.10000.events_per_s",
    ),
    "backtest": ("backtest.events_per_s",),
    "locate": ("locate.city.10000.points_per_s",),
    "service": ("service.2000.p99_ms",),
    "memory": ("memory.bytes_per_user", "memory.arrays.bytes_per_user", "memory.per_fence.bytes"),
    "codes": ("codes.import.per_s", "codes.draw.per_s"),
    "audience": ("audience.1000000.count_ms",),
    "growth": ("growth.fences.100000.ratio", "growth.scenarios.1000.ratio", "growth.scenarios.10000.ratio"),
    "timers": ("timers.fires_per_s",),
}
"""Figures that bars are set on, as a full run names them; a smoke run has the same names with smaller numbers."""

WITH_PEER = (
    "decode.ping.N.events_per_s",
    "decode.usage.events_per_s",
    "locate.city.N.points_per_s",
    "locate.country.N.points_per_s",
    "pipeline.realistic.N.events_per_s",
    "pipeline.worst.events_per_s",
    "pipeline.patterns.N.events_per_s",
    "timers.fires_per_s",
    "reserve.embedded.per_s",
)
"""Figures that mean something only beside a peer measured in the same run."""

SPEED = [name for name in names() if name != "evaluate"]
"""All but the one that measures no speed; tests/real/test_evaluate.py runs that."""
ZERO_IS_GOOD = re.compile(r"presence\..*\.transitions_per_ping")

Rows = list[dict[str, Any]]
Made = dict[str, Future[Rows]]


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    """The rows of every benchmark, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        # The longest first.
        order = sorted(SPEED, key=lambda name: name not in ("decode", "memory", "growth"))
        yield {name: pool.submit(rows_of, name) for name in order} | {"again": pool.submit(rows_of, "pipeline")}


def rows_of(name: str) -> Rows:
    command = [sys.executable, "-m", "bench", name, "--smoke", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    assert done.returncode == 0, f"{' '.join(command[1:])} failed:\n{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def general(name: str) -> str:
    """Let numbers in a figure's name be any number."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "N", name)


@pytest.mark.parametrize("name", SPEED)
def test_the_benchmark_runs_small_and_gives_rows_of_name_value_and_unit(name: str, made: Made) -> None:
    rows = made[name].result()
    assert rows, "a benchmark without figures"
    assert len({row["name"] for row in rows}) == len(rows), "two figures have one name"
    for row in rows:
        assert row["name"].startswith(f"{name}."), row
        assert isinstance(row["unit"], str), row
        assert ("peer" in row) == ("ratio" in row), row
        assert row["value"] >= 0 if ZERO_IS_GOOD.fullmatch(row["name"]) else row["value"] > 0, row


@pytest.mark.parametrize(("name", "figure"), [(name, one) for name, many in PROMISED.items() for one in many])
def test_the_figure_that_a_bar_is_set_on_is_emitted_under_its_name(name: str, figure: str, made: Made) -> None:
    assert general(figure) in {general(row["name"]) for row in made[name].result()}


@pytest.mark.parametrize("figure", WITH_PEER)
def test_the_figure_has_its_peer_of_the_same_run_beside_it(figure: str, made: Made) -> None:
    found = [row for row in made[figure.partition(".")[0]].result() if general(row["name"]) == figure]
    assert found, f"no figure {figure}"
    for row in found:
        assert row["peer"], row
        assert row["ratio"] > 0, row


def test_what_is_worked_out_depends_on_the_seed_alone(made: Made) -> None:
    """The hash over the decisions is the same in every run: nothing is skipped, nothing hangs on the clock."""
    first, again = ({row["name"]: row["hash"] for row in made[run].result()} for run in ("pipeline", "again"))
    assert first == again


def test_an_unknown_benchmark_is_refused_with_the_list_of_those_there_are() -> None:
    command = [sys.executable, "-m", "bench", "speed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    assert done.returncode == 2
    assert "no benchmark speed" in done.stderr
    assert "pipeline" in done.stderr
