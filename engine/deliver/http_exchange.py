"""HTTP/1.1 from the client's side: one request at a time on a connection, connections kept for the next one.

The library's client spends several milliseconds of processor time a message on its pool, hooks and streams; a gateway
needs one POST with a short answer. The protocol itself is h11's, the connecting a network backend's (egress.py).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import h11
import httpcore
import httpx

MOST_ANSWER_BYTES = 64 << 10
"""Of an answer's body; what is longer is cut off, and the connection with it."""
_MOST_HEAD_BYTES = 64 << 10
_READ_BYTES = 64 << 10


class Refused(httpcore.ConnectError):
    """The request cannot be written as HTTP. Nothing was sent."""


@dataclass(frozen=True, slots=True)
class Answer:
    """status_code, headers by lower-case name (the last one counts), body."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status_code < 300


Origin = tuple[str, str, int]
"""Scheme, host, port."""


class Connections:
    """Connections to any number of origins; `most_idle` are kept, each for `idle_s`.

    Raises httpcore.ConnectError or ConnectTimeout where nothing was sent, any other httpcore or h11 error or
    TimeoutError where the request may have arrived.
    """

    def __init__(
        self,
        backend: httpcore.AsyncNetworkBackend,
        context: ssl.SSLContext,
        *,
        most_idle: int,
        idle_s: float,
        monotonic_s: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._context = context
        self._most_idle = most_idle
        self._idle_s = idle_s
        self._monotonic_s = monotonic_s
        self._idle: dict[_Connection, tuple[Origin, float]] = {}  # oldest first

    async def take(self, url: httpx.URL, timeout_s: float) -> _Connection:
        """Return a connection to the origin of `url`, the one used last where there is one; give it back after use."""
        origin = _origin(url)
        for connection, (kept, until_s) in reversed(list(self._idle.items())):
            # While an old one was being closed, others may have taken what was idle when this walk began.
            if kept != origin or self._idle.pop(connection, None) is None:
                continue
            if self._monotonic_s() < until_s and not connection.is_readable:
                return connection
            await connection.close()
        scheme, host, port = origin
        stream = await self._backend.connect_tcp(host, port, timeout_s)
        if scheme == "https":
            try:
                stream = await stream.start_tls(self._context, host, timeout_s)
            except BaseException:  # nobody else closes it where the caller's time is up
                await stream.aclose()
                raise
        return _Connection(stream, origin)

    async def give_back(self, connection: _Connection) -> None:
        """Keep it for the next request, or close it where it cannot serve one."""
        if not connection.is_reusable:
            await connection.close()
            return
        now_s = self._monotonic_s()
        self._idle[connection] = connection.origin, now_s + self._idle_s
        while self._idle:
            oldest = next(iter(self._idle))
            if len(self._idle) <= self._most_idle and now_s < self._idle[oldest][1]:
                break
            del self._idle[oldest]
            await oldest.close()

    async def close(self) -> None:
        idle, self._idle = self._idle, {}
        for connection in idle:
            await connection.close()


class _Connection:
    def __init__(self, stream: httpcore.AsyncNetworkStream, origin: Origin) -> None:
        self.origin = origin
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD_BYTES)

    @property
    def is_reusable(self) -> bool:
        return self._http.our_state is h11.IDLE and self._http.their_state is h11.IDLE

    @property
    def is_readable(self) -> bool:
        """Whether the peer has closed it, or said something that nobody asked for."""
        return bool(self._stream.get_extra_info("is_readable"))

    async def post(self, url: httpx.URL, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send one request and read its answer. Whatever is raised, the connection cannot be used any more."""
        await self._stream.write(self._request(url, headers, body))
        while type(event := await self._next()) is not h11.Response:
            if not isinstance(event, h11.InformationalResponse):
                raise httpcore.RemoteProtocolError("the connection was closed before the answer")
        answer, content = event, bytearray()
        while isinstance(event := await self._next(), h11.Data):
            content += event.data
            if len(content) > MOST_ANSWER_BYTES:
                break
        # What follows the answer already can only be meant to pass for the next one.
        if self._http.our_state is self._http.their_state is h11.DONE and not self._http.trailing_data[0]:
            self._http.start_next_cycle()
        return Answer(
            answer.status_code,
            {name.decode("latin-1"): value.decode("latin-1") for name, value in answer.headers},
            bytes(content[:MOST_ANSWER_BYTES]),
        )

    async def close(self) -> None:
        await self._stream.aclose()

    def _request(self, url: httpx.URL, headers: Mapping[str, str], body: bytes) -> bytes:
        try:
            head = h11.Request(
                method="POST",
                target=url.raw_path,
                headers=[
                    (b"host", url.netloc),
                    (b"accept", b"*/*"),
                    (b"user-agent", b"opportune"),
                    (b"content-length", b"%d" % len(body)),
                    *((name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()),
                ],
            )
            out = [self._http.send(head), self._http.send(h11.Data(data=body)), self._http.send(h11.EndOfMessage())]
        except (h11.LocalProtocolError, UnicodeEncodeError) as error:
            raise Refused(f"the request cannot be written ({type(error).__name__})") from None
        return b"".join(one for one in out if one)

    async def _next(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.read(_READ_BYTES))
        return event


def _origin(url: httpx.URL) -> Origin:
    return url.scheme, url.raw_host.decode("ascii").strip("[]"), url.port or (443 if url.scheme == "https" else 80)
