"""Every benchmark runs in its smoke size through the documented command, and names its figures as promised."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import names

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 600
"""Kernels may have to be compiled first; on a warm cache all together take a minute."""

PROMISED = {
    "pipeline": ("pipeline.realistic.1000000.events_per_s", "pipeline.worst.events_per_s"),
    "locate": ("locate.city.10000.points_per_s",),
    "service": ("service.2000.p99_ms",),
    "memory": ("memory.bytes_per_user", "memory.arrays.bytes_per_user", "memory.per_fence.bytes"),
    "growth": ("growth.fences.100000.ratio", "growth.scenarios.1000.ratio"),
}
"""Figures that bars are set on, as a full run names them; a smoke run has the same names with smaller numbers."""

WITH_PEER = (
    "decode.ping.N.events_per_s",
    "decode.usage.events_per_s",
    "locate.city.N.points_per_s",
    "locate.country.N.points_per_s",
    "pipeline.realistic.N.events_per_s",
    "pipeline.worst.events_per_s",
    "reserve.embedded.per_s",
)
"""Figures that mean something only beside a peer measured in the same run."""

ZERO_IS_GOOD = re.compile(
    r"presence\.nowhere\.N\.transitions_per_ping|evaluate\.telecom\.false_enters\w*|evaluate\.\w+\.alternation_errors"
)
MAY_BE_ABSENT = re.compile(r"evaluate\.\w*")
"""Real traces lie beside the project or not at all; then the one row says so."""


@functools.cache
def rows(name: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "bench", name, "--smoke", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    assert done.returncode == 0, f"{' '.join(command[1:])} failed:\n{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def general(name: str) -> str:
    """Let numbers in a figure's name be any number."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "N", name)


@pytest.mark.parametrize("name", names())
def test_the_benchmark_runs_small_and_gives_rows_of_name_value_and_unit(name: str) -> None:
    made = rows(name)
    assert made, "a benchmark without figures"
    assert len({row["name"] for row in made}) == len(made), "two figures have one name"
    for row in made:
        assert row["name"].startswith(f"{name}."), row
        assert isinstance(row["unit"], str), row
        assert ("peer" in row) == ("ratio" in row), row
        if MAY_BE_ABSENT.fullmatch(row["name"]) and row["value"] == 0:
            continue
        floor_is_zero = ZERO_IS_GOOD.fullmatch(general(row["name"]))
        assert row["value"] >= 0 if floor_is_zero else row["value"] > 0, row


@pytest.mark.parametrize(("name", "figure"), [(name, one) for name, many in PROMISED.items() for one in many])
def test_the_figure_that_a_bar_is_set_on_is_emitted_under_its_name(name: str, figure: str) -> None:
    assert general(figure) in {general(row["name"]) for row in rows(name)}


@pytest.mark.parametrize("figure", WITH_PEER)
def test_the_figure_has_its_peer_of_the_same_run_beside_it(figure: str) -> None:
    found = [row for row in rows(figure.partition(".")[0]) if general(row["name"]) == figure]
    assert found, f"no figure {figure}"
    for row in found:
        assert row["peer"], row
        assert row["ratio"] > 0, row


def test_what_is_worked_out_depends_on_the_seed_alone() -> None:
    """The hash over decisions, or over answers, is the same in every run: nothing is skipped, nothing is timed."""
    again = [sys.executable, "-m", "bench", "pipeline", "--smoke", "--json"]
    done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_S, check=True)
    fresh = {row["name"]: row["hash"] for row in map(json.loads, done.stdout.splitlines())}
    assert fresh == {row["name"]: row["hash"] for row in rows("pipeline")}


def test_an_unknown_benchmark_is_refused_with_the_list_of_those_there_are() -> None:
    command = [sys.executable, "-m", "bench", "speed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    assert done.returncode == 2
    assert "no benchmark speed" in done.stderr
    assert "pipeline" in done.stderr
