"""Cut a text into what fits into messages, and join what came in parts (rule O2, 3GPP TS 23.040 9.2.3.24.1). No I/O.

Operators take ASCII as one byte a character in a single message; anything longer or other goes as UCS-2, 70 units in
one message, 67 in each of several behind a header 05 00 03 reference, total, number.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from engine.deliver.operators.wire import ASCII, BINARY, GBK, UCS2

LONGEST_ASCII = 159
ONE, SEVERAL = 70, 67
MOST_PARTS = 255
JOIN_MS = 600_000
MOST_JOINING = 10_000


@dataclass(frozen=True, slots=True)
class Part:
    """One message on the wire; `content` begins with the user data header where `has_header`."""

    content: bytes
    coding: int
    has_header: bool = False
    number: int = 1
    total: int = 1


def cut(text: str, reference: int) -> list[Part]:
    """Cut `text`; `reference` (0-255) is the same for all parts of a message. Raises ValueError beyond 255 parts."""
    if text.isascii() and text.isprintable() and len(text) <= LONGEST_ASCII:
        return [Part(text.encode("ascii"), ASCII)]
    pieces = _pieces(text)
    if len(pieces) == 1:
        return [Part(pieces[0], UCS2)]
    total = len(pieces)
    if total > MOST_PARTS:
        raise ValueError(f"a text of {total} parts, at most {MOST_PARTS} are possible")
    return [
        Part(bytes((5, 0, 3, reference & 0xFF, total, number)) + piece, UCS2, True, number, total)
        for number, piece in enumerate(pieces, 1)
    ]


def count(text: str) -> int:
    """Return how many messages `text` becomes."""
    if text.isascii() and text.isprintable() and len(text) <= LONGEST_ASCII:
        return 1
    return len(_pieces(text))


def _pieces(text: str) -> list[bytes]:
    encoded = text.encode("utf-16-be", "replace")
    if len(encoded) <= 2 * ONE:
        return [encoded]
    pieces, begin = [], 0
    while begin < len(encoded):
        end = min(begin + 2 * SEVERAL, len(encoded))
        if end < len(encoded) and 0xD8 <= encoded[end - 2] <= 0xDB:
            end -= 2  # a surrogate pair stays together
        pieces.append(encoded[begin:end])
        begin = end
    return pieces


def decode(content: bytes, coding: int) -> str:
    """Return the text of a message; bytes that are no text read as replacement characters."""
    if coding == UCS2:
        return content.decode("utf-16-be", "replace")
    if coding == GBK:
        return content.decode("gbk", "replace")
    if coding == BINARY:
        return ""
    return content.decode("ascii", "replace")


class Joiner:
    """Join users' long messages. Parts that stay alone for ten minutes are given up; at most 10,000 wait."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[tuple[str, str, int, int], tuple[int, dict[int, str]]] = OrderedDict()

    def add(self, sender: str, to: str, content: bytes, coding: int, has_header: bool, now_ms: int) -> str | None:
        """Return the whole text, or None while parts are missing."""
        if not has_header or not content or len(content) <= content[0]:
            return decode(content, coding)
        header, body = content[1 : 1 + content[0]], content[1 + content[0] :]
        place = _place(header)
        if place is None:
            return decode(body, coding)
        reference, total, number = place
        key = (sender, to, reference, total)
        self._forget_old(now_ms)
        _, parts = self._waiting.setdefault(key, (now_ms, {}))
        parts[number] = decode(body, coding)
        if len(parts) < total:
            return None
        del self._waiting[key]
        return "".join(parts[one] for one in sorted(parts))

    def _forget_old(self, now_ms: int) -> None:
        while self._waiting:
            oldest = next(iter(self._waiting))
            if len(self._waiting) < MOST_JOINING and now_ms - self._waiting[oldest][0] <= JOIN_MS:
                return
            del self._waiting[oldest]


def _place(header: bytes) -> tuple[int, int, int] | None:
    """Find reference, total and number in a user data header; None where it holds no concatenation."""
    at = 0
    while at + 2 <= len(header):
        tag, size = header[at], header[at + 1]
        body = header[at + 2 : at + 2 + size]
        if tag == 0 and len(body) == 3:
            reference, total, number = body[0], body[1], body[2]
        elif tag == 8 and len(body) == 4:
            reference, total, number = int.from_bytes(body[:2], "big") | 1 << 16, body[2], body[3]
        else:
            at += 2 + size
            continue
        return (reference, total, number) if 1 <= number <= total else None
    return None
