"""Requests read and answers written: bodies within limits, JSON, and faults that say what to do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response

from engine.console.intake import BODY_LIMIT, Refused, decompress
from engine.errors import OpportuneError, StoreUnavailable
from engine.runtime.repeated import Repeated

log = structlog.get_logger("opportune.console")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = list[tuple[bytes, bytes]]
Handler = Callable[[Request], Awaitable[Response]]

_repeated = Repeated()
NO_STORE = {"cache-control": "no-store", "referrer-policy": "no-referrer"}


async def body_of(request: Request) -> bytes:
    """Return the whole body, unpacked; raise Refused."""
    body = await read_body(request.receive)
    return unpacked(body, request.headers.get("content-encoding", "").strip().lower().encode())


async def json_of(request: Request) -> Any:
    """Return what the body says as JSON, an empty object where there is no body, None where it is no JSON."""
    try:
        return orjson.loads(await body_of(request) or b"{}")
    except orjson.JSONDecodeError:
        return None


def is_number(text: str, most_digits: int) -> bool:
    """Say whether a text is a whole number; isdigit alone takes powers and digits of other scripts too."""
    return text.isascii() and text.isdigit() and len(text) <= most_digits


def refuse_announced(content_length: bytes) -> None:
    """Refuse a body that says it is too large before any of it is read."""
    if content_length.isdigit() and int(content_length[:20]) > BODY_LIMIT:
        raise too_large()


async def read_body(receive: Receive) -> bytes:
    """Read a whole body, at most BODY_LIMIT bytes."""
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if message["type"] == "http.disconnect":
            raise Refused(400, "gone", "the client went away")
        if len(body) > BODY_LIMIT:
            raise too_large()
        return body
    parts, size = [body], len(body)
    while message.get("more_body"):
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size > BODY_LIMIT:
            raise too_large()
        parts.append(part)
    if message["type"] == "http.disconnect":
        raise Refused(400, "gone", "the client went away")
    return b"".join(parts)


def unpacked(body: bytes, encoding: bytes) -> bytes:
    if encoding in (b"", b"identity"):
        return body
    if encoding in (b"gzip", b"x-gzip"):
        return decompress(body)
    raise Refused(415, "bad_encoding", "content-encoding may be gzip or none")


def json_answer(body: bytes, status: int = 200, extra: Headers | None = None) -> Response:
    response = Response(body, status, media_type="application/json")
    response.raw_headers.extend(extra or ())
    return response


def secret_answer(answer: dict[str, Any]) -> Response:
    """Answer what no cache may keep and no other site may learn of from its referrer."""
    return Response(orjson.dumps(answer), media_type="application/json", headers=NO_STORE)


def fault_body(refused: Refused) -> bytes:
    return orjson.dumps({"error": refused.code, "detail": refused.detail})


def retry_after(refused: Refused) -> Headers:
    if refused.status == 401:
        return [(b"www-authenticate", b"Bearer")]
    return [(b"retry-after", b"%d" % refused.retry_after_s)] if refused.retry_after_s is not None else []


def unauthorized() -> Refused:
    return Refused(401, "unauthorized", "the key is missing or wrong; send Authorization: Bearer KEY")


def too_large() -> Refused:
    return Refused(413, "too_large", f"a body holds at most {BODY_LIMIT} bytes; send several")


def broken(error: Exception) -> Refused:
    """Answer for a bug of ours, told once a minute: whoever found it may ask again and again."""
    if _repeated.is_news(type(error).__name__):
        log.error("a request woke a bug", error=type(error).__name__, exc_info=error)
    return Refused(500, "internal", "this request met a fault of the service; it is in its log")


def unavailable(error: OpportuneError) -> Refused:
    if not isinstance(error, StoreUnavailable):
        log.error("request failed", error=type(error).__name__)
    return Refused(503, "unavailable", "the engine cannot take this now; send it again later", 1)
