"""A cluster without servers: workers over a log in memory, their shards in SQLite, what they write in lists.

Rebalances, crashes and stores that fail happen when told, so that each can be put at any instruction.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import orjson
from aiokafka.partitioner import murmur2

from engine.definitions import Content
from engine.ledger.embedded import EmbeddedLedger
from engine.model import RecordKind
from engine.runtime.cluster.lanes import Lanes, OneByOne
from engine.runtime.cluster.worker import Parts, Worker
from engine.runtime.fake_source import FakeRecord, FakeSource
from engine.settings import ClusterSettings, Settings
from tests.world import KEY


class Log:
    """The events topic: partitions of records, stamped as they are appended."""

    def __init__(self, partitions: int, now_ms: int) -> None:
        self.records: dict[int, list[FakeRecord]] = {number: [] for number in range(partitions)}
        self.committed: dict[int, int] = {}
        self.now_ms = now_ms

    def append(self, partition: int, value: bytes, kind: RecordKind = RecordKind.EVENTS) -> int:
        self.records[partition].append(FakeRecord(value, self.now_ms, kind))
        return len(self.records[partition]) - 1

    def send(self, events: Iterable[dict[str, Any]]) -> None:
        """Append events one a record, each where its user belongs."""
        for event in events:
            self.append(home_of(event["user"], len(self.records)), orjson.dumps(event))


def home_of(user: str, partitions: int) -> int:
    return int(murmur2(user.encode()) & 0x7FFFFFFF) % partitions


class Member(FakeSource):
    """One worker's place in the group."""

    misplaced: ClassVar[dict[int, int]] = {}

    def __init__(self, log: Log, partitions: Iterable[int]) -> None:
        super().__init__({})
        self._records, self.committed = log.records, log.committed
        self.rebalance(partitions)

    def lag(self) -> dict[int, int]:
        return {number: len(self._records[number]) - following for number, following in self._next.items()}


class Written:
    """What workers wrote, by role; ticks go back into the log."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.rows: dict[str, list[tuple[int, bytes]]] = defaultdict(list)

    def send(
        self,
        role: str,
        values: Sequence[bytes],
        *,
        partition: int | None = None,
        keys: Sequence[bytes | None] | None = None,
        kind: RecordKind = RecordKind.EVENTS,
    ) -> None:
        assert partition is not None
        for value in values:
            if role == "events":
                self.log.append(partition, value, kind)
            else:
                self.rows[role].append((partition, value))

    def decisions(self) -> set[bytes]:
        """Every decision told; one that is told again must be the same, so a set says all (T3)."""
        return {body for _, body in self.rows["decisions"]}

    def dead(self) -> set[tuple[int, int, int, str]]:
        letters = [orjson.loads(body) for _, body in self.rows["dead-letters"]]
        return {(one["partition"], one["offset"], one["item"], one["reason"]) for one in letters}

    def flush(self) -> None:
        return None

    def close(self) -> None:
        return None


class Contents:
    """The control topic: contents by version."""

    def __init__(self, content: Content) -> None:
        self._content = content

    def load_live(self) -> Content:
        return self._content

    def load(self, version: str) -> Content:
        assert version == self._content.version
        return self._content

    def load_record(self, payload: bytes) -> Content:
        return self._content

    def close(self) -> None:
        return None


class Shard(EmbeddedLedger):
    """A shard that other processes can take over: opening it fences whoever had it."""

    authority: Any = None

    def recover(self) -> None:
        return None

    def objects(self) -> dict[str, Any]:
        return {"position": self.position()}

    def restore(self, arrays: dict[str, Any], objects: dict[str, Any]) -> None:
        self.rebuild(objects["position"])


class Group:
    """Workers of one group over one log; a worker dies by being forgotten."""

    def __init__(self, folder: Path, content: Content, *, partitions: int, now_ms: int, **cluster: Any) -> None:
        self.log = Log(partitions, now_ms)
        self.written = Written(self.log)
        self.content = content
        self.folder = folder
        self.settings = Settings(
            state=folder,
            checkpoint_interval_s=1e6,
            cluster=ClusterSettings(partitions=partitions, checkpoints=folder / "checkpoints", **cluster),
        )

    def worker(self, partitions: Iterable[int] | None = None, lanes: Lanes | OneByOne | None = None) -> Worker:
        """Start a worker on these partitions, or on all."""
        mine = self.log.records if partitions is None else partitions
        lanes = lanes or OneByOne()
        parts = Parts(Member(self.log, mine), self.written, Contents(self.content), self._shard, KEY, lanes=lanes)
        return Worker(self.settings, threading.Event(), parts)

    def _shard(self, number: int, assumed_consent: frozenset[str]) -> Any:
        return Shard(self.folder / f"shard-{number}.db", assumed_consent=assumed_consent, fsync="never")

    def drain(self, *workers: Worker) -> None:
        """Let workers go on until nothing is left to read but what is stopped."""
        for _ in range(500):
            for worker in workers:
                worker.step()
            if not any(worker._busy for worker in workers) and not any(
                left
                for worker in workers
                for number, left in worker.source.lag().items()
                if number in worker.partitions and not worker.partitions[number].stopped
            ):
                return
        raise AssertionError("the workers do not come to an end")


def stop(worker: Worker) -> None:
    """SIGTERM: save what is done and give it away."""
    worker.stopping.set()
    worker.run()
