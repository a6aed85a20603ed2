"""Codecs of SGIP, CMPP and SMGP: what is encoded is read back the same, and no bytes can hang or fill the reader."""

from __future__ import annotations

import contextlib
import hashlib
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.deliver.operators import cmpp, parts, sgip, smgp
from engine.deliver.operators.wire import Frames, WireError

BYTE, WORD = st.integers(0, 255), st.integers(0, 0xFFFFFFFF)
LONG = st.integers(0, (1 << 64) - 1)


def text(most: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=most)


def numbers(size: int, most: int = 99) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(text(size), min_size=1, max_size=min(most, 8)).map(tuple)


SEQUENCE = st.tuples(WORD, WORD, WORD)
CONTENT = st.binary(max_size=140)
SGIP = st.one_of(
    st.builds(sgip.Bind, SEQUENCE, BYTE, text(16), text(16)),
    st.builds(sgip.Bare, SEQUENCE, st.sampled_from((sgip.UNBIND, sgip.UNBIND | sgip.ANSWER))),
    st.builds(
        sgip.Answer, SEQUENCE, st.sampled_from((sgip.BIND, sgip.SUBMIT, sgip.REPORT)).map(sgip.ANSWER.__or__), BYTE,
    ),
    st.builds(
        sgip.Submit, SEQUENCE, text(21), numbers(21), text(5), text(10), CONTENT, BYTE, text(21), st.booleans(), BYTE,
        text(6), text(6), BYTE, BYTE, BYTE, text(16), text(16), BYTE, BYTE, BYTE,
    ),
    st.builds(sgip.Deliver, SEQUENCE, text(21), text(21), CONTENT, BYTE, st.booleans(), BYTE),
    st.builds(sgip.Report, SEQUENCE, SEQUENCE, text(21), BYTE, BYTE, BYTE),
    st.builds(sgip.UserReport, SEQUENCE, text(21), text(21), BYTE),
)  # fmt: skip


def cmpp_messages(version: int) -> st.SearchStrategy[Any]:
    wide = version == cmpp.V3
    phone = 32 if wide else 21
    result = WORD if wide else BYTE
    link = text(20 if wide else 8)
    return st.one_of(
        st.builds(cmpp.Connect, WORD, text(6), st.binary(min_size=16, max_size=16), BYTE, WORD),
        st.builds(cmpp.ConnectAnswer, WORD, result, st.binary(min_size=16, max_size=16), BYTE),
        st.builds(cmpp.Bare, WORD, st.sampled_from((cmpp.TERMINATE, cmpp.ACTIVE_TEST, cmpp.ACTIVE_TEST | cmpp.ANSWER))),
        st.builds(
            cmpp.Submit, WORD, text(21), numbers(phone), CONTENT, BYTE, text(6), text(10), BYTE, BYTE, st.booleans(),
            BYTE, BYTE, BYTE, text(phone), text(2), text(6), text(17), text(17), LONG, BYTE, link,
        ),
        st.builds(
            cmpp.Result, WORD, st.sampled_from((cmpp.SUBMIT | cmpp.ANSWER, cmpp.DELIVER | cmpp.ANSWER)), LONG, result
        ),
        st.builds(
            cmpp.Deliver, WORD, LONG, text(phone), text(21), st.binary(max_size=255), BYTE, st.booleans(),
            st.booleans(), text(10), BYTE, link,
        ),
    )  # fmt: skip


NAME = st.binary(min_size=10, max_size=10)
TAGS = st.lists(st.tuples(st.integers(1, 0xFFFF), st.binary(max_size=20)), max_size=4).map(tuple)
SMGP = st.one_of(
    st.builds(smgp.Login, WORD, text(8), st.binary(min_size=16, max_size=16), WORD, BYTE, BYTE),
    st.builds(smgp.LoginAnswer, WORD, WORD, st.binary(min_size=16, max_size=16), BYTE),
    st.builds(smgp.Bare, WORD, st.sampled_from((smgp.EXIT, smgp.ACTIVE_TEST, smgp.ACTIVE_TEST | smgp.ANSWER))),
    st.builds(
        smgp.Submit, WORD, text(21), numbers(21), CONTENT, BYTE, text(10), BYTE, BYTE, BYTE, text(2), text(6), text(6),
        text(17), text(17), text(21), TAGS,
    ),
    st.builds(smgp.Result, WORD, st.sampled_from((smgp.SUBMIT | smgp.ANSWER, smgp.DELIVER | smgp.ANSWER)), NAME, WORD),
    st.builds(
        smgp.Deliver, WORD, NAME, text(21), text(21), st.binary(max_size=200), BYTE, st.booleans(), text(14), TAGS
    ),
)  # fmt: skip

