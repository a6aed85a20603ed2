"""What a shard has to give, as it stands in Redis; for whoever keeps it supplied with codes (O3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.ledger.pool import Lease, joined
from engine.ledger.stock import Given


class RedisStock:
    """Reads lua/stock.lua's hash of one shard; answers are of the instant.

    read  gives the hash: numbers by field, pools as {leases, expired, free, returned, last act}
    """

    def __init__(self, read: Callable[[], dict[str, Any]]) -> None:
        self._read = read

    def available(self, pool: str) -> int:
        """Count codes that can be drawn now."""
        return sum(end - first for first, end in self._pool(pool)[2])

    def returned(self, pool: str) -> list[tuple[int, int]]:
        """List the spans (first, end) that wait to go back to the store of codes."""
        return joined((first, end) for first, end in self._pool(pool)[3])

    def known(self, pool: str) -> list[tuple[int, int]]:
        """List the spans of a pool that are leased here, the expired ones included."""
        leases, expired, *_ = self._pool(pool)
        return joined([*((first, end) for first, end, _ in leases), *((first, end) for first, end in expired)])

    def has_lease(self, pool: str, epoch: int) -> bool:
        """Say whether a lease up to this epoch has not expired yet."""
        return any(under <= epoch for _, _, under in self._pool(pool)[0])

    def pools(self) -> list[str]:
        return sorted(field[2:] for field in self._read() if field.startswith("k:"))

    def leases(self) -> list[Lease]:
        """List every lease, the expired ones included."""
        found = []
        for pool in self.pools():
            leases, expired, *_ = self._pool(pool)
            found += [Lease(pool, first, end - first, epoch) for first, end, epoch in leases]
            found += [Lease(pool, first, end - first, 0, expired=True) for first, end in expired]
        return found

    def given(self) -> dict[str, Given]:
        """What this shard has given so far, by benefit."""
        found: dict[str, Given] = {}
        for field, value in self._read().items():
            if field.startswith("n:"):
                found.setdefault(field[2:], Given()).count = value
            elif field.startswith("f:"):
                found.setdefault(field[2:], Given()).fen = value
        return found

    def _pool(self, pool: str) -> list[Any]:
        state: list[Any] = self._read().get(f"k:{pool}") or [[], [], [], [], -1]
        return state
