"""Reads the offers topic for a dispatcher: hands blocks over as they come, commits behind itself without waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from engine.clock import monotonic_s
from engine.model import Block
from engine.runtime.source import CommitsSoon

COMMIT_S = 0.5
"""Whatever is read again is claimed once, so few commits are enough; a commit for each block would cost the broker."""


class Shards(Protocol):
    """What the reader tells of; calls come from the thread that reads."""

    def assign(self, shards: Sequence[int]) -> None: ...

    def revoke(self, shards: Sequence[int]) -> None: ...

    def enqueue(self, block: Block) -> None: ...


class OfferReader:
    """One member of the group of dispatchers; `step` reads once.

    An offer is in its shard's outbox before it is in the topic, so what is committed here is never lost: whoever takes
    a shard over reads its outbox. Offsets only say how much of the topic need not be told again.
    """

    def __init__(self, source: CommitsSoon, shards: Shards, *, monotonic_s: Callable[[], float] = monotonic_s) -> None:
        self._source = source
        self._shards = shards
        self._monotonic_s = monotonic_s
        self._read: dict[int, int] = {}
        self._commit_s = 0.0
        source.on_assign = shards.assign
        source.on_revoke = self._revoke

    def step(self, most: int = 4096) -> None:
        """Hand over what there is; waits as long as the source does."""
        for block in self._source.poll(most):
            self._shards.enqueue(block)
            self._read[block.partition] = int(block.position[-1])
        if self._read and self._monotonic_s() >= self._commit_s:
            self._commit()
            self._commit_s = self._monotonic_s() + COMMIT_S

    def close(self) -> None:
        """Commit what was handed over, and leave the group."""
        self._commit()
        self._source.close()

    def _commit(self) -> None:
        if self._read:
            self._source.commit_soon(self._read)
            self._read = {}

    def _revoke(self, shards: Sequence[int]) -> None:
        self._shards.revoke(shards)
        gone = {shard: self._read.pop(shard) for shard in shards if shard in self._read}
        if gone:
            self._source.commit_soon(gone)
