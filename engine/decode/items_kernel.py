"""Where the events of a record begin and end: the scanner's side of decode/split.py, which says what the rules are."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.decode.text_kernel import (
    BACKSLASH,
    COMMA,
    LEFT_BRACE,
    LEFT_BRACKET,
    NEWLINE,
    QUOTE,
    RIGHT_BRACE,
    RIGHT_BRACKET,
    past_space,
    plain_run,
)
from engine.hashing_kernel import load_1
from engine.kernels import inlined_kernel, lean_kernel

CURSOR = np.dtype(
    [
        ("record", "i8"),  # row of the block
        ("offset", "i8"),  # in the data; -1 before the record is begun
        ("item", "i8"),  # number of the next item of the record
        ("place", "i8"),  # LINE, ELEMENT, AFTER_ELEMENT
        ("lines_only", "i8"),  # 1 after a broken array: `[` begins no array any more
        ("now_ms", "i8"),
        ("rows", "i8"),  # filled so far
        ("odd_start", "i8"),  # span of the item for the typed reader
        ("odd_end", "i8"),
        ("open_at", "i8"),  # address where an array was found to be left open
        ("has_typed", "i8"),  # 1: the typed reader read the odd item; Scratch.typed is its row
    ]
)

LINE, ELEMENT, AFTER_ELEMENT = range(3)
"""What comes next: a line, an element of an array, or what follows one. Also what an item was found as."""

RECORD_DONE = -1
_OPEN_ARRAY = -2


@inlined_kernel
def next_item(i: int, limit: int, at: Any) -> Any:
    """Return where the next item from i begins, RECORD_DONE, or _OPEN_ARRAY at an array without its end.

    i, limit   addresses; the record ends before limit
    at         a record of CURSOR; its place becomes what the item is
    """
    while True:
        start = _past_space_to(i, limit)
        if at.place == AFTER_ELEMENT:
            byte = load_1(start) if start < limit else 0
            if byte == COMMA:
                at.place = ELEMENT
                return _past_space_to(start + 1, limit)
            at.place = LINE
            at.open_at = start
            if byte != RIGHT_BRACKET:
                return _OPEN_ARRAY
            i = min(past_space(start + 1, 0), limit)
            if i < limit and load_1(i) != NEWLINE:
                return i
            continue
        if start >= limit:
            return RECORD_DONE
        if load_1(start) != LEFT_BRACKET or at.lines_only == 1:
            return start
        i = _past_space_to(start + 1, limit)
        if i < limit and load_1(i) == RIGHT_BRACKET:
            at.place = AFTER_ELEMENT
            continue
        at.place = ELEMENT
        return i


@inlined_kernel
def _past_space_to(i: int, limit: int) -> Any:
    return min(past_space(i, 1), limit) if i < limit else limit


@inlined_kernel
def ends_well(end: int, limit: int, place: int) -> Any:
    """Say whether nothing but space follows on the line; in an array the next step looks for itself."""
    if place == ELEMENT:
        return True
    end = past_space(end, 0)
    return end >= limit or load_1(end) == NEWLINE


@lean_kernel
def set_odd(base: int, start: int, limit: int, at: Any) -> Any:
    """Span the item at `start` for the typed reader, move the cursor past it and return the offset to go on from."""
    at.item += 1
    if start == _OPEN_ARRAY:
        at.lines_only = 1
        at.odd_start = at.open_at - base
        at.odd_end = at.open_at - base
        return at.open_at - base
    at.odd_start = start - base
    if at.place == ELEMENT:
        end = _element_end(start, limit)
        if end >= 0:
            at.place = AFTER_ELEMENT
            at.odd_end = _before_space(start, end) - base
            return end - base
        at.lines_only = 1
        at.place = LINE
    end = start
    while end < limit and load_1(end) != NEWLINE:
        end += 1
    at.odd_end = _before_space(start, end) - base
    return end - base


@lean_kernel
def _before_space(start: int, end: int) -> Any:
    while end > start:
        byte = load_1(end - 1)
        if byte != 32 and byte != 9 and byte != 13 and byte != NEWLINE:
            break
        end -= 1
    return end


@lean_kernel
def _element_end(start: int, limit: int) -> Any:
    """Return where the array element at `start` ends, or -1 if it does not before `limit`."""
    first = load_1(start) if start < limit else 0
    i = start
    if first not in (LEFT_BRACE, LEFT_BRACKET):
        while i < limit:
            if load_1(i) in (COMMA, RIGHT_BRACKET, NEWLINE):
                return i
            i += 1
        return -1
    level = 0
    while i < limit:
        byte = load_1(i)
        i += 1
        if byte == QUOTE:
            i = _past_string(i, limit)
            if i < 0:
                return -1
        elif byte in (LEFT_BRACE, LEFT_BRACKET):
            level += 1
        elif byte in (RIGHT_BRACE, RIGHT_BRACKET):
            level -= 1
            if level == 0:
                return i
    return -1


@lean_kernel
def _past_string(i: int, limit: int) -> Any:
    """Return the place after the quote that closes the string at i; -1 if a newline or the record's end comes first."""
    while i < limit:
        byte = load_1(i)
        if byte == QUOTE:
            return i + 1
        if byte == BACKSLASH:
            i += 1
            byte = load_1(i)
        if byte == NEWLINE:
            return -1
        i += max(1, plain_run(i)) if byte != QUOTE and byte != BACKSLASH else 1
    return -1
