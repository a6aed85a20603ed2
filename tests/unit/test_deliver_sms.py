"""Rule O2: how long an SMS is, and where signature and opt-out text stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.deliver.sms import count_segments, finish_text, split_segments


def test_every_published_vector_has_its_encoding_and_segments(shared_data: Path) -> None:
    rows = json.loads((shared_data / "vectors" / "sms_segments.json").read_text())["rows"]
    assert len(rows) >= 10
    for row in rows:
        length = count_segments(row["body"])
        assert length.encoding == row["encoding"].lower().replace("-", ""), row["desc"]
        assert length.segments == row["segments"], row["desc"]


@pytest.mark.parametrize(
    ("text", "encoding", "units", "segments"),
    [
        ("", "gsm7", 0, 0),
        ("a" * 160, "gsm7", 160, 1),
        ("a" * 161, "gsm7", 161, 2),
        ("a" * 306, "gsm7", 306, 2),
        ("a" * 307, "gsm7", 307, 3),
        ("€" * 80, "gsm7", 160, 1),
        ("€" * 81, "gsm7", 162, 2),
        ("惠" * 70, "ucs2", 70, 1),
        ("惠" * 71, "ucs2", 71, 2),
        ("惠" * 134, "ucs2", 134, 2),
        ("惠" * 135, "ucs2", 135, 3),
        ("惠" * 68 + "😜", "ucs2", 70, 1),
        ("惠" * 69 + "😜", "ucs2", 71, 2),
        ("a" * 70 + "`", "ucs2", 71, 2),  # a backtick is not in GSM-7
    ],
)
def test_lengths_at_the_limits(text: str, encoding: str, units: int, segments: int) -> None:
    length = count_segments(text)
    assert (length.encoding, length.units, length.segments) == (encoding, units, segments)


def test_an_escape_pair_is_never_split() -> None:
    parts = split_segments("a" * 152 + "€" + "b" * 100)
    assert parts[0] == "a" * 152, "the pair would take septets 153 and 154"
    assert "".join(parts) == "a" * 152 + "€" + "b" * 100


def test_a_surrogate_pair_is_never_split() -> None:
    text = "惠" * 66 + "😜" + "惠" * 66
    parts = split_segments(text)
    assert [len(part) for part in parts] == [66, 66, 1]
    assert "".join(parts) == text


def test_signature_comes_first_and_opt_out_last() -> None:
    assert finish_text("到店有礼", signature="联通权益", opt_out="拒收请回复R") == "【联通权益】到店有礼拒收请回复R"


def test_a_gateway_may_want_the_signature_at_the_end() -> None:
    text = finish_text("到店有礼", signature="【联通权益】", opt_out="拒收请回复R", signature_at_end=True)
    assert text == "到店有礼拒收请回复R【联通权益】"


def test_signature_and_opt_out_count_toward_the_segments() -> None:
    finished = finish_text("惠" * 60, signature="联通权益", opt_out="拒收请回复R")
    assert count_segments("惠" * 60).segments == 1
    assert count_segments(finished).segments == 2
