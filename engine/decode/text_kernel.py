"""Read JSON text byte by byte, and 8 or 32 bytes at a time: space, strings, numbers, instants.

Places are addresses. All of it walks bytes that end in a 0, as those of a `bytes` object do: 0 fits nowhere in JSON,
so every walk stops there at the latest and no step needs its own check of the end; wide loads may see what lies behind
the 0 but stay on its page. Whether a walk went past the end of its record is for the caller to check, once an event.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types

from engine.decode.times import LARGEST_MS
from engine.hashing_kernel import PAGE, intrinsic, load_1, load_8, load_upto_8, trailing_zeros
from engine.kernels import inlined_kernel, lean_kernel

QUOTE, BACKSLASH, COMMA, COLON, MINUS, DOT, ZERO, NINE = (ord(one) for one in '"\\,:-.09')
LEFT_BRACE, RIGHT_BRACE, LEFT_BRACKET, RIGHT_BRACKET = (ord(one) for one in "{}[]")
NEWLINE = 10
WIDTH = 32
MOST_DIGITS = 18
"""Digits of a number the scanner reads: they fit in 63 bits."""

POWER = np.array([10**k for k in range(19)], np.int64)
_HIGH = np.uint64(0x8080808080808080)
_CHARACTER_0 = np.uint64(0x3030303030303030)
_PAST_9 = np.uint64(0x7676767676767676)
_PAIRS = np.uint64(0x000000FF000000FF)
_FROM_UPPER = np.uint64(0x000F424000000064)
_FROM_LOWER = np.uint64(0x0000271000000001)
_NONE = np.uint64(0)
_DAY_MS = 86_400_000


@intrinsic
def special_mask(typing_context: Any, address: Any) -> Any:
    """Mark which of 32 bytes cannot be passed over inside a string: quote, backslash, below 32 or above 127."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), WIDTH)
        text = builder.load(builder.inttoptr(arguments[0], vector.as_pointer()), align=1)

        def every(byte: int) -> Any:
            return ir.Constant(vector, [byte] * WIDTH)

        mark = builder.icmp_signed("<", text, every(32))  # as signed bytes, those above 127 are negative
        mark = builder.or_(mark, builder.icmp_unsigned("==", text, every(QUOTE)))
        mark = builder.or_(mark, builder.icmp_unsigned("==", text, every(BACKSLASH)))
        return builder.zext(builder.bitcast(mark, ir.IntType(WIDTH)), ir.IntType(64))

    return types.uint64(types.int64), generate


@inlined_kernel
def plain_run(i: int) -> Any:
    """Count the bytes from i that a string may hold as they are, up to 32."""
    if i & (PAGE - 1) <= PAGE - WIDTH:
        mask = special_mask(i)
        return trailing_zeros(mask) if mask != _NONE else WIDTH
    return _plain_run_singly(i)


@lean_kernel
def _plain_run_singly(i: int) -> Any:
    count = 0
    while count < WIDTH:
        byte = load_1(i + count)
        if byte < 32 or byte > 127 or byte in (QUOTE, BACKSLASH):
            break
        count += 1
    return count


@inlined_kernel
def string_end(i: int) -> Any:
    """Return where the closing quote of the string that begins at i stands, or -1.

    -1: an escape (the typed reader resolves those), a control character, or text that is not UTF-8.
    """
    end = i + plain_run(i)
    return end if load_1(end) == QUOTE else _long_string_end(i)


@lean_kernel
def _long_string_end(i: int) -> Any:
    while True:
        run = plain_run(i)
        i += run
        if run == WIDTH:
            continue
        byte = load_1(i)
        if byte == QUOTE:
            return i
        if byte < 128:
            return -1
        while byte > 127:
            i = _past_character(i, byte)
            if i < 0:
                return -1
            byte = load_1(i)


@lean_kernel
def _past_character(i: int, lead: int) -> Any:
    """Return the place after the UTF-8 character of 2 to 4 bytes at i, or -1 if it is none (RFC 3629)."""
    if lead < 0xC2 or lead > 0xF4:
        return -1
    second = load_1(i + 1)
    if second & 0xC0 != 0x80:
        return -1
    if lead < 0xE0:
        return i + 2
    if load_1(i + 2) & 0xC0 != 0x80:
        return -1
    if lead < 0xF0:
        return -1 if (lead == 0xE0 and second < 0xA0) or (lead == 0xED and second > 0x9F) else i + 3
    if load_1(i + 3) & 0xC0 != 0x80:
        return -1
    return -1 if (lead == 0xF0 and second < 0x90) or (lead == 0xF4 and second > 0x8F) else i + 4


@inlined_kernel
def past_space(i: int, newlines: int) -> Any:
    """Return the first place from i that is no space; a newline is one if `newlines` is 1."""
    byte = load_1(i)
    while byte == 32 or byte == 9 or byte == 13 or (byte == NEWLINE and newlines == 1):
        i += 1
        byte = load_1(i)
    return i


