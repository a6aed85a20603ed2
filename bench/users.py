"""A whole table of users into a real service, end to end: `opportune serve`, `opportune profiles import`, kill -9.

CSV first, then the same users as Parquet into a fresh state. The import is killed half way and started again; it goes
on where it stopped. Then the service is killed under an import of the first fifth and started again: the import waits
and goes on. At the end the service counts the users, before and after one more restart. The peer is pyarrow reading
the same table whole into Python objects: what no import in Python can be faster than.
"""

from __future__ import annotations

import base64
import itertools
import os
import pty
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson

from bench.importing import write_table
from bench.service import cpu_seconds

ROOT = Path(__file__).resolve().parents[1]
ROWS = 1_000_000
_COMMAND = [sys.executable, "-m", "engine.cli"]
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_SHOWN = re.compile(r"(\d+)% ([\d,]+) rows")


def run(smoke: bool = False) -> Iterator[dict[str, Any]]:
    count = 6_000 if smoke else ROWS
    with tempfile.TemporaryDirectory(prefix="opportune-users-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        write_table(folder / "users.csv", count)
        write_parquet(folder / "users.csv", folder / "users.parquet")
        for kind in ("csv",) if smoke else ("csv", "parquet"):
            table = folder / f"users.{kind}"
            with Served(folder / kind) as service:
                yield cut_and_go_on(service, table, count) | {"name": f"users.{kind}.{count}.rows_per_s"}
                if kind == "csv" and not smoke:
                    with table.open("rb") as lines:
                        (folder / "fifth.csv").write_bytes(b"".join(itertools.islice(lines, 1 + count // 5)))
                    yield survive_the_service(service, folder / "fifth.csv", count // 5, count)


def cut_and_go_on(service: Served, table: Path, count: int) -> dict[str, Any]:
    """Import with a kill -9 half way; return rows a second over both halves, and what the bar showed."""
    before_s, began = cpu_seconds(service.port), time.perf_counter()
    first = Import(table, service.url)
    half = first.until(lambda percent: percent >= 50)
    first.process.kill()
    first.process.wait()
    first_s = time.perf_counter() - began
    began = time.perf_counter()
    second = Import(table, service.url)
    told = second.end()
    second_s = time.perf_counter() - began
    going_on = re.search(r"going on after row ([\d,]+)", told)
    if going_on is None or second.process.returncode != 0:
        raise AssertionError(f"the second import began anew or failed: {told[-300:]}")
    kept = int(going_on[1].replace(",", ""))
    if f"{count:,} rows imported" not in told:
        raise AssertionError(f"not all rows: {told[-300:]}")
    engine_us = (cpu_seconds(service.port) - before_s) / count * 1e6
    service.expect(count)
    per_s = count / (first_s + second_s)
    peer = read_whole(table, count)
    return {
        "value": per_s,
        "unit": "rows/s",
        "peer": peer,
        "ratio": per_s / peer,
        "engine_cpu_us_per_row": engine_us,
        "bars_seen": len(first.shown) + len(second.shown),
        "rows_taken_twice": half - kept,  # sending a row again changes nothing
        "first_s": first_s,
        "second_s": second_s,
    }


def survive_the_service(service: Served, table: Path, rows: int, count: int) -> dict[str, Any]:
    """Kill the service under an import, start it again: the import waits and ends well, and nothing is lost.

    rows, count  of the table, and users altogether
    """
    again = Import(table, service.url)
    again.until(lambda percent: percent >= 30)
    service.kill()
    down = time.perf_counter()
    service.start()
    down_s = time.perf_counter() - down
    told = again.end()
    if again.process.returncode != 0 or f"{rows:,} rows imported" not in told:
        raise AssertionError(f"the import did not survive the service: {told[-300:]}")
    service.expect(count)
    service.stop()
    began = time.perf_counter()
    service.start()
    service.expect(count)
    return {
        "name": f"users.restart.{count}.s",
        "value": time.perf_counter() - began,
        "unit": "s",
        "after_kill_s": down_s,
    }


class Import:
    """One `opportune profiles import` on a terminal of its own, whose bar is read."""

    def __init__(self, table: Path, url: str) -> None:
        ours, theirs = pty.openpty()
        self._terminal = ours
        self._read = ""
        self.shown: list[tuple[int, int]] = []  # percent and rows, as the bar showed them
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            [*_COMMAND, "profiles", "import", str(table), "--url", url],
            cwd=ROOT,
            env=environment,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)

    def until(self, enough: Any) -> int:
        """Read the bar until it shows enough; return the rows it shows."""
        while self._more():
            if self.shown and enough(self.shown[-1][0]):
                return self.shown[-1][1]
        raise AssertionError(f"the import ended before: {self._read[-300:]}")

    def end(self) -> str:
        while self._more():
            pass
        self.process.wait(60)
        os.close(self._terminal)
        return self._read

    def _more(self) -> bool:
        try:
            read = os.read(self._terminal, 65_536).decode("utf-8", "replace")
        except OSError:  # how Linux says that nobody writes any more
            return False
        text = _ESCAPE.sub("", read)
        self._read += text
        self.shown += [(int(percent), int(rows.replace(",", ""))) for percent, rows in _SHOWN.findall(text)]
        return bool(read)


class Served:
    """One `opportune serve` with no content but a policy; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "geofences").mkdir(parents=True)
        (folder / "scenarios").mkdir()
        (folder / "scenarios" / "policy.yaml").write_text("time_zone: Asia/Shanghai\n")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._key = base64.b64encode(secrets.token_bytes(32)).decode()

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        given = [f"--{name}={self._folder / name}" for name in ("state", "geofences", "scenarios")]
        self._process = subprocess.Popen(
            [*_COMMAND, "serve", f"--port={self.port}", *given],
            cwd=ROOT,
            env={**os.environ, "OPPORTUNE_ADDRESS_KEY": self._key},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(6000):
            if self._process.poll() is not None:
                raise RuntimeError("the service did not start")
            try:
                httpx.get(f"{self.url}/readyz", trust_env=False).raise_for_status()
            except httpx.HTTPError:
                time.sleep(0.1)
            else:
                return
        raise RuntimeError("the service was not ready in time")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(120)

    def expect(self, count: int) -> None:
        """Raise where another number of users than this is known, or a tag or consent of theirs is missing."""
        asked = {"expression": {"all": ["member", "film", {"attribute": "plan", "exists": True}]}}
        told = httpx.post(f"{self.url}/v1/audience", json=asked, trust_env=False, timeout=60).json()
        if (told["profiles"], told["users"]) != (count, count):
            raise AssertionError(f"expected {count} users, the service counts {orjson.dumps(told).decode()}")


def write_parquet(table: Path, target: Path) -> None:
    import pyarrow.csv
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.csv.read_csv(table), target)


def read_whole(table: Path, count: int) -> float:
    """Return the rows a second at which pyarrow reads the table into Python objects."""
    import pyarrow.csv
    import pyarrow.parquet

    began = time.perf_counter()
    read = pyarrow.csv.read_csv(table) if table.suffix == ".csv" else pyarrow.parquet.read_table(table)
    if len(read.to_pylist()) != count:
        raise AssertionError("pyarrow reads another number of rows")
    return count / (time.perf_counter() - began)
