"""From a claimed offer to what a gateway is given: address, the voucher's code, the text as this gateway sends it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import structlog

from engine import metrics
from engine.deliver.contract import Dispatch, Gateway
from engine.model import CODE_MARK, Offer

if TYPE_CHECKING:
    from engine.deliver.dispatcher import Dispatcher

log = structlog.get_logger("opportune.deliver")


def dispatch_id(offer: Offer) -> str:
    """Name one attempt (D4). A repeated submit of a provable refusal is the same attempt."""
    return f"{offer.offer_id}/{offer.channel}/{offer.attempt}"


def make(owner: Dispatcher, gateway: Gateway, offer: Offer) -> tuple[Dispatch, int] | str:
    """Return the dispatch and its number of segments, or why there can be none, which is a definite failure."""
    address = _address(owner, offer)
    if address is None:
        return "no_address"
    code = None
    if offer.code is not None:
        code = _reveal(owner, offer.code)
        if code is None:
            return "no_code"
    capabilities = gateway.capabilities
    text = offer.text if code is None else offer.text.replace(CODE_MARK, code)
    if capabilities.sms:
        text = capabilities.finish(text, *owner.texts(), is_service=offer.offer_class == "service")
    parts = capabilities.parts(text)
    if capabilities.sms:
        metrics.SMS_SEGMENTS.inc(parts)
    dispatch = Dispatch(
        dispatch_id=dispatch_id(offer),
        offer_id=offer.offer_id,
        address=address,
        text=text,
        title="",
        deadline_ms=offer.deadline_ms,
        data={"scenario": offer.scenario, "benefit": offer.benefit, "code": code},
        why_not_now=partial(owner.why_not_now, offer),
    )
    return dispatch, parts


def _address(owner: Dispatcher, offer: Offer) -> str | None:
    try:
        return owner.addresses.lookup(offer.user_id, offer.channel)
    except Exception as error:  # the address book is a store of its own; without it this one is not sent
        log.error("address book cannot answer", error=type(error).__name__)
        return None


def _reveal(owner: Dispatcher, ref: str) -> str | None:
    try:
        return owner.reveal(ref)
    except Exception as error:  # like the address book: without it this one is not sent
        log.error("the store of codes cannot answer", error=type(error).__name__)
        return None
