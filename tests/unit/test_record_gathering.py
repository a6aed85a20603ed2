"""While records come the broker gathers them; the first after a pause is answered at once (F14, F23)."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from engine.runtime.cluster.record_batches import RawConsumer


@pytest.mark.parametrize("gather_ms", [0, 4])
def test_fetches_gather_while_records_come(gather_ms):
    consumer: Any = RawConsumer.__new__(RawConsumer)
    consumer.gather_ms, consumer._fetch_max_wait_ms = gather_ms, 50
    fetcher = SimpleNamespace(_fetch_min_bytes=1, _fetch_max_wait_ms=50)
    answers = iter([True, True, False, True])

    async def process(*arguments: Any) -> bool:
        assert arguments == ("assignment", "node", "request")
        return next(answers)

    seen = []
    for _ in range(4):
        assert asyncio.run(consumer._process_fetch(process, fetcher, "assignment", "node", "request")) in (True, False)
        seen.append((fetcher._fetch_min_bytes > 1, fetcher._fetch_max_wait_ms))
    gathers = (True, 4) if gather_ms else (False, 50)
    assert seen == [gathers, gathers, (False, 50), gathers]
    consumer._closed = True  # it was never started; its end has nothing to complain about
