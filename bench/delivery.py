"""Hand-off: messages a second by gateway against its real peer, receipts a second, what a sick gateway costs others.

`delivery.KIND.per_s`      offers claimed, submitted, answered and recorded through dispatcher and ledger on disk; over
                           two connections of 32 unanswered submits where the protocol has connections. `per_cpu_s` is
                           the same for each second of our own processor time, shares are processors used by each side
`delivery.post.cpu_ms`     our own processor time for a message by HTTP, from claim to record, against a server that
                           costs next to nothing; peer: as many POSTs by the library's client alone
`delivery.receipts.per_s`  Report frames over a socket: read, matched in the ledger, journaled, acknowledged
`delivery.flood.pause_ms`  the longest time in which nothing left while 10,000 receipts came within a second (F21)
`delivery.mix.p99_ms`      from enqueueing to the gateway's answer at 1,000/s over four gateways, of the three that are
                           well, while the fourth fails 30 %; peer: the same without a sick one
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import structlog

from bench.delivery_flood import storm
from bench.delivery_peers import NODE, PEERS, measure, post_cost
from engine.clock import wall_ms
from engine.deliver.contract import Capabilities, Dispatch, DispatchRecord, Sessionless, Submitted
from engine.deliver.dispatcher import Dispatcher
from engine.deliver.gateways.operator import make_operator
from engine.deliver.gateways.sgip import SgipGateway
from engine.deliver.operators import sgip
from engine.deliver.operators.wire import Frames
from engine.deliver.returns import Returns
from engine.errors import GatewayRetryable, GatewayUnknown
from engine.gateway_settings import SgipSettings
from engine.ledger.embedded import EmbeddedLedger
from engine.model import DispatchState, Offer
from engine.runtime.journal import Journal
from tests.peers.programs import free_port
from tests.peers.rig import Book
from tests.peers.smsgate import LOGIN, PASSWORD

SEQUENCE = (NODE, 1122013000, 0)


def run(smoke: bool) -> list[dict[str, Any]]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    rows = []
    for kind in ("sgip", "smpp") if smoke else PEERS:
        try:
            rows.append(measure(kind, 200 if smoke else 12_000, 1 if smoke else 3))
        except (pytest.skip.Exception, pytest.fail.Exception) as absent:
            print(f"delivery.{kind}.per_s: not measured: {absent}", file=sys.stderr)
    rows.append(post_cost(100 if smoke else 3_000))
    rows.append(storm(500 if smoke else 10_000))
    return [*rows, _receipts(2_000 if smoke else 30_000), _mix(0.5 if smoke else 5.0)]


# --- back -------------------------------------------------------------------------------------------------------------


def _receipts(count: int) -> dict[str, Any]:
    best = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            best.append(asyncio.run(_report_all(Path(folder), count)))
    return {
        "name": "delivery.receipts.per_s",
        "value": max(one[0] for one in best),
        "unit": "receipts/s",
        "longest_pause_ms": round(min(one[1] for one in best), 1),
    }


async def _report_all(folder: Path, count: int) -> tuple[float, float]:
    """Return receipts acknowledged a second, and the longest time the loop stood still, in ms."""
    ledger = EmbeddedLedger(folder / "ledger.db")
    journal = Journal(folder / "journal", fsync="interval", fsync_interval_s=0.05)
    now_ms = wall_ms()
    offers = [_offer(number, "sms", now_ms) for number in range(count)]
    ledger.commit(1, now_ms, offers=offers)
    for first in range(0, count, 1000):
        group = offers[first : first + 1000]
        ledger.claim([(one.offer_id, f"{one.offer_id}/sms/1") for one in group], now_ms)
        ledger.record_dispatch(
            [
                DispatchRecord(
                    f"{one.offer_id}/sms/1", one.offer_id, DispatchState.ACCEPTED, now_ms, None, None, "unicom",
                    (sgip.name_of((*SEQUENCE[:2], first + place)),),
                )
                for place, one in enumerate(group)
            ]
        )  # fmt: skip

    async def emit(payloads: Sequence[bytes]) -> None:
        journal.append_many(payloads, wall_ms=wall_ms())

    async def call(function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)

    chosen = SgipSettings(
        kind="sgip", host="127.0.0.1", port=free_port(), login=LOGIN, password=PASSWORD, node=NODE, corporation="12345",
        sender="10655000", listen_host="127.0.0.1", listen_port=0,
    )  # fmt: skip
    gateway = make_operator("unicom", "sms", chosen)
    assert isinstance(gateway, SgipGateway)
    returns = Returns(ledger, Book(), emit, call, now_ms=wall_ms)
    working = asyncio.create_task(returns.run())
    await gateway.start(returns)
    reports = b"".join(
        sgip.Report((1, 1, number), (*SEQUENCE[:2], number), "8613800000000", 0).encode() for number in range(count)
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.listener.port)
    writer.write(sgip.Bind((1, 1, 1), sgip.SMG_TO_SP, LOGIN, PASSWORD).encode())
    await reader.readexactly(29)
    pauses = asyncio.create_task(_watch_pauses())
    begin_s = time.perf_counter()
    writer.write(reports)
    frames, acknowledged = Frames(sgip.HEADER), 0
    while acknowledged < count:
        answers = [sgip.decode(frame) for frame in frames.feed(await reader.read(1 << 16))]
        assert all(isinstance(one, sgip.Answer) and one.result == sgip.OK for one in answers)
        acknowledged += len(answers)
    passed_s = time.perf_counter() - begin_s
    pauses.cancel()
    with suppress(asyncio.CancelledError):
        await pauses
    writer.close()
    await gateway.close(0.1)
    working.cancel()
    journal.close()
    ledger.close()
    return count / passed_s, _longest_pause_ms[0]


_longest_pause_ms = [0.0]


async def _watch_pauses() -> None:
    _longest_pause_ms[0] = 0.0
    last_s = time.perf_counter()
    while True:
        await asyncio.sleep(0.001)
        now_s = time.perf_counter()
        _longest_pause_ms[0] = max(_longest_pause_ms[0], (now_s - last_s - 0.001) * 1000)
        last_s = now_s


# --- a sick gateway -------------------------------------------------------------------------------------------------


class _Timed(Sessionless):
    """Answers after 2 ms; a sick one fails 30 % of its submits, each after a second."""

    def __init__(self, channel: str, is_sick: bool) -> None:
        self.name = self.channel = channel
        self.capabilities = Capabilities(window=64, messages_per_s=5_000.0)
        self.answered: dict[str, float] = {}
        self._is_sick = is_sick
        self._count = 0

    async def submit(self, dispatch: Dispatch) -> Submitted:
        self._count += 1
        if self._is_sick and self._count % 10 < 3:
            await asyncio.sleep(1.0)
            if self._count % 2:
                raise GatewayUnknown("no answer")
            raise GatewayRetryable("503")
        await asyncio.sleep(0.002)
        self.answered[dispatch.offer_id] = time.perf_counter()
        return Submitted((dispatch.dispatch_id,))

    async def close(self, timeout_s: float = 5.0) -> None:
        return None


def _mix(seconds: float) -> dict[str, Any]:
    asyncio.run(_others_p99_ms(0.2, is_sick=False))
    well, sick = [], []
    for _ in range(3):
        well.append(asyncio.run(_others_p99_ms(seconds, is_sick=False)))
        sick.append(asyncio.run(_others_p99_ms(seconds, is_sick=True)))
    value, peer = statistics.median(sick), statistics.median(well)
    return {
        "name": "delivery.mix.p99_ms",
        "value": value,
        "unit": "ms",
        "peer": f"without a sick gateway ({peer:.1f} ms)",
        "ratio": value / peer,
    }


async def _others_p99_ms(seconds: float, *, is_sick: bool) -> float:
    """Enqueue at an even 1,000/s whatever happens; return the p99 of the three gateways that are well."""
    gateways = [_Timed(f"c{number}", is_sick and number == 3) for number in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        ledger = EmbeddedLedger(
            Path(folder) / "ledger.db", assumed_consent=frozenset(f"marketing.c{one}" for one in range(4))
        )

        async def emit(payloads: Sequence[bytes]) -> None:
            return None

        claims = ThreadPoolExecutor(1)
        dispatcher = Dispatcher(ledger, Book(), gateways, now_ms=wall_ms, emit=emit, executor=claims)
        await dispatcher.start()
        intended: dict[str, float] = {}
        begin_s, position, made = time.perf_counter() + 0.05, 1, 0
        while made < seconds * 1000:
            due = int((time.perf_counter() - begin_s) * 1000)
            if due > made:
                now_ms = wall_ms()
                offers = [_offer(number, f"c{number % 4}", now_ms) for number in range(made, due)]
                position += 1
                await asyncio.to_thread(ledger.commit, position, now_ms, offers=offers)
                for number, one in zip(range(made, due), offers, strict=True):
                    intended[one.offer_id] = begin_s + number / 1000
                dispatcher.enqueue(offers)
                made = due
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.3)
        await dispatcher.stop(0.1)
        claims.shutdown()
        ledger.close()
    latencies = sorted(
        (answered_s - intended[offer_id]) * 1000
        for gateway in gateways[:3]
        for offer_id, answered_s in gateway.answered.items()
    )
    assert len(latencies) == sum(number % 4 < 3 for number in range(made)), "an offer of a well gateway is missing"
    return latencies[int(len(latencies) * 0.99)]


def _offer(number: int, channel: str, now_ms: int) -> Offer:
    return Offer(
        offer_id=f"{now_ms:012x}{number:020x}",
        scenario="national/cinema",
        user_id=f"u{number}",
        channel=channel,
        text="您好，附近的影院今晚有您的专属观影优惠",
        benefit="movie",
        offer_class="marketing",
        deadline_ms=now_ms + 600_000,
        created_ms=now_ms,
    )
