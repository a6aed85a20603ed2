"""People who scan the links of their messages: once, twice, at two tills, too late, or with a link they made up.

What answers them is the service's own desk of claim links over the ledger of the day; it may die between the ledger's
word and the journal's (O3). People outlive the service: most who got no answer ask again.
"""

from __future__ import annotations

import heapq
import random
import re
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from engine.console.claims import Claims
from engine.console.intake import Refused
from engine.definitions import Content
from engine.ledger.links import Link
from engine.model import Offer
from tests.simulation.campaigns import CLAIM_DOMAIN
from tests.simulation.dispatch import receipt
from tests.simulation.plan import KEY, TENANT
from tests.simulation.story import Scan

if TYPE_CHECKING:
    from tests.simulation.live import Live

LINK = re.compile(rf"https://{re.escape(CLAIM_DOMAIN)}/(\S{{36}})")
SECOND_MS, MINUTE_MS, HOUR_MS = 1_000, 60_000, 3_600_000


class Scanners:
    """Everybody with a link, and when each scans it."""

    def __init__(self, live: Live, seed: int) -> None:
        self._live = live
        self._dice = random.Random(f"{seed}/scans")
        self._due: list[tuple[int, int, Scan]] = []
        self._asking: Scan | None = None
        self._number = 0
        self._unreported: dict[str, Offer] = {}  # by token: what the gateway says nothing of, so far

    def receive(self, offer: Offer, at_ms: int, *, arrives: bool, is_reported: bool = True) -> None:
        """A message has gone out. One that does not arrive may be seen by somebody at the partner's later."""
        found = LINK.search(offer.text)
        dice = self._dice
        if found is None or dice.random() < (0.2 if arrives else 0.7):
            return
        token, till = found[1], f"till-{dice.getrandbits(20)}"
        if not is_reported:
            self._unreported[token] = offer
        at_ms += (
            dice.choice((20 * SECOND_MS, 10 * MINUTE_MS, 25 * MINUTE_MS, 90 * MINUTE_MS)) if arrives else 5 * HOUR_MS
        )
        first = Scan(token, till if dice.random() < 0.9 else None, dice.choice((None, 0, 1990)))
        self._ask(at_ms, first)
        if dice.random() < 0.3:
            self._ask(at_ms - 10 * SECOND_MS, Scan(token, None, None, is_look=True))
        if dice.random() < 0.1:
            place = dice.randrange(len(token))
            forged = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
            self._ask(at_ms + SECOND_MS, Scan(forged, till, None))
        for _ in range(3):
            if dice.random() < self._live.trouble.link_again:
                self._live.story.note("link_scanned_again")
                self._ask(at_ms + dice.choice((0, 5 * SECOND_MS, 40 * MINUTE_MS, 5 * HOUR_MS)), self._again(first))

    def _again(self, first: Scan) -> Scan:
        """The same till repeats itself, or says something else; or it is another till, or nobody says which."""
        dice = self._dice
        till = dice.choice((first.till, first.till, f"till-{dice.getrandbits(20)}", None))
        amount_fen = first.amount_fen if dice.random() < 0.7 else 77
        return Scan(first.token, till, amount_fen, is_look=dice.random() < 0.1)

    def _ask(self, at_ms: int, scan: Scan) -> None:
        self._number += 1
        heapq.heappush(self._due, (at_ms, self._number, scan))

    def scan(self, desk: Claims, now_ms: int) -> None:
        """Ask for everybody who is due. Raises what kills the service."""
        scans = self._live.story.scans
        while self._due and self._due[0][0] <= now_ms:
            self._asking = heapq.heappop(self._due)[2]
            scans.append(replace(self._asking, at_ms=now_ms, position=self._live.journal.end))
            status, answer = _answer(desk, self._asking)
            scans[-1] = replace(scans[-1], status=status, answer=answer)
            if status == 200 and not self._asking.is_look:
                self._fail_late(self._asking.token, now_ms)
            self._asking = None

    def _fail_late(self, token: str, now_ms: int) -> None:
        """A gateway gives up on a message that somebody has read and used: nothing of it may go to anybody else."""
        offer = self._unreported.pop(token, None)
        if offer is None or self._dice.random() < 0.3:
            return
        self._live.story.note("failure_after_redemption")
        at_ms = now_ms + self._dice.choice((2 * SECOND_MS, 10 * MINUTE_MS, HOUR_MS))
        dispatch_id = f"{offer.offer_id}/{offer.channel}/1"
        self._live.send(at_ms, receipt(offer, dispatch_id, "failed", at_ms, f"late/{offer.offer_id}"))

    def ask_again(self, now_ms: int) -> None:
        """The service is back: whoever it died under comes again, or has gone home."""
        if self._asking is not None:
            if self._dice.random() < 0.6:
                self._ask(now_ms + self._dice.choice((SECOND_MS, 10 * MINUTE_MS)), self._asking)
            self._asking = None


def open_desk(live: Live) -> Claims:
    """The desk of a service that starts: it journals first what dying kept from the journal."""
    desk = Claims(_Engine(live), KEY, lambda: live.now_ms)
    _run(desk.tell_forgotten())
    return desk


def _answer(desk: Claims, scan: Scan) -> tuple[int, dict[str, Any]]:
    body = b"" if scan.amount_fen is None else orjson.dumps({"amount_fen": scan.amount_fen})
    try:
        return 200, _run(desk.show(scan.token) if scan.is_look else desk.redeem(scan.token, body, scan.till))
    except Refused as refused:
        return refused.status, {"error": refused.code}


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Nothing here ever waits."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the desk waits for something")


class _Engine:
    """What the desk asks of the engine, with a service that may die in between."""

    tenant = TENANT

    def __init__(self, live: Live) -> None:
        self._live = live

    @property
    def content(self) -> Content:
        return self._live.pipeline.content

    async def append(self, payloads: Sequence[bytes]) -> list[int]:
        positions = [self._live.append_events(payload) for payload in payloads]
        self._live.die_between("told")()
        return positions

    async def link(self, offer_id: str) -> Link:
        return self._live.ledger.link(offer_id)

    async def redeem_link(self, *asked: Any) -> tuple[Link, bool]:
        answer = self._live.ledger.redeem_link(*asked)
        self._live.die_between("redeemed")()
        return answer

    async def link_told(self, offer_id: str) -> None:
        self._live.ledger.link_told(offer_id)

    async def untold_links(self) -> list[Link]:
        return self._live.ledger.untold_links()

    def reveal(self, ref: str) -> str | None:
        return self._live.desk.store.reveal(ref)