@inlined_kernel
def word_at(i: int) -> Any:
    """Read the 8 bytes at i, least significant first; those after a byte 0 may be anything."""
    return load_8(i) if i & (PAGE - 1) <= PAGE - 8 else _word_singly(i)


@lean_kernel
def _word_singly(i: int) -> Any:
    count = 1
    while count < 8 and load_1(i + count - 1) != 0:
        count += 1
    return load_upto_8(i, count)


@inlined_kernel
def digits_8(i: int) -> Any:
    """Read up to 8 digits at i: (value, count), without a branch on their number."""
    word = word_at(i) ^ _CHARACTER_0
    others = ((word + _PAST_9) | word) & _HIGH
    count = trailing_zeros(others) >> 3 if others != _NONE else 8
    if count == 0:
        return 0, 0
    word <<= np.uint64(64 - 8 * count)
    word = word * np.uint64(10) + (word >> np.uint64(8))
    word = (word & _PAIRS) * _FROM_UPPER + ((word >> np.uint64(16)) & _PAIRS) * _FROM_LOWER
    return np.int64(word >> np.uint64(32)), count


@inlined_kernel
def digits(i: int) -> Any:
    """Read up to 18 digits at i: (value, count); a count of 19 says that there are more."""
    value, count = digits_8(i)
    if count < 8:
        return value, count
    more, further = digits_8(i + 8)
    value = value * POWER[further] + more
    if further < 8:
        return value, 8 + further
    more, further = digits_8(i + 16)
    if further > MOST_DIGITS - 16:
        return 0, MOST_DIGITS + 1
    return value * POWER[further] + more, 16 + further


@inlined_kernel
def read_number(i: int) -> Any:
    """Read a JSON number at i: (mantissa, decimals, end), worth mantissa / 10 ** decimals; end -1 where unsure.

    Unsure: no number, a leading zero, more than 18 digits. An exponent is left standing at `end`, where the caller
    finds something other than the end of a value.
    """
    negative = load_1(i) == MINUS
    if negative:
        i += 1
    mantissa, count = digits(i)
    if count == 0 or count > MOST_DIGITS or (count > 1 and load_1(i) == ZERO):
        return 0, 0, -1
    i += count
    decimals = 0
    if load_1(i) == DOT:
        fraction, decimals = digits(i + 1)
        if decimals == 0 or count + decimals > MOST_DIGITS:
            return 0, 0, -1
        i += 1 + decimals
        mantissa = mantissa * POWER[decimals] + fraction
    return (-mantissa if negative else mantissa), decimals, i


@lean_kernel
def _two_digits(i: int) -> Any:
    tens = load_1(i) - ZERO
    ones = load_1(i + 1) - ZERO
    return tens * 10 + ones if 0 <= tens <= 9 and 0 <= ones <= 9 else -1


@lean_kernel
def read_stamp(i: int, end: int) -> Any:
    """Read an RFC 3339 text with offset as epoch milliseconds; -1 where it is none or unsure."""
    if end - i < 20:
        return -1
    century = _two_digits(i)
    year = _two_digits(i + 2)
    month = _two_digits(i + 5)
    day = _two_digits(i + 8)
    hour = _two_digits(i + 11)
    minute = _two_digits(i + 14)
    second = _two_digits(i + 17)
    if century < 0 or year < 0 or second < 0 or second > 59 or not 0 <= minute <= 59 or not 0 <= hour <= 23:
        return -1
    year += century * 100
    if load_1(i + 4) != MINUS or load_1(i + 7) != MINUS or not 1 <= month <= 12:
        return -1
    between = load_1(i + 10)
    if (between != 84 and between != 116 and between != 32) or not 1 <= day <= _days_of_month(year, month):
        return -1
    if load_1(i + 13) != COLON or load_1(i + 16) != COLON:
        return -1
    instant = _days_since_1970(year, month, day) * _DAY_MS + ((hour * 60 + minute) * 60 + second) * 1000
    i += 19
    if load_1(i) == DOT:
        fraction, count = digits(i + 1)
        if count < 1 or count > 12:
            return -1
        instant += fraction * POWER[3 - count] if count < 3 else fraction // POWER[count - 3]
        i += 1 + count
    sign = load_1(i)
    if sign == 90 or sign == 122:
        i += 1
    elif (sign == 43 or sign == MINUS) and end - i == 6:
        hours = _two_digits(i + 1)
        minutes = _two_digits(i + 4)
        if not 0 <= hours <= 23 or not 0 <= minutes <= 59 or load_1(i + 3) != COLON:
            return -1
        ahead_ms = (hours * 60 + minutes) * 60_000
        instant += ahead_ms if sign == MINUS else -ahead_ms
        i += 6
    else:
        return -1
    return instant if i == end and 0 <= instant <= LARGEST_MS else -1


@lean_kernel
def _days_of_month(year: int, month: int) -> Any:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31


@lean_kernel
def _days_since_1970(year: int, month: int, day: int) -> Any:
    """Count days in the Gregorian calendar with years that begin in March, so that leap days come last."""
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
