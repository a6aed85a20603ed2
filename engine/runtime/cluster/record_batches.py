"""Fetched bytes as blocks: Kafka's record batches (format v2) are read by a kernel, no record becomes an object.

aiokafka makes an object of every record, at some 2 microseconds each. `RawConsumer` has its fetcher hand over the bytes
of each partition as they came instead; `Fetched` decompresses them, batch after batch, and finds the values' spans.
Private names of aiokafka that this leans on stand in PRIVATE_NAMES and are guarded by a contract test.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import cramjam
import google_crc32c
import numpy as np
from aiokafka import AIOKafkaConsumer
from aiokafka.codec import snappy_decode
from aiokafka.consumer import fetcher as fetching

from engine.errors import StoreCorrupt
from engine.model import Block
from engine.runtime.cluster.batch_kernel import DAMAGED, read_batch
from engine.runtime.cluster.blocks import KIND_HEADER

PRIVATE_NAMES = {
    fetching.Fetcher: ("_proc_fetch_request", "fetched_records", "_get_actions_per_node"),
    fetching: ("MemoryRecords", "PartitionRecords", "FetchResult"),
}

_HEAD = struct.Struct(">qiibIhiqqqhii")  # kafka.common.record.DefaultRecordBatch
_LENGTH = struct.Struct(">qi")
_CRC_FROM, _SIZE_FROM = 21, 12
_APPEND_TIME, _CONTROL_BATCH = 0x08, 0x20
_DECOMPRESS: dict[int, Callable[[bytes], Any]] = {
    0: lambda data: data,
    1: gzip.decompress,
    2: snappy_decode,
    3: cramjam.lz4.decompress,
    4: cramjam.zstd.decompress,
}
_GATHERED_BYTES = 1 << 20
_NAME = np.frombuffer(KIND_HEADER.encode(), np.uint8).copy()


class Fetched:
    """What one fetch brought of one partition; `take` hands it over as blocks.

    offset       what was asked for: records before it came along and are not wanted
    next_offset  where the next fetch begins
    misplaced    keyed records, read so far, that murmur2 puts into another partition
    """

    def __init__(self, data: bytes, topic: str, partition: int, offset: int) -> None:
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.next_offset = offset
        self.misplaced = 0
        self._data = data
        self._batches = self._find()
        self._at = 0
        self._row = 0
        self._block: Block | None = None

    def _find(self) -> list[tuple[int, int, int]]:
        """List the whole batches: where each begins and ends, and how many records its head promises."""
        found = []
        at, size = 0, len(self._data)
        while at + _HEAD.size <= size:
            head = _HEAD.unpack_from(self._data, at)
            end = at + _SIZE_FROM + head[1]
            if end > size:
                break  # cut off by the fetch size; the next fetch brings it whole
            if head[3] != 2 or end < at + _HEAD.size:
                raise StoreCorrupt(
                    f"{self.topic}/{self.partition} at offset {head[0]}: a record batch of format {head[3]}; "
                    "only Kafka's format 2 (since 0.11) is read"
                )
            found.append((at, end, head[12]))
            self.next_offset = head[0] + head[6] + 1
            at = end
        return found

    def take(self, wanted: int, most: int, partitions: int = 0) -> Block | None:
        """Return the next block of at most `most` records at or behind the offset `wanted`; None once all are read.

        partitions  how many the topic has, for counting misplaced records; 0: not counted
        Raises StoreCorrupt, naming the place, where the bytes are not what a broker writes.
        """
        while True:
            block = self._block
            if block is None:
                if self._at == len(self._batches):
                    return None
                block = self._read(wanted, most, partitions)
                self._row = 0
            elif len(block) and block.position[self._row] < wanted:
                self._row = int(np.searchsorted(block.position, wanted))
            last = min(self._row + most, len(block))
            taken = block.part(self._row, last)
            self._row = last
            self._block = block if last < len(block) else None
            if len(taken):
                return taken

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    @property
    def is_read(self) -> bool:
        """Whether nothing is left to take."""
        return self._block is None and self._at == len(self._batches)

    def _read(self, wanted: int, most: int, partitions: int) -> Block:
        """Read batches until there is enough."""
        parts: list[Any] = []
        heads: list[tuple[int, int, int, int, int]] = []
        size = count = 0
        while self._at < len(self._batches) and count < most:
            begin, end, records = self._batches[self._at]
            self._at += 1
            head = _HEAD.unpack_from(self._data, begin)
            if head[5] & _CONTROL_BATCH or head[0] + head[6] < wanted:
                continue
            payload = self._payload(head, begin, end)
            all_ms = head[8] if head[5] & _APPEND_TIME else -1
            heads.append((size, records, head[0], head[7], all_ms))
            parts.append(payload)
            size += len(payload)
            count += records
        data = b"".join(parts)
        start, stop, position, append_ms = (np.empty(count, np.int64) for _ in range(4))
        kind = np.empty(count, np.uint8)
        bytes_ = np.frombuffer(data or b"\0", np.uint8)
        row = 0
        for number, (at, records, base, base_ms, all_ms) in enumerate(heads):
            until = heads[number + 1][0] if number + 1 < len(heads) else size
            told = np.array((base, base_ms, all_ms, wanted, self.partition, partitions, 0), np.int64)
            row = read_batch(bytes_, at, until, records, told, _NAME, row, start, stop, position, append_ms, kind)
            if row == DAMAGED:
                raise StoreCorrupt(f"{self.topic}/{self.partition}: the record batch at offset {base} is damaged")
            self.misplaced += int(told[6])
        return Block(data, start[:row], stop[:row], position[:row], append_ms[:row], kind[:row], self.partition)

    def _payload(self, head: tuple[Any, ...], begin: int, end: int) -> Any:
        body = self._data[begin + _CRC_FROM : end]
        if google_crc32c.value(body) != head[4]:
            raise StoreCorrupt(
                f"{self.topic}/{self.partition}: the checksum of the record batch at offset {head[0]} is wrong"
            )
        payload = body[_HEAD.size - _CRC_FROM :]
        codec = head[5] & 7
        if codec == 0:
            return payload
        try:
            return _DECOMPRESS[codec](payload)
        except (KeyError, cramjam.DecompressionError, OSError, EOFError, ValueError) as error:
            raise StoreCorrupt(
                f"{self.topic}/{self.partition}: the record batch at offset {head[0]} cannot be decompressed "
                f"(codec {codec}, {type(error).__name__})"
            ) from None


# --- aiokafka's fetcher, without its records --------------------------------------------------------------------------


class _Bytes:
    """In place of aiokafka's MemoryRecords: the bytes as they came."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def has_next(self) -> bool:
        """Whether at least one batch is whole."""
        return len(self.data) >= _HEAD.size and _LENGTH.unpack_from(self.data)[1] + _SIZE_FROM <= len(self.data)

    def size_in_bytes(self) -> int:
        return len(self.data)


