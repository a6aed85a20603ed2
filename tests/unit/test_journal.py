"""The journal: layout, torn ends, damage, groups, retention (docs/contracts.md Log record; T2, F22)."""

from __future__ import annotations

import os
import resource
import signal
import threading
from pathlib import Path

import google_crc32c
import pytest

from engine.errors import StoreCorrupt, StoreUnavailable
from engine.model import RecordKind
from engine.runtime import journal as journal_module
from engine.runtime.journal import Journal
from engine.runtime.segment import HEADER, list_segments
from engine.runtime.source import JournalSource

HOUR_MS = 3_600_000


def read_all(folder: Path | Journal, after: int = -1) -> list[tuple[int, int, int, bytes]]:
    source = JournalSource(folder, after=after)
    rows = []
    while blocks := source.poll(1000):
        for block in blocks:
            for k in range(len(block)):
                payload = block.data[block.start[k] : block.end[k]]
                rows.append((int(block.position[k]), int(block.append_ms[k]), int(block.kind[k]), payload))
    source.close()
    return rows


def filled(folder: Path, count: int = 5, **options) -> list[tuple[int, int, int, bytes]]:
    with_closing = Journal(folder, **options)
    for k in range(count):
        with_closing.append(b'{"n":%d}' % k, wall_ms=1000 + k)
    rows = read_all(with_closing)
    with_closing.close()
    return rows


def test_a_record_lies_as_the_contract_says(tmp_path):
    """Contract, Log record: length, crc32c of append time, kind and payload, append time, kind; little-endian."""
    journal = Journal(tmp_path)
    journal.append(b"hello", wall_ms=1234)
    journal.close()
    data = (tmp_path / f"{0:020d}.log").read_bytes()
    assert data[:4] == (5).to_bytes(4, "little")
    assert data[4:8] == google_crc32c.value(data[8:]).to_bytes(4, "little")
    assert data[8:16] == (1234).to_bytes(8, "little")
    assert data[16] == RecordKind.EVENTS
    assert data[17:] == b"hello"


def test_what_was_appended_is_read_in_order_and_append_time_never_falls(tmp_path):
    """T2: now is the append time as a running maximum, even if the wall clock steps back."""
    journal = Journal(tmp_path)
    positions = [journal.append(b"a", wall_ms=5000), journal.append(b"b", wall_ms=4000), journal.tick(6000)]
    rows = read_all(journal)
    assert [row[0] for row in rows] == positions == sorted(positions)
    assert [row[1] for row in rows] == [5000, 5000, 6000]
    assert [row[2] for row in rows] == [RecordKind.EVENTS, RecordKind.EVENTS, RecordKind.TICK]
    journal.close()
    again = Journal(tmp_path)
    assert again.last_append_ms == 6000
    assert again.last_position == positions[-1]
    again.append(b"c", wall_ms=1)
    assert read_all(again)[-1][1] == 6000
    again.close()


