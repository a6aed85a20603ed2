"""Importing tables of users: faults by row and column, going on after a cut, CSV and Parquet alike (A1, A2)."""

from __future__ import annotations

import asyncio
import csv
import datetime
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from engine.cli import app, profiles
from engine.console.bites import FEWEST_ROWS, MOST_ROWS, BiteSize
from engine.console.importing import TooManyFaults, import_rows
from engine.decode.profile_columns import ProfileRows, RowFault
from engine.errors import OpportuneError, StoreUnavailable
from engine.runtime.profile_files import Progress, TableFile
from tests.world import NOON_MS

HEADER = "user,tags,attribute.age,time_zone,consent.location,consent_at\n"


class ListEngine:
    """Takes bites into a list; breaks before the bite of this number."""

    bite_s, rest = 0.0, 0.0

    def __init__(self, breaks_at: int = -1) -> None:
        self.bites: list[list[dict[str, Any]]] = []
        self.breaks_at = breaks_at

    async def take(self, payload: bytes) -> None:
        if len(self.bites) == self.breaks_at:
            raise StoreUnavailable("gone")
        self.bites.append([orjson.loads(line) for line in payload.split(b"\n")])

    @property
    def users(self) -> list[str]:
        return [event["user"] for bite in self.bites for event in bite if event["type"] == "profile"]


def bring(path: Path, engine: ListEngine, progress: Progress | None = None, most_faults: int = 1000):
    table = TableFile(path)
    rows = ProfileRows(table.columns, at_ms=NOON_MS, latest_ms=NOON_MS)
    faults: list[RowFault] = []
    work = import_rows(
        table, rows, engine, progress, most_faults=most_faults, on_fault=faults.append, on_progress=lambda *_: None
    )
    return asyncio.run(work), faults


def write(path: Path, *rows: str) -> Path:
    path.write_text(HEADER + "".join(row + "\n" for row in rows))
    return path


def test_bad_rows_are_told_by_row_and_column_without_their_values_and_the_rest_goes_on(tmp_path):
    path = write(
        tmp_path / "users.csv",
        "u1,a|b,36,Asia/Shanghai,yes,1767326400000",
        "u2,a,old,Asia/Beijing,,",
        ",a,1,,,",
        "u4,a,1,,perhaps,1767326400000",
        "u5,a,1,,yes,",
        "u6,a,1,,yes,2026-01-02T03:04:05",
        "u7,a,1,,yes,1767326400",
        "u8,a,1,,yes,2036-01-02T03:04:05Z",
        "u9,a",
        '"u10,a,1,,,',
    )
    with path.open("ab") as file:
        file.write(b'"\nu\xff11,a,1,,,\nu12,,,,,\n')
    engine = ListEngine()
    tally, faults = bring(path, engine)
    assert engine.users == ["u1", "u12"]
    assert [(fault.row, fault.column) for fault in faults] == [
        (3, "time_zone"),
        (4, "user"),
        (5, "consent.location"),
        (6, "consent_at"),
        (7, "consent_at"),
        (8, "consent_at"),
        (9, "consent_at"),
        (10, "-"),
        (12, "-"),
        (13, "user"),
    ]
    assert (tally.rows, tally.refused) == (12, 10)
    assert not any(word in str(fault) for fault in faults for word in ("Beijing", "perhaps", "1767326400,", "2036"))


def test_a_cut_import_goes_on_where_it_stopped_and_a_changed_file_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.console.importing._SAVE_EVERY_S", -1.0)
    path = write(tmp_path / "users.csv", *(f"u{number},a,{number},,," for number in range(500)))
    first, again = ListEngine(breaks_at=3), ListEngine()
    with pytest.raises(StoreUnavailable):
        bring(path, first, Progress(TableFile(path), "here"))
    kept = Progress(TableFile(path), "here")
    assert 0 < kept.rows == len(first.users) < 500
    assert Progress(TableFile(path), "elsewhere").rows == 0
    tally, _ = bring(path, again, kept)
    assert first.users + again.users == [f"u{number}" for number in range(500)]
    assert (tally.done_before, tally.rows) == (len(first.users), 500)
    assert not kept.path.exists()
    path.write_text(path.read_text() + "u500,a,1,,,\n")
    assert Progress(TableFile(path), "here").rows == 0


def test_an_import_cut_off_in_its_first_instant_goes_on_after_its_first_bite(tmp_path):
    path = write(tmp_path / "users.csv", *(f"u{number},a,{number},,," for number in range(500)))
    first = ListEngine(breaks_at=1)
    with pytest.raises(StoreUnavailable):
        bring(path, first, Progress(TableFile(path), "here"))
    assert 0 < Progress(TableFile(path), "here").rows == len(first.users)


def test_too_many_faults_stop_the_import(tmp_path):
    path = write(tmp_path / "users.csv", *(",a,1,,," for _ in range(20)))
    with pytest.raises(TooManyFaults, match=r"more than 3 rows.*row 5"):
        bring(path, ListEngine(), most_faults=3)


