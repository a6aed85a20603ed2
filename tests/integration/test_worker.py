"""A worker among events that harm: poison, floods of dead letters, strangers, a stop in between (FAULTS F1-F4, F24).

No servers: the log is in memory, shards are in SQLite, so that every fault comes at the very instruction.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine import metrics
from engine.clock import monotonic_s
from engine.errors import StoreFenced, StoreUnavailable
from engine.model import RecordKind
from engine.pipeline import Pipeline
from engine.runtime.cluster.lanes import Lanes
from engine.runtime.cluster.partition import Partition
from tests.cluster_parts import Group, Shard, home_of, stop
from tests.world import NOON_MS, profile, small_content, small_policy, usage

ROOT = Path(__file__).resolve().parents[2]
USERS = [f"u{number}" for number in range(40)]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    # In a process of its own: here a warning of the compiler would be an error.
    subprocess.run([sys.executable, "-c", "from engine.runtime.warm import warm; warm()"], cwd=ROOT, check=True)


def purchases(first: int, count: int) -> list[dict[str, Any]]:
    """Events that each make a candidate, in turn of the users."""
    return [
        usage(USERS[number % len(USERS)], NOON_MS, id=f"e{number}", category="ecommerce", props={"amount_fen": 2000})
        for number in range(first, first + count)
    ]


def fresh(folder: Path, **cluster: Any) -> Group:
    policy = small_policy(assumed_consent=frozenset({"location", "usage", "marketing.sms"}))
    group = Group(folder, small_content(policy=policy), partitions=2, now_ms=NOON_MS, **cluster)
    group.log.send(profile(user, NOON_MS) for user in USERS)
    return group


def user_at(partition: int, prefix: str) -> str:
    return next(name for number in range(100) if home_of(name := f"{prefix}{number}", 2) == partition)


POISON = user_at(0, "poison")


@pytest.fixture
def buggy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that fails on every event of one user, after having begun to change its state."""
    apply = Pipeline._apply_rare

    def fail(self: Pipeline, block: Any, decoded: Any, row: int, effects: Any) -> None:
        apply(self, block, decoded, row, effects)
        if decoded.rare[row].user == POISON:
            raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Pipeline, "_apply_rare", fail)


def test_partitions_wait_for_their_stores_side_by_side_and_decide_as_one_by_one(tmp_path, monkeypatch):
    """T3: a commit of either waits until the other has come to its own."""
    alone, group = fresh(tmp_path / "alone"), fresh(tmp_path / "beside")
    for one in (alone, group):
        one.log.send(purchases(0, 200))
    calm = alone.worker()
    alone.drain(calm)
    lanes, there, commit = Lanes(), set(), Shard.commit

    def committing(self: Shard, *arguments: Any, **named: Any) -> None:
        there.add(id(self))
        while len(there) < 2:
            assert lanes.until(lambda: len(there) == 2, lambda wait_s: None, 10), "not in a lane"
        commit(self, *arguments, **named)

    monkeypatch.setattr(Shard, "commit", committing)
    worker = group.worker(lanes=lanes)
    group.drain(worker)
    assert len(group.written.decisions()) > 40
    assert group.written.decisions() == alone.written.decisions()
    stop(worker)
    stop(calm)


@pytest.mark.parametrize("array", [False, True])
def test_a_poison_event_is_set_aside_and_its_neighbours_decide_as_without_it(tmp_path, buggy, array):
    """F2: a dead letter with topic, partition, offset, item; neither its record nor its partition nor others stall."""
    clean, group = fresh(tmp_path / "clean"), fresh(tmp_path / "poisoned")
    calm = clean.worker()
    worker = group.worker()
    group.drain(worker)
    for one in (clean, group):
        one.log.send(purchases(0, 60))
    home = [event for event in purchases(60, 40) if home_of(event["user"], 2) == 0]
    bad = profile(POISON, NOON_MS)
    offsets = []
    for one, values in ((clean, [home[0], home[1]]), (group, [home[0], bad, home[1]])):
        body = orjson.dumps(values) if array else b"\n".join(map(orjson.dumps, values))
        offsets.append(one.log.append(0, body))
        one.log.send(purchases(100, 60))
    where = [(offsets[1], 1), (group.log.append(0, orjson.dumps(bad)), 0)]
    for one in (clean, group):
        one.log.send(purchases(160, 60))
    clean.drain(calm)
    worker.step()
    assert worker.partitions[1].done == len(group.log.records[1]) - 1, "the neighbour did not wait"
    group.drain(worker)
    assert group.written.decisions() == clean.written.decisions()
    assert group.written.dead() == {(0, offset, item, "engine_fault") for offset, item in where}
    assert not worker.partitions[0].stopped
    stop(worker)
    for path in (tmp_path / "poisoned" / "checkpoints").glob("*/*.checkpoint"):
        path.unlink()
    again = group.worker()
    group.drain(again)
    assert again.partitions[0].faults == 0, "what was set aside is found again"
    assert group.written.decisions() == clean.written.decisions()
    stop(again)
    stop(calm)


