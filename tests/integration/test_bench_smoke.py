"""Every benchmark runs in its smoke size through the documented command, and names its figures as promised."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import names
from tests.peers.programs import absent

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
    "faust": ("faust.pipeline.events_per_s",),
    "latency": ("latency.20000.p50_ms", "latency.20000.p99_ms", "latency.20000.max_ms"),
    "recovery": ("recovery.1000000.seconds",),
    "scale": ("scale.2.events_per_s",),
    "reserve": ("reserve.redis.per_s",),
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
    "reserve.redis.per_s",
    "faust.pipeline.events_per_s",
    "latency.N.p99_ms",
)
"""Figures that mean something only beside a peer measured in the same run."""

WITH_SERVERS = ("faust", "latency", "recovery", "scale")
"""Need Java, Kafka and Redis; where those are missing there is nothing to measure, and it is said."""

SPEED = [name for name in names() if name != "evaluate"]
"""All but the one that measures no speed; tests/real/test_evaluate.py runs that."""
ZERO_IS_GOOD = re.compile(r"presence\..*\.transitions_per_ping")

Rows = list[dict[str, Any]]
Made = dict[str, Future[Rows]]


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest) -> Iterator[Made]:
    """The rows of every benchmark, two at a time; those of the cluster share the tests' broker."""
    environment = dict(os.environ)
    with suppress(pytest.skip.Exception):
        environment["OPPORTUNE_KAFKA"] = request.getfixturevalue("kafka_address")
    with ThreadPoolExecutor(2) as pool:
        # The longest first.
        order = sorted(SPEED, key=lambda name: name not in ("decode", "memory", "growth", "latency"))
        started = {name: pool.submit(rows_of, name, environment) for name in order}
        yield started | {"again": pool.submit(rows_of, "pipeline", environment)}


def rows_of(name: str, environment: dict[str, str]) -> Rows:
    command = [sys.executable, "-m", "bench", name, "--smoke", "--json"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=False
    )
    assert done.returncode == 0, f"{' '.join(command[1:])} failed:\n{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def told(name: str, made: Made) -> Rows:
    """The rows of one; skipped loudly, or failed where everything is required, if its servers are missing."""
    rows = made[name].result()
    if not rows and name in WITH_SERVERS:
        absent(f"bench {name} needs Java, Maven and redis-server (docs/testing.md)")
    return rows


def general(name: str) -> str:
    """Let numbers in a figure's name be any number."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "N", name)


@pytest.mark.parametrize("name", SPEED)
def test_the_benchmark_runs_small_and_gives_rows_of_name_value_and_unit(name: str, made: Made) -> None:
    rows = told(name, made)
    assert rows, "a benchmark without figures"
    assert len({row["name"] for row in rows}) == len(rows), "two figures have one name"
    for row in rows:
        assert row["name"].startswith(f"{name}."), row
        assert isinstance(row["unit"], str), row
        assert ("peer" in row) == ("ratio" in row), row
        assert row["value"] >= 0 if ZERO_IS_GOOD.fullmatch(row["name"]) else row["value"] > 0, row


@pytest.mark.parametrize(("name", "figure"), [(name, one) for name, many in PROMISED.items() for one in many])
def test_the_figure_that_a_bar_is_set_on_is_emitted_under_its_name(name: str, figure: str, made: Made) -> None:
    assert general(figure) in {general(row["name"]) for row in told(name, made)}


@pytest.mark.parametrize("figure", WITH_PEER)
def test_the_figure_has_its_peer_of_the_same_run_beside_it(figure: str, made: Made) -> None:
    found = [row for row in told(figure.partition(".")[0], made) if general(row["name"]) == figure]
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
