"""A flood of receipts is worked off in bites, and the hand-off goes on between two of them (FAULTS F21)."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop

from engine.clock import monotonic_s, wall_ms
from engine.deliver.contract import DispatchRecord
from engine.deliver.gateways.sgip_dialect import SgipInboundDialect
from engine.deliver.operators import sgip
from engine.deliver.operators.link import READ_BYTES, Back, Link, Timing
from engine.deliver.returns import AT_ONCE, Returns
from engine.errors import StoreUnavailable
from engine.ledger import outcomes
from engine.ledger.database import Turns
from engine.ledger.embedded import EmbeddedLedger
from engine.model import DispatchState as S
from engine.model import GatewayReceipt, Match, Offer
from engine.runtime.outcome import ReportedState
from tests.peers.rig import Book

NOW_MS = 1_800_000_000_000


def offer(number: int) -> Offer:
    offer_id = f"{NOW_MS:012x}{number:020x}"
    return Offer(offer_id, "a/s", f"u{number}", "sms", "x", "b", "service", NOW_MS + 60_000, NOW_MS)


def name_of(number: int) -> str:
    return f"{offer(number).offer_id}/sms/1"


def test_who_waits_longest_has_the_lock_next_and_not_who_just_let_go() -> None:
    turns, order = Turns(), []

    def once(name: str) -> None:
        with turns:
            order.append(name)

    with turns:
        waiting = [threading.Thread(target=once, args=(name,)) for name in ("first", "second")]
        for place, thread in enumerate(waiting, 1):
            thread.start()
            while len(turns._waiting) < place:
                pass
    once("again")
    for thread in waiting:
        thread.join()
    assert order == ["first", "second", "again"]
    assert not turns.locked()


def test_a_claim_has_its_turn_in_the_middle_of_a_commit_of_many_receipts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 4 * outcomes.AT_ONCE
    ledger = EmbeddedLedger(tmp_path / "ledger.db")
    ledger.commit(1, NOW_MS, offers=[offer(number) for number in range(count + 1)])
    ledger.claim([(offer(number).offer_id, name_of(number)) for number in range(count)], NOW_MS)
    order: list[str] = []
    thread = threading.Thread(
        target=lambda: order.extend(ledger.claim([(offer(count).offer_id, name_of(count))], NOW_MS))
    )
    put_reports = outcomes.put_reports

    def slow(cursor: Any, records: Sequence[Any], epoch: int) -> list[bool]:
        if not order:
            thread.start()
            while not ledger._database._lock._waiting:
                pass
        order.append(f"{len(records)} receipts")
        return put_reports(cursor, records, epoch)

    monkeypatch.setattr(outcomes, "put_reports", slow)
    rows = [ReportedState(name_of(number), offer(number).offer_id, S.DELIVERED, NOW_MS) for number in range(count)]
    ledger.commit(2, NOW_MS, dispatches=rows)
    thread.join()
    bite = f"{outcomes.AT_ONCE} receipts"
    assert order == [bite, "claimed", bite, bite, bite]
    assert all(ledger.dispatches(offer(number).offer_id)[-1]["state"] == "delivered" for number in (0, count - 1))
    ledger.close()


def test_receipts_of_a_commit_that_was_cut_off_are_written_once_when_it_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T3, G1: what was too late the first time is not written a second time either."""
    monkeypatch.setattr(outcomes, "AT_ONCE", 2)
    ledger = EmbeddedLedger(tmp_path / "ledger.db")
    ledger.commit(1, NOW_MS, offers=[offer(0), offer(1)])
    ledger.claim([(offer(number).offer_id, name_of(number)) for number in (0, 1)], NOW_MS)
    rows = [
        ReportedState(name_of(number), offer(number).offer_id, state, NOW_MS)
        for number in (0, 1)
        for state in (S.DELIVERED, S.FAILED)
    ]
    put_reports, calls = outcomes.put_reports, []

    def cut_off(cursor: Any, records: Sequence[Any], epoch: int) -> list[bool]:
        calls.append(len(records))
        if len(calls) == 2:
            raise StoreUnavailable("the disk is full")
        return put_reports(cursor, records, epoch)

    monkeypatch.setattr(outcomes, "put_reports", cut_off)
    with pytest.raises(StoreUnavailable):
        ledger.commit(2, NOW_MS, dispatches=rows)
    assert ledger.position() == 1
    ledger.commit(2, NOW_MS, dispatches=rows)
    for number in (0, 1):
        said = [(row["state"], row["applied"]) for row in ledger.dispatches(offer(number).offer_id)]
        assert said == [("submitting", 1), ("delivered", 1), ("failed", 0)]
    ledger.close()


