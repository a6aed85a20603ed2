"""Lines, arrays and texts spread over lines; what is broken harms nothing beside it."""

from __future__ import annotations

import json

import pytest
from decode_blocks import block_of, decode, decoder, ping

from engine.decode.split import split
from engine.model import DeadReason

CASES = [
    (b"a", [b"a"]),
    (b" a \r\n\n\tb\n", [b"a", b"b"]),
    (b"[a,b]", [b"a", b"b"]),
    (b"[\n a ,\n b\n]\n", [b"a", b"b"]),
    (b"[]\n[ ]\na", [b"a"]),
    (b"[a]\n[b,c]\nd", [b"a", b"b", b"c", b"d"]),
    (b'[{"a":"],"},{"b":[1,{}]}]', [b'{"a":"],"}', b'{"b":[1,{}]}']),
    (b'[{"a":"\\"]"},b]', [b'{"a":"\\"]"}', b"b"]),
    (b"[a,,b]", [b"a", b"", b"b"]),
    (b"[a,]", [b"a", b""]),
    (b"[a] x\nb", [b"a", b"x", b"b"]),
    (b"[{}", [b"{}", b""]),
    (b"[{}\n{}\n{}", [b"{}", b"", b"{}", b"{}"]),
    (b'[{"a":1\n{}\n[{}]', [b'{"a":1', b"{}", b"[{}]"]),
    (b"[[[[\n{}\n{}", [b"[[[", b"{}", b"{}"]),
    (b'[{"a":"\n{}', [b'{"a":"', b"{}"]),
    (b"[", [b""]),
]


@pytest.mark.parametrize(("value", "items"), CASES)
def test_a_record_is_cut_into_items(value: bytes, items: list[bytes]) -> None:
    assert [value[start:end] for start, end in split(value)] == items


def test_many_broken_arrays_in_one_record_cost_one_pass() -> None:
    """After the first the rest is judged line by line: nobody can make the scan quadratic."""
    lines = b"[{\n" * 30_000
    decoded = decode(lines)
    assert len(decoded.dead) == 30_000


def test_an_event_spread_over_lines_is_one_event() -> None:
    spread = json.dumps(ping(id="s"), indent=2).encode()
    for reader in ("scanner", "typed"):
        decoded = decode(b"\n" + spread + b"\n", reader=reader)
        assert decoded.events["item"].tolist() == [0]
        assert decoded.dead == []


def test_a_cut_off_first_line_takes_nothing_with_it() -> None:
    good = json.dumps(ping()).encode()
    decoded = decode(good[:-1] + b"\n" + good + b"\n" + good + b"}")
    assert decoded.events["item"].tolist() == [1]
    assert [(one.reason, one.item) for one in decoded.dead] == [(DeadReason.BAD_JSON, 0), (DeadReason.BAD_JSON, 2)]


def test_an_event_never_reaches_into_the_next_record() -> None:
    """Records lie back to back in the buffer; one that is cut off must not be completed by its neighbour."""
    good = json.dumps(ping()).encode()
    for cut in range(1, len(good)):
        decoded = decoder().decode(block_of([good[:cut], good[cut:], good]), 0)
        assert decoded.events["record"].tolist() == [2]
        assert {one.position for one in decoded.dead} == {0, 7}
