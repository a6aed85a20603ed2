"""Read codes out of CSV bytes and find those that are known, by the ten million (`engine.ledger.codes`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.hashing_kernel import hash_bytes
from engine.kernels import kernel

LONGEST_CODE = 64
_NEWLINE, _RETURN, _COMMA, _QUOTE, _SPACE, _TAB = 10, 13, 44, 34, 32, 9
_DIGIT_0, _DIGIT_9, _UPPER_A, _UPPER_Z, _LOWER_A, _LOWER_Z, _DASH, _LOW = 48, 57, 65, 90, 97, 122, 45, 95


@kernel
def find_codes(data: Any, column: int, start: Any, end: Any, bad: Any) -> Any:
    """Find the code of every line of data (uint8[N], the last line closed by a newline).

    column           which of the comma-separated fields
    start, end, bad  int64, int64, bool[lines] out: the span of the code without quotes and spaces, and whether it is
                     none: 1 to 64 letters, digits, '-' and '_', which no text or link can be made of
    Returns how many lines have something in them. No allocation. Oracle: csv.reader (tests/property/test_codes.py).
    """
    lines = 0
    at, size = 0, len(data)
    while at < size:
        line_end = at
        while data[line_end] != _NEWLINE:
            line_end += 1
        stop = line_end
        if stop > at and data[stop - 1] == _RETURN:
            stop -= 1
        if stop == at:
            at = line_end + 1
            continue
        field, begin = 0, at
        while field < column and begin < stop:
            if data[begin] == _COMMA:
                field += 1
            begin += 1
        finish = begin
        while finish < stop and data[finish] != _COMMA:
            finish += 1
        while begin < finish and (data[begin] == _SPACE or data[begin] == _TAB):
            begin += 1
        while finish > begin and (data[finish - 1] == _SPACE or data[finish - 1] == _TAB):
            finish -= 1
        if finish - begin >= 2 and data[begin] == _QUOTE and data[finish - 1] == _QUOTE:
            begin += 1
            finish -= 1
        is_bad = field < column or finish == begin or finish - begin > LONGEST_CODE
        for place in range(begin, finish):
            one = data[place]
            is_letter = _UPPER_A <= one <= _UPPER_Z or _LOWER_A <= one <= _LOWER_Z
            is_word = is_letter or _DIGIT_0 <= one <= _DIGIT_9 or one in (_DASH, _LOW)
            is_bad = is_bad or not is_word
        start[lines] = begin
        end[lines] = finish
        bad[lines] = is_bad
        lines += 1
        at = line_end + 1
    return lines


@kernel
def admit(data: Any, start: Any, end: Any, bad: Any, hashes: Any, table: Any, first: int, seen: Any) -> Any:
    """Number the codes that are new, and name for each other one the number that has the same hash.

    start, end, bad  of each line, as `find_codes` gave them
    hashes           uint64, of every code by its number; room for one a line more
    table            int32[power of two], at most three quarters full after this: number + 1 of a code, 0 empty
    first            the number of the first new code
    seen             int64[lines] out: -1 new, -2 bad, else the number whose hash it shares
    Returns the number after the last new code. No allocation.
    """
    mask = len(table) - 1
    number = first
    for line in range(len(start)):
        if bad[line]:
            seen[line] = -2
            continue
        key = hash_bytes(data, start[line], end[line])
        place = np.int64(key & np.uint64(mask))
        seen[line] = -1
        while table[place] != 0:
            if hashes[table[place] - 1] == key:
                seen[line] = table[place] - 1
                break
            place = (place + 1) & mask
        if seen[line] == -1:
            hashes[number] = key
            table[place] = number + 1
            number += 1
    return number


@kernel
def enter(hashes: Any, first: int, end: int, table: Any) -> None:
    """Put the numbers first : end into the table; equal hashes stand beside each other."""
    mask = len(table) - 1
    for number in range(first, end):
        place = np.int64(hashes[number] & np.uint64(mask))
        while table[place] != 0:
            place = (place + 1) & mask
        table[place] = number + 1


@kernel
def pack(data: Any, start: Any, end: Any, lines: Any, out: Any, ends: Any) -> Any:
    """Write the codes of these lines one after another, each with a newline; ends int64[lines] out: where each ends."""
    at = 0
    for k in range(len(lines)):
        line = lines[k]
        for place in range(start[line], end[line]):
            out[at] = data[place]
            at += 1
        out[at] = _NEWLINE
        at += 1
        ends[k] = at
    return at


@kernel
def hash_lines(data: Any, hashes: Any, first: int) -> Any:
    """Hash what `pack` wrote into hashes[first:]; return the number after the last."""
    begin, number = 0, first
    for place in range(len(data)):
        if data[place] == _NEWLINE:
            hashes[number] = hash_bytes(data, begin, place)
            number += 1
            begin = place + 1
    return number