class Matching:
    """A ledger that counts how many receipts it is asked about at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.failing = False

    def match_receipts(self, receipts: Sequence[GatewayReceipt], now_ms: int) -> list[Match | None]:
        self.asked.append(len(receipts))
        if self.failing:
            raise StoreUnavailable("no")
        return [Match(f"{one.gateway_id}/sms/1", one.gateway_id, "u1", S.DELIVERED, now_ms) for one in receipts]


def test_between_two_groups_of_receipts_others_have_the_loop() -> None:
    ledger, turns, journaled = Matching(), [0], []

    async def emit(payloads: Sequence[bytes]) -> None:
        journaled.append((turns[0], sum(one.count(b"\n") + 1 for one in payloads)))

    async def call(function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    async def others() -> None:
        while True:
            await asyncio.sleep(0)
            turns[0] += 1

    async def main() -> None:
        returns = Returns(ledger, Book(), emit, call, now_ms=wall_ms)  # type: ignore[arg-type]
        tasks = [asyncio.create_task(returns.run()), asyncio.create_task(others())]
        many = [GatewayReceipt("g", S.DELIVERED, NOW_MS, gateway_id=f"{number:032x}") for number in range(2000)]
        await asyncio.gather(returns.receipts(many), returns.receipts(many[:3]))
        ledger.failing = True
        with pytest.raises(StoreUnavailable):
            await returns.receipts(many)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert max(ledger.asked) <= AT_ONCE
    assert sum(events for _, events in journaled) == 2003
    stamps = [turn for turn, _ in journaled]
    assert len(stamps) >= 8
    assert all(later > earlier for earlier, later in itertools.pairwise(stamps)), "nobody else had a turn"


def test_a_link_reads_a_flood_in_pieces_and_lets_others_work_between() -> None:
    """Event loops read a socket again and again as long as more is there; ours must not take all at once."""
    count, turns, reads = 20_000, [0], []
    taken: list[int] = []
    frames = b"".join(
        sgip.Report((1, 1, number), (2, 2, number), "8613800000000", 0).encode() for number in range(count)
    )

    async def take(link: Link, back: list[Back]) -> None:
        taken.append(len(back))

    class Counting(Link):
        def _read(self, data: bytes) -> None:
            reads.append((turns[0], len(data)))
            super()._read(data)

    async def others() -> None:
        while True:
            await asyncio.sleep(0)
            turns[0] += 1

    async def main() -> None:
        async with asyncio.timeout(20):
            dialect = SgipInboundDialect("l", "p")
            dialect.is_bound = True
            near, far = socket.socketpair()
            loop = asyncio.get_running_loop()
            _, link = await loop.create_connection(
                lambda: Counting("x", dialect, Timing(5, 5, 1), take, lambda: None,
                                 now_ms=wall_ms, monotonic_s=monotonic_s), sock=near)  # fmt: skip
            turning = asyncio.create_task(others())
            _, writer = await asyncio.open_connection(sock=far)
            writer.write(frames)
            while sum(taken) < count:
                await asyncio.sleep(0.001)
            turning.cancel()
            writer.close()
            link.abort()
            await link.ended.wait()

    uvloop.run(main())
    assert sum(taken) == count
    assert max(size for _, size in reads) <= READ_BYTES
    assert len({turn for turn, _ in reads}) == len(reads), "two reads in one turn of the loop"


def test_outcomes_that_gathered_while_nothing_could_be_written_are_written_in_groups(tmp_path: Path) -> None:
    from engine.deliver.settler import Settled, Settler

    written: list[int] = []

    async def record(records: Sequence[DispatchRecord]) -> None:
        written.append(len(records))

    async def nothing(payloads: Any) -> None:
        return None

    async def main() -> None:
        settler = Settler(nothing, record, "default")
        for number in range(1000):
            outcome = DispatchRecord(name_of(number), offer(number).offer_id, S.ACCEPTED, NOW_MS, None, None)
            settler.settle(Settled("u1", "g", outcome))
        running = asyncio.create_task(settler.run())
        await settler.flushed()
        running.cancel()

    asyncio.run(main())
    assert (sum(written), max(written)) == (1000, Settler.AT_ONCE)
