"""One suite over every RecordSource (docs/contracts.md RecordSource; T2, F3, F4)."""

from __future__ import annotations

import gzip
import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from engine.errors import StoreError
from engine.model import Block, RecordKind
from engine.runtime.fake_source import FakeRecord, FakeSource
from engine.runtime.file_source import FileSource
from engine.runtime.journal import Journal
from engine.runtime.source import JournalSource, RecordSource
from tests.kafka_topics import KafkaTopic, Patient

COUNT = 40


@dataclass
class Home:
    """One kind of source over the same forty events; `open(after)` is a start behind a committed position."""

    open: Callable[[int], RecordSource]


def event(k: int) -> bytes:
    return b'{"user":"u%d","at":%d}' % (k % 7, 1_700_000_000_000 + 1000 * k)


HOMES = ["journal", "journal in many segments", "file", "gzipped file", "file in order", "fake", "aiokafka", "faust"]


@pytest.fixture(params=HOMES)
def home(request, tmp_path: Path) -> Iterator[Home]:
    events = [event(k) for k in range(COUNT)]
    if request.param in ("aiokafka", "faust"):
        topic = KafkaTopic(request.getfixturevalue("kafka_address"), 1)
        topic.send(0, events)
        opened: list[RecordSource] = []

        def open_kafka(after: int) -> RecordSource:
            opened.append(Patient(topic.open(request.param, after), COUNT - 1))
            return opened[-1]

        yield Home(open_kafka)
        for source in opened:
            source.close()
        return
    yield local_home(request.param, tmp_path, events)


def local_home(kind: str, tmp_path: Path, events: list[bytes]) -> Home:
    if kind.startswith("journal"):
        journal = Journal(tmp_path, segment_bytes=100 if "many" in kind else 1 << 20)
        for k, payload in enumerate(events):
            journal.append(payload, wall_ms=k)
        journal.close()
        return Home(lambda after: JournalSource(tmp_path, after=after))
    if kind == "fake":
        records = [FakeRecord(payload, k) for k, payload in enumerate(events)]

        def open_fake(after: int) -> RecordSource:
            source = FakeSource({0: records})
            source.committed[0] = after
            return source

        return Home(open_fake)
    path = tmp_path / "events.ndjson"
    text = b"\n".join(events) + b"\n"
    path.write_bytes(gzip.compress(text) if "gzipped" in kind else text)
    sort_bytes = 0 if "in order" in kind else 1 << 20
    return Home(lambda after: FileSource([path], after=after, sort_bytes=sort_bytes))


def drain(source: RecordSource, max_events: int = 1000) -> list[Block]:
    blocks = []
    while found := source.poll(max_events):
        blocks.extend(found)
    return blocks


def payloads(blocks: list[Block]) -> list[bytes]:
    return [bytes(block.data[block.start[k] : block.end[k]]) for block in blocks for k in range(len(block))]


@pytest.mark.parametrize("max_events", [1, 7, 1000])
def test_every_record_comes_once_in_order_however_it_is_cut(home, max_events):
    """T4; blocks of one partition come in position order."""
    blocks = drain(home.open(-1), max_events)
    assert payloads(blocks) == [event(k) for k in range(COUNT)]
    assert all(0 < len(block) <= max_events for block in blocks)
    positions = np.concatenate([block.position for block in blocks])
    assert (np.diff(positions) > 0).all()
    assert positions[0] >= 0


def test_a_block_is_arrays_over_one_buffer(home):
    block = drain(home.open(-1))[0]
    assert isinstance(block.data, bytes)
    for array in (block.start, block.end, block.position, block.append_ms):
        assert array.dtype == np.int64
    assert block.kind.dtype == np.uint8
    assert set(block.kind.tolist()) == {RecordKind.EVENTS}


@pytest.mark.parametrize("done", [0, 17, COUNT - 1])
def test_a_start_behind_a_committed_position_gives_the_rest(home, done):
    positions = np.concatenate([block.position for block in drain(home.open(-1))])
    rest = drain(home.open(int(positions[done])), 9)
    assert payloads(rest) == [event(k) for k in range(done + 1, COUNT)]
    if rest:
        assert rest[0].position[0] == positions[done + 1]


def test_a_paused_partition_gives_nothing_until_it_is_resumed(home):
    source = home.open(-1)
    first = source.poll(5)
    source.pause([0])
    assert source.poll(5) == []
    source.resume([0])
    assert payloads([*first, *drain(source)]) == [event(k) for k in range(COUNT)]


