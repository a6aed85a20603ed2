"""Topics of a real Kafka, filled for a test, and sources that wait for it."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterable, Mapping, Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from engine.model import Block, RecordKind
from engine.runtime.cluster.blocks import kind_headers
from engine.runtime.cluster.faust_source import FaustSource
from engine.runtime.cluster.kafka_source import KafkaSource
from engine.runtime.source import RecordSource

_numbers = itertools.count()


class KafkaTopic:
    """A new topic, stamped by the broker, and a group of its own."""

    def __init__(self, address: str, partitions: int) -> None:
        self.address = address
        self.name = f"test-{os.getpid()}-{next(_numbers)}"
        self._groups = itertools.count()
        asyncio.run(self._create(partitions))

    async def _create(self, partitions: int) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
        await admin.start()
        settings = {"message.timestamp.type": "LogAppendTime"}
        await admin.create_topics([NewTopic(self.name, partitions, 1, topic_configs=settings)])
        await admin.close()

    def send(self, partition: int, values: Iterable[bytes], kind: RecordKind = RecordKind.EVENTS) -> None:
        async def send() -> None:
            producer = AIOKafkaProducer(bootstrap_servers=self.address, linger_ms=5)
            await producer.start()
            headers = kind_headers(kind)
            waiting = [await producer.send(self.name, one, partition=partition, headers=headers) for one in values]
            await asyncio.gather(*waiting)
            await producer.stop()

        asyncio.run(send())

    def open(self, kind: str, after: int = -1, group: str | None = None, **more: int) -> RecordSource:
        """Open a member of a group, a new one unless named; reading starts behind `after`."""
        home = {"aiokafka": KafkaSource, "faust": FaustSource}[kind]
        source: RecordSource = home(self.address, self.name, group or f"{self.name}-{next(self._groups)}", **more)
        if after >= 0:

            def begin(partitions: Sequence[int]) -> None:
                for partition in partitions:
                    source.seek(partition, after)

            source.on_assign = begin
        return source


class Patient:
    """A source whose `poll` returns nothing only once the last record was handed over, or it is paused."""

    def __init__(self, source: RecordSource, last: int, timeout_s: float = 30.0) -> None:
        self._source = source
        self._last = last
        self._timeout_s = timeout_s
        self._done = -1
        self._is_paused = False
        self._begin = source.on_assign
        self.on_assign = lambda partitions: None
        self.on_revoke = lambda partitions: None
        source.on_assign = self._assigned

    def _assigned(self, partitions: Sequence[int]) -> None:
        self._begin(partitions)
        self.on_assign(partitions)

    def poll(self, max_events: int) -> list[Block]:
        end_s = time.monotonic() + (0.5 if self._is_paused else self._timeout_s)
        while time.monotonic() < end_s and (self._done < self._last or self._is_paused):
            blocks = self._source.poll(max_events)
            if blocks:
                self._done = int(blocks[-1].position[-1])
                return blocks
            time.sleep(0.01)
            if self._at_end():
                break
        return []

    def _at_end(self) -> bool:
        """Whether a start behind the last record has been assigned, so that nothing will come."""
        lag = self._source.lag()  # type: ignore[attr-defined]
        return bool(lag) and not any(lag.values()) and not self._is_paused and self._done < 0

    @property
    def committed(self) -> dict[int, int]:
        return self._source.committed  # type: ignore[attr-defined, no-any-return]

    def seek(self, partition: int, position: int) -> None:
        self._source.seek(partition, position)

    def commit(self, positions: Mapping[int, int]) -> None:
        self._source.commit(positions)

    def pause(self, partitions: Sequence[int]) -> None:
        self._is_paused = True
        self._source.pause(partitions)

    def resume(self, partitions: Sequence[int]) -> None:
        self._is_paused = False
        self._source.resume(partitions)

    def close(self) -> None:
        self._source.close()