class _Once:
    """In place of aiokafka's PartitionRecords: one item, the whole of a partition's bytes."""

    def __init__(self, where: Any, records: _Bytes, _aborted: Any, offset: int, *_rest: Any) -> None:
        self.next_fetch_offset = offset
        self._fetched: Fetched | None = Fetched(records.data, where.topic, where.partition, offset)

    def __iter__(self) -> Iterator[Fetched]:
        return self

    def __next__(self) -> Fetched:
        fetched, self._fetched = self._fetched, None
        if fetched is None:
            raise StopIteration
        self.next_fetch_offset = fetched.next_offset
        return fetched


_names = {**vars(fetching), "MemoryRecords": _Bytes, "PartitionRecords": _Once}
_process = fetching.Fetcher._proc_fetch_request
_process_raw = FunctionType(_process.__code__, _names, _process.__name__, _process.__defaults__, _process.__closure__)


class RawConsumer(AIOKafkaConsumer):  # type: ignore[misc]
    """aiokafka's consumer whose `getmany` gives, for each partition, a list of Fetched instead of records.

    Control batches are left out. What a producer's transaction aborted is handed over like the rest: it was appended.

    gather_ms  while records come, how long the broker may gather them; each answer costs both sides more than its
               records do. Whoever waits for the first record after a pause is answered at once
    """

    gather_ms = 0

    @property
    def _fetcher(self) -> Any:
        return self.__dict__.get("_fetcher")

    @_fetcher.setter
    def _fetcher(self, fetcher: Any) -> None:
        if fetcher is not None:
            fetcher._proc_fetch_request = partial(self._process_fetch, MethodType(_process_raw, fetcher), fetcher)
        self.__dict__["_fetcher"] = fetcher

    async def _process_fetch(self, process: Callable[..., Any], fetcher: Any, *arguments: Any) -> bool:
        found: bool = await process(*arguments)
        if self.gather_ms:
            gathers = (_GATHERED_BYTES, self.gather_ms)
            fetcher._fetch_min_bytes, fetcher._fetch_max_wait_ms = gathers if found else (1, self._fetch_max_wait_ms)
        return found
