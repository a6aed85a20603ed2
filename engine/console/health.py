"""The pages of a process that has no API: /healthz, /readyz and /metrics, and callbacks where gateways are served."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from engine import metrics
from engine.console.callbacks import METHODS, PATH, Handle, answer_callback
from engine.console.exchange import body_of, fault_body, json_answer, retry_after, unavailable
from engine.console.intake import Refused
from engine.errors import OpportuneError


def health_app(why_not_ready: Callable[[], str], on_callback: Handle | None = None) -> Starlette:
    """Make the application; `why_not_ready` returns '' where all is well, `on_callback` takes what gateways report."""

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        reason = why_not_ready()
        return PlainTextResponse(f"{reason or 'ready'}\n", status_code=503 if reason else 200)

    async def exposition(request: Request) -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4")

    async def called(request: Request) -> Response:
        assert on_callback is not None
        try:
            return await answer_callback(request, await body_of(request), on_callback)
        except Refused as error:
            refused = error
        except OpportuneError as error:
            refused = unavailable(error)
        return json_answer(fault_body(refused), refused.status, retry_after(refused))

    routes = [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", exposition)]
    if on_callback is not None:
        routes.append(Route(PATH, called, methods=list(METHODS)))
    return Starlette(routes=routes)
