"""Leases of codes between codes.db and the log (rule O3): the engine gives only what a record of the log has leased.

In this order a crash loses nothing and gives nothing twice: a lease is taken from codes.db, then journaled; numbers
that come back are put into codes.db, then journaled. What was leased and never reached the log is found at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import orjson

from engine import metrics
from engine.definitions import Content
from engine.ledger.codes import CodeStore
from engine.ledger.pool import Lease, joined

LEASE_CODES = 50_000
"""Leased at once; renewed when half is left, once a second."""


class Supply(Protocol):
    """What a ledger has of codes now (engine.ledger.stock.Stock, engine.ledger.redis.stock.RedisStock)."""

    def available(self, pool: str) -> int: ...
    def returned(self, pool: str) -> list[tuple[int, int]]: ...
    def known(self, pool: str) -> list[tuple[int, int]]: ...
    def has_lease(self, pool: str, epoch: int) -> bool: ...


class SuppliedLedger(Protocol):
    @property
    def stock(self) -> Supply: ...
    def leases(self) -> list[Lease]: ...
    def codes_after(self, position: int) -> list[str]: ...


class CodeDesk:
    """Keeps the engine supplied. Called by housekeeping, and once before the engine starts.

    append  journals a control record and returns its position
    done    the last position that was processed
    shares  how many desks draw on the same pools; each takes a part of what is left
    """

    def __init__(
        self,
        store: CodeStore,
        ledger: SuppliedLedger,
        append: Callable[[bytes], int],
        done: Callable[[], int],
        *,
        lease_codes: int = LEASE_CODES,
        shares: int = 1,
    ) -> None:
        self.store = store
        self._ledger = ledger
        self._append = append
        self._done = done
        self._lease_codes = lease_codes
        self._shares = shares
        self._promised: dict[str, int] = {}

    def settle(self) -> None:
        """Free what was leased and never reached the log; call it before anything is leased."""
        stock = self._ledger.stock
        stored = self._ledger.leases()
        for pool in self.store.pools():
            known = [(one.first, one.end) for one in stored if one.pool == pool.name]
            self.store.keep_leased(pool.name, joined([*known, *stock.known(pool.name)]))
        # A power loss may have taken records whose codes went out; the ledger remembers them.
        spent: dict[str, list[tuple[int, int]]] = {}
        for code in self._ledger.codes_after(self._done()):
            name, _, number = code.partition("#")
            spent.setdefault(name, []).append((int(number), int(number) + 1))
        for name, spans in sorted(spent.items()):
            self._write(name, {"spent": name, "spans": joined(spans)})

    def supply(self, content: Content) -> None:
        """Take back what was recalled, and lease what runs low."""
        wanted = pools_of(content)
        for pool in self.store.pools():
            name = pool.name
            stock = self._ledger.stock
            if name in wanted:
                metrics.CODES_AVAILABLE.labels(name).set(stock.available(name) + pool.free)
            if self._promised.get(name, -1) > self._done():
                continue  # the engine has not read what was journaled last
            if stock.has_lease(name, pool.recalled):
                self._write(name, {"recall": name, "epoch": pool.recalled})
                continue
            spans = stock.returned(name)
            if spans:
                self.store.take_back(name, spans)
                self._write(name, {"returned": name, "spans": spans})
            block = (
                self._lease_codes if self._shares == 1 else min(self._lease_codes, 1 + pool.free // (2 * self._shares))
            )
            if name in wanted and pool.free and stock.available(name) < (block + 1) // 2:
                for lease in self.store.lease(name, block):
                    self._write(name, {"lease": name, "first": lease.first, "count": lease.count, "epoch": lease.epoch})

    def _write(self, pool: str, record: dict[str, object]) -> None:
        self._promised[pool] = self._append(orjson.dumps(record))


def pools_of(content: Content) -> set[str]:
    """Name the pools that offers of this content draw on."""
    return set(_pools(content))


def _pools(content: Content) -> Iterable[str]:
    for scenario in content.scenarios:
        for one in scenario.offer.terms:
            if one.stock is not None and one.stock.pool:
                yield one.stock.pool
