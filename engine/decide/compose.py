"""Offer texts: fixed {name} placeholders, no template language (rule O1)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from engine.definitions import OfferDefinition, Placeholder
from engine.model import Reason

_FORBIDDEN = re.compile(r"[【】\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ue000]")
"""Also what turns the direction of the text behind it, which would let a value rewrite what the message says."""
_UNSEEN = re.compile("[\u00ad\u034f\u061c\u180e\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]")
"""Takes no room in a text, and hides a link from whoever looks for it."""
_LINK = re.compile(
    r"(?i)://|www\.|\d{1,3}(?:\.\d{1,3}){3}|[a-z0-9-]\.[a-z]{2,24}/"
    r"|[a-z0-9-]\.(?:com|cn|net|org|io|cc|top|info|me|co|app|link|xyz|vip|shop|site|club|ltd|ink|biz|tv|ly)(?![a-z0-9-])"
)
_MOST_REMEMBERED = 4096
_PLACE = re.compile(r"\{([a-z][a-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a text cannot be written; `detail` names the placeholder, never its value."""

    reason: Reason
    detail: dict[str, Any]


class Sources(msgspec.Struct, gc=False):
    """Where values come from: `attribute` reads the profile by name, the rest is of this candidate."""

    attribute: Callable[[str], float | str | None]
    fence_name: str | None = None
    benefit_name: str | None = None
    code: str | None = None
    claim_url: str | None = None


def compose(offer: OfferDefinition, sources: Sources) -> str | Refusal:
    """Return the text with every placeholder filled, or why not."""
    return compile_text(offer)(sources)


def compile_text(offer: OfferDefinition) -> Callable[[Sources], str | Refusal]:
    """Cut the text at its placeholders once; the function returned fills them."""
    known = {one.name: one for one in offer.placeholders}
    pieces: list[str | Callable[[Sources], str | Refusal]] = []
    at = 0
    for match in _PLACE.finditer(offer.text):
        place = known.get(match[1])
        if place is not None:
            pieces += [offer.text[at : match.start()], _compile_place(place)]
            at = match.end()
    pieces.append(offer.text[at:])

    def fill(sources: Sources) -> str | Refusal:
        written = []
        for piece in pieces:
            if isinstance(piece, str):
                written.append(piece)
                continue
            value = piece(sources)
            if isinstance(value, Refusal):
                return value
            written.append(value)
        return "".join(written)

    return fill


def _compile_place(place: Placeholder) -> Callable[[Sources], str | Refusal]:
    read = _reader(place)
    known: dict[float | str | None, str | Refusal] = {}

    def value_of(sources: Sources) -> str | Refusal:
        raw = read(sources)
        value = known.get(raw)
        if value is None:
            value = place_value(place, raw)
            if len(known) < _MOST_REMEMBERED:
                known[raw] = value
        return value

    return value_of


def is_fixed(offer: OfferDefinition) -> bool:
    """Say whether the text is the same for everybody."""
    return not any(f"{{{one.name}}}" in offer.text for one in offer.placeholders)


def place_value(place: Placeholder, raw: float | str | None) -> str | Refusal:
    """Return one placeholder's text: typed, checked, at most `max_length` long."""
    if raw is None or raw == "":
        if place.default is None:
            return Refusal(Reason.MISSING_VALUE, {"placeholder": place.name, "source": place.source})
        raw = place.default
    if place.source in ("claim_url", "code"):
        return str(raw)  # made by the engine
    text = _write(place.type, raw)
    if text is None:
        return Refusal(Reason.BAD_VALUE, {"placeholder": place.name, "expected": place.type})
    folded = _UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    # An ideographic full stop is a dot to whoever resolves a name (IDNA).
    if _FORBIDDEN.search(text) or _FORBIDDEN.search(folded) or _LINK.search(folded.replace("\u3002", ".")):
        return Refusal(Reason.BAD_VALUE, {"placeholder": place.name, "expected": "no 【】, line break or link"})
    if len(text) > place.max_length:
        return Refusal(
            Reason.BAD_VALUE, {"placeholder": place.name, "max_length": place.max_length, "length": len(text)}
        )
    return text


def _reader(place: Placeholder) -> Callable[[Sources], float | str | None]:
    kind, _, rest = place.source.partition(":")
    if kind == "attribute":
        return lambda sources: sources.attribute(rest)
    if kind == "fence":
        return lambda sources: sources.fence_name
    if kind == "benefit":
        return lambda sources: sources.benefit_name
    if kind == "code":
        return lambda sources: sources.code
    if kind == "claim_url":
        return lambda sources: sources.claim_url
    # A constant stands after the colon, or is the default.
    return lambda sources: rest or None


def _write(kind: str, raw: float | str) -> str | None:
    if kind == "text":
        return raw if isinstance(raw, str) else _number_text(raw)
    if kind == "date":
        return _date_text(raw)
    try:
        number = float(raw)
    except ValueError:
        return None
    if number != number or number in (float("inf"), float("-inf")):
        return None
    if kind == "money_fen":
        if number != int(number):
            return None
        yuan, fen = divmod(abs(int(number)), 100)
        return f"{'-' if number < 0 else ''}{yuan}.{fen:02d}".removesuffix(".00")
    return _number_text(number)


def _number_text(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:.2f}".rstrip("0").rstrip(".")


def _date_text(raw: float | str) -> str | None:
    if not isinstance(raw, str):
        return None
    try:
        day = datetime.fromisoformat(raw)
    except ValueError:
        return None
    return f"{day.year}年{day.month}月{day.day}日"