def test_the_assignment_is_announced_before_the_first_record(home):
    source = home.open(-1)
    seen = []
    source.on_assign = seen.append
    source.poll(1)
    assert [list(one) for one in seen] == [[0]]
    source.poll(1)
    assert len(seen) == 1


def test_commits_are_remembered(home):
    source = home.open(-1)
    blocks = drain(source)
    last = int(blocks[-1].position[-1])
    source.commit({0: last})
    committed = source.committed
    assert (committed[0] if isinstance(committed, dict) else committed) == last
    source.close()


# --- the broker in memory ---------------------------------------------------------------------------------------------


def fake(partitions: int = 2, records: int = 6) -> FakeSource:
    return FakeSource({p: [FakeRecord(b"%d:%d" % (p, k), k) for k in range(records)] for p in range(partitions)})


def test_after_a_crash_reading_starts_behind_what_was_committed():
    """F1: what was not committed comes again."""
    source = fake(1)
    source.poll(4)
    source.commit({0: 1})
    source.crash()
    assert payloads(drain(source)) == [b"0:%d" % k for k in range(2, 6)]


def test_a_revoked_partition_can_be_committed_from_its_handler_and_not_later():
    """DESIGN: commit on revoke, before bookkeeping is dropped."""
    source = fake()
    source.poll(20)
    source.on_revoke = lambda partitions: source.commit(dict.fromkeys(partitions, 3))
    source.rebalance([1])
    source.poll(20)
    assert source.committed == {0: 3}
    source.commit({0: 5})
    assert (source.committed, source.refused_commits) == ({0: 3}, 1)
    source.rebalance([0, 1])
    assert payloads(drain(source)) == [b"0:4", b"0:5"]


def test_a_new_generation_begins_with_every_change_of_the_assignment():
    """F3."""
    source = fake()
    source.poll(1)
    source.poll(1)
    assert source.generation == 1
    source.rebalance([0])
    source.poll(1)
    assert source.generation == 2


def test_a_member_that_fell_out_is_told_so_and_its_commits_are_refused():
    """F4: a zombie's late commit changes nothing; then it is revoked, assigned again and reads on from what counts."""
    source = fake(1)
    events = []
    source.on_assign = lambda partitions: events.append(("assign", list(partitions)))
    source.on_revoke = lambda partitions: events.append(("revoke", list(partitions)))
    source.poll(6)
    source.commit({0: 2})
    source.lose_membership()
    source.commit({0: 5})
    assert source.committed == {0: 2}
    assert payloads(drain(source)) == [b"0:3", b"0:4", b"0:5"]
    assert events == [("assign", [0]), ("revoke", [0]), ("assign", [0])]


def test_a_handler_may_seek_to_the_position_of_its_checkpoint():
    source = fake(1)
    source.on_assign = lambda partitions: source.seek(0, 3)
    assert payloads(drain(source)) == [b"0:4", b"0:5"]


# --- files ------------------------------------------------------------------------------------------------------------


def write_events(path: Path, times: list[object]) -> Path:
    path.write_text("\n".join(json.dumps({"n": k, "at": at}) for k, at in enumerate(times)))
    return path


def numbers(blocks: list[Block]) -> list[int]:
    return [json.loads(payload)["n"] for payload in payloads(blocks)]


def test_files_are_sorted_by_event_time_first_equal_instants_as_they_stand(tmp_path):
    """T2: --clock events."""
    one = write_events(tmp_path / "a.ndjson", [1_700_000_003_000, "2023-11-14T22:13:21Z", 1_700_000_003_000])
    two = write_events(tmp_path / "b.ndjson", [1_700_000_002_000, "2023-11-15T06:13:20+08:00"])
    assert numbers(drain(FileSource([one, two]))) == [1, 1, 0, 0, 2]


