"""The second channel of an offer: after a definite failure or a missing receipt, never doubling a grant (G5)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from standardwebhooks.webhooks import Webhook

from engine.clock import wall_ms
from engine.deliver.contract import Callback, Capabilities, Dispatch, GatewayReceipt, Sessionless, Submitted
from engine.deliver.gateways.webhook import WebhookGateway
from engine.effects import ConsentChange
from engine.errors import GatewayPermanent, GatewayRetryable, GatewayUnknown
from engine.model import DispatchState as S
from tests.peers.in_redis import InRedis
from tests.peers.rig import ASSUMED, Rig

SECRET = "whsec_" + "c2VjcmV0" * 5


class Scripted(Sessionless):
    """Raises what it is told to, else accepts; remembers dispatch ids."""

    def __init__(self, channel: str, failure: Exception | None = None, *, receipts: bool = True) -> None:
        self.name = self.channel = channel
        self.capabilities = Capabilities(receipts=receipts)
        self.failure = failure
        self.seen: list[str] = []

    async def submit(self, dispatch: Dispatch) -> Submitted:
        self.seen.append(dispatch.dispatch_id)
        if self.failure is not None:
            raise self.failure
        return Submitted((f"{self.name}-{len(self.seen)}",))

    async def close(self, timeout_s: float = 5.0) -> None:
        return None


def run(folder: Path, sms: Scripted, app: Scripted, work: Callable[[Rig], Awaitable[None]]) -> Rig:
    rigs = []

    async def main() -> None:
        async with asyncio.timeout(20):
            rig = Rig(folder, [sms, app], ledger=LEDGER[0]())
            rigs.append(rig)
            await rig.dispatcher.start()
            await work(rig)
            await rig.close(1.0)

    asyncio.run(main())
    return rigs[0]


LEDGER: list[Callable[[], Any]] = []


@pytest.fixture(params=["embedded", "redis"], autouse=True)
def home(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test runs over both homes of the ledger."""
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    LEDGER[:] = [lambda: None if url is None else InRedis(url, wall_ms(), ASSUMED)]
    yield
    LEDGER.clear()


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.deliver.dispatcher.REFILL_S", 0.03)


def test_a_refused_message_goes_out_on_the_second_channel_and_gives_nothing_back(tmp_path: Path) -> None:
    sms, app = Scripted("sms", GatewayPermanent("blacklist")), Scripted("app")

    async def work(rig: Rig) -> None:
        rig.offer([1], fallback_channel="app", fallback_after_ms=60_000)
        await rig.until(lambda: bool(app.seen))
        await rig.dispatcher.idle()

    rig = run(tmp_path, sms, app, work)
    (offer_id,) = rig.offers
    assert (sms.seen, app.seen) == ([f"{offer_id}/sms/1"], [f"{offer_id}/app/2"])
    assert [one["definite"] for one in rig.events if one["type"] == "receipt"] == [False]


def test_a_missing_receipt_sends_on_the_second_channel_after_the_stated_time_only(tmp_path: Path) -> None:
    sms, app = Scripted("sms"), Scripted("app")

    async def work(rig: Rig) -> None:
        (late, told, patient) = (*rig.offer([1, 2], fallback_channel="app", fallback_after_ms=300),
                                 *rig.offer([3], fallback_channel="app", fallback_after_ms=60_000))  # fmt: skip
        await rig.dispatcher.idle()
        name = next(f"sms-{place}" for place, seen in enumerate(sms.seen, 1) if seen.startswith(told.offer_id))
        await rig.dispatcher.returns.receipts([GatewayReceipt("sms", S.DELIVERED, wall_ms(), gateway_id=name)])
        assert app.seen == []
        await rig.until(lambda: bool(app.seen))
        await asyncio.sleep(0.5)
        assert app.seen == [f"{late.offer_id}/app/2"], "not what was delivered, not what is not due"
        assert rig.state_of(told) is S.DELIVERED
        assert rig.state_of(patient) is S.ACCEPTED

    run(tmp_path, sms, app, work)


def test_a_gateway_that_never_reports_is_not_missed(tmp_path: Path) -> None:
    sms, app = Scripted("sms", receipts=False), Scripted("app")

    async def work(rig: Rig) -> None:
        rig.offer([1], fallback_channel="app", fallback_after_ms=10)
        await rig.dispatcher.idle()
        await asyncio.sleep(0.3)

    run(tmp_path, sms, app, work)
    assert app.seen == []