PROTOCOLS: dict[str, tuple[int, st.SearchStrategy[Any], Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    "sgip": (sgip.HEADER, SGIP, lambda message: message.encode(), sgip.decode),
    "cmpp20": (cmpp.HEADER, cmpp_messages(cmpp.V2), lambda m: m.encode(cmpp.V2), lambda f: cmpp.decode(f, cmpp.V2)),
    "cmpp30": (cmpp.HEADER, cmpp_messages(cmpp.V3), lambda m: m.encode(cmpp.V3), lambda f: cmpp.decode(f, cmpp.V3)),
    "smgp": (smgp.HEADER, SMGP, lambda message: message.encode(), smgp.decode),
}
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


@every_protocol
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_what_is_encoded_is_read_back_the_same(protocol: str, data: st.DataObject) -> None:
    _, messages, encode, decode = PROTOCOLS[protocol]
    message = data.draw(messages)
    frame = encode(message)
    assert int.from_bytes(frame[:4], "big") == len(frame)
    assert decode(frame) == message
    assert encode(decode(frame)) == frame


@given(SEQUENCE, text(21), text(21), text(5), text(10), CONTENT, BYTE, st.booleans(), text(21))
@settings(max_examples=200, deadline=None)
def test_a_form_gives_the_same_bytes_as_the_whole_submit(
    sequence: sgip.Sequence, sender: str, number: str, corporation: str, service: str, content: bytes, coding: int,
    has_header: bool, charged: str,
) -> None:  # fmt: skip
    expires = "261122013000032+"
    filled = sgip.Submit((0, 0, 0), sender, ("",), corporation, service, b"", 0, charged)
    whole = sgip.Submit(
        sequence, sender, (number,), corporation, service, content, coding, charged, has_header, expires=expires
    )
    form = sgip.SubmitForm(filled)
    assert form.encode(sequence, number, content, coding, has_header, expires.encode()) == whole.encode()


@every_protocol
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_frames_come_out_the_same_however_the_stream_is_cut(protocol: str, data: st.DataObject) -> None:
    header, messages, encode, _ = PROTOCOLS[protocol]
    frames = [encode(message) for message in data.draw(st.lists(messages, min_size=1, max_size=4))]
    stream = b"".join(frames)
    assert Frames(header).feed(stream) == frames, "coalesced"
    single = Frames(header)
    assert [one for byte in stream for one in single.feed(bytes((byte,)))] == frames, "a byte at a time"
    cut = data.draw(st.integers(0, len(stream)))
    halves = Frames(header)
    assert halves.feed(stream[:cut]) + halves.feed(stream[cut:]) == frames, f"cut at {cut}"
    assert halves.waiting == 0


@every_protocol
@pytest.mark.parametrize("length", [0, 1, 3, 4, 11, 4097, 1 << 20, 1 << 31, 0xFFFFFFFF])
def test_a_length_that_lies_is_an_error_at_once_and_nothing_is_kept(protocol: str, length: int) -> None:
    header = PROTOCOLS[protocol][0]
    frames = Frames(header)
    with pytest.raises(WireError, match="bytes, expected"):
        frames.feed(struct.pack(">I", length) + b"\0" * 64)
    assert frames.waiting == 0


@every_protocol
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_frame_cut_short_or_changed_is_read_or_refused_and_never_anything_else(
    protocol: str, data: st.DataObject
) -> None:
    _, messages, encode, decode = PROTOCOLS[protocol]
    frame = bytearray(encode(data.draw(messages)))
    for _ in range(data.draw(st.integers(0, 4))):
        frame[data.draw(st.integers(4, len(frame) - 1))] = data.draw(BYTE)
    short = bytes(frame[: data.draw(st.integers(4, len(frame)))])
    attempt(decode, len(short).to_bytes(4, "big") + short[4:])
    attempt(decode, bytes(frame))


@every_protocol
@pytest.mark.long
def test_no_bytes_of_a_million_frames_bring_the_reader_down(protocol: str) -> None:
    _, messages, encode, decode = PROTOCOLS[protocol]
    dice = random.Random(protocol)
    seeds: list[bytes] = []

    @given(messages)
    @settings(max_examples=100, database=None, deadline=None)
    def gather(message: Any) -> None:
        seeds.append(encode(message))

    gather()
    for _ in range(250_000):
        frame = bytearray(dice.choice(seeds))
        for _ in range(dice.randrange(1, 6)):
            frame[dice.randrange(4, len(frame))] = dice.randrange(256)
        del frame[dice.randrange(4, len(frame) + 1) :]
        frame[:4] = len(frame).to_bytes(4, "big")
        attempt(decode, bytes(frame))
        attempt(smgp.decode_receipt, bytes(frame[4:]))
        attempt(cmpp.decode_receipt, bytes(frame[4:]))


def attempt(decode: Callable[[bytes], Any], frame: bytes) -> None:
    """Read; only a WireError is allowed."""
    with contextlib.suppress(WireError):
        decode(frame)


# --- texts ------------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.sampled_from("您好影院优惠😀𝒜abc 1€{}【】"), min_size=1, max_size=700)


def received(part: parts.Part, sender: str = "1", message: str = "part") -> parts.Piece:
    """A part as it comes in."""
    return parts.Piece(sender, "2", part.content, part.coding, part.has_header, f"{message} {part.number}")


@given(TEXTS, BYTE)
@settings(max_examples=300, deadline=None)
def test_a_text_that_was_cut_is_joined_again_in_any_order(message: str, reference: int) -> None:
    pieces = parts.cut(message, reference)
    assert len(pieces) == parts.count(message)
    joiner: parts.Joiner[int] = parts.Joiner()
    shuffled = random.Random(message).sample(pieces, len(pieces))
    answers = [joiner.add(received(one), row, 0) for row, one in enumerate(shuffled)]
    assert answers[:-1] == [parts.Waits.FOR_OTHERS] * (len(pieces) - 1)
    whole = answers[-1]
    assert isinstance(whole, parts.Whole)
    assert (whole.text, whole.message_id) == (message, "part 1")
    assert sorted(whole.tokens) == list(range(len(pieces))), "each part is acknowledged with the whole"
    joiner.settle(whole, True, 0)
    if len(pieces) > 1:
        assert joiner.add(received(shuffled[0]), 9, 1) is parts.Waits.NOT, "what is stored begins no new message"
    for one in pieces:
        assert len(one.content) <= 140 or (one.coding == 0 and len(one.content) < 160)
        if one.coding == 8:
            body = one.content[6:] if one.has_header else one.content
            assert body.decode("utf-16-be"), "no surrogate pair is split"


def test_seventy_units_are_one_message_and_one_more_is_two() -> None:
    assert parts.count("您" * 70) == 1
    assert parts.count("您" * 71) == 2
    assert parts.count("您" * 134) == 2
    assert parts.count("您" * 135) == 3
    assert parts.count("您" * 66 + "😀" + "您" * 66) == 3, "the pair moves whole into the next part"
    assert parts.count("a" * 159) == 1


def test_parts_that_stay_alone_are_given_up_and_never_fill_the_memory() -> None:
    joiner: parts.Joiner[int] = parts.Joiner()
    first = parts.cut("您" * 100, 1)[0]
    waits = parts.Waits.FOR_OTHERS
    for number in range(3 * parts.MOST_JOINING):
        assert joiner.add(received(first, str(number)), number, 0) is waits
    assert len(joiner._waiting) <= parts.MOST_JOINING
    late = parts.cut("您" * 100, 1)
    assert joiner.add(received(late[0], "x"), 0, 1) is waits
    assert joiner.add(received(first, "y"), 0, parts.JOIN_MS + 2) is waits
    assert joiner.add(received(late[1], "x"), 0, parts.JOIN_MS + 3) is waits, "the first part is forgotten"


def test_parts_whose_message_stays_incomplete_are_given_back_once_to_be_answered_busy() -> None:
    joiner: parts.Joiner[str] = parts.Joiner()
    first, second = parts.cut("您" * 100, 1)
    joiner.add(received(first), "a", 1_000)
    assert joiner.overdue(1_000) == []
    assert joiner.overdue(1_001) == ["a"]
    assert joiner.overdue(9_000) == [], "each is answered once"
    joiner.add(received(first), "b", 10_000)
    whole = joiner.add(received(second), "c", 10_001)
    assert isinstance(whole, parts.Whole)
    assert (whole.text, whole.tokens) == ("您" * 100, ("b", "c"))


def test_another_message_under_the_same_reference_is_not_taken_for_a_repetition() -> None:
    joiner: parts.Joiner[int] = parts.Joiner()
    for name, text in enumerate(("您" * 100, "您" * 99 + "好", "您" * 100)):
        first, second = parts.cut(text, 7)
        assert joiner.add(received(first, message=str(name)), 0, 0) is parts.Waits.FOR_OTHERS
        whole = joiner.add(received(second, message=str(name)), 1, 0)
        assert isinstance(whole, parts.Whole)
        assert whole.text == text
        joiner.settle(whole, True, 0)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_user_data_header_is_survived(content: bytes) -> None:
    joiner: parts.Joiner[int] = parts.Joiner()
    answer = joiner.add(parts.Piece("1", "2", content, 8, True, "m"), 0, 0)
    assert answer is parts.Waits.FOR_OTHERS or isinstance(answer, parts.Whole)


# --- receipts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"id:%s sub:001 dlvrd:001 Submit date:2611220130 done date:2611220131 stat:DELIVRD err:000 Text:",
        b"id:%s sub:001 dlvrd:001 submit_date:2611220130 done_date:2611220131 stat:DELIVRD err:000 txt:\xc4\xfa",
        b"ID:%s SUB:001 DLVRD:001 SUBMIT DATE:2611220130 DONE DATE:2611220131 STAT:DELIVRD ERR:000 TEXT:stat:NO",
    ],
)
@pytest.mark.parametrize(
    "name", [bytes(range(10)), b" stat:\xff:id", b"0123456789", b"\x05\x10\x66\x11\x22\x01\x31\x15\x77\x00"]
)
def test_a_telecom_receipt_is_read_by_its_labels_whatever_their_spelling(content: bytes, name: bytes) -> None:
    receipt = smgp.decode_receipt(content.replace(b"%s", name))
    assert receipt == smgp.Receipt(name, "DELIVRD", "000", "2611220130", "2611220131")
    as_digits = smgp.decode_receipt(content.replace(b"%s", name.hex().encode()))
    assert as_digits.message_id == name