def learned(bite_s: float, cost: Callable[[int], float], bites: int = 60) -> list[int]:
    """Return the sizes of that many bites, each of which takes what `cost` says."""
    size, sizes = BiteSize(bite_s), []
    for _ in range(bites):
        sizes.append(size.rows)
        size.learn(sizes[-1], cost(sizes[-1]))
    return sizes


@pytest.mark.parametrize("fixed_s", [0.0, 0.005, 0.3], ids=["nothing fixed", "a little", "much"])
@pytest.mark.parametrize(("row_s", "most"), [(0.0005, 30), (0.00001, 1500), (0.000001, MOST_ROWS)])
def test_a_bite_holds_the_rows_that_keep_the_engine_busy_for_its_time_whatever_a_request_costs(fixed_s, row_s, most):
    sizes = learned(0.015, lambda rows: fixed_s + rows * row_s)
    assert sizes[:2] == [100, 50]
    assert max(sizes[-6:]) == pytest.approx(most, abs=1)


def test_a_bite_does_not_shrink_because_others_keep_the_machine_busy():
    dice = random.Random(1)
    sizes = learned(0.015, lambda rows: 0.05 + rows * 0.00001 + dice.expovariate(1 / 0.03), bites=1200)
    assert sum(sizes[600:]) / 600 > 400, "half a bite of 1,500 rows: what they average without the noise is 1,125"


def test_a_bite_is_never_smaller_or_larger_than_allowed_nor_grows_by_leaps():
    slow, quick = learned(0.015, lambda rows: rows * 1.0), learned(0.015, lambda rows: 0.001)
    assert min(slow) == FEWEST_ROWS // 2
    assert max(quick) == MOST_ROWS
    whole = quick[0::2]
    assert all(after <= 2 * before for before, after in itertools.pairwise(whole))


def test_every_row_arrives_once_in_order_whatever_the_bites(tmp_path):
    class Slow(ListEngine):
        bite_s = 0.01

        async def take(self, payload: bytes) -> None:
            await super().take(payload)
            await asyncio.sleep(0.0001 * len(self.bites[-1]))

    engine = Slow()
    bring(write(tmp_path / "users.csv", *(f"u{number},a,{number},,," for number in range(600))), engine)
    assert [len(bite) for bite in engine.bites][:2] == [100, 50]
    assert engine.users == [f"u{number}" for number in range(600)]


def test_parquet_rows_make_the_events_that_the_same_csv_rows_make(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    when = datetime.datetime(2026, 1, 2, 4, tzinfo=datetime.UTC)
    table = pyarrow.table(
        {
            "user": ["u1", "u2"],
            "tags": [["a", "b"], None],
            "attribute.age": [36, None],
            "time_zone": ["Asia/Shanghai", None],
            "consent.location": [True, False],
            "consent_at": pyarrow.array([when, when], pyarrow.timestamp("ns", "UTC")),
        }
    )
    parquet.write_table(table, tmp_path / "users.parquet")
    text = write(tmp_path / "users.csv", f"u1,a|b,36,Asia/Shanghai,yes,{NOON_MS}", "u2,,,,no,2026-01-02T12:00:00+08:00")
    engines = ListEngine(), ListEngine()
    for engine, path in zip(engines, (tmp_path / "users.parquet", text), strict=True):
        _, faults = bring(path, engine)
        assert faults == []
    assert engines[0].bites == engines[1].bites
    assert len(engines[0].bites[0]) == 4


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("user,tag", "'tag' is no column of a profile; did you mean 'tags'?"),
        ("tags", "there is no column 'user'"),
        ("user,consent.location", "'consent.location.at' or 'consent_at' must say when"),
        ("user,consent.location.at", "'consent.location' is missing"),
        ("user,user", "'user' stands there twice"),
        ("user,consent.telepathy", "'consent.telepathy' is no column"),
    ],
)
def test_columns_that_cannot_be_used_refuse_the_file_before_anything_is_sent(header, words):
    with pytest.raises(OpportuneError) as caught:
        ProfileRows(header.split(","), at_ms=NOON_MS, latest_ms=NOON_MS)
    assert words in str(caught.value)


def test_the_command_checks_a_file_and_lists_its_faults_safely(tmp_path):
    path = write(tmp_path / "users.csv", "u1,a,1,,,", "u2,a,1,Nowhere,,")
    if not any(group.name == "profiles" for group in app.registered_groups):
        profiles.register(app)
    listing = tmp_path / "faults.csv"
    done = CliRunner().invoke(app, ["profiles", "import", str(path), "--check", "--faults", str(listing)])
    assert done.exit_code == 1
    assert "1 rows can be imported, 1 refused" in done.output
    with listing.open() as file:
        assert list(csv.reader(file))[1][:2] == ["3", "time_zone"]
    assert not path.with_name("users.csv.progress").exists()


def test_a_file_that_is_no_text_is_refused_in_a_line(tmp_path):
    path = tmp_path / "users.csv"
    path.write_bytes(bytes(range(128, 256)))
    with pytest.raises(OpportuneError, match="the first line is no text in UTF-8; save the table as CSV in UTF-8"):
        TableFile(path)
