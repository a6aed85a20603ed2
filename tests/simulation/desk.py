"""Codes between codes.db and the log: the service's own desk, with a service that may die at every step (O3)."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from engine.ledger.codes import CodeStore
from engine.ledger.codes_import import import_codes
from engine.runtime.code_desk import CodeDesk
from tests.simulation.campaigns import POOLS

if TYPE_CHECKING:
    from tests.simulation.live import Live

LEASED_AT_ONCE = 4
EVERY_MS = 900_000


@cache
def _imported() -> bytes:
    """A codes.db that holds every pool; made once a process."""
    with tempfile.TemporaryDirectory(prefix="opportune-sim-codes-") as name:
        folder = Path(name)
        store = CodeStore(folder / "codes.db")
        for pool, count in POOLS.items():
            file = folder / f"{pool}.csv"
            file.write_text("".join(f"{pool.upper()}-{number}\n" for number in range(count)))
            import_codes(store, pool, file)
        store.tidy()
        store.close()
        return (folder / "codes.db").read_bytes()


class Desk:
    """Lives as long as the process; what it leased and did not journal is found again at the next start."""

    def __init__(self, live: Live) -> None:
        self._live = live
        path = live.folder / "codes.db"
        if not path.exists():
            path.write_bytes(_imported())
        self.store = CodeStore(path)
        self._due_ms = 0
        self._desk = CodeDesk(self.store, live.ledger, self._append, lambda: live.done, lease_codes=LEASED_AT_ONCE)
        self._desk.settle()

    def supply(self, now_ms: int) -> None:
        if now_ms >= self._due_ms:
            self._due_ms = now_ms + EVERY_MS
            self._desk.supply(self._live.pipeline.content)

    def recall(self) -> None:
        """Ask for every lease of a pool back, as `opportune codes recall` does."""
        for pool in POOLS:
            self.store.recall(pool)
        self._due_ms = 0

    def _append(self, record: bytes) -> int:
        if "lease" in orjson.loads(record):
            self._live.die_between("leased")()
        return self._live.append_control(record)
