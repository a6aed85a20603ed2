"""The compiled scanner and the typed reader give the same rows, letters and users for any bytes (T1-T9, L1-L8, I1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from decode_blocks import NOW, block_of, decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decode.decoder import Decoded, Decoder
from engine.model import DeadReason


def decoders(tenant: str = "default") -> tuple[Decoder, Decoder]:
    return decoder(tenant), decoder(tenant, "typed")


def assert_same(scanned: Decoded, typed: Decoded, where: Any) -> None:
    assert scanned.dead == typed.dead, where
    assert scanned.events.tobytes() == typed.events.tobytes(), (where, scanned.events, typed.events)
    assert scanned.rare == typed.rare, where
    assert (scanned.now_ms, scanned.ignored) == (typed.now_ms, typed.ignored), where


def users_of(decoder: Decoder) -> list[str]:
    return [decoder.users.id_of(slot) for slot in range(decoder.users.count)]


def compare(values: Sequence[bytes], append_ms: Sequence[int], tenant: str = "default") -> Decoded:
    fast, slow = decoders(tenant)
    block = block_of(values, append_ms)
    scanned, typed = fast.decode(block, NOW - 5), slow.decode(block, NOW - 5)
    assert_same(scanned, typed, values)
    assert users_of(fast) == users_of(slow)
    return scanned


# --- what events look like ----------------------------------------------------------------------------------------

TEXT = st.one_of(
    st.sampled_from(["", "a", "u-1", "淘宝", "video", "é" * 20, "x" * 40, "\x7f", 'q"uote', "tab\t", "𝄞", "a" * 129]),
    st.text(max_size=12),
)
DIGITS = st.text("0123456789", min_size=1, max_size=20)
LIMITS = (
    *("0", "-0", "-0.0", "1", "-", "01", "1.", ".5", "+1", "1e5", "1E2", "-1e-7", "1e400", "NaN", "Infinity"),
    *("180", "180.0", "-180", "180.00000000000001", "90.00000001", "9007199254740993", "1760000000000"),
    *("0.00000005", "0.00000015", "116.39742805", "116.397428050000001", "39.90923449999999999"),
)
NUMBER = st.one_of(
    st.sampled_from(
        # Limits of ranges, ties at 1e-7, more digits than a double holds, and what is no JSON number.
        [
            "0",
            "-0",
            "-0.0",
            "1",
            "01",
            "1.",
            ".5",
            "+1",
            "1e400",
            "-1e-7",
            "1E2",
            "180",
            "180.0",
            "-180",
            "180.00000000000001",
            "90.00000001",
            "1e5",
            "NaN",
            "Infinity",
            "-",
            "0.00000005",
            "0.00000015",
            "116.39742805",
            "116.397428050000001",
            "39.90923449999999999",
            "9007199254740993",
        ]
    ),
    st.floats(-200, 200).map(repr),
    st.decimals(-181, 181, places=7).map(str),
    st.builds("{}{}.{}".format, st.sampled_from(["", "-"]), st.integers(0, 181), DIGITS),
    st.integers(-5, 2**70).map(str),
)
INSTANT = st.one_of(
    st.integers(NOW - 10**6, NOW + 400_000).map(str),
    st.sampled_from(["1760000000", "99999999999", "100000000000", "1760000000000.0", "-1760000000000", "true", "null"]),
    st.integers(253_402_300_799_990, 253_402_300_800_010).map(str),
    st.builds(
        '"{:04d}-{:02d}-{:02d}{}{:02d}:{:02d}:{:02d}{}{}"'.format,
        st.one_of(st.just(2025), st.sampled_from([0, 1969, 1970, 2000, 1900, 2024, 2100, 9999])),
        st.integers(0, 13),
        st.integers(0, 32),
        st.sampled_from("Tt _"),
        st.integers(0, 24),
        st.integers(0, 60),
        st.integers(0, 61),
        st.sampled_from(["", ".", ".1", ".123", ".1239", ".123456789012", ".1234567890123"]),
        st.sampled_from(["Z", "z", "+08:00", "-23:59", "+24:00", "+0800", "", "+08:60", "Z "]),
    ),
)
SCALAR = st.one_of(TEXT.map(json.dumps), TEXT.map(lambda one: json.dumps(one, ensure_ascii=False)), NUMBER)
VALUE = st.one_of(
    SCALAR,
    st.sampled_from(["true", "false", "null", "tru", "[]", "{}", "[1,[2]]", '{"a":{"b":1}}', "[" * 40 + "]" * 40]),
)
PROPS = st.dictionaries(TEXT, SCALAR, max_size=3).map(
    lambda fields: "{" + ",".join(f"{json.dumps(name)}: {value}" for name, value in fields.items()) + "}"
)


def quoted(*choices: str) -> st.SearchStrategy[str]:
    return st.sampled_from([json.dumps(one, ensure_ascii=False) for one in choices])


FITTING: dict[str, st.SearchStrategy[str]] = {
    "v": st.sampled_from(["1", "1", "1", "2", "1.0", "-1"]),
    "tenant": quoted("default", "default", "other"),
    "type": quoted("ping", "ping", "ping", "usage", "usage", "profile", "consent", "user-closed", "track", "pong"),
    "feed": quoted("default", "app", "signalling", "gcj", "bd", "none"),
    "id": TEXT.map(json.dumps),
    "user": TEXT.map(json.dumps),
    "at": INSTANT,
    "lon": NUMBER,
    "lat": NUMBER,
    "cell": quoted("460-01-1-1", "460-01-1-2", "塔", "nowhere", "x" * 300),
    "accuracy_m": NUMBER,
    "method": quoted("gps", "wifi", "cell", "gsm", "gpsx", ""),
    "app": TEXT.map(lambda one: json.dumps(one, ensure_ascii=False)),
    "category": TEXT.map(json.dumps),
    "action": quoted("open", "buy", ""),
    "props": PROPS,
    "_type": quoted("location", "lwt"),
    "specversion": quoted("1.0", "0.3"),
    "unknown": VALUE,
    "userId": TEXT.map(json.dumps),
    "tags": st.just('["a"]'),
    "purpose": quoted("location", "marketing.sms", "nothing"),
    "granted": st.sampled_from(["true", "false", "1"]),
}
SPACE = st.sampled_from(["", "", "", "", " ", "\t", "\r", "  ", "\x0b"])


@st.composite
def plain_events(draw: st.DrawFn) -> bytes:
    """Well-formed pings and usage events as feeds send them."""
    fields: dict[str, str] = {"v": "1", "type": '"ping"', "user": f'"u{draw(st.integers(0, 9))}"'}
    fields["at"] = draw(st.one_of(st.integers(NOW - 10**6, NOW).map(str), st.just('"2025-10-09T08:53:20.5+08:00"')))
    if draw(st.booleans()):
        fields["feed"] = draw(quoted("default", "app", "signalling", "gcj", "bd"))
    if draw(st.booleans()):
        fields["id"] = f'"{draw(st.integers(0, 999))}"'
    kind = draw(st.integers(0, 2))
    if kind == 0:
        fields |= {"lon": draw(NUMBER), "lat": draw(st.decimals(-90, 90, places=9).map(str))}
        if draw(st.booleans()):
            fields |= {"accuracy_m": draw(st.sampled_from(["0", "5", "12.5", "3000", "null"])), "method": '"wifi"'}
    elif kind == 1:
        fields["cell"] = draw(FITTING["cell"])
    else:
        fields |= {"type": '"usage"', "app": '"微信"', "category": '"chat"', "props": draw(PROPS)}
    return ("{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}").encode()


@st.composite
def odd_events(draw: st.DrawFn) -> bytes:
    """Objects of known and unknown keys with fitting and unfitting values, odd spacing, escapes and repetitions."""
    names = draw(st.lists(st.sampled_from(list(FITTING)), max_size=9))
    if draw(st.integers(0, 3)):
        names = ["type", "user", "at", *names]
    parts = []
    for name in names:
        value = draw(FITTING[name] if draw(st.integers(0, 9)) else VALUE)
        key = json.dumps(name) if draw(st.integers(0, 30)) else '"us\\u0065r"'
        gaps = draw(st.tuples(SPACE, SPACE, SPACE, SPACE)) if draw(st.booleans()) else ("",) * 4
        parts.append(f"{gaps[0]}{key}{gaps[1]}:{gaps[2]}{value}{gaps[3]}")
    return ("{" + ",".join(parts) + "}").encode("utf-8", "surrogatepass")


@st.composite
def broken(draw: st.DrawFn, events: st.SearchStrategy[bytes]) -> bytes:
    """An event with bytes cut out, doubled or replaced."""
    event = draw(events)
    at = draw(st.integers(0, len(event)))
    to = min(len(event), at + draw(st.integers(0, 6)))
    junk = draw(
        st.sampled_from(
            [b"", b"\x00", b"\xff", b"\xed\xa0\x80", b"\xc3", b"\n", b'"', b"{", b"}", b"[", b"]", b"\\", b","]
        )
    )
    return event[:at] + junk + event[to:]


EVENT_BYTES = st.one_of(plain_events(), odd_events(), broken(plain_events()), broken(odd_events()))
NOISE = st.sampled_from(
    [
        b"",
        b"\xef\xbb\xbf{}",
        b"[",
        b"]",
        b"[]",
        b"{}",
        b"null",
        b'"x"',
        b"[[1]]",
        b"[1,]",
        b"\x00",
        b"{" * 50,
        b"[" * 50,
    ]
)
ITEM = st.one_of(EVENT_BYTES, EVENT_BYTES, EVENT_BYTES, NOISE)


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """One event, lines, an array, a spread-out text, or lines with arrays among them."""
    items = draw(st.lists(ITEM, max_size=4))
    shape = draw(st.integers(0, 5))
    if shape == 0:
        return draw(EVENT_BYTES)
    if shape == 1:
        return b"\n".join(items)
    if shape == 2:
        return b"[" + draw(st.sampled_from([b",", b" , ", b",\n", b"\n", b",,"])).join(items) + b"]"
    if shape == 3:
        return (
            b"["
            + b",\n".join(items)
            + draw(st.sampled_from([b"", b"]x", b"] {}", b"]\n", b"] \r\n"]))
            + b"\n"
            + draw(ITEM)
        )
    if shape == 4:
        try:
            return json.dumps(json.loads(draw(plain_events())), indent=1).encode()
        except ValueError:
            return b"{\n}"
    return draw(broken(st.just(b"\r\n".join(items) + b"\n[" + b",".join(items) + b"]\n" + b"\n".join(items))))


APPEND = st.one_of(st.just(-1), st.integers(NOW - 10, NOW + 50_000))


@given(st.lists(st.tuples(st.one_of(plain_events(), plain_events(), ITEM), APPEND), max_size=6))
@settings(max_examples=300, deadline=None)
def test_the_two_readers_agree_on_single_events(pairs: list[tuple[bytes, int]]) -> None:
    compare([value for value, _ in pairs], [append for _, append in pairs])


@given(st.lists(st.tuples(records(), APPEND), max_size=4))
@settings(max_examples=400, deadline=None)
def test_the_two_readers_agree_on_lines_arrays_and_broken_records(pairs: list[tuple[bytes, int]]) -> None:
    compare([value for value, _ in pairs], [append for _, append in pairs])


@given(st.lists(st.binary(max_size=80), max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_bytes_become_letters_and_never_an_exception(values: list[bytes]) -> None:
    compare(values, [NOW] * len(values))


@given(st.lists(st.tuples(records(), APPEND), min_size=2, max_size=6), st.data())
@settings(max_examples=150, deadline=None)
def test_cutting_records_into_blocks_changes_nothing(pairs: list[tuple[bytes, int]], data: st.DataObject) -> None:
    """T4: rows, letters, slots and now are the same for any split."""
    values, appends = [value for value, _ in pairs], [append for _, append in pairs]
    whole_decoder, cut_decoder = decoders()[0], decoders()[0]
    whole = whole_decoder.decode(block_of(values, appends), NOW)
    now_ms = NOW
    rows: list[np.ndarray] = []
    dead: list[tuple[DeadReason, str, int]] = []
    first = 0
    while first < len(values):
        last = data.draw(st.integers(first + 1, len(values)))
        part = cut_decoder.decode(block_of(values[first:last], appends[first:last]), now_ms)
        events = part.events.copy()
        shift = sum(len(value) for value in values[:first])
        events["span_start"] += shift
        events["span_end"] += shift
        events["record"] += first
        rows.append(events)
        dead.extend((one.reason, one.detail, one.item) for one in part.dead)
        now_ms = part.now_ms
        first = last
    assert np.concatenate(rows).tobytes() == whole.events.tobytes()
    assert dead == [(one.reason, one.detail, one.item) for one in whole.dead]
    assert now_ms == whole.now_ms
    assert users_of(cut_decoder) == users_of(whole_decoder)


@given(plain_events(), st.sampled_from(["default", "other"]))
@settings(max_examples=40, deadline=None)
def test_events_of_another_tenant_are_letters_for_both(event: bytes, tenant: str) -> None:
    other = event.replace(b'{"v":1', b'{"v":1,"tenant":"other"')
    decoded = compare([event, other], [NOW, NOW], tenant)
    wrong = 7 if tenant == "default" else 0
    letters = {one.position: one.detail for one in decoded.dead}
    assert wrong not in decoded.events["record"] * 7
    if b'"lon":0,' in event:  # the plainest of events is refused for nothing else
        assert letters[wrong] == "tenant"


@pytest.mark.parametrize("count", [33, 5000])
def test_the_readers_agree_where_tables_and_rows_grow(count: int) -> None:
    """Users and rows grow while a block is scanned, with odd events and unknown cells among them."""
    lines = []
    for k in range(count):
        shape = k % 7
        place = (
            '"cell":"nowhere"' if shape == 3 else '"cell":"460-01-1-1"' if shape == 4 else f'"lon":116.{k},"lat":39.5'
        )
        user = f"us\\u0065r{k}" if shape == 5 else f"user-{k % 4001}-{'x' * (k % 90)}"
        lines.append(f'{{"type":"ping","user":"{user}","at":{NOW - count + k},{place}}}'.encode())
    compare([b"\n".join(lines), b"[" + b",".join(lines) + b"]", *lines[:50]], [-1, NOW, *[NOW] * 50])
