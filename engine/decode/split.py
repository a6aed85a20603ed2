"""Where one record ends one event and begins the next: the cold twin of what the scanner does as it goes.

A record is lines. A line is one event; blank lines are nothing. A line that begins with `[` begins an array, which
may span lines and whose elements are events. What is broken harms as little as possible: an element that does not end
is cut at the end of its line, an array that does not close is one dead letter of its own, and after either the rest
of the record is judged line by line, without further arrays. An item that cannot be an event is yielded all the same,
for the typed reader to say why.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator

import msgspec

_SPACE = b" \t\r\n"
_MARK = re.compile(rb'["{}\[\]]')
_STRING_END = re.compile(rb'(?:[^"\\\n]|\\[^\n])*(.)', re.DOTALL)
_SCALAR_END = re.compile(rb"[,\]\n]")
_RAW = msgspec.json.Decoder()
_BREAKS = bytes.maketrans(b"\r\n", b"  ")


def split(value: bytes) -> Iterator[tuple[int, int]]:
    """Yield the half-open span of each event in one record's value, in order; empty for an array left open."""
    i = 0
    lines_only = False
    while (i := _past_space(value, i)) < len(value):
        if value[i] != ord("[") or lines_only:
            i = yield from _line(value, i)
            continue
        i = _past_space(value, i + 1)
        if value[i : i + 1] != b"]":
            while True:
                end = _element_end(value, i)
                if end < 0:
                    lines_only = True
                    i = yield from _line(value, i)
                    break
                yield i, _before_space(value, i, end)
                i = _past_space(value, end)
                if value[i : i + 1] == b",":
                    i = _past_space(value, i + 1)
                    continue
                break
            if lines_only:
                continue
        if value[i : i + 1] != b"]":
            yield i, i
            lines_only = True
            continue
        i += 1
        while i < len(value) and value[i] in b" \t\r":
            i += 1
        if i < len(value) and value[i] != ord("\n"):
            i = yield from _line(value, i)


def on_one_line(value: bytes) -> bytes:
    """Return the same JSON text without line breaks: inside a string there is none, elsewhere one is white space."""
    return value.translate(_BREAKS) if b"\n" in value or b"\r" in value else value


def is_whole_document(value: bytes, item: int, end: int) -> bool:
    """Say whether a record whose first line (ending at `end`) is broken is one JSON text spread over lines."""
    if item != 0 or _past_space(value, end) >= len(value) or value.lstrip(_SPACE)[:1] != b"{":
        return False
    try:
        _RAW.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _line(value: bytes, start: int) -> Generator[tuple[int, int], None, int]:
    """Yield the rest of the line as one item; return where the line ends."""
    end = value.find(b"\n", start)
    end = len(value) if end < 0 else end
    yield start, _before_space(value, start, end)
    return end


def _element_end(value: bytes, start: int) -> int:
    """Return where the element at `start` ends (exclusive), or -1 if it does not."""
    if value[start : start + 1] not in (b"{", b"["):
        found = _SCALAR_END.search(value, start)
        return found.start() if found else -1
    level = 0
    i = start
    while found := _MARK.search(value, i):
        i = found.end()
        mark = found[0]
        if mark == b'"':
            closing = _STRING_END.match(value, i)
            if closing is None or closing[1] != b'"':
                return -1
            i = closing.end()
        elif mark in b"{[":
            level += 1
        else:
            level -= 1
            if level == 0:
                return i
    return -1


def _past_space(value: bytes, i: int) -> int:
    while i < len(value) and value[i] in _SPACE:
        i += 1
    return i


def _before_space(value: bytes, start: int, end: int) -> int:
    while end > start and value[end - 1] in _SPACE:
        end -= 1
    return end
