"""The audit log: every change once, a chain that names a row that was touched, no trace of who is forgotten (A14)."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from engine.changes import Change
from engine.cli.audit import list_rows, verify
from engine.definitions import BenefitDefinition, Stage
from engine.ledger.audit import SELECT_HEAD, SELECT_ROWS, first_break, forgotten_name, read_rows
from engine.ledger.embedded import EmbeddedLedger
from engine.ledger.reading import LedgerReader
from engine.model import Mode, RecordKind
from tests.world import NOON_MS, block_of, consent, make_pipeline, small_content


def record(pipeline, ledger, values, position, kinds=RecordKind.EVENTS, contents=None) -> None:
    block = block_of(values, position=position, append_ms=NOON_MS, kinds=kinds)
    effects = pipeline.process(block, lambda payload: contents[orjson.loads(payload)["version"]])
    ledger.commit(
        position + len(values) - 1,
        NOON_MS,
        consents=effects.consents,
        closed_users=effects.closed_users,
        pauses=effects.pauses,
        changes=effects.changes,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ledger with a first content, a second with another mode, a pause, and consents of two users."""
    first = small_content("v1")
    scenarios = tuple(replace(one, mode=Mode.DRAFT) if one.id == "national/shop" else one for one in first.scenarios)
    contents = {"v1": first, "v2": small_content("v2", scenarios=scenarios)}
    pipeline, ledger = make_pipeline(first), EmbeddedLedger(tmp_path / "ledger.db")
    record(pipeline, ledger, [{"version": "v1"}, {"version": "v2", "by": "files"}], 0, RecordKind.CONTENT, contents)
    paused = {"pause": "national/watch", "paused": True, "by": "api key, curl"}
    record(pipeline, ledger, [paused], 2, RecordKind.CONTROL)
    events = [
        consent("zarathustra", NOON_MS - 9),
        consent("u2", NOON_MS),
        consent("zarathustra", NOON_MS, granted=False),
    ]
    record(pipeline, ledger, events, 3)
    closed = {"type": "user-closed", "user": "u2", "at": NOON_MS}
    record(pipeline, ledger, [closed], 6)
    ledger.close()
    return tmp_path


def rows_of(folder: Path):
    reader = LedgerReader(folder / "ledger.db")
    rows, (head,) = list(read_rows(reader.rows(SELECT_ROWS))), next(iter(reader.rows(SELECT_HEAD)))
    reader.close()
    return rows, head


def test_changes_of_content_mode_pause_and_consent_are_rows_in_order(folder):
    rows, head = rows_of(folder)
    bodies = [orjson.loads(row.body) for row in rows]
    assert [(row.what, row.who, row.position) for row in rows] == [
        ("content", "files", 0),
        ("content", "files", 1),
        ("mode", "files", 1),
        ("pause", "api key, curl", 2),
        ("consent", "users", 3),
        ("consent", "users", 6),
    ]
    assert bodies[0] == {"subject": "*", "old": None, "new": "v1"}
    assert bodies[2] == {"subject": "national/shop", "old": "live", "new": "draft"}
    assert bodies[3] == {"subject": "national/watch", "old": False, "new": True}
    said = [(one["old"], one["new"], one["purpose"]) for one in bodies[4]["changes"]]
    assert said == [(None, True, "marketing.sms"), (None, True, "marketing.sms"), (True, False, "marketing.sms")]
    assert bodies[5]["changes"][0]["source"] == "user-closed"
    assert first_break(rows, head) is None


def test_a_benefit_that_is_listed_paused_stopped_new_or_gone_is_a_row(tmp_path):
    def of(version: str, **stages: Stage):
        benefits = tuple(
            BenefitDefinition(f"national/{name}", name, "video", "wanda", stage=stage)
            for name, stage in sorted(stages.items())
        )
        return small_content(version, benefits=benefits)

    contents = {
        "v1": of("v1", film=Stage.DRAFT, taxi=Stage.RUNNING),
        "v2": of("v2", film=Stage.LISTED, taxi=Stage.PAUSED),
        "v3": of("v3", film=Stage.RUNNING, taxi=Stage.STOPPED, game=Stage.DRAFT),
        "v4": of("v4", film=Stage.RUNNING, game=Stage.DRAFT),
    }
    pipeline, ledger = make_pipeline(contents["v1"]), EmbeddedLedger(tmp_path / "ledger.db")
    record(pipeline, ledger, [{"version": version} for version in contents], 0, RecordKind.CONTENT, contents)
    ledger.close()
    rows, head = rows_of(tmp_path)
    told = [
        (row.position, body["subject"], body["old"], body["new"])
        for row in rows
        if row.what == "stage" and (body := orjson.loads(row.body))
    ]
    assert told == [
        (1, "national/film", "draft", "listed"),
        (1, "national/taxi", "running", "paused"),
        (2, "national/film", "listed", "running"),
        (2, "national/game", None, "draft"),
        (2, "national/taxi", "paused", "stopped"),
        (3, "national/taxi", "stopped", None),
    ]
    assert first_break(rows, head) is None


