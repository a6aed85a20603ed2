"""The strictest webhook receiver: verifies by the reference implementation, refuses what is late, remembers when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import orjson
from standardwebhooks.webhooks import Webhook

from tests.peers.invariants import Handsets

SECRET = "whsec_" + "c2VjcmV0" * 5


class Got(NamedTuple):
    """One message as it reached the receiver."""

    at_ms: int
    dispatch_id: str
    to: str
    text: str
    channel: str


class Receiver:
    """Takes what `answer` answers 200, never after its validity; one that it does not verify fails the test at `check`.

    answer  status for a message; may wait, or raise ConnectionAbortedError: taken, and the connection breaks
    """

    def __init__(self, answer: Callable[[Got], int] = lambda got: 200) -> None:
        self.answer = answer
        self.handsets = Handsets()
        self.faults: list[str] = []
        self._got: list[Got] = []
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                try:
                    status = receiver._take(body, {name.lower(): value for name, value in self.headers.items()})
                except ConnectionAbortedError:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                return None

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """A killed client resets its connections; that is the test."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/offers"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _take(self, body: bytes, headers: dict[str, str]) -> int:
        now_ms = time.time_ns() // 1_000_000
        try:
            Webhook(SECRET).verify(body, headers)
            data = orjson.loads(body)["data"]
            assert headers["webhook-id"] == data["dispatch_id"]
            got = Got(now_ms, data["dispatch_id"], data["to"], data["text"], data["channel"])
            deadline_ms = int(datetime.fromisoformat(data["valid_until"]).timestamp() * 1000)
        except Exception as error:
            self.faults.append(repr(error))
            return 401
        if now_ms > deadline_ms:
            return 422  # its validity ended on the way: a gateway drops it (D6)
        status = 500
        try:
            status = self.answer(got)
        finally:
            if status == 200 or status == 500:  # an answer that proves nothing: it may have been taken
                with self._lock:
                    self._got.append(got)
                self.handsets.got(got.dispatch_id, at_ms=now_ms, deadline_ms=deadline_ms)
        return status

    @property
    def got(self) -> list[Got]:
        with self._lock:
            return list(self._got)

    def to(self, number: str) -> list[Got]:
        return [one for one in self.got if one.to == number]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def check(self) -> None:
        """Raise where anything was unsigned, came twice or came after its deadline."""
        assert self.faults == []
        self.handsets.check()


def signed(document: Any, identity: str) -> dict[str, Any]:
    """Return the arguments of an HTTP call that carries a signed callback."""
    body, now = orjson.dumps(document), datetime.now(UTC)
    headers = {
        "webhook-id": identity,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(SECRET).sign(identity, now, body.decode()),
    }
    return {"content": body, "headers": headers}
