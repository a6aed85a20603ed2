"""The end-to-end benchmark runs, loses no offer, doubles none, and names its generator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]


def test_the_smoke_size_of_the_service_benchmark_prints_its_rows() -> None:
    command = [sys.executable, "-m", "bench", "service", "--smoke", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in map(orjson.loads, done.stdout.splitlines())}
    assert {f"service.200.{part}" for part in ("p50_ms", "p99_ms", "p99_9_ms", "ack_p99_ms", "cores")} == set(rows)
    assert rows["service.200.p99_ms"]["offers"] == 20
    assert rows["service.200.p99_ms"]["generator"] in ("c", "asyncio")
    assert 0 < rows["service.200.p50_ms"]["value"] <= rows["service.200.p99_ms"]["value"]
