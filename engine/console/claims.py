"""Scan to claim: what a claim link answers, redeeming it once, and its QR code (docs/api.md)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import orjson

from engine.claim_token import ClaimToken, token_reader
from engine.console.intake import Refused
from engine.definitions import Content
from engine.deliver.contract import UseKind
from engine.deliver.returns import used
from engine.ledger.links import Link, LinkState
from engine.model import CONTRACT_VERSION

QR_FORMATS = {"svg": "image/svg+xml", "png": "image/png"}
LONGEST_IDEMPOTENCY_KEY = 255
MOST_AMOUNT_FEN = 10**15


class ClaimEngine(Protocol):
    """What claims ask of the running engine."""

    @property
    def content(self) -> Content: ...

    @property
    def tenant(self) -> str: ...

    async def append(self, payloads: Sequence[bytes]) -> Sequence[int]: ...

    async def link(self, offer_id: str) -> Link: ...

    async def redeem_link(
        self, offer_id: str, at_ms: int, caller: str, body: str, amount_fen: int | None
    ) -> tuple[Link, bool]: ...

    async def link_told(self, offer_id: str) -> None: ...

    async def untold_links(self) -> list[Link]: ...

    def reveal(self, ref: str) -> str | None: ...


class Claims:
    """Answers about tokens. A token is its own credential: whoever holds it may ask and redeem."""

    def __init__(self, engine: ClaimEngine, id_key: bytes, now_ms: Callable[[], int]) -> None:
        self._engine = engine
        self._read = token_reader(id_key)
        self._now_ms = now_ms

    async def show(self, token: str) -> dict[str, Any]:
        """Say what the link is for and whether it can be redeemed; changes nothing, so that previews may ask."""
        claim = self._claim(token)
        link = await self._engine.link(claim.offer_id)
        if link.state is LinkState.UNKNOWN:
            raise _unknown()
        return self._shown(claim, link)

    async def redeem(self, token: str, body: bytes, idempotency_key: str | None) -> dict[str, Any]:
        """Redeem a link once. The same idempotency key gets the same answer again; the same with another body 422."""
        claim = self._claim(token)
        amount_fen = _amount(body)
        if idempotency_key is not None and not 1 <= len(idempotency_key) <= LONGEST_IDEMPOTENCY_KEY:
            raise Refused(400, "bad_idempotency_key", f"an Idempotency-Key has 1 to {LONGEST_IDEMPOTENCY_KEY} letters")
        # Without a key a repeated request is somebody else's.
        caller = "" if idempotency_key is None else _hashed(idempotency_key.encode())
        asked = _hashed(body)
        now_ms = self._now_ms()
        if now_ms >= claim.until_ms:
            link = await self._engine.link(claim.offer_id)
            is_again = link.state is LinkState.REDEEMED and caller and link.caller == caller
            if not is_again:
                raise Refused(410, "expired", "the benefit has expired")
        link, is_first = await self._engine.redeem_link(claim.offer_id, now_ms, caller, asked, amount_fen)
        if link.state is LinkState.UNKNOWN:
            raise _unknown()
        if link.state is LinkState.NOT_SENT:
            raise Refused(410, "withdrawn", "this offer was taken back before it reached anybody")
        if not is_first:
            if not caller or link.caller != caller:
                raise Refused(409, "already_redeemed", f"redeemed before, at {link.at_ms}")
            if link.body != asked:
                raise Refused(422, "another_request", "this Idempotency-Key came with another body before")
        await self._tell([link])
        return {**self._shown(claim, link), "code": self._engine.reveal(link.code) if link.code else None}

    async def tell_forgotten(self) -> None:
        """Journal redemptions that a crash kept from it; call it once at the start."""
        links = await self._engine.untold_links()
        if links:
            await self._tell(links)

    def qr(self, token: str, kind: str) -> bytes:
        """Draw the link as a QR code; kind is one of QR_FORMATS."""
        self._claim(token)
        domains = self._engine.content.policy.claim_domains
        if not domains:
            raise Refused(404, "no_domain", "the policy names no `claim_domains`")
        return draw_qr(f"https://{domains[0]}/{token}", kind)

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _tell(self, links: list[Link]) -> None:
        """Journal the redemptions; their ids make a repetition count once (T7)."""
        events = []
        for link in links:
            event = {
                "v": CONTRACT_VERSION,
                "tenant": self._engine.tenant,
                "type": "redemption",
                "id": f"claim:{link.offer_id}",
                "user": link.user,
                "at": link.at_ms,
                "offer_id": link.offer_id,
                "benefit": link.benefit,
            }
            events.append(orjson.dumps(event if link.amount_fen is None else {**event, "amount_fen": link.amount_fen}))
            # Told a second time as a usage event, which scenarios can be triggered by.
            known = ("v", "tenant", "user", "at")
            told = {"type": "usage", "id": f"told:claim:{link.offer_id}", **used(UseKind.REDEMPTION, link.benefit)}
            events.append(orjson.dumps({name: event[name] for name in known} | told))
        await self._engine.append(events)
        for link in links:
            await self._engine.link_told(link.offer_id)

    def _claim(self, token: str) -> ClaimToken:
        claim = self._read(token)
        if claim is None:
            raise Refused(401, "bad_token", "this link was not made here, or was changed on its way")
        return claim

    def _shown(self, claim: ClaimToken, link: Link) -> dict[str, Any]:
        state = link.state.value
        if link.state is LinkState.OPEN and self._now_ms() >= claim.until_ms:
            state = "expired"
        benefit = next((one for one in self._engine.content.benefits if one.id == link.benefit), None)
        return {
            "state": state,
            "offer_id": claim.offer_id,
            "benefit": link.benefit,
            "name": benefit.name if benefit else link.benefit,
            "partner": benefit.partner if benefit else None,
            "face_value_fen": benefit.face_value_fen if benefit else None,
            "until_ms": claim.until_ms,
            "redeemed_at_ms": link.at_ms if link.state is LinkState.REDEEMED else None,
        }


def draw_qr(text: str, kind: str) -> bytes:
    """Draw a QR code as SVG or PNG."""
    import segno

    out = io.BytesIO()
    segno.make(text, error="m", micro=False).save(out, kind=kind, scale=6, border=4)
    return out.getvalue()


def _amount(body: bytes) -> int | None:
    if not body:
        return None
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        given = None
    amount = given.get("amount_fen") if isinstance(given, dict) else -1
    if amount is not None and (type(amount) is not int or not 0 <= amount <= MOST_AMOUNT_FEN):
        raise Refused(400, "bad_request", 'expected no body, or {"amount_fen": whole fen}')
    return amount


def _hashed(value: bytes) -> str:
    return hashlib.blake2b(value, digest_size=16).hexdigest()


def _unknown() -> Refused:
    return Refused(404, "unknown_offer", "the offer of this link is not known any more")