def test_a_poison_event_that_waits_to_be_sorted_is_the_one_set_aside(tmp_path, monkeypatch):
    """F2, T5: it fails in the middle of a tick, long after its own record was told of."""
    run = Pipeline._run_within_hours

    def fail(self: Pipeline, batch: Any, effects: Any) -> None:
        run(self, batch, effects)
        if POISON in self.users.ids_of(batch.events["user"]):
            raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Pipeline, "_run_within_hours", fail)
    group = fresh(tmp_path)
    group.settings.feeds["dpi"] = group.settings.feeds["dpi"].model_copy(update={"reorder_s": 2.0})
    worker = group.worker()
    group.drain(worker)
    home = [event for event in purchases(0, 40) if home_of(event["user"], 2) == 0]
    offset = group.log.append(0, b"\n".join(map(orjson.dumps, [home[0], {**home[0], "user": POISON}, home[1]])))
    group.drain(worker)
    assert worker.partitions[0].pipeline.held_events == 3
    group.log.now_ms += 2000
    group.log.append(0, b"", RecordKind.TICK)
    group.drain(worker)
    assert worker.partitions[0].pipeline.held_events == 0
    assert group.written.dead() == {(0, offset, 1, "engine_fault")}
    assert len(group.written.decisions()) == 2
    assert not worker.partitions[0].stopped
    stop(worker)


def test_a_record_that_cannot_be_left_out_stops_its_partition_alone(tmp_path, monkeypatch):
    """F2: content whose activation fails would decide otherwise if it were passed over."""
    group = fresh(tmp_path)
    worker = group.worker()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Pipeline, "activate", fail)
    at = group.log.append(0, b'{"version":"v2"}', RecordKind.CONTENT)
    group.log.send(purchases(0, 80))
    group.drain(worker)
    assert worker.partitions[0].done == at - 1
    assert "partition 0 stopped: the engine fails at offset" in worker.why_not_ready()
    assert worker.partitions[1].done == len(group.log.records[1]) - 1
    stop(worker)


def test_a_thousand_dead_letters_in_a_row_stop_the_partition_and_say_so(tmp_path):
    """F2: it stays stopped wherever it goes, until the limit is set otherwise; nothing behind it is lost."""
    group = fresh(tmp_path)
    worker = group.worker()
    for number in range(999):
        group.log.append(0, b"no json %d" % number)
    group.drain(worker)
    assert worker.why_not_ready() == ""
    group.log.append(0, b"no json either")
    group.drain(worker)
    group.log.send(purchases(0, 80))
    group.drain(worker)
    assert worker.why_not_ready() == "partition 0 stopped: 1000 dead letters in a row"
    assert worker.partitions[1].done == len(group.log.records[1]) - 1
    before = len(group.written.decisions())
    stop(worker)
    again = group.worker()
    group.drain(again)
    assert "partition 0 stopped" in again.why_not_ready()
    stop(again)
    group.settings.cluster.dead_letters_in_a_row = 0
    freed = group.worker()
    group.drain(freed)
    assert freed.why_not_ready() == ""
    assert len(group.written.decisions()) > before
    assert len(group.written.dead()) == 1000
    stop(freed)


@pytest.mark.parametrize(("one_in", "stops"), [(300, False), (90, True)])
def test_more_than_one_percent_of_dead_letters_stops_the_partition(tmp_path, one_in, stops):
    """F2: 1 in 300 goes on for ever."""
    group = Group(tmp_path, small_content(), partitions=1, now_ms=NOON_MS)
    worker = group.worker()
    good = orjson.dumps(usage("u1", NOON_MS, id="same", category="ecommerce"))
    for number in range(12_000):
        group.log.append(0, b"{" if number % one_in == 0 else good)
    group.drain(worker)
    assert bool(worker.partitions[0].stopped) == stops
    stop(worker)