def test_a_mobile_receipt_is_read_with_numbers_of_either_length() -> None:
    for version in (cmpp.V2, cmpp.V3):
        receipt = cmpp.Receipt(0x0123456789ABCDEF, "UNDELIV", "2611220130", "2611220131", "13800000001", 77)
        assert cmpp.decode_receipt(receipt.encode(version)) == receipt


def test_a_submit_of_the_shape_seen_in_the_field_is_168_bytes_and_is_read() -> None:
    """As gateways in use send it: no charged number, source node 0, a report always, caused by a user's message."""
    submit = sgip.Submit(
        sequence=(0, 1122013000, 1),
        sender="10655000",
        numbers=("8613800000001",),
        corporation="12345",
        service="",
        content="您好".encode("utf-16-be"),
        coding=8,
        charged="",
        more_related=0,
    )
    assert len(submit.encode()) == 168
    assert sgip.decode(submit.encode()) == submit


def test_the_proofs_of_a_login_are_those_of_the_specifications() -> None:
    stamp = 1122013000
    assert cmpp.authenticator("901234", "s", stamp) == hashlib.md5(b"901234" + bytes(9) + b"s" + b"1122013000").digest()
    assert smgp.authenticator("901234", "s", 301000000) == hashlib.md5(b"901234" + bytes(7) + b"s0301000000").digest()
    assert 301000000 == 0x11F0E540, "the specification's own example of a time stamp"