def test_a_group_is_one_write_with_a_position_for_each_payload(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    writes = []
    real = os.write
    monkeypatch.setattr(journal_module.os, "write", lambda fd, data: writes.append(len(data)) or real(fd, data))
    positions = journal.append_many([b"one", b"two", b"three"], wall_ms=1)
    assert len(writes) == 1
    assert [row[0] for row in read_all(journal)] == positions
    assert journal.append_many([], wall_ms=1) == []
    journal.close()


def test_a_journal_cut_at_any_byte_keeps_every_whole_record_and_goes_on(tmp_path):
    """kill -9 at any instant: the torn record is cut off, everything before it is there (F1)."""
    rows = filled(tmp_path / "whole")
    data = (tmp_path / "whole" / f"{0:020d}.log").read_bytes()
    for size in range(len(data) + 1):
        folder = tmp_path / f"cut-{size}"
        folder.mkdir()
        (folder / f"{0:020d}.log").write_bytes(data[:size])
        journal = Journal(folder)
        kept = [row for row in rows if row[0] + HEADER.size + len(row[3]) <= size]
        assert read_all(journal) == kept
        assert journal.cut_bytes == size - journal.end
        journal.append(b"next", wall_ms=9000)
        assert [row[3] for row in read_all(journal)] == [*(row[3] for row in kept), b"next"]
        journal.close()


def test_a_torn_end_of_zeros_is_cut_off(tmp_path):
    """After a power loss the file may be longer than what reached the disk."""
    rows = filled(tmp_path)
    path = tmp_path / f"{0:020d}.log"
    path.write_bytes(path.read_bytes() + bytes(4096))
    journal = Journal(tmp_path)
    assert journal.cut_bytes == 4096
    assert read_all(journal) == rows
    journal.close()


@pytest.mark.parametrize("where", ["length", "crc", "time", "kind", "payload"])
def test_damage_before_the_end_is_corruption_with_its_place(tmp_path, where):
    """Contract: a torn record at the end is cut; anywhere else it is corruption, named by segment and offset."""
    rows = filled(tmp_path)
    path = tmp_path / f"{0:020d}.log"
    data = bytearray(path.read_bytes())
    at = rows[2][0] + {"length": 1, "crc": 4, "time": 9, "kind": 16, "payload": 19}[where]
    data[at] ^= 0x55
    path.write_bytes(bytes(data))
    with pytest.raises(StoreCorrupt, match=rf"{path.name}: the record at offset {rows[2][0]} "):
        Journal(tmp_path)
    assert path.read_bytes() == bytes(data), "nothing acknowledged may be cut away"


def test_damage_in_an_older_segment_stops_the_reader_with_its_place(tmp_path):
    rows = filled(tmp_path, count=20, segment_bytes=100)
    first = list_segments(tmp_path)[0]
    data = bytearray(first.path.read_bytes())
    data[rows[1][0] + HEADER.size] ^= 1
    first.path.write_bytes(bytes(data))
    journal = Journal(tmp_path)
    source = JournalSource(journal)
    assert len(source.poll(1000)[0]) == 1
    with pytest.raises(StoreCorrupt, match=f"offset {rows[1][0]} "):
        source.poll(1000)
    source.close()
    journal.close()


def test_a_missing_segment_is_corruption(tmp_path):
    filled(tmp_path, count=20, segment_bytes=100)
    list_segments(tmp_path)[1].path.unlink()
    with pytest.raises(StoreCorrupt, match="a segment is missing"):
        Journal(tmp_path)


def test_segments_follow_each_other_without_a_seam(tmp_path):
    rows = filled(tmp_path, count=50, segment_bytes=100)
    assert len(list_segments(tmp_path)) > 5
    assert [row[3] for row in rows] == [b'{"n":%d}' % k for k in range(50)]
    for start in (0, 7, 49):
        assert read_all(tmp_path, after=rows[start][0]) == rows[start + 1 :]


def test_a_segment_also_ends_after_its_time_so_that_retention_can_be_kept(tmp_path):
    """I2: pings are kept 48 h, at most 72 h, however few there are."""
    journal = Journal(tmp_path)
    for hour in range(5):
        journal.append(b"x", wall_ms=hour * HOUR_MS + hour)
    assert len(list_segments(tmp_path)) == 5
    journal.close()


def test_only_old_segments_below_the_checkpoint_are_deleted(tmp_path):
    journal = Journal(tmp_path)
    positions = [journal.append(b"x", wall_ms=hour * HOUR_MS + hour) for hour in range(10)]
    now_ms = 10 * HOUR_MS
    assert journal.drop_before(positions[3], now_ms=now_ms, hours=48) == 0
    assert journal.drop_before(positions[3], now_ms=now_ms, hours=2) == 3
    assert read_all(journal)[0][0] == positions[3]
    assert journal.drop_before(positions[9], now_ms=now_ms, hours=5) == 1
    assert journal.drop_before(positions[9] + 1, now_ms=100 * HOUR_MS, hours=1) == 5
    assert [row[0] for row in read_all(journal)] == positions[9:]
    with pytest.raises(StoreCorrupt, match="was deleted"):
        JournalSource(journal, after=positions[3])
    journal.close()
    again = Journal(tmp_path)
    assert again.end == journal.end
    again.close()


def test_a_second_writer_is_refused_with_a_clear_message(tmp_path):
    journal = Journal(tmp_path)
    with pytest.raises(StoreUnavailable, match="another process"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_a_full_disk_is_unavailable_and_leaves_no_half_record(tmp_path):
    """F22: the half-written record is taken back; once there is room, appending goes on."""
    journal = Journal(tmp_path, fsync="never")
    journal.append(b"first", wall_ms=1)
    before = journal.end
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before + 30, hard))
    try:
        with pytest.raises(StoreUnavailable, match="cannot append"):
            journal.append(b"y" * 100, wall_ms=2)
        assert journal.end == before == os.path.getsize(tmp_path / f"{0:020d}.log")
        journal.append(b"z", wall_ms=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    journal.append(b"y" * 100, wall_ms=3)
    assert [row[3] for row in read_all(journal)] == [b"first", b"z", b"y" * 100]
    journal.close()


def test_a_failed_fsync_stops_everything_until_a_restart(tmp_path, monkeypatch):
    """F22: after EIO from fsync nobody knows what is on the disk."""
    journal = Journal(tmp_path, fsync="always")
    journal.append(b"first", wall_ms=1)

    def fail(fd):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(journal_module.os, "fdatasync", fail)
    with pytest.raises(StoreUnavailable, match="fsync failed"):
        journal.append(b"second", wall_ms=2)
    monkeypatch.undo()
    with pytest.raises(StoreUnavailable, match="until a restart"):
        journal.append(b"third", wall_ms=3)
    assert journal.failure is not None
    journal.close()


@pytest.mark.parametrize(("policy", "expected"), [("always", 10), ("interval", 4), ("never", 0)])
def test_fsync_happens_as_the_policy_says(tmp_path, monkeypatch, policy, expected):
    calls = []
    real = os.fdatasync
    monkeypatch.setattr(journal_module.os, "fdatasync", lambda fd: calls.append(fd) or real(fd))
    journal = Journal(tmp_path, fsync=policy, fsync_interval_s=0.010)
    for k in range(10):
        journal.append(b"x", wall_ms=1000 + 10 * k)
    assert len(calls) == expected
    journal.close()


def test_a_housekeeping_thread_takes_the_fsync_off_the_append(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(journal_module.os, "fdatasync", lambda fd: calls.append(fd))
    journal = Journal(tmp_path, fsync="interval", fsync_interval_s=0.010)
    for k in range(10):
        journal.append(b"x", wall_ms=1000 + 10 * k)
        journal.sync()
    assert len(calls) == 10
    journal.sync()
    assert len(calls) == 10, "nothing new, nothing to flush"
    journal.close()


def test_positions_the_ledger_knows_are_not_given_out_again(tmp_path):
    """After a power loss the ledger may know more than the journal; the gap is declared, not an error."""
    rows = filled(tmp_path)
    journal = Journal(tmp_path, not_before=10_000)
    assert journal.append(b"after", wall_ms=5000) == 10_000
    assert [row[3] for row in read_all(journal)] == [*(row[3] for row in rows), b"after"]
    assert read_all(journal, after=rows[-1][0])[0][0] == 10_000
    journal.close()
    again = Journal(tmp_path, not_before=10_000)
    assert len(list_segments(tmp_path)) == 2
    again.close()


def test_a_rewriting_cut_short_leaves_every_segment_whole_and_no_copy(tmp_path, monkeypatch):
    """I2: a power loss in the middle must not make the journal unreadable, nor leave data behind beside it."""
    journal = Journal(tmp_path, segment_bytes=60)
    for k in range(6):
        journal.append(b'{"user":"u%d"}' % (k % 2), wall_ms=k)
    before = read_all(journal)

    def cut(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", cut)
        with pytest.raises(StoreUnavailable, match="No space left"):
            journal.rewrite(lambda payload: b" " * len(payload))
    assert list(tmp_path.glob("*.rewritten"))
    journal.close()
    again = Journal(tmp_path)
    assert not list(tmp_path.glob("*.rewritten"))
    assert read_all(again) == before
    assert again.rewrite(lambda payload: b" " * len(payload)) == 6
    again.append(b"after", wall_ms=9)
    assert b"after" in list_segments(tmp_path)[-1].path.read_bytes()
    again.close()


def test_a_segment_that_cannot_be_read_whole_is_not_half_rewritten(tmp_path):
    """I2: what follows the damage would go on holding the user."""
    journal = Journal(tmp_path)
    for k in range(6):
        journal.append(b'{"user":"u1","k":%d}' % k, wall_ms=k)
    (segment,) = list_segments(tmp_path)
    data = bytearray(segment.path.read_bytes())
    data[60] ^= 1
    segment.path.write_bytes(data)
    with pytest.raises(StoreCorrupt, match="is damaged"):
        journal.rewrite(lambda payload: b" " * len(payload))
    journal.close()


def test_payloads_can_be_blanked_in_place(tmp_path):
    """I2: forgetting a user rewrites what the journal holds, at the same positions."""
    journal = Journal(tmp_path, segment_bytes=60)
    for k in range(6):
        journal.append(b'{"user":"u%d"}' % (k % 2), wall_ms=k)
    before = read_all(journal)
    changed = journal.rewrite(lambda payload: b" " * len(payload) if b'"u1"' in payload else payload)
    assert changed == 3
    after = read_all(journal)
    assert [row[:3] for row in after] == [row[:3] for row in before]
    assert b"u1" not in b"".join(path.read_bytes() for path in tmp_path.glob("*.log"))
    with pytest.raises(ValueError, match="length"):
        journal.rewrite(lambda payload: payload + b" ")
    journal.close()


def test_many_threads_append_without_mixing(tmp_path):
    journal = Journal(tmp_path, fsync="never", segment_bytes=5000)
    threads = [
        threading.Thread(target=lambda who=who: [journal.append(b"%d:%d" % (who, k), wall_ms=k) for k in range(200)])
        for who in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [row[3].split(b":") for row in read_all(journal)]
    for who in range(4):
        assert [int(number) for name, number in rows if int(name) == who] == list(range(200))
    journal.close()


def test_a_waiting_reader_is_woken_by_an_append(tmp_path):
    journal = Journal(tmp_path)
    source = JournalSource(journal)
    assert not source.wait(0.0)
    woken = []
    thread = threading.Thread(target=lambda: woken.append(source.wait(10.0)))
    thread.start()
    journal.append(b"x", wall_ms=1)
    thread.join(10.0)
    assert woken == [True]
    source.close()
    journal.close()
