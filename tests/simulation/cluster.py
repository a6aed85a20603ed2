"""A day as a cluster has it: two workers over a partitioned log, a dispatcher, and shards that fail (T3, D7, F1-F4).

The people and what goes wrong on the way are those of the other simulation; here each event lies in the partition of
its user, and workers die at any instruction between them and the ledger, lose partitions while they sleep, hand them
over and take them back. What they told is compared with a replay of each partition that nothing disturbs.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import structlog

from engine.decide.records import encode
from engine.definitions import Content
from engine.errors import StoreUnavailable
from engine.model import DispatchState, Offer, RecordKind
from engine.pipeline import Pipeline
from engine.runtime.archive import content_record
from engine.runtime.cluster.lanes import Lanes
from engine.runtime.cluster.worker import Parts, Worker
from engine.settings import Settings
from tests.cluster_parts import Group, Member, Shard, home_of
from tests.simulation.cities import make_cities
from tests.simulation.content import build_content
from tests.simulation.day import make_day
from tests.simulation.dispatch import Outcome
from tests.simulation.faults import draw, spoil
from tests.simulation.plan import HOUR_MS, KEY, START_MS
from tests.simulation.reference import whole
from tests.simulation.seeds import print_end, print_verdict, run_seeds
from tests.simulation.story import LogRecord
from tests.world import MemoryLedger

PARTITIONS = 3
PEOPLE, HOURS = 4, 3
TICK_MS, EVENING_TICK_MS = 300_000, 3_600_000
"""Between ticks while people are about, and afterwards, when only timers are left to fire."""
SUBMIT_LIMIT = 64
FAULTS = ("killed", "failed", "zombie", "moved", "stopped", "dispatcher_killed", "saved")


SHARE = 4
"""A day has every so many of the scenarios, each seed others: half its time would go by in compiling them all."""


MUCH = 50_000
"""Objects that are no more; every worker that died left its tables among them."""


class Killed(BaseException):
    """The process that is working dies here."""


class Fuse:
    """Burns down with every call that a worker makes to a store, and then kills it, before the call or after it."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._left = -1
        self._how = ""

    def light(self, how: str) -> None:
        self._left, self._how = self._dice.randrange(1, 25), how

    def out(self) -> None:
        self._left = -1

    def call(self, act: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self._left -= self._left >= 0
        if self._left != 0:
            return act(*arguments, **named)
        self._left = -1
        if self._dice.random() < 0.5:
            act(*arguments, **named)  # done, but nobody lives to know
        if self._how == "failed":
            raise StoreUnavailable("the simulated store does not answer")
        raise Killed


class FragileShard(Shard):
    """Its answers take a while, in which other partitions of the worker go on."""

    fuse: Fuse
    lanes: Lanes
    dice: random.Random

    def _wait(self) -> None:
        for _ in range(self.dice.randrange(3)):
            self.lanes.give_way()

    def reserve(self, requests: Any) -> Any:
        self._wait()
        return self.fuse.call(super().reserve, requests)

    def commit(self, *arguments: Any, **named: Any) -> Any:
        self._wait()
        return self.fuse.call(super().commit, *arguments, **named)


@dataclass
class ClusterVerdict:
    seed: int
    violations: list[str]
    records: int
    messages: int
    digest: str
    happened: dict[str, int]

    @property
    def command(self) -> str:
        return f"python -m tests.simulation.cluster {self.seed}"


class ClusterDay(Group):
    """One seed's day. `run` returns what it came to."""

    def __init__(self, seed: int, folder: Path) -> None:
        city = make_cities(seed)[0]
        self.contents = {one.version: _share_of(build_content(one), seed) for one in make_cities(seed)}
        super().__init__(folder, self.contents["v1"], partitions=PARTITIONS, now_ms=START_MS - 10_000)
        self.seed = seed
        self.dice = random.Random(f"{seed}/cluster")
        self.fuse = Fuse(self.dice)
        self.happened: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        trouble = draw(seed, HOURS)
        self._changes = sorted(
            [(at, RecordKind.CONTENT, content_record(self.contents[name])) for at, name in trouble.contents]
            + [
                (at, RecordKind.CONTROL, orjson.dumps({"pause": name, "paused": on}))
                for at, name, on in trouble.controls
            ]
        )
        self._events = spoil(seed, make_day(seed, city, people=PEOPLE, hours=HOURS), trouble.kinds)
        self._send = self.written.send
        self.written.send = lambda *arguments, **named: self.fuse.call(self._send, *arguments, **named)  # type: ignore[method-assign]
        self.workers = [self._worker([0, 1]), self._worker([2])]

    def _worker(self, partitions: list[int]) -> Worker:
        lanes = Lanes()

        def open_shard(number: int, assumed_consent: frozenset[str]) -> Any:
            shard = FragileShard(self.folder / f"shard-{number}.db", assumed_consent=assumed_consent, fsync="never")
            shard.fuse, shard.lanes, shard.dice = self.fuse, lanes, self.dice
            return shard

        parts = Parts(
            Member(self.log, partitions),
            self.written,
            Versions(self.contents),
            open_shard,
            KEY,
            monotonic_s=lambda: 0.0,
            lanes=lanes,
        )
        return Worker(self.settings, threading.Event(), parts)

    # --- the day ----------------------------------------------------------------------------------------------------

    def run(self) -> ClusterVerdict:
        end_ms = START_MS + (HOURS + 13) * HOUR_MS
        tick_ms = self.log.now_ms
        events = iter([*self._events, None])
        event = next(events)
        while self.log.now_ms < end_ms:
            next_ms = min(tick_ms, event.arrival_ms if event is not None else end_ms)
            self.log.now_ms = max(self.log.now_ms, next_ms)
            while event is not None and event.arrival_ms <= self.log.now_ms:
                self._append(event.value)
                event = next(events)
            while self._changes and self._changes[0][0] <= self.log.now_ms:
                _, kind, body = self._changes.pop(0)
                for partition in range(PARTITIONS):
                    self.log.append(partition, body, kind)
            if tick_ms <= self.log.now_ms:
                is_day = self.log.now_ms < START_MS + (HOURS + 1) * HOUR_MS
                tick_ms = self.log.now_ms + (TICK_MS if is_day else EVENING_TICK_MS)
                for partition in range(PARTITIONS):
                    self.log.append(partition, b"", RecordKind.TICK)
                self._something_happens()
                self._work()
                self._hand_over()
        self.fuse.out()
        for _ in range(3):
            self._work()
            self._hand_over()
        return self._audit()

    def _append(self, value: dict[str, Any] | bytes) -> None:
        if isinstance(value, bytes):
            self.log.append(self.dice.randrange(PARTITIONS), value)
        else:
            self.log.append(home_of(value["user"], PARTITIONS), orjson.dumps(value))

    def _work(self) -> None:
        for row, worker in enumerate(self.workers):
            try:
                worker.step()
                while worker._busy:
                    worker.step()
            except (Killed, StoreUnavailable):
                self._bury(row)

    def _bury(self, row: int) -> None:
        """A process is gone, with all it remembered; its partitions go to the other, and another one starts."""
        dead, other = self.workers[row], self.workers[1 - row]
        dead._lanes.close()
        for partition in dead.partitions.values():
            partition.ledger.close()
            partition.measured.forget()
        self.fuse.out()
        self.workers[row] = self._worker([])
        self._share(other, self.workers[row])

    def _share(self, first: Worker, second: Worker) -> None:
        """A rebalance: who gives something up does so before the other gets it."""
        mine = set(self.dice.sample(range(PARTITIONS), self.dice.randrange(PARTITIONS + 1)))
        for worker, wanted in ((first, mine), (second, set(range(PARTITIONS)) - mine)):
            worker.source.rebalance(set(worker.partitions) & wanted)
            try:
                worker.step()
            except (Killed, StoreUnavailable):
                self._bury(self.workers.index(worker))
                return
        first.source.rebalance(mine)
        second.source.rebalance(set(range(PARTITIONS)) - mine)

    def _something_happens(self) -> None:
        if self.dice.random() > 0.25:
            return
        what = self.dice.choice(FAULTS)
        self.happened[what] += 1
        row = self.dice.randrange(2)
        if what in ("killed", "failed"):
            self.fuse.light(what)
        elif what == "moved":
            self._share(self.workers[row], self.workers[1 - row])
        elif what == "stopped":
            worker = self.workers[row]
            worker.stopping.set()
            worker.run()
            self._bury(row)
        elif what == "saved":
            for partition in self.workers[row].partitions.values():
                if partition.is_whole:
                    partition.save()
        elif what == "zombie":
            self._sleep_through(row)

    def _sleep_through(self, row: int) -> None:
        """A worker sleeps past its session: the other has its partitions, then it wakes up amid a batch of its own."""
        zombie, other = self.workers[row], self.workers[1 - row]
        other.source.rebalance(range(PARTITIONS))
        for one in (other, zombie):
            try:
                one.step()
            except (Killed, StoreUnavailable):
                self._bury(self.workers.index(one))  # what leaves `step` ends the process
                return
        zombie.source.lose_membership()
        zombie.source.rebalance([])
        try:
            zombie.step()
        except (Killed, StoreUnavailable):
            self._bury(row)
            return
        self._share(other, zombie)

    # --- the dispatcher ---------------------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        """Claim and submit what every outbox holds; a dispatcher may die between the two."""
        for worker in self.workers:
            for partition in worker.partitions.values():
                offers = partition.ledger.outbox(SUBMIT_LIMIT)
                claims = [(one.offer_id, f"{one.offer_id}/{one.channel}/1") for one in offers]
                answers = partition.ledger.claim(claims, self.log.now_ms) if claims else []
                dies = self.happened["dispatcher_killed"] and self.dice.random() < 0.05
                for offer, answer in zip(offers, answers, strict=True):
                    if str(answer) == "claimed" and not dies:
                        self._submit(partition.ledger, offer)

    def _submit(self, ledger: Any, offer: Offer) -> None:
        self.sent[offer.offer_id] += 1
        state = self.dice.choice((DispatchState.ACCEPTED,) * 5 + (DispatchState.UNKNOWN, DispatchState.FAILED))
        dispatch_id = f"{offer.offer_id}/{offer.channel}/1"
        at_ms = self.log.now_ms
        if state == DispatchState.FAILED:
            receipt = {"type": "receipt", "id": f"{dispatch_id}:failed", "user": offer.user_id, "at": at_ms}
            receipt |= {"offer_id": offer.offer_id, "dispatch_id": dispatch_id, "state": "failed", "code": ""}
            self._append(receipt)
        ledger.record_dispatch([Outcome(dispatch_id, offer.offer_id, state, at_ms)])

    # --- the audit --------------------------------------------------------------------------------------------------

    def _audit(self) -> ClusterVerdict:
        violations = []
        left = {number: len(rows) for number, rows in self.log.records.items()}
        for worker in self.workers:
            for number, partition in worker.partitions.items():
                if partition.done + 1 != left.pop(number, -1):
                    violations.append(f"partition {number} is not read to its end, or by two")
        violations += [f"partition {number} belongs to nobody" for number in left]
        expected = set().union(*(self._replay(number) for number in self.log.records))
        told = self.written.decisions()
        violations += [f"lost: {body.decode()}" for body in sorted(expected - told)]
        violations += [f"told otherwise: {body.decode()}" for body in sorted(told - expected)]
        violations += [f"sent {count} times: {offer}" for offer, count in self.sent.items() if count > 1]
        granted = {one["decision_id"] for one in map(orjson.loads, expected) if one["outcome"] == "offer"}
        violations += [f"sent and never granted: {offer}" for offer in sorted(set(self.sent) - granted)]
        trace = hashlib.blake2b(digest_size=16)
        for body in sorted(told):
            trace.update(body)
        trace.update(orjson.dumps(sorted(self.sent)))
        for worker in self.workers:
            for partition in worker.partitions.values():
                partition.ledger.close()
                partition.measured.forget()
        records = sum(map(len, self.log.records.values()))
        return ClusterVerdict(self.seed, violations, records, self.sent.total(), trace.hexdigest(), dict(self.happened))

    def _replay(self, number: int) -> set[bytes]:
        rows = [
            LogRecord(place, record.append_ms, record.kind, record.payload)
            for place, record in enumerate(self.log.records[number])
        ]
        pipeline = Pipeline(self.contents["v1"], Settings(state=self.folder), MemoryLedger(), id_key=KEY)
        block = whole(rows)
        found = set()
        for row in range(len(rows)):
            effects = pipeline.process(
                block.part(row, row + 1), lambda body: self.contents[orjson.loads(body)["version"]]
            )
            found.update(encode(one) for one in effects.decisions if one.reason != "duplicate")
        return found


def _share_of(content: Content, seed: int) -> Content:
    chosen = [one for one in content.scenarios if (zlib.crc32(one.id.encode()) + seed) % SHARE == 0]
    return replace(content, scenarios=tuple(chosen))


class Versions:
    """The control topic of a day."""

    def __init__(self, contents: dict[str, Content]) -> None:
        self._contents = contents

    def load_live(self) -> Content:
        return self._contents["v1"]

    def load(self, version: str) -> Content:
        return next(one for one in self._contents.values() if one.version == version)

    def load_record(self, payload: bytes) -> Content:
        return self.load(str(orjson.loads(payload)["version"]))

    def close(self) -> None:
        return None


def run_cluster_seed(seed: int) -> ClusterVerdict:
    """Simulate and audit one seed."""
    with tempfile.TemporaryDirectory(prefix="opportune-sim-") as name:
        return ClusterDay(seed, Path(name)).run()


def main() -> int:
    """Run seeds from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.cluster")
    parser.add_argument("first", type=int, help="the first seed")
    parser.add_argument("seeds", type=int, nargs="?", default=1, help="how many")
    parser.add_argument("--processes", type=int, help="default: one for every processor")
    asked = parser.parse_args()
    # Of each partition taken and let go, thousands of lines.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    started_s = time.perf_counter()
    verdicts: list[ClusterVerdict] = []
    seeds = range(asked.first, asked.first + asked.seeds)
    happened: Counter[str] = Counter()
    first = partial(run_cluster_seed, asked.first)
    for verdict in run_seeds(run_cluster_seed, seeds, asked.processes, load=first, much=MUCH):
        happened.update(verdict.happened)
        said = f" {verdict.digest}  {verdict.records:5} records  {verdict.messages:4} messages  {verdict.happened}"
        print_verdict(verdict, said, most=5)
        verdicts.append(verdict)
    print(f"{len(seeds)} seeds in {time.perf_counter() - started_s:.0f} s; {dict(happened)}")
    return print_end(verdicts)


if __name__ == "__main__":
    sys.exit(main())