def test_records_on_the_wrong_partition_are_counted_and_told(tmp_path, monkeypatch, capsys):
    group = fresh(tmp_path)
    worker = group.worker()
    group.drain(worker)
    counted = metrics.PARTITION_MISPLACED.labels("0")
    before = counted._value.get()
    for total in (3, 3, 5):
        monkeypatch.setattr(worker.source, "misplaced", {0: total}, raising=False)
        worker.step()
    assert counted._value.get() - before == 5
    assert capsys.readouterr().out.count("records that belong to another partition") == 1
    stop(worker)


def test_a_stop_while_the_ledger_is_gone_saves_nothing_half_done(tmp_path, monkeypatch):
    """F24, F6: the block under way is decided again by whoever comes next, as if it had never begun."""
    clean, group = fresh(tmp_path / "clean"), fresh(tmp_path / "stopped")
    calm, worker = clean.worker(), group.worker()
    group.drain(worker)
    for one in (clean, group):
        one.log.send(purchases(0, 200))
    clean.drain(calm)

    def gone(*_: object, **__: object) -> None:
        worker.stopping.set()
        raise StoreUnavailable("no redis")

    with monkeypatch.context() as patch:
        for partition in worker.partitions.values():
            patch.setattr(partition.ledger, "commit", gone)
        worker.run()
    again = group.worker()
    group.drain(again)
    assert group.written.decisions() == clean.written.decisions()
    stop(again)
    stop(calm)


def test_a_partition_that_moves_about_decides_as_one_that_stays(tmp_path):
    """F1, F3: handed over, killed in the middle, handed back; each offset is committed by whoever has it."""
    clean, group = fresh(tmp_path / "clean"), fresh(tmp_path / "moved")
    calm = clean.worker()
    first, second = group.worker([0, 1]), group.worker([])
    for round_ in range(6):
        for one in (clean, group):
            one.log.now_ms += 60_000
            one.log.send(purchases(round_ * 100, 100))
        if round_ == 3:  # killed: nothing is saved, its partitions go to the other
            first.source.crash()
            first = group.worker([])
            second.source.rebalance([0, 1])
        elif round_ % 2:
            first.source.rebalance([0])
            first.step()
            second.source.rebalance([1])
        group.drain(first, second)
        first.source.rebalance([0, 1])
        second.source.rebalance([])
        second.step()
        first.step()
    clean.drain(calm)
    assert group.written.decisions() == clean.written.decisions()
    for worker in (first, second, calm):
        stop(worker)
    assert group.log.committed == {number: len(rows) - 1 for number, rows in group.log.records.items()}


@pytest.mark.parametrize("revoked", [True, False])
def test_what_was_lost_comes_back_unless_the_group_gave_it_to_another(tmp_path, monkeypatch, revoked):
    """F4: a zombie is fenced by its ledger before the group tells it whose the partition is."""
    group = fresh(tmp_path)
    worker, other = group.worker(), group.worker([])
    group.drain(worker)

    def refuse(*_: object, **__: object) -> None:
        raise StoreFenced("another has the shard")

    monkeypatch.setattr(worker.partitions[0].ledger, "commit", refuse)
    group.log.send(purchases(0, 100))
    worker.step()
    assert set(worker.partitions) == {1}
    if revoked:
        worker.source.rebalance([1])
        worker.step()
        other.source.rebalance([0])
        other.step()
    session_s = group.settings.cluster.session_timeout_s
    monkeypatch.setattr(worker, "_monotonic_s", lambda: monotonic_s() + 2 * session_s)
    group.drain(worker, other)
    assert set(worker.partitions) == ({1} if revoked else {0, 1})
    assert set(other.partitions) == ({0} if revoked else set())
    for one in (worker, other):
        stop(one)


def test_a_worker_that_cannot_save_what_it_lets_go_of_goes_on_and_the_next_one_replays(tmp_path, monkeypatch):
    """F4, F22: a zombie's checkpoint may be gone when it wakes up; what another has by now is not its business."""
    alone, group = fresh(tmp_path / "alone"), fresh(tmp_path / "moved")
    for one in (alone, group):
        one.log.send(purchases(0, 120))
    calm, worker = alone.worker(), group.worker()
    alone.drain(calm)
    group.drain(worker)

    def fail(self: Partition) -> None:
        raise StoreUnavailable("no such file")

    monkeypatch.setattr(Partition, "save", fail)
    worker.source.rebalance([1])
    worker.step()
    monkeypatch.undo()
    assert set(worker.partitions) == {1}
    second = group.worker([0])
    group.drain(worker, second)
    assert group.written.decisions() == alone.written.decisions()
    for one in (calm, worker, second):
        stop(one)
