"""How long an SMS is, and how its text ends up with signature and opt-out (rule O2).

GSM-7: 160 septets in one segment, 153 in each of several; UCS-2: 70 and 67 UTF-16 units. A character of the GSM
extension table costs two septets, one outside the basic plane two units; neither pair is ever split.
Table: 3GPP TS 23.038, 6.2.1 and 6.2.1.1.
"""

from __future__ import annotations

from dataclasses import dataclass

_GSM_7 = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_GSM_7_EXTENSION = frozenset("^{}\\[~]|€\f")
_GSM_7_WHOLE = _GSM_7 | _GSM_7_EXTENSION
_LONGEST = {"gsm7": (160, 153), "ucs2": (70, 67)}
"""Units of a message's only segment, and of each of several."""


@dataclass(frozen=True, slots=True)
class Length:
    """encoding: gsm7 | ucs2; units: septets or UTF-16 units; segments: messages on the wire, 0 for an empty text."""

    encoding: str
    units: int
    segments: int


def count_segments(text: str) -> Length:
    """Count `text` as a gateway would cut it."""
    encoding = _encoding(text)
    if encoding == "gsm7":
        units = len(text) + sum(map(text.count, _GSM_7_EXTENSION))
    else:
        units = len(text.encode("utf-16-le", "surrogatepass")) // 2
    segments = min(units, 1) if units <= _LONGEST[encoding][0] else len(split_segments(text))
    return Length(encoding, units, segments)


def split_segments(text: str) -> list[str]:
    """Cut `text` into the texts of its segments, never inside a surrogate or escape pair."""
    if not text:
        return []
    encoding = _encoding(text)
    one, several = _LONGEST[encoding]
    widths = [_width(character, encoding) for character in text]
    if sum(widths) <= one:
        return [text]
    parts, begin, used = [], 0, 0
    for index, width in enumerate(widths):
        if used + width > several:
            parts.append(text[begin:index])
            begin, used = index, 0
        used += width
    parts.append(text[begin:])
    return parts


def finish_text(text: str, *, signature: str, opt_out: str, signature_at_end: bool = False) -> str:
    """Add 【signature】 and the opt-out text; an empty one adds nothing.

    Some gateways want the signature at the end; the opt-out text stays in front of it there, as they ask.
    """
    mark = f"【{signature.strip('【】')}】" if signature else ""
    body = f"{text}{opt_out}"
    return f"{body}{mark}" if signature_at_end else f"{mark}{body}"


def _encoding(text: str) -> str:
    return "gsm7" if _GSM_7_WHOLE.issuperset(text) else "ucs2"


def _width(character: str, encoding: str) -> int:
    if encoding == "gsm7":
        return 2 if character in _GSM_7_EXTENSION else 1
    return 2 if ord(character) > 0xFFFF else 1


def forces_ucs2(text: str) -> str:
    """Return the characters that GSM-7 does not have, each once, in order; "" where GSM-7 will do."""
    return "".join(dict.fromkeys(one for one in text if one not in _GSM_7 and one not in _GSM_7_EXTENSION))
