"""Pools of codes: import, duplicates, restart, leases that return, and no code where none belongs (O3)."""

from __future__ import annotations

import csv
import io
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from engine.cli import codes as cli_codes
from engine.errors import OpportuneError
from engine.ledger import codes_import, codes_kernel
from engine.ledger.codes import BLOCK, CodeStore
from engine.ledger.codes_import import import_codes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path):
    store = CodeStore(tmp_path / "codes.db")
    yield store
    store.close()


def write(path: Path, codes, header: str = "") -> Path:
    path.write_text(header + "".join(f"{code}\n" for code in codes))
    return path


def all_codes(store: CodeStore, pool: str) -> list[str | None]:
    (state,) = [one for one in store.pools() if one.name == pool]
    return [store.code(pool, number) for number in range(state.count)]


def test_every_code_is_found_by_its_number(store: CodeStore, tmp_path: Path) -> None:
    codes = [f"A{number:05d}" for number in range(3 * BLOCK + 7)]
    done = import_codes(store, "film", write(tmp_path / "a.csv", codes, "code\n"))
    assert (done.lines, done.imported, done.duplicates, done.refused) == (len(codes), len(codes), 0, 0)
    assert all_codes(store, "film") == codes
    assert store.reveal("film#0") == "A00000"
    for ref in (f"film#{len(codes)}", "film#-1", "film#x", "film", "tea#0"):
        assert store.reveal(ref) is None


def test_a_second_file_goes_on_numbering_and_counts_what_is_there_already(store: CodeStore, tmp_path: Path) -> None:
    first = [f"A{number}" for number in range(1500)]
    second = ["B1", "A7", "B2", "B1", "A1499"]
    import_codes(store, "film", write(tmp_path / "a.csv", first))
    done = import_codes(store, "film", write(tmp_path / "b.csv", second))
    assert (done.imported, done.duplicates) == (2, 3)
    assert all_codes(store, "film") == [*first, "B1", "B2"]
    other = import_codes(store, "tea", write(tmp_path / "c.csv", ["A7"]))
    assert other.imported == 1, "pools are apart"


