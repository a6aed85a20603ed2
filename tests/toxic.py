"""A small TCP proxy in asyncio that misbehaves on purpose (FAULTS: toxics)."""

from __future__ import annotations

import asyncio
import random
import threading
from types import TracebackType
from urllib.parse import urlsplit


class LostReplies:
    """Stand between a client and Redis; of so many replies one, by a seed, is swallowed and the connection cut.

    A reply is what the server sends between two requests of a client that waits for each answer.
    """

    def __init__(self, url: str, *, every: int) -> None:
        self.lost = 0
        self._target = urlsplit(url)
        # At random: a reconnect takes some replies of its own, and must not meet its end every time.
        self._dice = random.Random(every)
        self._every = every
        self._open: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> LostReplies:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._accept, "127.0.0.1", 0), self._loop
        ).result()
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}{self._target.path}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async def stop() -> None:
            self._server.close()
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)
            for writer in self._writers:  # of one that came last, whose task was cancelled before it began
                writer.transport.abort()
            await asyncio.sleep(0.01)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        forward: asyncio.Task[None] | None = None
        back: asyncio.StreamWriter | None = None
        try:
            there, back = await asyncio.open_connection(self._target.hostname, self._target.port)
            asked = asyncio.Event()
            forward = asyncio.create_task(self._forward(reader, back, asked))
            while data := await there.read(1 << 20):
                if asked.is_set():
                    asked.clear()
                    if self._dice.random() * self._every < 1:
                        self.lost += 1
                        break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            if forward is not None:
                forward.cancel()
                await asyncio.gather(forward, return_exceptions=True)
            for one in (writer, back):
                if one is not None:
                    one.transport.abort()
                    await asyncio.gather(one.wait_closed(), return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter, asked: asyncio.Event) -> None:
        try:
            while data := await reader.read(1 << 20):
                asked.set()
                back.write(data)
                await back.drain()
        finally:
            back.close()  # who asked is gone, so nobody waits for an answer
