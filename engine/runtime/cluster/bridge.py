"""Between the engine's thread and the loop that talks to Kafka: rebalances wait for the engine, calls for the loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop
from aiokafka.client import AIOKafkaClient

from engine.clock import monotonic_s
from engine.errors import StoreUnavailable

T = TypeVar("T")
CLIENT_LOG = logging.getLogger("opportune.kafka")
"""Where librdkafka writes; what passes by itself is not worth a line."""
CLIENT_LOG.setLevel(logging.ERROR)
_LOOK_S = 0.5


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self, name: str) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 30.0) -> T:
        """Run a coroutine there and return what it returns; StoreUnavailable where it takes too long."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise StoreUnavailable("kafka does not answer in time") from None

    def run_until(
        self, work: Coroutine[Any, Any, T], timeout_s: float, is_stopped: Callable[[], bool], last_wait_s: float
    ) -> T:
        """Run a coroutine there; who is told to stop waits no longer than `last_wait_s` more."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        give_up_s = monotonic_s() + timeout_s
        told = False
        while True:
            try:
                return future.result(_LOOK_S)
            except TimeoutError:
                if future.done():
                    raise
                if not told and is_stopped():
                    told, give_up_s = True, min(give_up_s, monotonic_s() + last_wait_s)
                if monotonic_s() >= give_up_s:
                    future.cancel()
                    raise StoreUnavailable("kafka does not answer in time") from None

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin a coroutine there."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def stop(self) -> None:
        async def cancel() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        try:
            self.run(cancel(), 5.0)
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(5.0)
            if not self._thread.is_alive():
                self.loop.close()


class Rebalances:
    """Hand rebalances over to the engine, which handles them within its next `poll`."""

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self._wake = wake
        self._waiting: deque[tuple[str, Sequence[int], Future[None]]] = deque()
        self.is_closed = False

    def announce(self, what: str, partitions: Sequence[int]) -> Awaitable[None]:
        """In the loop: what is revoked, return once the engine has let go; what is assigned, at once.

        Restoring state may take longer than a session, and no heartbeat is sent until an assignment is over.
        """
        done: Future[None] = Future()
        if self.is_closed or not partitions:
            done.set_result(None)
        else:
            self._waiting.append((what, sorted(partitions), done))
            self._wake()
        if what == "assign":
            done = Future()
            done.set_result(None)
        return asyncio.wrap_future(done)

    def handle(self, assigned: Callable[[Sequence[int]], None], revoked: Callable[[Sequence[int]], None]) -> None:
        """In the engine's thread."""
        while self._waiting:
            what, partitions, done = self._waiting.popleft()
            try:
                (assigned if what == "assign" else revoked)(partitions)
            finally:
                done.set_result(None)

    def close(self) -> None:
        self.is_closed = True
        while self._waiting:
            self._waiting.popleft()[2].set_result(None)


async def probe(address: str) -> None:
    """Raise KafkaError where no broker answers."""
    client = AIOKafkaClient(bootstrap_servers=address, request_timeout_ms=5000)
    try:
        await client.bootstrap()
    finally:
        await client.close()


def unreachable(address: str, error: Exception) -> StoreUnavailable:
    return StoreUnavailable(
        f"kafka at {address} cannot be reached ({type(error).__name__}): start it, or name another with "
        "OPPORTUNE_CLUSTER__KAFKA=host:port"
    )
