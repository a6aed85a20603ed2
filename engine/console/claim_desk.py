"""Claim links over HTTP: looked at, redeemed, drawn as QR codes. The token is the credential of whoever scans it."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from engine.console.claims import QR_FORMATS, Claims
from engine.console.exchange import NO_STORE, Handler, body_of, secret_answer
from engine.console.intake import Refused


class ClaimDesk:
    """Answers the routes of claim links; `claims` returns what knows them."""

    def __init__(self, claims: Callable[[], Claims]) -> None:
        self._claims = claims
        self.open: list[tuple[str, Handler, str]] = [
            ("/v1/claims/{token}", self._show, "GET"),
            ("/v1/claims/{token}", self._redeem, "POST"),
            ("/v1/claims/{token}/qr.{kind}", self._qr, "GET"),
        ]

    async def _show(self, request: Request) -> Response:
        return secret_answer(await self._claims().show(request.path_params["token"]))

    async def _redeem(self, request: Request) -> Response:
        token, key = request.path_params["token"], request.headers.get("idempotency-key")
        return secret_answer(await self._claims().redeem(token, await body_of(request), key))

    async def _qr(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind not in QR_FORMATS:
            raise Refused(404, "not_found", f"a QR code is {' or '.join(QR_FORMATS)}")
        image = self._claims().qr(request.path_params["token"], kind)
        return Response(image, media_type=QR_FORMATS[kind], headers=NO_STORE)
