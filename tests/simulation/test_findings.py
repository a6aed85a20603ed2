"""Small examples of what the simulation found, worked out by hand."""

from __future__ import annotations

from typing import Any

from engine.definitions import Cap, FieldTest, Limits, Reentry, UsageTrigger
from engine.model import RecordKind, Scope
from tests.world import NOON_MS, block_of, consent, make_pipeline, profile, scenario, small_content, usage

EVENTS, CONTROL = RecordKind.EVENTS, RecordKind.CONTROL
TRIGGER = UsageTrigger((FieldTest("app", "==", "bank"),))


class Small:
    """One scenario on one usage event; `outcomes` of a row of records, each a second after the other."""

    def __init__(self, **more: Any) -> None:
        self.pipeline = make_pipeline(small_content(scenarios=(scenario("bank", TRIGGER, **more),)))
        self.now_ms = NOON_MS
        self.position = 0

    def take(self, *values: Any) -> list[Any]:
        """Process dicts as events, text as a pause record; return the decisions."""
        decisions = []
        for value in values:
            self.now_ms += 1000
            self.position += 1
            if isinstance(value, dict):
                value, kind = {"at": self.now_ms, **value}, EVENTS
            else:
                kind = CONTROL
            block = block_of([value], position=self.position, append_ms=self.now_ms, kinds=kind)
            decisions += self.pipeline.process(block).decisions
        return decisions

    def use(self, user: str = "a") -> str:
        event = usage(user, self.now_ms + 1000, id=f"e{self.position}", app="bank")
        return self.take(event)[-1].reason

    def receipt(self, offer: str, state: str, **more: Any) -> None:
        event = {"type": "receipt", "user": "a", "id": f"{offer}{state}", "state": state, "offer_id": offer}
        self.take({name: one for name, one in (event | more).items() if one is not None})


CAPPED = {"limits": Limits(caps=(Cap(Scope.SCENARIO, 1, "day"),))}


def test_d8_a_scenario_paused_by_itself_stays_paused_when_all_are_resumed():
    small = Small()
    small.take(consent("a", NOON_MS))
    small.take(b'{"pause":"national/bank","paused":true}', b'{"pause":"*","paused":true}')
    small.take(b'{"pause":"*","paused":false}')
    assert small.use() == "paused"


def test_t7_a_number_given_up_once_is_given_up_once():
    small = Small()
    closed = {"type": "user-closed", "user": "a", "at": NOON_MS + 500, "id": "closed"}
    small.take(consent("a", NOON_MS), closed, consent("a", NOON_MS + 60_000), closed)
    assert small.use() == "granted"


def test_g1_what_was_delivered_does_not_fail_afterwards():
    small = Small(**CAPPED)
    small.take(consent("a", NOON_MS))
    offer_id = small.take(usage("a", NOON_MS + 2000, id="first", app="bank"))[-1].decision_id
    small.receipt(offer_id, "delivered")
    small.receipt(offer_id, "failed")
    assert small.use() == "cap:scenario"


def test_o3_what_was_redeemed_does_not_fail_afterwards():
    """Whoever redeemed it has it: a refund changes nothing of that, and neither does what a gateway says."""
    small = Small(**CAPPED)
    small.take(consent("a", NOON_MS))
    offer_id = small.take(usage("a", NOON_MS + 2000, id="first", app="bank"))[-1].decision_id
    used = {"type": "redemption", "user": "a", "id": "used", "offer_id": offer_id}
    small.take(used, {**used, "id": "back", "refund": True})
    small.receipt(offer_id, "failed")
    assert small.use() == "cap:scenario"


def test_g1_b5_what_was_delivered_bars_re_entry_whatever_is_said_afterwards():
    small = Small(reentry=Reentry("once"), limits=Limits(bypass=True))
    small.take(consent("a", NOON_MS))
    offer_id = small.take(usage("a", NOON_MS + 2000, id="first", app="bank"))[-1].decision_id
    small.receipt(offer_id, "delivered")
    small.receipt(offer_id, "failed")
    assert small.use() == "reentry"


def test_c2_a_failure_that_names_only_the_dispatch_gives_back():
    small = Small(**CAPPED)
    small.take(consent("a", NOON_MS))
    offer_id = small.take(usage("a", NOON_MS + 2000, id="first", app="bank"))[-1].decision_id
    small.receipt(offer_id, "failed", offer_id=None, dispatch_id=f"{offer_id}/sms/1")
    assert small.use() == "granted"


def test_a4_who_opts_out_on_one_number_is_left_alone_on_the_other():
    small = Small()
    small.take(profile("a", NOON_MS, person="p"), profile("b", NOON_MS, person="p"))
    small.take(consent("a", NOON_MS), consent("b", NOON_MS))
    small.take({"type": "inbound-message", "user": "a", "at": NOON_MS + 3000, "channel": "sms", "text": "TD"})
    assert small.use("b") == "opted_out"


def test_a4_a_number_linked_after_the_opt_out_is_left_alone_too():
    small = Small()
    small.take(profile("a", NOON_MS, person="p"), consent("a", NOON_MS), consent("b", NOON_MS))
    small.take({"type": "inbound-message", "user": "a", "at": NOON_MS + 3000, "channel": "sms", "text": "TD"})
    assert small.use("b") == "granted"
    small.take(profile("b", NOON_MS, person="p"))
    assert small.use("b") == "opted_out"


def test_a4_a_yes_after_the_opt_out_counts_for_its_own_number():
    small = Small()
    small.take(*(profile(user, NOON_MS, person="p") for user in "abc"))
    small.take(*(consent(user, NOON_MS) for user in "abc"))
    small.take({"type": "inbound-message", "user": "a", "at": NOON_MS + 7000, "channel": "sms", "text": "TD"})
    small.take(consent("b", NOON_MS + 8000))
    assert [small.use(user) for user in "abc"] == ["opted_out", "granted", "opted_out"]