def test_an_unknown_outcome_waits_for_its_receipt_before_the_second_channel(tmp_path: Path) -> None:
    sms, app = Scripted("sms", GatewayUnknown("cut")), Scripted("app")

    async def work(rig: Rig) -> None:
        rig.offer([1], fallback_channel="app", fallback_after_ms=400)
        await rig.dispatcher.idle()
        await asyncio.sleep(0.2)
        assert app.seen == []
        await rig.until(lambda: bool(app.seen))

    run(tmp_path, sms, app, work)


def test_nothing_goes_out_a_second_time_after_its_deadline_a_release_or_a_closed_user(tmp_path: Path) -> None:
    sms, app = Scripted("sms", GatewayPermanent("no")), Scripted("app")

    async def work(rig: Rig) -> None:
        rig.dispatcher.pause("*", True)
        late, closed = rig.offer([1, 2], deadline_s=0.3, fallback_channel="app", fallback_after_ms=0)
        await asyncio.sleep(0.4)
        rig.dispatcher.pause("*", False)
        await rig.until(lambda: all(rig.state_of(one) is S.EXPIRED for one in (late, closed)))
        sms.failure = None
        (gone,) = rig.offer([3], fallback_channel="app", fallback_after_ms=200)
        await rig.until(lambda: rig.state_of(gone) is S.ACCEPTED)
        rig.position += 1
        rig.ledger.commit(rig.position, wall_ms(), closed_users=["u3"])
        await asyncio.sleep(0.5)

    run(tmp_path, sms, app, work)
    assert app.seen == []


def test_a_daily_quota_holds_back_the_rest_until_the_next_day(tmp_path: Path) -> None:  # G4
    sms, today = Scripted("sms"), [1]
    sms.capabilities = Capabilities(receipts=True, daily_quota=5)

    async def main() -> None:
        rig = Rig(tmp_path, [sms], day=lambda: today[0], sent_today=lambda gateway: 2)
        await rig.dispatcher.start()
        for number in range(6):
            rig.offer([number])
            await asyncio.sleep(0.05)
        assert len(sms.seen) == 3, "two were sent before the restart"
        assert rig.dispatcher.held_back() == {"sms": "daily quota spent"}
        today[0] = 2
        await rig.until(lambda: len(sms.seen) == 6)
        await rig.close(1.0)

    asyncio.run(main())


def test_the_second_channel_asks_for_consent_of_its_own(tmp_path: Path) -> None:
    sms, app = Scripted("sms", GatewayPermanent("no")), Scripted("app")

    async def work(rig: Rig) -> None:
        rig.ledger.assumed_consent = frozenset({"marketing.sms"})
        (one,) = rig.offer([1], fallback_channel="app", fallback_after_ms=0)
        await rig.until(lambda: rig.state_of(one) is S.FAILED)
        assert rig.ledger.due_fallbacks(wall_ms() + 1000) == []

    run(tmp_path, sms, app, work)
    assert app.seen == []


def test_a_signed_callback_that_says_failed_leads_to_the_second_channel(tmp_path: Path) -> None:
    """The receiver of a plain webhook takes the message and later calls back that it did not arrive."""
    app = Scripted("app")
    sms = WebhookGateway("sms", "https://example.com", SECRET, now_ms=wall_ms)

    async def taken(dispatch: Dispatch) -> Submitted:
        return Submitted((dispatch.dispatch_id,))

    sms.submit = taken  # type: ignore[method-assign]

    def signed(dispatch_id: str, state: str) -> Callback:
        told = {"type": "receipt", "data": {"dispatch_id": dispatch_id, "state": state, "code": "UNDELIV"}}
        body, stamp = orjson.dumps(told), datetime.now(UTC)
        headers = {
            "webhook-id": f"{dispatch_id}:{state}",
            "webhook-timestamp": str(int(stamp.timestamp())),
            "webhook-signature": Webhook(SECRET).sign(f"{dispatch_id}:{state}", stamp, body.decode()),
        }
        return Callback("POST", "", headers, body)

    async def work(rig: Rig) -> None:
        (offer,) = rig.offer([1], fallback_channel="app", fallback_after_ms=60_000)
        await rig.until(lambda: rig.state_of(offer) is S.ACCEPTED)
        reply = await rig.dispatcher.on_callback("sms", signed(f"{offer.offer_id}/sms/1", "failed"))
        assert reply is not None
        assert reply.status == 200
        await rig.until(lambda: bool(app.seen))
        await rig.dispatcher.on_callback("sms", signed(f"{offer.offer_id}/sms/1", "delivered"))
        await rig.dispatcher.idle()
        rows = rig.ledger.dispatches(offer.offer_id)
        applied = [(row["dispatch_id"][-5:], row["state"]) for row in rows if row["applied"]]
        assert ("sms/1", "failed") in applied
        assert ("sms/1", "delivered") not in applied, "a final state is followed by nothing"

    rig = run(tmp_path, sms, app, work)  # type: ignore[arg-type]
    (offer_id,) = rig.offers
    assert app.seen == [f"{offer_id}/app/2"]
    receipts = [one for one in rig.events if one["type"] == "receipt"]
    assert [one["state"] for one in receipts] == ["failed", "delivered"]
    assert receipts[0]["definite"] is False, "what the offer took is kept for the second channel"


