"""Bring the rows of a file into an engine in small bites: one after another, each only when the last was processed.

A bite is as many rows as keep a running engine busy for about 15 ms, so that what triggers an offer meanwhile waits for
one bite at most (`BiteSize` learns how many those are); and the import rests between bites, so that it never has the
engine for itself. Sending a bite again, after a cut, changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

import httpx

from engine.clock import monotonic_s
from engine.console.bites import BiteSize
from engine.decode.profile_columns import ProfileRows, RowFault
from engine.errors import OpportuneError, StoreUnavailable
from engine.runtime.profile_files import Progress, TableFile
from engine.runtime.service import Service
from engine.settings import Settings

MOST_BYTES = 1 << 20
_PATIENCE_S = 180.0  # a service with a million users takes a minute to come back where others keep its machine busy
_SAVE_EVERY_S = 1.0


class Engine(Protocol):
    """Where rows go: how long the rows of a bite may keep it busy, and the rest after it as a share of that time."""

    bite_s: float
    rest: float

    async def take(self, payload: bytes) -> None:
        """Return once the events are processed and their effects committed."""
        ...


class TooManyFaults(OpportuneError):
    """More rows were refused than the import may pass over."""


@dataclass(slots=True)
class Tally:
    """What became of the rows; `done_before` of them in an earlier run."""

    rows: int = 0
    refused: int = 0
    done_before: int = 0
    events: int = 0
    seconds: float = 0.0


async def import_rows(
    file: TableFile,
    rows: ProfileRows,
    engine: Engine | None,
    progress: Progress | None,
    *,
    most_faults: int,
    on_fault: Callable[[RowFault], None],
    on_progress: Callable[[int, Tally], None],
) -> Tally:
    """Send every row that can be used; `engine` None only looks. Raises TooManyFaults, or what the engine raises.

    on_progress  told bytes (CSV) or rows (Parquet) read, after every bite
    """
    tally, size = Tally(), BiteSize(0.0 if engine is None else engine.bite_s)
    if progress is not None:
        tally.done_before, tally.rows, tally.refused = progress.rows, progress.rows, progress.refused
    lines: list[bytes] = []
    bite_rows = bite_bytes = seen = 0
    started = monotonic_s()
    saved_s = started - _SAVE_EVERY_S  # the first bite is kept at once: however early the cut, the next run goes on

    async def send(done: int) -> None:
        nonlocal lines, bite_rows, bite_bytes, saved_s
        if engine is not None and lines:
            began = monotonic_s()
            await engine.take(b"\n".join(lines))
            took = monotonic_s() - began
            size.learn(bite_rows, took)
            # The rest is for what the rows kept from others, not for what the request itself waited for.
            await asyncio.sleep(min(took, engine.bite_s) * engine.rest)
        tally.rows, tally.events = seen, tally.events + len(lines)
        lines, bite_rows, bite_bytes = [], 0, 0
        if progress is not None and monotonic_s() - saved_s >= _SAVE_EVERY_S:
            progress.rows, progress.refused = seen, tally.refused
            progress.save()
            saved_s = monotonic_s()
        tally.seconds = monotonic_s() - started
        on_progress(done, tally)

    done = 0
    for row in file.rows():
        seen += 1
        done = row.done
        if seen <= tally.done_before:
            continue
        if row.cells is None:
            made: list[bytes] | RowFault = RowFault(row.number, "-", "a row of CSV expected")
        else:
            made = rows.events(row.number, row.cells)
        if isinstance(made, RowFault):
            tally.refused += 1
            on_fault(made)
            if tally.refused > most_faults:
                raise TooManyFaults(f"more than {most_faults:,} rows cannot be used; stopped at row {row.number:,}")
            continue
        lines += made
        bite_rows += 1
        bite_bytes += sum(map(len, made)) + len(made)
        if bite_rows >= size.rows or bite_bytes >= MOST_BYTES:
            await send(done)
    await send(done)
    if progress is not None:
        progress.finish()
    return tally


class RunningEngine:
    """A service that answers at an address."""

    bite_s, rest = 0.015, 0.5

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._was_there = False

    async def take(self, payload: bytes) -> None:
        """Send a bite and wait until it is processed; wait too while the service is full or gone, for three minutes.

        A service that was never there is not waited for: it was not started, or the address is another's.
        """
        began, fault = monotonic_s(), ""
        while monotonic_s() - began < _PATIENCE_S:
            try:
                answer = await self._client.post("/v1/events", params={"wait": "processed"}, content=payload)
            except httpx.HTTPError as error:
                fault = type(error).__name__
                if isinstance(error, httpx.ConnectError) and not self._was_there:
                    raise StoreUnavailable(
                        f"no service answers at {self._client.base_url} ({fault}); start it (opportune serve), or name "
                        "the state folder of a stopped one by --state"
                    ) from None
                await asyncio.sleep(1.0)
                continue
            self._was_there = True
            if answer.status_code == 202:
                return
            fault = f"{answer.status_code}: {answer.text[:200]}"
            if answer.status_code not in (429, 503):
                break
            await asyncio.sleep(float(answer.headers.get("retry-after", "1")))
        raise StoreUnavailable(
            f"the service does not take the rows ({fault}); the same command goes on where it stopped"
        )


@contextlib.asynccontextmanager
async def running_engine(base_url: str, api_key: str | None) -> AsyncIterator[RunningEngine]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx.AsyncClient(base_url=base_url, headers=headers, trust_env=False, timeout=30.0) as client:
        yield RunningEngine(client)


class StoppedEngine:
    """The engine of a state folder that no service has open: it runs here for the time of the import, and hands
    nothing over; what it decides is queued for the next start."""

    bite_s, rest = 0.2, 0.0  # nobody waits for it

    def __init__(self, service: Service) -> None:
        self._service = service

    async def take(self, payload: bytes) -> None:
        (position,) = await self._service.append([payload])
        await self._service.processed(position)


@contextlib.asynccontextmanager
async def stopped_engine(settings: Settings) -> AsyncIterator[StoppedEngine]:
    """Open the state folder's engine; raises StoreUnavailable where a service has it."""
    service = Service(settings)
    try:
        service.start(lambda offers: None)
        yield StoppedEngine(service)
    finally:
        await asyncio.to_thread(service.stop)
