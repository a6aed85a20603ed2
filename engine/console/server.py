"""Run the API on uvicorn with uvloop and httptools, inside a loop that somebody else owns."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Callable, Generator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from engine import metrics
from engine.console.at_once import EVENTS_ROUTE
from engine.errors import SettingsError

MOST_HEAD_BYTES = 512 << 10
"""What may arrive before a request's headers are complete; a generous read of a socket included."""


REQUEST_S = 75.0
"""So long a connection may take to bring one whole request, and wait for the next: who dawdles holds a socket."""

SWIFT_BYTES = 64 << 10
"""Larger bodies take the usual way, which reads them in pieces and may pause the sender."""

Answer = Callable[[list[tuple[bytes, bytes]], bytes], bytes | None]
_EVENTS = EVENTS_ROUTE.encode()


class HttpServer:
    """Serve an ASGI application until `stop`. Signals stay with the caller.

    at_once  asked first about each ordinary POST of events (`AtOnce.answer`); None: the application answers all
    most_connections  open at once, further ones are refused; None: half the files this process may open, so that
                      journal and ledger can always open theirs
    """

    def __init__(
        self,
        app: Any,
        host: str,
        port: int,
        *,
        at_once: Answer | None = None,
        most_connections: int | None = None,
        request_s: float = REQUEST_S,
    ) -> None:
        self._socket = _listen(host, port)
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http=_answering(at_once, most_connections or _half_the_files(), request_s),
            loop="none",  # the caller's: uvloop in `opportune serve`
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # what strangers send is counted, not logged: they would fill the disk
            access_log=False,
            server_header=False,
            date_header=False,
            backlog=1024,
            timeout_keep_alive=int(REQUEST_S),
            timeout_graceful_shutdown=10,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return once connections are answered."""
        self._task = asyncio.create_task(self._server.serve([self._socket]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise SettingsError(f"the HTTP server did not start on {self.host}:{self.port}")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Refuse new connections, let requests under way end."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task


class _Protocol(HttpToolsProtocol):
    """Refuse endless request heads, which the parser would keep in memory before anyone can ask for a key.

    And answer ordinary requests at once: uvicorn's own way begins only where that is not possible.
    """

    _head_bytes = 0
    _swift_body: bytes | None = None
    """What came so far of a request that may be answered at once; uvicorn does not know of it yet."""

    most_connections = 1 << 30
    request_s = REQUEST_S
    _requests = _requests_seen = 0
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            metrics.HTTP_REQUESTS.labels("none", "503").inc()
            transport.write(_TOO_MANY)
            transport.close()
            return
        self._patience = self.loop.call_later(self.request_s, self._look_for_progress)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._patience is not None:
            self._patience.cancel()
        super().connection_lost(exc)

    def _look_for_progress(self) -> None:
        """Close where no request has come whole since the last look and none is being answered.

        One timer a connection and one number a request: a timer of each request would cost more than its answer.
        """
        is_answering = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if self._requests == self._requests_seen and not is_answering:
            self.transport.close()
            return
        self._requests_seen = self._requests
        self._patience = self.loop.call_later(self.request_s, self._look_for_progress)

    @staticmethod
    def answer_at_once(headers: list[tuple[bytes, bytes]], body: bytes) -> bytes | None:
        return None

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"a request's head may have at most {MOST_HEAD_BYTES} bytes")

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, as JSON like every fault, and close."""
        metrics.HTTP_REQUESTS.labels("none", "400").inc()
        body = b'{"error":"bad_request","detail":"%b"}' % msg.encode()
        self.transport.write(_BAD_REQUEST % (len(body), body))
        self.transport.close()

    def on_headers_complete(self) -> None:
        self._head_bytes = -(1 << 62)  # the body is limited where it is read
        if (
            self.url == _EVENTS
            and not _announces_much(self.headers)
            and (self.cycle is None or self.cycle.response_complete)
            and self.parser.get_method() == b"POST"
            and self.parser.should_keep_alive()
            and not self.expect_100_continue
            and not self.parser.should_upgrade()
            and not self.flow.write_paused
        ):
            self._swift_body = b""
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._swift_body is None:
            super().on_body(body)
            return
        self._swift_body = self._swift_body + body if self._swift_body else body
        if len(self._swift_body) > SWIFT_BYTES:
            self._take_usual_way()

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        self._requests += 1
        if self._swift_body is not None:
            answer = self.answer_at_once(self.headers, self._swift_body)
            if answer is not None:
                self._swift_body = None
                self.transport.write(answer)
                self.server_state.total_requests += 1
                self._unset_keepalive_if_required()
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
                return
            self._take_usual_way()
        super().on_message_complete()

    def _take_usual_way(self) -> None:
        body, self._swift_body = self._swift_body, None
        super().on_headers_complete()
        if body:
            super().on_body(body)


def _announces_much(headers: list[tuple[bytes, bytes]]) -> bool:
    """Say whether a body is announced that is not answered at once: it may have to be refused before it comes."""
    return any(name == b"content-length" and len(value) > _SWIFT_DIGITS for name, value in headers)


_SWIFT_DIGITS = len(str(SWIFT_BYTES))
_BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
)
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b'content-length: 72\r\n\r\n{"error":"too_many_connections","detail":"use one for several requests"}'
)


def _answering(at_once: Answer | None, most_connections: int, request_s: float) -> type[_Protocol]:
    own: dict[str, Any] = {"most_connections": most_connections, "request_s": request_s}
    if at_once is not None:
        own["answer_at_once"] = staticmethod(at_once)
    return type("_Answering", (_Protocol,), own)


def _half_the_files() -> int:
    return max(16, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 20) // 2)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port with OPPORTUNE_PORT or --port"
        ) from None
    listener.setblocking(False)
    return listener
