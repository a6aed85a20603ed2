"""Scan to claim: a link is redeemed once, by whoever was first, until it ends (O3; FAULTS A10, A16)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.claim_token import token_maker
from engine.console.claims import Claims, draw_qr
from engine.console.intake import Refused
from engine.ledger.embedded import EmbeddedLedger
from engine.model import DispatchState, Offer
from tests.world import NOON_MS, small_content

KEY = b"a key of at least sixteen bytes"
OFFER = f"{NOON_MS:012x}{7:020x}"
DAY_MS = 86_400_000
TOKEN = token_maker(KEY)(OFFER, NOON_MS + DAY_MS)


class Engine:
    """A ledger with one offer that was sent, and a journal that is a list."""

    tenant = "default"
    content = replace(small_content(), policy=replace(small_content().policy, claim_domains=("quan.example.cn",)))

    def __init__(self, path: Path, *, state: DispatchState | None = DispatchState.ACCEPTED) -> None:
        self.ledger = EmbeddedLedger(path, assumed_consent=frozenset({"marketing.sms"}))
        offer = Offer(OFFER, "a/s", "u1", "sms", "text", "film", "marketing", NOON_MS + DAY_MS, NOON_MS, code="pool#3")
        self.ledger.commit(1, NOON_MS, offers=[offer])
        if state is not None:
            assert self.ledger.claim([(OFFER, f"{OFFER}/sms/1")], NOON_MS) == ["claimed"]
            self.ledger.record_dispatch([_Record(f"{OFFER}/sms/1", OFFER, state, NOON_MS)])
        self.journal: list[dict[str, Any]] = []
        self.now_ms = NOON_MS + 1000
        self.is_down = False
        self.claims = Claims(self, KEY, lambda: self.now_ms)

    async def append(self, payloads):
        if self.is_down:
            raise OSError("the process dies here")
        self.journal += [orjson.loads(one) for one in payloads]
        return [0]

    async def link(self, offer_id):
        return self.ledger.link(offer_id)

    async def redeem_link(self, *asked):
        return self.ledger.redeem_link(*asked)

    async def link_told(self, offer_id):
        self.ledger.link_told(offer_id)

    async def untold_links(self):
        return self.ledger.untold_links()

    def reveal(self, ref):
        return {"pool#3": "SECRET3"}.get(ref)

    def redeem(self, key: str | None = None, body: bytes = b"", token: str = TOKEN) -> dict[str, Any]:
        return asyncio.run(self.claims.redeem(token, body, key))

    def refused(self, key: str | None = None, body: bytes = b"", token: str = TOKEN) -> tuple[int, str]:
        with pytest.raises(Refused) as caught:
            self.redeem(key, body, token)
        return caught.value.status, caught.value.code


class _Record:
    def __init__(self, dispatch_id: str, offer_id: str, state: DispatchState, at_ms: int) -> None:
        self.dispatch_id, self.offer_id, self.state, self.at_ms = dispatch_id, offer_id, state, at_ms
        self.gateway_id = self.code = None
        self.gateway_ids: tuple[str, ...] = ()


@pytest.fixture
def engine(tmp_path: Path):
    engine = Engine(tmp_path / "ledger.db")
    yield engine
    engine.ledger.close()


def test_looking_at_a_link_redeems_nothing(engine: Engine) -> None:
    for _ in range(2):
        shown = asyncio.run(engine.claims.show(TOKEN))
        assert (shown["state"], shown["offer_id"], shown["benefit"]) == ("open", OFFER, "film")
        assert "code" not in shown
    assert engine.journal == []
    engine.now_ms = NOON_MS + DAY_MS
    assert asyncio.run(engine.claims.show(TOKEN))["state"] == "expired"


def test_a_link_is_redeemed_once_and_told_once(engine: Engine) -> None:
    answer = engine.redeem("key-1", b'{"amount_fen": 500}')
    assert (answer["state"], answer["redeemed_at_ms"], answer["code"]) == ("redeemed", engine.now_ms, "SECRET3")
    event, told = engine.journal
    assert (told["type"], told["id"]) == ("usage", f"told:claim:{OFFER}"), "for scenarios that wait for it"
    assert (event["type"], event["user"], event["offer_id"]) == ("redemption", "u1", OFFER)
    assert (event["id"], event["amount_fen"], event["at"]) == (f"claim:{OFFER}", 500, engine.now_ms)
    first_ms = engine.now_ms
    engine.now_ms += 5000
    assert engine.redeem("key-1", b'{"amount_fen": 500}') == {**answer, "redeemed_at_ms": first_ms}
    assert {one["id"] for one in engine.journal} == {event["id"], told["id"]}, "a repetition counts once (T7)"
    assert engine.refused("key-1", b'{"amount_fen": 600}') == (422, "another_request")  # A16
    assert engine.refused("key-2") == (409, "already_redeemed")
    assert engine.refused(None) == (409, "already_redeemed")


def test_without_a_key_a_repeated_request_is_somebody_elses(engine: Engine) -> None:
    engine.redeem()
    assert engine.refused() == (409, "already_redeemed")


def test_a_forged_or_foreign_link_changes_nothing(engine: Engine) -> None:  # A10
    other = token_maker(b"the key of another deployment")(OFFER, NOON_MS + DAY_MS)
    for token in (other, TOKEN[:-1] + ("A" if TOKEN[-1] != "A" else "B"), "x"):
        assert engine.refused(token=token) == (401, "bad_token")
    unknown = token_maker(KEY)(f"{NOON_MS:012x}{8:020x}", None)
    assert engine.refused(token=unknown) == (404, "unknown_offer")
    assert engine.ledger.link(OFFER).state.value == "open"


def test_an_expired_link_is_redeemed_no_more_but_answers_its_redeemer(engine: Engine) -> None:
    engine.now_ms = NOON_MS + DAY_MS
    assert engine.refused("k") == (410, "expired")
    engine.now_ms -= 1
    engine.redeem("k")
    engine.now_ms += 1
    assert engine.redeem("k")["state"] == "redeemed"
    assert engine.refused("other") == (410, "expired")


@pytest.mark.parametrize("state", [None, DispatchState.REJECTED, DispatchState.FAILED, DispatchState.EXPIRED])
def test_an_offer_that_never_went_out_cannot_be_redeemed(state: DispatchState | None, tmp_path: Path) -> None:
    engine = Engine(tmp_path / "other.db", state=state)
    assert engine.refused("k") == (410, "withdrawn")
    engine.ledger.close()


@pytest.mark.parametrize("body", [b"x", b"[]", b'{"amount_fen": -1}', b'{"amount_fen": 1.5}', b'{"amount_fen": true}'])
def test_a_body_that_is_no_amount_is_refused_before_anything_changes(engine: Engine, body: bytes) -> None:
    assert engine.refused("k", body) == (400, "bad_request")
    assert engine.ledger.link(OFFER).state.value == "open"


def test_a_redemption_that_a_crash_kept_from_the_journal_is_told_at_the_next_start_with_its_amount(
    engine: Engine,
) -> None:
    engine.is_down = True
    with pytest.raises(OSError, match="dies"):
        engine.redeem("k", b'{"amount_fen": 1990}')
    engine.is_down = False
    asyncio.run(engine.claims.tell_forgotten())
    asyncio.run(engine.claims.tell_forgotten())
    assert [one["id"] for one in engine.journal] == [f"claim:{OFFER}", f"told:claim:{OFFER}"]
    assert engine.journal[0]["amount_fen"] == 1990


def test_forgetting_a_user_takes_the_link_with_it(engine: Engine) -> None:  # I2
    engine.redeem("k")
    engine.ledger.forget("u1")
    assert engine.refused("k") == (404, "unknown_offer")


def test_a_qr_code_is_drawn_as_svg_and_png(engine: Engine) -> None:
    assert engine.claims.qr(TOKEN, "png").startswith(b"\x89PNG")
    assert b"<svg" in engine.claims.qr(TOKEN, "svg")
    assert draw_qr("https://a.cn/1", "svg") != draw_qr("https://a.cn/2", "svg")