def test_a_file_imported_twice_changes_nothing(store: CodeStore, tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", ["A1", "A2"])
    import_codes(store, "film", file)
    again = import_codes(store, "film", file)
    assert again.was_begun
    assert (again.imported, store.pools()[0].count) == (2, 2)
    renamed = write(tmp_path / "other.csv", ["A2", "A1", "A3"])
    assert import_codes(store, "film", renamed).imported == 1


def test_lines_without_a_code_are_counted_and_named_by_number(store: CodeStore, tmp_path: Path) -> None:
    text = (
        'partner,code,value\r\nx,"A1",5\r\nx,,5\r\nx,A 2,5\r\n\r\nx, A3 ,5\r\nx\r\nx,http://a.cn/b,5\r\n'
        + "x,"
        + "a" * 65
    )
    (tmp_path / "a.csv").write_text(text)
    done = import_codes(store, "film", tmp_path / "a.csv")
    assert all_codes(store, "film") == ["A1", "A3"]
    assert (done.imported, done.refused) == (2, 5)
    with pytest.raises(OpportuneError, match="must name one of them `code`"):
        import_codes(store, "film", write(tmp_path / "b.csv", ["A,B"]))


def test_codes_with_equal_hashes_are_two_codes(
    store: CodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hash names a suspect, the bytes decide."""
    monkeypatch.setattr(codes_kernel, "admit", _admit_with_one_hash)
    done = import_codes(store, "film", write(tmp_path / "a.csv", ["A1", "A2", "A1", "A3", "A2"]))
    assert all_codes(store, "film") == ["A1", "A2", "A3"]
    assert (done.imported, done.duplicates) == (3, 2)


def _admit_with_one_hash(data, start, end, bad, hashes, table, first, seen):
    seen[:] = first
    seen[0] = -1
    hashes[first] = 1
    table[1] = first + 1
    return first + 1


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.text("ab1-_ \t!", max_size=6), min_size=1, max_size=3), max_size=30),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_lines_are_read_as_the_csv_module_reads_them(rows: list[list[str]], end: str) -> None:
    text = "".join(",".join(row) + end for row in rows)
    data = np.frombuffer(text.encode(), np.uint8)
    lines = text.count("\n")
    start, stop, bad = np.empty(lines, np.int64), np.empty(lines, np.int64), np.empty(lines, np.bool_)
    found = codes_kernel.find_codes(data, 1, start, stop, bad)
    expected = []
    for row in csv.reader(io.StringIO(text)):
        if row:
            code = row[1].strip(" \t") if len(row) > 1 else ""
            expected.append(code if code and all(one.isalnum() or one in "-_" for one in code) else None)
    got = [None if bad[k] else text.encode()[start[k] : stop[k]].decode() for k in range(found)]
    assert got == expected


def test_a_lease_gives_what_came_back_first_and_nothing_twice(store: CodeStore, tmp_path: Path) -> None:
    import_codes(store, "film", write(tmp_path / "a.csv", [f"A{number}" for number in range(10)]))

    def lease(most: int) -> list[tuple[int, int]]:
        return [(one.first, one.count) for one in store.lease("film", most)]

    assert lease(4) == [(0, 4)]
    assert lease(4) == [(4, 4)]
    store.take_back("film", [(2, 4), (5, 6)])
    store.take_back("film", [(3, 4)])
    assert (store.pools()[0].leased, store.pools()[0].free) == (5, 5)
    assert lease(4) == [(2, 2), (5, 1), (8, 1)]
    assert lease(9) == [(9, 1)]
    assert lease(9) == []
    assert store.lease("tea", 1) == []


def test_a_lease_that_never_reached_the_log_is_free_again(store: CodeStore, tmp_path: Path) -> None:
    import_codes(store, "film", write(tmp_path / "a.csv", [f"A{number}" for number in range(10)]))
    store.lease("film", 3)
    store.lease("film", 3)
    store.keep_leased("film", [(0, 3)])
    assert [(one.first, one.count) for one in store.lease("film", 9)] == [(3, 3), (6, 4)]


def test_recalling_ends_an_epoch(store: CodeStore, tmp_path: Path) -> None:
    import_codes(store, "film", write(tmp_path / "a.csv", ["A1", "A2"]))
    assert store.lease("film", 1)[0].epoch == 1
    assert store.recall("film") == 1
    assert store.lease("film", 1)[0].epoch == 2
    with pytest.raises(OpportuneError, match="there is no pool 'tea'"):
        store.recall("tea")


def test_the_store_is_for_its_owner_alone(store: CodeStore) -> None:
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_the_command_tells_counts_and_lines_and_never_a_code(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", ["SECRET1", "SECRET1", "SEC RET"])
    done = CliRunner().invoke(cli_codes.codes_app, ["import", "film", str(file), "--state", str(tmp_path)])
    assert done.exit_code == 1
    assert "1 codes imported, 1 were there already, 1 lines refused" in done.output
    assert "line 3" in done.output
    assert "SEC" not in done.output
    listed = CliRunner().invoke(cli_codes.codes_app, ["list", "--state", str(tmp_path)])
    assert listed.output.splitlines() == ["pool\tcodes\tleased\tfree\tepoch", "film\t1\t0\t1\t1"]


def test_an_import_killed_at_any_instant_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 in the middle, several times; at the end every code is there once."""
    codes = [f"K{number:07d}" for number in range(60_000)]
    file = write(tmp_path / "a.csv", codes)
    script = (
        "import sys; from pathlib import Path; from engine.ledger import codes_import as c; "
        "from engine.ledger.codes import CodeStore; c.CHUNK_BYTES = 4096; "
        "store = CodeStore(Path(sys.argv[1])); print('begun', flush=True); "
        "c.import_codes(store, 'film', Path(sys.argv[2])); print('done', flush=True)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "codes.db"), str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    kills = 0
    for wait_s in (0.01, 0.03, 0.06):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(wait_s)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert kills > 0
    monkeypatch.setattr(codes_import, "CHUNK_BYTES", 4096)
    store = CodeStore(tmp_path / "codes.db")
    done = import_codes(store, "film", file)
    assert (done.lines, done.imported, done.duplicates) == (len(codes), len(codes), 0)
    assert all_codes(store, "film") == codes
    store.close()
