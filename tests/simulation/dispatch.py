"""A model of the dispatcher and of a gateway: outbox, claim, submit, outcome, receipt - each step may be the last."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.model import CODE_MARK, DispatchState, GatewayReceipt, Match, Offer
from tests.simulation.story import Message

if TYPE_CHECKING:
    from tests.simulation.live import Live


@dataclass(frozen=True)
class Outcome:
    dispatch_id: str
    offer_id: str
    state: DispatchState
    at_ms: int
    gateway_id: str | None = None
    code: str | None = None
    gateway: str = ""
    gateway_ids: tuple[str, ...] = ()


class Dispatcher:
    """Lives as long as the process: what it remembers is lost with it."""

    def __init__(self, live: Live, seed: int) -> None:
        self.live = live
        self.dice = random.Random(seed)
        self._not_before: dict[str, int] = {}
        self._looks = True

    def wake(self) -> None:
        """Offers were committed."""
        self._looks = True

    def hand_over(self, now_ms: int) -> None:
        """Claim and submit what the outbox holds."""
        if not self._looks:
            return
        queued = self.live.ledger.outbox(500)
        self._looks = bool(queued)
        offers = [one for one in queued if self._not_before.get(one.offer_id, 0) <= now_ms]
        for first in range(0, len(offers), 8):
            group = offers[first : first + 8]
            answers = self.live.claim(group)
            if "claimed" in answers:
                self.live.die_between("claimed")()
            for offer, answer in zip(group, answers, strict=True):
                self._act(offer, answer, now_ms)

    def _act(self, offer: Offer, answer: str, now_ms: int) -> None:
        if answer == "claimed":
            self._submit(offer, now_ms)
        elif answer == "unavailable" or (answer == "paused" and now_ms < offer.deadline_ms):
            self._not_before[offer.offer_id] = now_ms + 1000
        elif answer in ("paused", "expired"):
            self._settle(offer, DispatchState.EXPIRED, now_ms, "deadline")
        elif answer in ("no_consent", "code_expired"):
            self.live.story.note(f"claim_{answer}")
            self._settle(offer, DispatchState.FAILED, now_ms, answer)
        else:
            self.live.story.note(f"claim_{answer}")
            self._not_before[offer.offer_id] = 1 << 62

    def _submit(self, offer: Offer, now_ms: int) -> None:
        trouble, dice = self.live.trouble, self.dice
        fate = dice.random()
        dispatch_id = f"{offer.offer_id}/{offer.channel}/1"
        if fate < trouble.gateway_rejects:
            self.live.story.note("gateway_rejects")
            self._settle(offer, DispatchState.REJECTED, now_ms, "refused")
            return
        code = None if offer.code is None else self.live.desk.store.reveal(offer.code)
        text = offer.text.replace(CODE_MARK, code or "")
        words = (offer.user_id, offer.scenario, offer.channel, text, code)
        self.live.story.messages.append(Message(now_ms, offer.offer_id, dispatch_id, *words))
        self.live.die_between("submitted")()
        if dice.random() < trouble.receipt_early:
            self._report_early(offer, now_ms)
            return
        if fate < trouble.gateway_rejects + trouble.gateway_unknown:
            self.live.story.note("gateway_unknown")
            self._settle(offer, DispatchState.UNKNOWN, now_ms, "no_answer")
        else:
            self._settle(offer, DispatchState.ACCEPTED, now_ms)
        self._report(offer, dispatch_id, now_ms)

    def _report_early(self, offer: Offer, now_ms: int) -> None:
        """The receipt comes before the answer to the submit, which names the message for the first time (G3)."""
        story, name = self.live.story, f"g{self.dice.getrandbits(40)}"
        story.note("receipt_before_answer")
        receipt = GatewayReceipt("sim", DispatchState.DELIVERED, now_ms, name)
        for match in self.live.ledger.match_receipts([receipt], now_ms):
            assert match is None, "a receipt was matched to nothing"
        self.live.die_between("early")()
        dispatch_id = f"{offer.offer_id}/{offer.channel}/1"
        accepted = Outcome(
            dispatch_id, offer.offer_id, DispatchState.ACCEPTED, now_ms, gateway="sim", gateway_ids=(name,)
        )
        self.live.ledger.record_dispatch([accepted])
        story.early.append(offer.offer_id)
        self.live.die_between("early")()
        self.tell_late()
        self.live.scanners.receive(offer, now_ms, arrives=True)
        self._redeem(offer, now_ms)

    def tell_late(self) -> None:
        """Journal what receipts say that had come too early; only then forget them."""
        late: list[Match] = self.live.ledger.matched_late()
        for one in late:
            identity = f"{one.dispatch_id}:{one.state.value}"
            body = {
                "v": 1,
                "tenant": "default",
                "type": "receipt",
                "id": identity,
                "user": one.user_id,
                "at": one.at_ms,
            }
            body |= {"offer_id": one.offer_id, "dispatch_id": one.dispatch_id, "state": one.state.value, "code": ""}
            self.live.journal_now(body)
        if late:
            self.live.die_between("early")()
            self.live.ledger.told_late()

    def _settle(self, offer: Offer, state: DispatchState, now_ms: int, code: str | None = None) -> None:
        """A definite failure is journaled as a receipt first, then the ledger hears of it."""
        dispatch_id = f"{offer.offer_id}/{offer.channel}/1"
        if state in (DispatchState.REJECTED, DispatchState.FAILED, DispatchState.EXPIRED):
            self.live.journal_now(receipt(offer, dispatch_id, state.value, now_ms, f"{dispatch_id}:{state.value}"))
        self.live.ledger.record_dispatch([Outcome(dispatch_id, offer.offer_id, state, now_ms, None, code)])
        self.tell_late()

    def _report(self, offer: Offer, dispatch_id: str, now_ms: int) -> None:
        """The gateway's receipt: mostly delivered, sometimes failed, expired, twice, or never."""
        dice = self.dice
        state = dice.choice(("delivered",) * 6 + ("failed", "failed", "expired", "never"))
        self.live.scanners.receive(offer, now_ms, arrives=state in ("delivered", "never"), is_reported=state != "never")
        if state == "never":
            return
        number = dice.getrandbits(40)
        at_ms = now_ms + dice.choice((300, 2_000, 30_000, 1_800_000))
        if dice.random() < 0.3:
            self.live.send(at_ms - 200, receipt(offer, dispatch_id, "accepted", at_ms - 200, f"r{number}a"))
        self.live.send(at_ms, receipt(offer, dispatch_id, state, at_ms, f"r{number}"))
        if dice.random() < self.live.trouble.receipt_twice:
            self.live.story.note("receipt_twice")
            self.live.send(at_ms + 5_000, receipt(offer, dispatch_id, state, at_ms, f"r{number}"))
        if state == "delivered":
            self._redeem(offer, at_ms)

    def _redeem(self, offer: Offer, at_ms: int) -> None:
        """Some use what they got, some of them bring it back; what tells so does not always say all it knows."""
        dice = self.dice
        if dice.random() < 0.6:
            return
        at_ms += dice.choice((60_000, 600_000, 5_400_000))
        value: dict[str, Any] = {"type": "redemption", "feed": "default", "user": offer.user_id, "at": at_ms}
        value |= {"amount_fen": dice.choice((0, 100, 990))}
        named = dice.choice(({"offer_id": offer.offer_id}, {"benefit": offer.benefit}, None))
        value |= named or {"offer_id": offer.offer_id, "benefit": offer.benefit}
        if dice.random() < 0.8:
            value["id"] = f"used/{offer.offer_id}"
        self.live.send(at_ms + 400, value)
        if dice.random() < self.live.trouble.redemption_twice:
            self.live.story.note("redemption_twice")
            self.live.send(at_ms + dice.choice((400, 9_000, 3_600_000)), value)
        if dice.random() < 0.2:
            self.live.send(at_ms + 900_000, {**value, "refund": True})


def receipt(offer: Offer, dispatch_id: str, state: str, at_ms: int, identity: str) -> dict[str, Any]:
    body = {"v": 1, "tenant": "default", "type": "receipt", "id": identity, "user": offer.user_id, "at": at_ms}
    return {**body, "offer_id": offer.offer_id, "dispatch_id": dispatch_id, "state": state, "code": ""}
