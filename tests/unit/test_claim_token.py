"""Claim links: what a token says, and that nobody else can make one (FAULTS A10)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.claim_token import LONGEST_MS, TOKEN_LENGTH, ClaimToken, token_maker, token_reader

KEY = b"a key of at least sixteen bytes"
AT_MS = 1_767_326_400_000
OFFER = f"{AT_MS:012x}{7:020x}"
make, read = token_maker(KEY), token_reader(KEY)


@given(noise=st.integers(0, (1 << 80) - 1), span_ms=st.integers(0, LONGEST_MS))
def test_a_token_says_its_offer_and_its_end_to_the_minute(noise: int, span_ms: int) -> None:
    offer = f"{AT_MS:012x}{noise:020x}"
    token = make(offer, AT_MS + span_ms)
    assert len(token) == TOKEN_LENGTH
    assert read(token) == ClaimToken(offer, AT_MS + span_ms - span_ms % 60_000)


def test_a_token_ends_before_its_offer_is_forgotten() -> None:
    for until_ms in (None, AT_MS + 400 * 86_400_000):
        found = read(make(OFFER, until_ms))
        assert found is not None
        assert found.until_ms == AT_MS + LONGEST_MS
    over = read(make(OFFER, AT_MS - 1))
    assert over is not None
    assert over.until_ms == AT_MS


@given(place=st.integers(0, TOKEN_LENGTH - 1), letter=st.characters(max_codepoint=0x2FF))
def test_any_other_letter_makes_it_no_token(place: int, letter: str) -> None:
    token = make(OFFER, None)
    changed = token[:place] + letter + token[place + 1 :]
    assert (read(changed) is None) == (changed != token)


@pytest.mark.parametrize("token", ["", "x", "=" * 36, "A" * 36, "A" * 35, "A" * 37, "\ud800" * 36, "+" * 36])
def test_what_was_never_a_token_is_none(token: str) -> None:
    assert read(token) is None


def test_another_deployment_reads_nothing_of_it() -> None:
    assert token_reader(b"another key of sixteen bytes")(make(OFFER, None)) is None
