"""`opportune replay`: what cannot be read at all, and a journal with events set aside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson

from engine.model import RecordKind
from engine.runtime.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
AT_MS = 1_795_140_000_000


def replay(*asked: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engine.cli", "replay", *asked], cwd=ROOT, capture_output=True, text=True
    )


def test_a_file_of_garbage_is_told_and_fails(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.ndjson"
    garbage.write_bytes(b"hello\nworld {{\n[1, 2]\n")
    run = replay(str(garbage))
    assert run.returncode == 1
    assert "no event in" in run.stderr
    assert "could be read" in run.stderr


def test_f2_a_journal_is_replayed_without_what_its_service_set_aside(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", fsync="never")
    events = [orjson.dumps({"type": "profile", "user": f"u{number}", "at": AT_MS}) for number in range(3)]
    journal.append(events[0], wall_ms=AT_MS)
    position = journal.append(b"\n".join(events[1:]), wall_ms=AT_MS)
    journal.append(b"", wall_ms=AT_MS + 1000, kind=RecordKind.TICK)
    journal.close()
    aside = {"position": position, "item": 1, "error": "ZeroDivisionError"}
    (tmp_path / "quarantine.jsonl").write_bytes(orjson.dumps(aside) + b"\n")
    run = replay("--state", str(tmp_path), "--dead-letters", "-")
    assert run.returncode == 0, run.stderr
    (letter,) = [orjson.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert (letter["reason"], letter["item"]) == ("engine_fault", 1)
    assert "2 events" in run.stderr


def test_neither_files_nor_state_is_refused() -> None:
    assert replay().returncode == 2
