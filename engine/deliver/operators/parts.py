"""Cut a text into what fits into messages, and join what came in parts (rule O2, 3GPP TS 23.040 9.2.3.24.1). No I/O.

Operators take ASCII as one byte a character in a single message; anything longer or other goes as UCS-2, 70 units in
one message, 67 in each of several behind a header 05 00 03 reference, total, number.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from engine.deliver.operators.wire import ASCII, BINARY, GBK, UCS2

LONGEST_ASCII = 159
ONE, SEVERAL = 70, 67
MOST_PARTS = 255
JOIN_MS = 600_000
MOST_JOINING = 10_000

T = TypeVar("T")
_Key = tuple[str, str, int, int]
"""Sender, receiver, reference, number of parts."""


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


@dataclass(frozen=True, slots=True)
class Piece:
    """One message as it came, or one part of a long one. `message_id` is the gateway's name of it."""

    sender: str
    to: str
    content: bytes
    coding: int
    has_header: bool
    message_id: str


@dataclass(frozen=True, slots=True)
class Whole(Generic[T]):
    """A message with all its parts. `tokens` are what the caller gave with them: acknowledge them once it is stored."""

    text: str
    message_id: str  # of the first part, so that it is the same however the parts come, and come again
    tokens: tuple[T, ...]
    key: _Key | None = None


class Waits(Enum):
    """What becomes of a part that does not make a message whole."""

    FOR_OTHERS = "kept"  # not acknowledged before the whole is stored: a crash must lose no part
    NOT = "again"  # of a message that is stored already: acknowledge it


class Joiner(Generic[T]):
    """Join users' long messages. `T` is what the caller needs to acknowledge a part: with the whole, not before.

    Parts that stay alone for ten minutes are given up; at most 10,000 messages wait. What was stored is remembered
    as long, so that a part that comes again, because its acknowledgement was lost, begins no new message.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[_Key, _Joining[T]] = OrderedDict()
        self._storing: dict[_Key, dict[int, str]] = {}
        self._stored: OrderedDict[_Key, tuple[int, dict[int, str]]] = OrderedDict()

    def add(self, piece: Piece, token: T, now_ms: int) -> Whole[T] | Waits:
        """Take one part; return the whole message once nothing is missing."""
        content = piece.content
        if not piece.has_header or not content or len(content) <= content[0]:
            return Whole(decode(content, piece.coding), piece.message_id, (token,))
        header, body = content[1 : 1 + content[0]], content[1 + content[0] :]
        place = _place(header)
        if place is None:
            return Whole(decode(body, piece.coding), piece.message_id, (token,))
        reference, total, number = place
        key = (piece.sender, piece.to, reference, total)
        self._forget_old(now_ms)
        # By the gateway's name of the part: phones use a reference again, and messages begin alike.
        if self._storing.get(key, {}).get(number) == piece.message_id:
            return Waits.FOR_OTHERS
        if key in self._stored and self._stored[key][1].get(number) == piece.message_id:
            return Waits.NOT
        joining = self._waiting.setdefault(key, _Joining(now_ms))
        joining.parts[number] = (decode(body, piece.coding), piece.message_id)
        joining.tokens.append(token)
        if len(joining.parts) < total:
            return Waits.FOR_OTHERS
        del self._waiting[key]
        self._storing[key] = {one: name for one, (_, name) in joining.parts.items()}
        parts = [joining.parts[one] for one in sorted(joining.parts)]
        return Whole("".join(text for text, _ in parts), parts[0][1], tuple(joining.tokens), key)

    def settle(self, whole: Whole[T], is_stored: bool, now_ms: int) -> None:
        """Note what became of a whole message; one that could not be stored begins anew when its parts come again."""
        if whole.key is None:
            return
        names = self._storing.pop(whole.key, {})
        if is_stored:
            self._stored[whole.key] = now_ms, names
            self._stored.move_to_end(whole.key)

    def overdue(self, before_ms: int) -> list[T]:
        """Take the tokens of parts that have waited since before `before_ms`: others of their message are missing."""
        tokens: list[T] = []
        for joining in self._waiting.values():
            if joining.since_ms >= before_ms:
                break
            tokens += joining.tokens
            joining.tokens = []
        return tokens

    def _forget_old(self, now_ms: int) -> None:
        waiting, stored = self._waiting, self._stored
        while waiting and (len(waiting) >= MOST_JOINING or now_ms - next(iter(waiting.values())).since_ms > JOIN_MS):
            waiting.popitem(last=False)
        while stored and (len(stored) >= MOST_JOINING or now_ms - next(iter(stored.values()))[0] > JOIN_MS):
            stored.popitem(last=False)


@dataclass(slots=True)
class _Joining(Generic[T]):
    since_ms: int
    parts: dict[int, tuple[str, str]] = field(default_factory=dict)  # by number: text, name
    tokens: list[T] = field(default_factory=list)


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
