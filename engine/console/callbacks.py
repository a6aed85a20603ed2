"""`/v1/callbacks/NAME`: what gateways report, handed to the gateway of that name, which alone can tell that it is true.

A gateway proves itself by a signature, a shared secret or where it calls from (FAULTS A10); it needs no key of the API.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from engine.console.intake import Refused
from engine.deliver.contract import Callback, CallbackRefused, Reply

METHODS = ("GET", "POST")  # Kannel calls with GET
PATH = "/v1/callbacks/{name}"

Handle = Callable[[str, Callback], Awaitable[Reply | None]]


async def answer_callback(request: Request, body: bytes, handle: Handle) -> Response:
    """Answer a callback once what it says is durable; raise Refused, StoreUnavailable."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    peer = request.client.host if request.client else ""
    callback = Callback(request.method, request.url.query, headers, body, peer)
    try:
        reply = await handle(request.path_params["name"], callback)
    except CallbackRefused as refused:
        raise Refused(refused.status, refused.code, refused.message) from None
    if reply is None:
        # As for a wrong signature: whoever guesses learns no names.
        raise Refused(401, "bad_signature", "the callback does not prove that it comes from a gateway")
    return Response(reply.body, reply.status, media_type=reply.media_type)
