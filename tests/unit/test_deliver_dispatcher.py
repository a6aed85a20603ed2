"""Hand-off: claim before any byte (D7), deadlines (D6), pause (D8), retries (G2), bulkhead and breaker (G4)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
import pytest
import structlog

from engine.deliver.breaker import Breaker
from engine.deliver.contract import Capabilities, Dispatch, DispatchRecord, Sessionless, Submitted
from engine.deliver.dispatcher import Dispatcher
from engine.deliver.gateways.sandbox import SandboxGateway
from engine.errors import GatewayPermanent, GatewayRetryable, GatewayUnknown, SettingsError, StoreUnavailable
from engine.model import DispatchState, Offer

NOW_MS = 1_800_000_000_000


def offer(number: int, *, channel: str = "sms", scenario: str = "national/cinema", deadline_s: float = 600) -> Offer:
    return Offer(
        offer_id=f"{number:032x}",
        scenario=scenario,
        user_id=f"u{number}",
        channel=channel,
        text=f"您好{number}",
        benefit="movie",
        offer_class="marketing",
        deadline_ms=int(NOW_MS + deadline_s * 1000),
        created_ms=NOW_MS,
    )


class DictLedger:
    """A ledger in a dict, with switches for what goes wrong."""

    would_wait = False

    def __init__(self, offers: Sequence[Offer] = ()) -> None:
        self.offers = {one.offer_id: one for one in offers}
        self.claims: dict[str, str] = {}
        self.records: list[DispatchRecord] = []
        self.answers: dict[str, str] = {}
        self.fails = False
        self.recording_fails = False

    def outbox(self, limit: int) -> Sequence[Offer]:
        done = {record.offer_id for record in self.records}
        return [one for one in self.offers.values() if one.offer_id not in self.claims and one.offer_id not in done][
            :limit
        ]

    def claim(self, claims: Sequence[tuple[str, str]], now_ms: int) -> Sequence[str]:
        if self.fails:
            raise StoreUnavailable("down")
        answers = []
        for offer_id, dispatch_id in claims:
            if offer_id in self.claims:
                answers.append("already")
            elif offer_id in self.answers:
                answers.append(self.answers[offer_id])
            elif self.offers[offer_id].deadline_ms <= now_ms:
                answers.append("expired")
            else:
                self.claims[offer_id] = dispatch_id
                answers.append("claimed")
        return answers

    def record_dispatch(self, records: Sequence[DispatchRecord]) -> None:
        if self.recording_fails:
            raise StoreUnavailable("disk full")
        self.records.extend(records)

    def match_receipts(self, receipts: Sequence[Any], now_ms: int) -> Sequence[None]:
        return [None for _ in receipts]

    def matched_late(self) -> Sequence[Any]:
        return []

    def silent(self, now_ms: int, limit: int = 500) -> Sequence[Any]:
        return []

    def state_of(self, number: int) -> DispatchState:
        (state,) = [one.state for one in self.records if one.offer_id == f"{number:032x}"]
        return state


class DictAddresses:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.missing: set[str] = set()

    def lookup(self, user_id: str, channel: str) -> str | None:
        self.asked.append(user_id)
        return None if user_id in self.missing else f"1380000{user_id[1:].zfill(4)}"

    def drop(self, user_id: str, channel: str) -> bool:
        self.missing.add(user_id)
        return True

    def user_of(self, channel: str, address: str) -> str | None:
        return None


class ScriptedGateway(Sessionless):
    """Answers each submit from a script; afterwards accepts."""

    def __init__(self, *script: Exception, channel: str = "sms", capabilities: Capabilities | None = None) -> None:
        self.name = f"scripted-{channel}"
        self.channel = channel
        self.capabilities = capabilities or Capabilities(window=8, sms=channel == "sms")
        self.script = list(script)
        self.seen: list[Dispatch] = []
        self.hold: asyncio.Event | None = None
        self.most_at_once = 0
        self._now = 0

    async def submit(self, dispatch: Dispatch) -> Submitted:
        self.seen.append(dispatch)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            if self.hold is not None:
                await self.hold.wait()
            else:
                await asyncio.sleep(0)
            if self.script:
                raise self.script.pop(0)
            return Submitted((f"g{len(self.seen)}",))
        finally:
            self._now -= 1

    async def close(self, timeout_s: float = 5.0) -> None:
        return None


class Bench:
    """A dispatcher with everything around it; retries wait next to nothing."""

    def __init__(self, offers: Sequence[Offer], *gateways: Any, **settings: Any) -> None:
        self.ledger = DictLedger(offers)
        self.addresses = DictAddresses()
        self.receipts: list[dict[str, Any]] = []
        self.now_ms = NOW_MS
        self.dispatcher = Dispatcher(
            self.ledger,
            self.addresses,
            gateways,
            now_ms=lambda: self.now_ms,
            emit=self._emit,
            texts=lambda: ("联通权益", "拒收请回复R"),
            store_pause_s=0.01,
            **settings,
        )

    async def _emit(self, payloads: Sequence[bytes]) -> None:
        self.receipts.extend(orjson.loads(payload) for payload in payloads)


def run(bench: Bench, work: Callable[[Bench], Awaitable[None]] | None = None) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            await bench.dispatcher.start()
            await asyncio.sleep(0)
            if work is None:
                await bench.dispatcher.idle()
            else:
                await work(bench)
            await bench.dispatcher.stop(1.0)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.deliver.retries.BASE_S", 0.004)


def test_offers_left_in_the_outbox_are_handed_over_at_start_each_once() -> None:
    gateway = ScriptedGateway()
    bench = Bench([offer(n) for n in range(30)], gateway)

    async def work(bench: Bench) -> None:
        bench.dispatcher.enqueue([offer(n) for n in range(30)])  # what the runtime pushes as well
        await bench.dispatcher.idle()

    run(bench, work)
    assert sorted(one.offer_id for one in gateway.seen) == sorted(bench.ledger.offers)
    assert {record.state for record in bench.ledger.records} == {DispatchState.ACCEPTED}
    assert bench.receipts == [], "an accepted submit is no receipt event"


def test_only_the_claimant_submits_and_no_address_is_read_before_the_claim() -> None:
    gateway = ScriptedGateway()
    bench = Bench([offer(1), offer(2)], gateway)
    bench.ledger.claims[offer(1).offer_id] = "somebody else"
    bench.dispatcher.enqueue([offer(1)])
    run(bench)
    assert [one.offer_id for one in gateway.seen] == [offer(2).offer_id]
    assert bench.addresses.asked == ["u2"]


def test_dispatch_id_is_offer_channel_attempt_and_text_carries_signature_and_opt_out() -> None:
    gateway = ScriptedGateway()
    run(Bench([offer(7)], gateway))
    (dispatch,) = gateway.seen
    assert dispatch.dispatch_id == f"{offer(7).offer_id}/sms/1"
    assert dispatch.text == "【联通权益】您好7拒收请回复R"
    assert dispatch.deadline_ms == offer(7).deadline_ms
    assert "1380000" not in repr(dispatch), "an address never reaches a log through repr (I2)"


def test_a_service_message_carries_no_opt_out_text() -> None:
    gateway = ScriptedGateway()
    service = offer(1)
    service.offer_class = "service"
    run(Bench([service], gateway))
    assert gateway.seen[0].text == "【联通权益】您好1"


def test_past_the_deadline_nothing_is_sent_and_the_count_is_released() -> None:
    gateway = ScriptedGateway()
    bench = Bench([offer(1, deadline_s=-1)], gateway)
    run(bench)
    assert gateway.seen == []
    assert bench.ledger.state_of(1) == DispatchState.EXPIRED
    (receipt,) = bench.receipts
    assert (receipt["state"], receipt["code"], receipt["user"]) == ("expired", "deadline", "u1")


def test_without_consent_nothing_is_sent_and_the_count_is_released() -> None:
    gateway = ScriptedGateway()
    bench = Bench([offer(1)], gateway)
    bench.ledger.answers[offer(1).offer_id] = "no_consent"
    run(bench)
    assert gateway.seen == []
    assert [one["code"] for one in bench.receipts] == ["no_consent"]


def test_without_an_address_the_dispatch_fails_for_good() -> None:
    gateway = ScriptedGateway()
    bench = Bench([offer(1)], gateway)
    bench.addresses.missing.add("u1")
    run(bench)
    assert gateway.seen == []
    assert bench.ledger.state_of(1) == DispatchState.FAILED
    assert [one["code"] for one in bench.receipts] == ["no_address"]


def test_a_channel_nobody_serves_fails_for_good() -> None:
    bench = Bench([offer(1, channel="pigeon")], ScriptedGateway())
    run(bench)
    assert bench.ledger.state_of(1) == DispatchState.REJECTED
    assert [one["code"] for one in bench.receipts] == ["no_gateway"]


def test_what_was_provably_not_accepted_is_sent_again_under_the_same_dispatch_id() -> None:
    gateway = ScriptedGateway(GatewayRetryable("429", 0.001), GatewayRetryable("429"))
    bench = Bench([offer(1)], gateway)
    run(bench)
    assert len(gateway.seen) == 3
    assert len({one.dispatch_id for one in gateway.seen}) == 1
    assert bench.ledger.state_of(1) == DispatchState.ACCEPTED


def test_why_a_gateway_takes_nothing_is_told_in_the_log_once_a_minute() -> None:
    gateway = ScriptedGateway(*[GatewayRetryable("scripted-sms: no connection (ConnectError)")] * 6)
    bench = Bench([offer(1), offer(2)], gateway, most_tries=3)
    with structlog.testing.capture_logs() as lines:
        run(bench)
    told = [line for line in lines if line["event"] == "a gateway took nothing"]
    assert [(line["gateway"], line["why"]) for line in told] == [
        ("scripted-sms", "scripted-sms: no connection (ConnectError)")
    ]


def test_after_the_last_try_it_is_rejected_and_released() -> None:
    gateway = ScriptedGateway(*[GatewayRetryable("busy")] * 9)
    bench = Bench([offer(1)], gateway, most_tries=3)
    run(bench)
    assert len(gateway.seen) == 3
    assert bench.ledger.state_of(1) == DispatchState.REJECTED
    assert [one["state"] for one in bench.receipts] == ["rejected"]


@pytest.mark.parametrize("answer", [GatewayUnknown("timeout"), RuntimeError("a bug"), TimeoutError()])
def test_a_submit_without_answer_is_unknown_never_resent_and_never_released(answer: Exception) -> None:
    gateway = ScriptedGateway(answer)
    bench = Bench([offer(1)], gateway)
    run(bench)
    assert len(gateway.seen) == 1
    assert bench.ledger.state_of(1) == DispatchState.UNKNOWN
    assert bench.receipts == []


def test_a_gateway_that_does_not_answer_in_time_leaves_unknown() -> None:
    gateway = ScriptedGateway()
    bench = Bench([offer(1)], gateway, submit_timeout_s=0.02)

    async def work(bench: Bench) -> None:
        await bench.dispatcher.idle()

    gateway.hold = asyncio.Event()
    run(bench, work)
    assert len(gateway.seen) == 1
    assert bench.ledger.state_of(1) == DispatchState.UNKNOWN


def test_a_permanent_refusal_is_rejected_and_released() -> None:
    bench = Bench([offer(1)], ScriptedGateway(GatewayPermanent("bad number")))
    run(bench)
    assert bench.ledger.state_of(1) == DispatchState.REJECTED
    assert len(bench.receipts) == 1


def test_a_paused_scenario_is_not_sent_and_goes_on_when_resumed() -> None:
    gateway = ScriptedGateway()
    bench = Bench([offer(1), offer(2, scenario="national/mall")], gateway)
    bench.dispatcher.pause("national/cinema", True)

    async def work(bench: Bench) -> None:
        await bench.dispatcher.idle()
        assert [one.offer_id for one in gateway.seen] == [offer(2).offer_id]
        assert offer(1).offer_id not in bench.ledger.claims
        bench.dispatcher.pause("national/cinema", False)
        await bench.dispatcher.idle()

    run(bench, work)
    assert len(gateway.seen) == 2


def test_pausing_all_stops_new_submits_at_once() -> None:
    gateway = ScriptedGateway(capabilities=Capabilities(window=1))
    bench = Bench([offer(n) for n in range(50)], gateway)

    async def work(bench: Bench) -> None:
        await until(lambda: len(gateway.seen) >= 3)
        bench.dispatcher.pause("*", True)
        seen = len(gateway.seen)
        await bench.dispatcher.idle()
        assert len(gateway.seen) <= seen + 1, "at most what had been claimed in that instant"

    run(bench, work)


def test_what_is_paused_past_its_deadline_expires() -> None:
    bench = Bench([offer(1, deadline_s=1)], ScriptedGateway())
    bench.dispatcher.pause("*", True)

    async def work(bench: Bench) -> None:
        await bench.dispatcher.idle()
        bench.now_ms += 2_000
        await until(lambda: bool(bench.ledger.records))

    run(bench, work)
    assert bench.ledger.state_of(1) == DispatchState.EXPIRED


def test_a_claim_store_that_cannot_answer_means_no_send_until_it_can() -> None:
    gateway = ScriptedGateway()
    bench = Bench([offer(1)], gateway)
    bench.ledger.fails = True

    async def work(bench: Bench) -> None:
        await asyncio.sleep(0.05)
        assert gateway.seen == []
        bench.ledger.fails = False
        await bench.dispatcher.idle()

    run(bench, work)
    assert len(gateway.seen) == 1


def test_an_offer_that_was_another_dispatchers_for_a_moment_is_handed_over_without_being_told_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.deliver.dispatcher.REFILL_S", 0.02)
    gateway = ScriptedGateway()
    bench = Bench([offer(1)], gateway)
    bench.ledger.answers[offer(1).offer_id] = "fenced"

    async def work(bench: Bench) -> None:
        await asyncio.sleep(0.05)
        assert gateway.seen == []
        del bench.ledger.answers[offer(1).offer_id]
        await until(lambda: bool(bench.ledger.records))

    run(bench, work)
    assert bench.ledger.state_of(1) is DispatchState.ACCEPTED
    assert len(gateway.seen) == 1


def test_while_outcomes_cannot_be_written_nothing_new_is_claimed() -> None:
    gateway = ScriptedGateway()
    bench = Bench([offer(1)], gateway)
    bench.ledger.recording_fails = True

    async def work(bench: Bench) -> None:
        await until(lambda: not bench.dispatcher.may_claim)
        bench.ledger.offers[offer(2).offer_id] = offer(2)
        bench.dispatcher.enqueue([offer(2)])
        await asyncio.sleep(0.05)
        assert len(gateway.seen) == 1
        bench.ledger.recording_fails = False
        await bench.dispatcher.idle()

    run(bench, work)
    assert len(gateway.seen) == 2
    assert len(bench.ledger.records) == 2


def test_the_window_of_unanswered_submits_is_never_overrun() -> None:
    gateway = ScriptedGateway(capabilities=Capabilities(window=4))
    run(Bench([offer(n) for n in range(100)], gateway))
    assert len(gateway.seen) == 100
    assert gateway.most_at_once <= 4


def test_the_rate_of_a_gateway_is_kept() -> None:
    gateway = ScriptedGateway(capabilities=Capabilities(window=100, messages_per_s=100))
    bench = Bench([offer(n) for n in range(200)], gateway)

    async def work(bench: Bench) -> None:
        await asyncio.sleep(0.3)
        assert 20 <= len(gateway.seen) <= 55, "a burst of 10 and 100 a second"

    run(bench, work)


def test_a_sick_gateway_does_not_slow_another() -> None:
    sick, well = ScriptedGateway(channel="sms"), ScriptedGateway(channel="push")
    sick.hold = asyncio.Event()
    offers = [offer(n) for n in range(50)] + [offer(100 + n, channel="push") for n in range(50)]
    bench = Bench(offers, sick, well)

    async def work(bench: Bench) -> None:
        await until(lambda: len(well.seen) == 50)
        assert len(sick.seen) == 8, "its window"
        assert sick.hold is not None
        sick.hold.set()

    run(bench, work)


def test_stopping_answers_what_is_in_flight_and_leaves_the_rest_in_the_outbox() -> None:
    gateway = ScriptedGateway(capabilities=Capabilities(window=2))
    gateway.hold = asyncio.Event()
    bench = Bench([offer(n) for n in range(10)], gateway)

    async def work(bench: Bench) -> None:
        await until(lambda: len(gateway.seen) == 2)
        assert gateway.hold is not None
        asyncio.get_running_loop().call_later(0.02, gateway.hold.set)

    run(bench, work)
    assert len(gateway.seen) == 2
    assert [record.state for record in bench.ledger.records] == [DispatchState.ACCEPTED] * 2
    assert len(bench.ledger.outbox(100)) == 8


def test_two_gateways_on_one_channel_are_refused() -> None:
    with pytest.raises(SettingsError, match="two gateways"):
        Bench([], ScriptedGateway(), ScriptedGateway())


def test_the_sandbox_masks_addresses_and_tells_its_watcher() -> None:
    told: list[str] = []
    gateway = SandboxGateway("sms", lambda: NOW_MS, keep=2, on_message=lambda message: told.append(message.text))
    run(Bench([offer(n) for n in range(3)], gateway))
    assert len(told) == 3
    recent = gateway.recent()
    assert len(recent) == 2, "bounded"
    assert all(one["to"].startswith("13*") for one in recent)
    assert "1380000" not in str(recent)


def test_a_gateway_that_fails_three_in_ten_is_held_back_and_its_offers_wait_unclaimed() -> None:
    # FAULTS F15, with refusals that prove nothing was accepted.
    gateway = ScriptedGateway(capabilities=Capabilities(window=1, sms=True))
    answers = [GatewayRetryable("503") if number % 10 in (2, 5, 8) else None for number in range(200)]

    async def submit(dispatch: Dispatch) -> Submitted:
        gateway.seen.append(dispatch)
        answer = answers[len(gateway.seen)]
        if answer is not None:
            raise answer
        return Submitted("ok")

    gateway.submit = submit  # type: ignore[method-assign]
    bench = Bench([offer(n) for n in range(100)], gateway)

    async def work(bench: Bench) -> None:
        await until(lambda: bench.dispatcher.held_back()["scripted-sms"])
        assert len(gateway.seen) <= 25
        seen = len(gateway.seen)
        await asyncio.sleep(0.05)
        assert len(gateway.seen) == seen
        assert len(bench.ledger.claims) <= seen

    run(bench, work)


def test_a_breaker_probes_once_after_its_pause_and_closes_on_success() -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.answer(False, 0.0)
    assert breaker.is_open
    assert breaker.wait_s(1.0) == 4.0
    assert breaker.wait_s(5.0) == 0.0
    breaker.probe()
    assert breaker.wait_s(5.0) > 0, "one probe at a time"
    breaker.answer(False, 5.1)
    assert breaker.wait_s(15.0) == pytest.approx(0.1), "the pause has doubled"
    breaker.probe()
    breaker.answer(True, 16.0)
    assert not breaker.is_open