def test_that_a_user_was_forgotten_is_a_row_which_only_who_knows_the_id_and_has_the_key_finds(folder, capsys):
    (folder / "offer-id.key").write_bytes(b"k" * 32)
    (folder / "offer-id.key").chmod(0o600)
    name = forgotten_name(b"k" * 32, "zarathustra")
    told = Change(-1, NOON_MS, "local, ops", "forget", name, None, None)
    for _ in range(2):  # done again after a crash, it is one row
        ledger = EmbeddedLedger(folder / "ledger.db")
        ledger.forget("zarathustra", told)
        ledger.close()
    rows, head = rows_of(folder)
    assert [(row.what, row.who) for row in rows if row.what == "forget"] == [("forget", "local, ops")]
    assert first_break(rows, head) is None
    assert all(b"zarathustra" not in path.read_bytes() for path in folder.iterdir())
    list_rows(state=folder, limit=100, user="zarathustra")
    assert "forget" in capsys.readouterr().out
    list_rows(state=folder, limit=100, user="u2")
    assert "forget" not in capsys.readouterr().out
    (folder / "offer-id.key").write_bytes(b"another key of the deployment...")
    (folder / "offer-id.key").chmod(0o600)
    list_rows(state=folder, limit=100, user="zarathustra")
    assert "forget" not in capsys.readouterr().out
    with pytest.raises(Exception, match="forget"):
        list_rows(state=folder, limit=100, what="forgotten")


def test_a_replay_cut_differently_writes_nothing_again(folder):
    before, _ = rows_of(folder)
    pipeline, ledger = make_pipeline(small_content("v2")), EmbeddedLedger(folder / "ledger.db")
    events = [consent("zarathustra", NOON_MS, granted=False), {"type": "user-closed", "user": "u2", "at": NOON_MS}]
    record(pipeline, ledger, [*events, consent("u3", NOON_MS)], 5)
    ledger.close()
    after, _ = rows_of(folder)
    assert after[: len(before)] == before
    assert [row.position for row in after[len(before) :]] == [7]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ("UPDATE audit SET body = replace(body, 'draft', 'live') WHERE seq = 3", "row 3 is not as it was written"),
        ("UPDATE audit SET who = 'somebody' WHERE seq = 4", "row 4 is not as it was written"),
        ("UPDATE audit SET at_ms = at_ms + 1 WHERE seq = 5", "row 5 is not as it was written"),
        ("DELETE FROM audit WHERE seq = 2", "row 2 is missing"),
        ("DELETE FROM audit WHERE seq = 6", "row 6 is missing at the end"),
        ("UPDATE audit SET seq = 7 WHERE seq = 6", "row 6 is missing"),
        ("UPDATE audit SET hash = zeroblob(32) WHERE seq = 1", "row 1 is not as it was written"),
    ],
)
def test_a_row_that_was_touched_is_named(folder, capsys, edit, named):
    verify(state=folder)
    assert "6 rows, whole" in capsys.readouterr().out
    with sqlite3.connect(folder / "ledger.db") as connection:
        connection.execute(
            edit.replace("replace(body", "CAST(replace(CAST(body AS TEXT)").replace("'live')", "'live') AS BLOB)")
        )
    connection.close()
    with pytest.raises(Exception, match="1"):
        verify(state=folder)
    assert named in capsys.readouterr().out


def test_a_chain_written_anew_does_not_hold_a_head_that_was_noted(folder, capsys):
    _, head = rows_of(folder)
    verify(state=folder, head=head)
    with pytest.raises(Exception, match="1"):
        verify(state=folder, head="6:" + "0" * 64)
    assert "written anew" in capsys.readouterr().out


def test_consents_of_a_user_are_found_until_the_user_is_forgotten_and_the_chain_stays_whole(folder, capsys):
    list_rows(state=folder, limit=100, user="zarathustra")
    told = capsys.readouterr().out
    assert told.count("marketing.sms") == 2
    assert "zarathustra" not in told
    ledger = EmbeddedLedger(folder / "ledger.db")
    ledger.forget("zarathustra")
    ledger.close()
    assert all(b"zarathustra" not in path.read_bytes() for path in folder.iterdir())
    list_rows(state=folder, limit=100, user="zarathustra")
    assert "marketing.sms" not in capsys.readouterr().out
    rows, head = rows_of(folder)
    assert first_break(rows, head) is None


def test_an_automatic_pause_is_written_once_whatever_a_replay_brings(tmp_path):
    ledger = EmbeddedLedger(tmp_path / "ledger.db")
    change = Change(-1, NOON_MS, "limit", "pause", "a/s", False, True)
    ledger.commit(1, NOON_MS, changes=[change])
    ledger.commit(2, NOON_MS, changes=[change, replace(change, at_ms=NOON_MS + 1)])
    ledger.close()
    assert [row.at_ms for row in rows_of(tmp_path)[0]] == [NOON_MS, NOON_MS + 1]