def test_a_line_without_readable_time_stays_behind_its_neighbour(tmp_path):
    path = tmp_path / "a.ndjson"
    path.write_bytes(b'{"at":1700000002000}\nnot json\n\n\r\n{"at":1700000001000}\n{"at":5}\n')
    lines = payloads(drain(FileSource([path])))
    assert lines == [b'{"at":1700000001000}', b'{"at":5}', b'{"at":1700000002000}', b"not json"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"specversion":"1.0","source":"s","id":"1","time":"2023-11-14T22:13:20Z","data":{"user":"u"}}',
        b'{"specversion":"1.0","source":"s","id":"1","data":{"user":"u","at":1700000000000}}',
        b'{"_type":"location","tst":1700000000,"lat":1,"lon":2}',
        b'{"type":"track","userId":"u","timestamp":"2023-11-14T22:13:20.000Z"}',
    ],
)
def test_envelopes_are_sorted_by_their_own_time(tmp_path, line):
    path = tmp_path / "a.ndjson"
    path.write_bytes(b'{"at":1700000001000}\n' + line + b'\n{"at":1699999999000}\n')
    assert payloads(drain(FileSource([path])))[1] == line


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_json_array_is_read_event_by_event(tmp_path, name):
    path = tmp_path / name
    text = json.dumps([{"n": k, "at": 1_700_000_000_000 + k} for k in range(3)], indent=2).encode()
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    blocks = drain(FileSource([path]))
    assert numbers(blocks) == [0, 1, 2]
    assert all(b"\n" not in payload for payload in payloads(blocks))


def test_a_recording_out_of_order_and_too_large_to_sort_is_refused(tmp_path):
    """T2: refused where a record lies more than 300 s behind now."""
    path = write_events(tmp_path / "a.ndjson", [1_700_000_400_000, 1_700_000_100_000])
    assert numbers(drain(FileSource([path], sort_bytes=0))) == [0, 1]
    path = write_events(tmp_path / "b.ndjson", [1_700_000_400_001, 1_700_000_100_000])
    with pytest.raises(StoreError, match=r"b\.ndjson: an event lies 300 s behind"):
        drain(FileSource([path], sort_bytes=0))


def test_progress_is_in_bytes_and_ends_whole(tmp_path):
    path = write_events(tmp_path / "a.ndjson", [1_700_000_000_000] * 10)
    for sort_bytes in (0, 1 << 20):
        source = FileSource([path], sort_bytes=sort_bytes)
        source.poll(5)
        assert 0 < source.done_bytes <= source.total_bytes
        drain(source)
        assert source.done_bytes == source.total_bytes > 0


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"absent\.ndjson: cannot be read"):
        FileSource([tmp_path / "absent.ndjson"])
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(b"x" * 1000)[:-10])
    with pytest.raises(StoreError, match=r"broken\.gz: cannot be read"):
        FileSource([broken])
    damaged = bytearray(gzip.compress(random.Random(1).randbytes(5000)))
    damaged[2000:2010] = b"\xff" * 10
    broken.write_bytes(damaged)
    with pytest.raises(StoreError, match=r"broken\.gz: cannot be read"):
        FileSource([broken])


def test_lines_of_nonsense_are_handed_over_and_lead_no_other(tmp_path):
    """T2: instants that no calendar reckons with, endless nesting and bytes that are no text are not times."""
    odd = [b'{"at":1e308}', b'{"tst":1e308}', b'{"at":"\xff"}', b"[" * 5000, b'{"at":' + b"9" * 5000 + b"}"]
    path = tmp_path / "a.ndjson"
    path.write_bytes(b"\n".join([b'{"at":1700000002000}', *odd, b'{"at":1700000001000}']))
    lines = payloads(drain(FileSource([path])))
    assert lines == [b'{"at":1700000001000}', b'{"at":1700000002000}', *odd]


def test_a_pipe_is_read_whole_and_once(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    text = b"".join(b'{"at":%d}\n' % at for at in range(1_700_000_000_000, 1_700_000_000_100))
    for sent in (text, gzip.compress(text)):
        writer = threading.Thread(target=path.write_bytes, args=(sent,))
        writer.start()
        assert len(payloads(drain(FileSource([path])))) == 100
        writer.join()


@pytest.mark.parametrize(
    ("text", "holds_none"),
    [
        (b"user,channel,address\nu1,sms,1\n", True),
        (b'{"type":"FeatureCollection",\n"features":[]}', True),
        (b"", True),
        (b"\xff\xd8\xff\xe0 a picture", True),
        (b'no json\n{"at":"10 o\'clock"}', False),
        (b'{"specversion":"1.0","data":{"user":"u","at":5}}', False),
        (b'[{"at":1700000000000}]', False),
    ],
)
def test_a_file_of_something_else_is_known_by_no_line_saying_when(tmp_path, text, holds_none):
    path = tmp_path / "a.ndjson"
    path.write_bytes(text)
    assert FileSource([path]).holds_no_event() is holds_none
    assert not FileSource([path], sort_bytes=-1).holds_no_event()
