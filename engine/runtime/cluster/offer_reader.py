"""Reads the offers topic for a dispatcher: hands offers over as they come, commits behind itself without waiting.

librdkafka fetches in threads of its own, which need no interpreter. Assignments, revocations and answers to commits
come from within `step`, so everything here runs in the thread that reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson
import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from engine.clock import monotonic_s
from engine.errors import StoreUnavailable
from engine.model import Offer
from engine.runtime.cluster.bridge import CLIENT_LOG
from engine.settings import ClusterSettings

log = structlog.get_logger("opportune.dispatch")

COMMIT_S = 0.5
"""Whatever is read again is claimed once, so few commits are enough; a commit for each block would cost the broker."""
MOST = 4096
"""Offers of one step."""
_WAIT_S = 0.1
_REBALANCE_S = 120.0
"""How long others wait for a member that must let go, and how long taking hold may last."""
_WAITING_KB = 8192
_ENDS = frozenset(
    (
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.INVALID_GROUP_ID,
        KafkaError._AUTHENTICATION,
        KafkaError._BAD_COMPRESSION,
        KafkaError._BAD_MSG,
        KafkaError._NOT_IMPLEMENTED,
    )
)
"""What no waiting mends; every other error of a fetch passes, and librdkafka tries on."""


class Shards(Protocol):
    """What the reader tells of; calls come from the thread that reads."""

    def assign(self, shards: Sequence[int]) -> None: ...

    def revoke(self, shards: Sequence[int]) -> None: ...

    def enqueue(self, offers: Mapping[int, Sequence[Offer]]) -> None:
        """Take offers by shard."""


def open_consumer(cluster: ClusterSettings, on_commit: Callable[[Any, Any], None]) -> Consumer:
    """Make a member of the group of dispatchers; a broker that is away is waited for.

    Raises StoreUnavailable where the settings cannot work.
    """
    session_ms = int(cluster.session_timeout_s * 1000)
    settings = {
        "bootstrap.servers": cluster.kafka,
        "group.id": f"{cluster.prefix}dispatch",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_uncommitted",
        "check.crcs": True,
        "session.timeout.ms": session_ms,
        "heartbeat.interval.ms": max(300, session_ms // 4),
        "max.poll.interval.ms": max(session_ms, int(_REBALANCE_S * 1000)),
        "partition.assignment.strategy": "roundrobin",
        "fetch.wait.max.ms": cluster.fetch_max_wait_ms,
        "fetch.queue.backoff.ms": 10,
        "queued.max.messages.kbytes": _WAITING_KB,
        "reconnect.backoff.max.ms": 1000,
        "on_commit": on_commit,
    }
    try:
        return Consumer(settings, logger=CLIENT_LOG)
    except KafkaException as error:
        raise StoreUnavailable(f"offers cannot be read ({error.args[0].str()})") from None


class OfferReader:
    """One member of the group of dispatchers; `step` reads once.

    An offer is in its shard's outbox before it is in the topic, so what is committed here is never lost: whoever takes
    a shard over reads its outbox. Offsets only say how much of the topic need not be told again.

    open  makes the consumer, given what to call with a commit's answer
    Raises StoreUnavailable where nothing will ever be read any more.
    """

    def __init__(
        self,
        open: Callable[[Callable[[Any, Any], None]], Any],
        topic: str,
        shards: Shards,
        *,
        monotonic_s: Callable[[], float] = monotonic_s,
    ) -> None:
        self._topic = topic
        self._shards = shards
        self._monotonic_s = monotonic_s
        self._mine: set[int] = set()
        self._read: dict[int, int] = {}  # by shard: the offset behind what was handed over and is not committed
        self._commit_s = 0.0
        self._is_closing = False
        self._consumer = open(self._committed)
        self._consumer.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    def step(self) -> None:
        """Hand over what there is; waits a moment for the first."""
        # `consume` alone would wait until it has all it was asked for.
        first = self._consumer.poll(_WAIT_S)
        if first is not None:
            self._take([first, *self._consumer.consume(MOST - 1, 0)])
        if self._read and self._monotonic_s() >= self._commit_s:
            self._commit(soon=True)
            self._commit_s = self._monotonic_s() + COMMIT_S

    def close(self) -> None:
        """Commit what was handed over, and leave the group."""
        self._is_closing = True
        self._commit(soon=False)
        self._consumer.close()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _take(self, records: Sequence[Any]) -> None:
        found: dict[int, list[Offer]] = {}
        unreadable: dict[int, int] = {}
        for record in records:
            error = record.error()
            if error is not None:
                self._must_pass(error)
                continue
            shard = record.partition()
            if shard not in self._mine:
                continue  # let go in between: whoever has it now reads it
            try:
                offer = Offer(**orjson.loads(record.value()))
            except (ValueError, TypeError):
                unreadable.setdefault(shard, record.offset())
            else:
                found.setdefault(shard, []).append(offer)
            self._read[shard] = record.offset() + 1
        for shard, offset in unreadable.items():
            log.error("a record is no offer and is passed over", topic=self._topic, shard=shard, offset=offset)
        if found:
            self._shards.enqueue(found)

    def _must_pass(self, error: KafkaError) -> None:
        if error.fatal() or error.code() in _ENDS:
            raise StoreUnavailable(f"kafka cannot be read ({error.name()})")
        log.warning("kafka gives no offers now", topic=self._topic, error=error.name())

    def _commit(self, *, soon: bool) -> None:
        """Commit what was read; where it fails now, it goes with the next commit, or is read again."""
        reads, self._read = self._read, {}
        if not reads:
            return
        offsets = [TopicPartition(self._topic, shard, offset) for shard, offset in reads.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=soon)
        except KafkaException:
            self._read = {shard: offset for shard, offset in reads.items() if shard in self._mine}

    def _committed(self, error: KafkaError | None, places: Sequence[TopicPartition]) -> None:
        for place in places:
            if (error or place.error) and place.partition in self._mine and place.offset >= 0:
                self._read.setdefault(place.partition, place.offset)

    def _assigned(self, _consumer: Any, places: Sequence[TopicPartition]) -> None:
        shards = sorted(place.partition for place in places)
        if shards and not self._is_closing:
            self._shards.assign(shards)
            self._mine.update(shards)

    def _revoked(self, _consumer: Any, places: Sequence[TopicPartition]) -> None:
        if not self._is_closing:
            self._let_go(places)
            self._commit(soon=False)

    def _lost(self, _consumer: Any, places: Sequence[TopicPartition]) -> None:
        """Nothing is committed: others may have these by now."""
        if not self._is_closing:
            for place in places:
                self._read.pop(place.partition, None)
            self._let_go(places)

    def _let_go(self, places: Sequence[TopicPartition]) -> None:
        shards = sorted(place.partition for place in places)
        self._mine.difference_update(shards)
        if shards:
            self._shards.revoke(shards)