def say(rig: Rig, user: str, purpose: str, granted: bool) -> None:
    rig.position += 1
    text = None if granted else "R"
    rig.ledger.commit(
        rig.position, wall_ms(), consents=[ConsentChange(user, purpose, granted, wall_ms(), "test", text)]
    )


def test_a3_g5_who_refuses_the_first_channel_hears_of_that_offer_on_no_other(tmp_path: Path) -> None:
    """A2, A3: consent of its own for the second channel counts for later offers, not for the one that was refused."""
    sms, app = Scripted("sms"), Scripted("app")

    async def work(rig: Rig) -> None:
        refused, other = rig.offer([1, 2], fallback_channel="app", fallback_after_ms=300)
        await rig.until(lambda: rig.state_of(refused) is rig.state_of(other) is S.ACCEPTED)
        say(rig, "u1", "marketing.app", True)
        say(rig, "u1", "marketing.sms", False)
        await rig.until(lambda: rig.state_of(refused) is S.FAILED)
        await rig.until(lambda: app.seen == [f"{other.offer_id}/app/2"])
        last = rig.ledger.dispatches(refused.offer_id)[-1]
        assert (last["dispatch_id"], last["code"]) == (f"{refused.offer_id}/app/2", "no_consent")
        (later,) = rig.offer([1], channel="app")
        await rig.until(lambda: rig.state_of(later) is S.ACCEPTED)

    run(tmp_path, sms, app, work)
    assert len(app.seen) == 2


def test_a3_what_waits_on_the_refused_channel_ends_gives_back_and_takes_no_other(tmp_path: Path) -> None:
    sms, app = Scripted("sms"), Scripted("app")

    async def work(rig: Rig) -> None:
        rig.dispatcher.pause("*", True)
        (waiting,) = rig.offer([1], fallback_channel="app", fallback_after_ms=0)
        say(rig, "u1", "marketing.app", True)
        say(rig, "u1", "marketing.sms", False)
        rig.dispatcher.pause("*", False)
        await rig.until(lambda: rig.state_of(waiting) is S.FAILED)
        await asyncio.sleep(0.2)

    rig = run(tmp_path, sms, app, work)
    assert sms.seen == app.seen == []
    (told,) = [one for one in rig.events if one["type"] == "receipt"]
    assert (told["code"], told.get("definite", True)) == ("no_consent", True)


def test_a3_g5_a_submit_of_the_second_channel_is_not_repeated_after_a_refusal_of_the_first(tmp_path: Path) -> None:
    sms, app = Scripted("sms", GatewayPermanent("blacklist")), Scripted("app", GatewayRetryable("not now", 0.3))

    async def work(rig: Rig) -> None:
        (one,) = rig.offer([1], fallback_channel="app", fallback_after_ms=0)
        await rig.until(lambda: bool(app.seen))
        say(rig, "u1", "marketing.app", True)
        say(rig, "u1", "marketing.sms", False)
        app.failure = None
        await rig.until(lambda: rig.state_of(one) is S.FAILED)

    run(tmp_path, sms, app, work)
    assert len(app.seen) == 1, "provably not accepted, and then refused"
