"""`opportune replay`: what cannot be read at all, and a journal with events set aside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson

from engine.model import RecordKind
from engine.runtime.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
AT_MS = 1_795_140_000_000


def replay(*asked: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engine.cli", "replay", *asked],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
    )


def test_a_file_of_garbage_is_told_before_any_kernel_is_loaded(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.ndjson"
    garbage.write_bytes(b"hello\nworld {{\n[1, 2]\n\xff{}\n" + b"[" * 5000)
    run = replay(str(garbage), OPPORTUNE_NO_COMPILE="1", OPPORTUNE_CACHE_DIR=str(tmp_path / "cold"))
    assert run.returncode == 1
    assert run.stderr.strip().replace("\n", " ") == (
        f"no event in {garbage} could be read; --dead-letters - tells what is wrong with each"
    )


def test_odd_lines_among_events_are_dead_letters_and_stop_nothing(tmp_path: Path) -> None:
    """Not UTF-8, nested without end, and instants beyond every calendar were exceptions of the reader of files."""
    odd = [b'{"type": "profile", "user": "\xff", "at": 1}', b"[" * 5000, b'{"at": 1e308}', b'{"tst": 1e308}']
    event = orjson.dumps({"type": "profile", "user": "u", "at": AT_MS})
    events = tmp_path / "events.ndjson"
    events.write_bytes(b"\n".join([*odd, event]))
    run = replay(str(events), "--dead-letters", "-")
    assert run.returncode == 0, run.stderr
    assert "1 events" in run.stderr
    assert len([line for line in run.stdout.splitlines() if line.startswith("{")]) == len(odd)


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
