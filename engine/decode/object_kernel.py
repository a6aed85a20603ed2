"""Scan one event: the fields of a flat JSON object into a FIELDS record, or -1 for whatever is not certain."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.decode.text_kernel import (
    COLON,
    COMMA,
    LEFT_BRACE,
    MINUS,
    NINE,
    POWER,
    QUOTE,
    RIGHT_BRACE,
    ZERO,
    past_space,
    plain_run,
    read_number,
    read_stamp,
    string_end,
    word_at,
)
from engine.decode.times import LARGEST_MS, SMALLEST_MS
from engine.hashing_kernel import hash_at, load_1, load_upto_8
from engine.kernels import inlined_kernel, lean_kernel
from engine.model import EventType, Method

FIELDS = np.dtype(
    [
        ("at_ms", "i8"),
        ("lon", "f8"),  # degrees as sent; not the nearest double where `coarse_digits` is set
        ("lat", "f8"),
        ("accuracy_m", "f8"),  # as sent, 0 where absent
        ("lon_e7", "i8"),  # of the digits themselves, for WGS-84
        ("lat_e7", "i8"),
        ("app_hash", "u8"),
        ("category_hash", "u8"),
        ("action_hash", "u8"),
        ("user_start", "i8"),
        ("user_end", "i8"),
        ("id_start", "i8"),
        ("id_end", "i8"),
        ("cell_start", "i8"),
        ("cell_end", "i8"),
        ("feed_start", "i8"),
        ("feed_end", "i8"),
        ("tenant_start", "i8"),
        ("tenant_end", "i8"),
        ("seen", "i8"),  # bits of the fields that are there and not null
        ("type", "i8"),
        ("method", "i8"),
        ("coarse_digits", "i8"),  # 1: lon or lat has more digits than a double holds exactly
    ]
)

V, TENANT, TYPE, FEED, ID, USER, AT, LON, LAT, CELL, ACCURACY, METHOD, APP, CATEGORY, ACTION, PROPS = (
    1 << k for k in range(16)
)
OTHER = 0
_ENVELOPE = -1


def _word(text: bytes) -> Any:
    return np.uint64(int.from_bytes(text, "little"))


_V, _ID, _AT, _LON, _LAT, _APP = (_word(one) for one in (b"v", b"id", b"at", b"lon", b"lat", b"app"))
_TYPE, _FEED, _USER, _CELL, _PROPS = (_word(one) for one in (b"type", b"feed", b"user", b"cell", b"props"))
_TENANT, _METHOD, _ACTION, _CATEGORY = (_word(one) for one in (b"tenant", b"method", b"action", b"category"))
_ACCURACY, _ACCURACY_TAIL = _word(b"accuracy"), _word(b"_m")
_ENVELOPE_TYPE, _SPECVERSION, _SPECVERSION_TAIL = _word(b"_type"), _word(b"specvers"), _word(b"ion")
_PING, _USAGE, _GPS, _WIFI = (_word(one) for one in (b"ping", b"usage", b"gps", b"wifi"))
_NULL, _TRUE, _FALSE = _word(b"null"), _word(b"true"), _word(b"false")
_TYPE_PING, _TYPE_USAGE = int(EventType.PING), int(EventType.USAGE)
_METHOD_GPS, _METHOD_WIFI, _METHOD_CELL = int(Method.GPS), int(Method.WIFI), int(Method.CELL)
_EXACT_BELOW = 1 << 53
_LARGEST_ACCURACY_M = 1e8


@lean_kernel
def read_object(i: int, newlines: int, fields: Any) -> Any:
    """Read the object that begins at i; return the place after it, or -1 for the typed reader.

    i         address, of bytes that end in a 0 (see text_kernel); places in `fields` are addresses too
    newlines  1: a newline between tokens is space (inside an array), 0: it ends the event
    fields    a record of FIELDS; only what `seen` names is written

    Certain are: flat objects without escapes, known keys at most once, numbers of at most 18 digits without exponent,
    `props` of scalars, unknown keys with scalar values. Cost: one pass, no allocation.
    Oracle: the typed reader (tests/property/test_decode.py).
    """
    fields.seen = 0
    fields.accuracy_m = 0.0
    fields.app_hash = 0
    fields.category_hash = 0
    fields.action_hash = 0
    fields.method = 0
    fields.coarse_digits = 0
    met = 0
    i = past_space(i + 1, newlines)
    while True:
        if load_1(i) != QUOTE:
            return -1
        length = plain_run(i + 1)
        key = _key(i + 1, length)
        i += length + 1
        if load_1(i) != QUOTE or key == _ENVELOPE or met & key != 0:
            return -1
        met |= key
        i += 1
        if load_1(i) != COLON:
            i = past_space(i, newlines)
            if load_1(i) != COLON:
                return -1
        i = past_space(i + 1, newlines)
        first = load_1(i)
        if first == QUOTE:
            end = string_end(i + 1)
            if end < 0 or not _take_text(key, i + 1, end, fields):
                return -1
            fields.seen |= key
            i = end + 1
        elif ZERO <= first <= NINE or first == MINUS:
            mantissa, decimals, i = read_number(i)
            if i < 0 or not _take_number(key, mantissa, decimals, fields):
                return -1
            fields.seen |= key
        elif first == LEFT_BRACE and key == PROPS:
            i = _past_props(i, newlines)
            if i < 0:
                return -1
        else:
            i = _past_literal(i, key)
            if i < 0:
                return -1
        after = load_1(i)
        if after != COMMA and after != RIGHT_BRACE:
            i = past_space(i, newlines)
            after = load_1(i)
        i += 1
        if after == RIGHT_BRACE:
            return i
        if after != COMMA:
            return -1
        if load_1(i) != QUOTE:
            i = past_space(i, newlines)


@inlined_kernel
def _key(i: int, length: int) -> Any:
    """Return the bit of a known key, OTHER, or _ENVELOPE for what only the typed reader may judge."""
    if length == 0 or length >= 32:
        return _ENVELOPE
    word = load_upto_8(i, min(length, 8))
    if length == 4:
        if word == _TYPE:
            return TYPE
        if word == _USER:
            return USER
        if word == _FEED:
            return FEED
        return CELL if word == _CELL else OTHER
    if length == 3:
        if word == _LON:
            return LON
        if word == _LAT:
            return LAT
        return APP if word == _APP else OTHER
    if length == 2:
        if word == _AT:
            return AT
        return ID if word == _ID else OTHER
    if length == 1:
        return V if word == _V else OTHER
    if length == 6:
        if word == _METHOD:
            return METHOD
        if word == _ACTION:
            return ACTION
        return TENANT if word == _TENANT else OTHER
    if length == 8:
        return CATEGORY if word == _CATEGORY else OTHER
    if length == 5:
        if word == _PROPS:
            return PROPS
        return _ENVELOPE if word == _ENVELOPE_TYPE else OTHER
    if length == 10:
        return ACCURACY if word == _ACCURACY and load_upto_8(i + 8, 2) == _ACCURACY_TAIL else OTHER
    if length == 11 and word == _SPECVERSION and load_upto_8(i + 8, 3) == _SPECVERSION_TAIL:
        return _ENVELOPE
    return OTHER


@inlined_kernel
def _take_text(key: int, start: int, end: int, fields: Any) -> Any:
    """Take a text value; False where this key may not have it, or only the typed reader can say."""
    if key == USER:
        fields.user_start = start
        fields.user_end = end
        return 1 <= end - start <= 128
    if key == TYPE:
        word = load_upto_8(start, min(end - start, 8))
        if word == _PING and end - start == 4:
            fields.type = _TYPE_PING
            return True
        fields.type = _TYPE_USAGE
        return word == _USAGE and end - start == 5
    if key == METHOD:
        word = load_upto_8(start, min(end - start, 8))
        if word == _GPS and end - start == 3:
            fields.method = _METHOD_GPS
        elif word == _WIFI and end - start == 4:
            fields.method = _METHOD_WIFI
        elif word == _CELL and end - start == 4:
            fields.method = _METHOD_CELL
        else:
            return False
        return True
    if key == AT:
        fields.at_ms = read_stamp(start, end)
        return fields.at_ms >= 0
    if key == CELL:
        fields.cell_start = start
        fields.cell_end = end
        return True
    if key == FEED:
        fields.feed_start = start
        fields.feed_end = end
        return True
    if key == ID:
        fields.id_start = start
        fields.id_end = end
        return 1 <= end - start <= 256
    if key == TENANT:
        fields.tenant_start = start
        fields.tenant_end = end
        return True
    if key == APP:
        fields.app_hash = hash_at(start, end - start) if end > start else np.uint64(0)
        return True
    if key == CATEGORY:
        fields.category_hash = hash_at(start, end - start) if end > start else np.uint64(0)
        return True
    if key == ACTION:
        fields.action_hash = hash_at(start, end - start) if end > start else np.uint64(0)
        return True
    return key == OTHER


@inlined_kernel
def _take_number(key: int, mantissa: int, decimals: int, fields: Any) -> Any:
    """Take a number value; False where this key may not have it, or only the typed reader can say."""
    if key == AT:
        fields.at_ms = mantissa
        return decimals == 0 and SMALLEST_MS <= mantissa <= LARGEST_MS
    if key in (LON, LAT):
        value = mantissa / float(POWER[decimals])
        if abs(mantissa) < _EXACT_BELOW:
            # Both operands are exact, so the quotient is the double nearest to the decimal, as a parser's would be.
            snapped = np.int64(np.rint(value * 1e7)) if abs(value) <= 180.0 else 0
        else:
            snapped = _snapped_from_digits(mantissa, decimals)
            if snapped == _UNSURE:
                return False
            fields.coarse_digits = 1
        if key == LON:
            fields.lon = value
            fields.lon_e7 = snapped
        else:
            fields.lat = value
            fields.lat_e7 = snapped
        return True
    if key == ACCURACY:
        fields.accuracy_m = mantissa / float(POWER[decimals])
        return abs(mantissa) < _EXACT_BELOW and 0.0 <= fields.accuracy_m <= _LARGEST_ACCURACY_M
    if key == V:
        return decimals == 0 and mantissa == 1
    return key == OTHER


_UNSURE = 1 << 40


@lean_kernel
def _snapped_from_digits(mantissa: int, decimals: int) -> Any:
    """Round mantissa / 10 ** decimals to 1e-7, or _UNSURE near a tie or near a limit of the coordinate.

    A double is off by less than 2e-14 degree here, that is by 2e-7 of a step: away from ties by more than that,
    rounding the digits and rounding the double give the same step.
    """
    if decimals < 8:
        return _UNSURE
    step = POWER[decimals - 7]
    size = abs(mantissa)
    whole = size // step
    rest = (size - whole * step) / float(step)
    if abs(rest - 0.5) < 1e-5 or abs(whole - 1_800_000_000) < 2 or abs(whole - 900_000_000) < 2:
        return _UNSURE
    whole += rest > 0.5
    return -whole if mantissa < 0 else whole


@lean_kernel
def _past_literal(i: int, key: int) -> Any:
    """Pass null anywhere (it stands for absent), true and false where nobody looks; -1 for anything else."""
    word = word_at(i)
    if word & np.uint64(0xFFFFFFFF) == _NULL:
        return i + 4
    if key != OTHER:
        return -1
    if word & np.uint64(0xFFFFFFFF) == _TRUE:
        return i + 4
    return i + 5 if word & np.uint64(0xFFFFFFFFFF) == _FALSE else -1


@lean_kernel
def _past_props(i: int, newlines: int) -> Any:
    """Pass a flat object of scalars; -1 where it is none or unsure."""
    i = past_space(i + 1, newlines)
    if load_1(i) == RIGHT_BRACE:
        return i + 1
    while True:
        if load_1(i) != QUOTE:
            return -1
        i = string_end(i + 1)
        if i < 0:
            return -1
        i = past_space(i + 1, newlines)
        if load_1(i) != COLON:
            return -1
        i = past_space(i + 1, newlines)
        first = load_1(i)
        if first == QUOTE:
            i = string_end(i + 1) + 1
            if i == 0:
                return -1
        elif ZERO <= first <= NINE or first == MINUS:
            _, _, i = read_number(i)
            if i < 0:
                return -1
        else:
            i = _past_literal(i, OTHER)
            if i < 0:
                return -1
        i = past_space(i, newlines)
        after = load_1(i)
        if after == RIGHT_BRACE:
            return i + 1
        if after != COMMA:
            return -1
        i = past_space(i + 1, newlines)
