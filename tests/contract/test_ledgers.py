"""One suite over every ledger: what docs/contracts.md says of Reservation, Claim and Ledger (C1-C4, D7, G1, O3)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.effects import Redeemed
from engine.ledger.dispatch import FOLLOWS, may_follow, print_table
from engine.ledger.embedded import EmbeddedLedger
from engine.ledger.redis.ledger import RedisLedger
from engine.model import DispatchState, Offer, Option, ReserveRequest, Rule, Scope, Short, StockLine, Take

HOUR_MS = 3_600_000
T0 = 1_700_000_000_000


@dataclass
class Home:
    """One kind of ledger: how it is opened again after a crash."""

    open: Callable[[], EmbeddedLedger]


@pytest.fixture(params=["embedded", "redis", pytest.param("redis-cluster", marks=pytest.mark.long)])
def home(request, tmp_path: Path) -> Iterator[Home]:
    opened = []
    if request.param != "embedded":
        url = request.getfixturevalue("redis_url" if request.param == "redis" else "redis_cluster_url")

    def open_ledger() -> EmbeddedLedger:
        if request.param != "embedded":
            opened.append(RedisLedger(url, assumed_consent=frozenset({"marketing.sms"})))
            return opened[-1]
        opened.append(EmbeddedLedger(tmp_path / "ledger.db", assumed_consent=frozenset({"marketing.sms"})))
        return opened[-1]

    yield Home(open_ledger)
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(home: Home) -> EmbeddedLedger:
    return home.open()


@dataclass
class Record:
    dispatch_id: str
    offer_id: str
    state: DispatchState
    at_ms: int
    gateway_id: str | None = None
    code: str | None = None
    gateway: str = ""
    gateway_ids: tuple[str, ...] = ()


@dataclass
class Consent:
    user_id: str
    purpose: str
    granted: bool | None
    at_ms: int = T0
    source: str = "test"
    text: str | None = None


def offer_id(number: int, at_ms: int = T0) -> str:
    return f"{at_ms:012x}{number:020x}"


def option(number: int, *rules: Rule, **fields) -> Option:
    values = {"scenario": "a/s", "channel": "sms", "category": "video", "partner": "p"} | fields
    return Option(offer_id(number), rules=rules, **values)


def ask(*options: Option, subject: str = "u1", now_ms: int = T0) -> ReserveRequest:
    return ReserveRequest(subject, subject, now_ms, options)


def at_most(most: int, span_ms: int = HOUR_MS, now_ms: int = T0, scope: Scope = Scope.ALL, **fields) -> Rule:
    return Rule(scope, now_ms - span_ms, most, f"cap:{scope.name.lower()}", **fields)


def offer(number: int, user: str = "u1", **fields) -> Offer:
    values = {"scenario": "a/s", "channel": "sms", "offer_class": "marketing", "deadline_ms": T0 + HOUR_MS} | fields
    return Offer(offer_id(number), user_id=user, text="你好", benefit="b", created_ms=T0, **values)


def decision(number: int, user: str, outcome: str, at_ms: int = T0) -> tuple[str, str, bytes]:
    key = offer_id(number, at_ms)
    return (
        key,
        user,
        b'{"decision_id":"%b","user":"%b","outcome":"%b"}' % (key.encode(), user.encode(), outcome.encode()),
    )


# --- reserving --------------------------------------------------------------------------------------------------------


def test_the_first_option_whose_rules_all_pass_is_granted(ledger):
    """D1: in arbitration order; each one before it names the rule that refused."""
    ledger.reserve([ask(option(1))])
    (answer,) = ledger.reserve(
        [
            ask(
                option(2, at_most(2), at_most(1)),
                option(3, Rule(Scope.SCENARIO, T0 - 1, 1, "min_gap")),
                option(4, at_most(2)),
                option(5),
            )
        ]
    )
    assert (answer.granted, answer.refusals, answer.duplicate) == (2, ("cap:all", "min_gap"), False)


def test_nothing_is_written_for_a_request_that_is_refused(ledger):
    """C2: all caps are checked before any is written."""
    ledger.reserve([ask(option(1))])
    for _ in range(3):
        (answer,) = ledger.reserve([ask(option(2, at_most(5, scope=Scope.SCENARIO), at_most(1)))])
        assert answer.granted == -1
    (answer,) = ledger.reserve([ask(option(3, at_most(2, scope=Scope.SCENARIO)))])
    assert answer.granted == 0


@pytest.mark.parametrize(
    ("scope", "field"),
    [
        (Scope.CHANNEL, "channel"),
        (Scope.SCENARIO, "scenario"),
        (Scope.CATEGORY, "category"),
        (Scope.PARTNER, "partner"),
    ],
)
def test_a_scope_counts_only_its_own(ledger, scope, field):
    """C1: subject x {all, channel, scenario, category, partner}."""
    ledger.reserve([ask(option(1, **{field: "other"}))])
    rule = at_most(1, scope=scope)
    assert ledger.reserve([ask(option(2, rule))])[0].granted == 0
    assert ledger.reserve([ask(option(3, rule))])[0].refusals == (rule.reason,)
    assert ledger.reserve([ask(option(4, rule), subject="u2")])[0].granted == 0


def test_a_rolling_window_ends_exactly_where_it_says(ledger):
    """C1: grants with at_ms > since_ms count, one at since_ms no longer."""
    ledger.reserve([ask(option(1))])
    refused = at_most(1, now_ms=T0 + HOUR_MS - 1)
    assert ledger.reserve([ask(option(2, refused), now_ms=T0 + HOUR_MS - 1)])[0].granted == -1
    passed = at_most(1, now_ms=T0 + HOUR_MS)
    assert ledger.reserve([ask(option(3, passed), now_ms=T0 + HOUR_MS)])[0].granted == 0


def test_requests_of_one_call_see_each_other(ledger):
    answers = ledger.reserve([ask(option(k, at_most(2))) for k in range(4)])
    assert [answer.granted for answer in answers] == [0, 0, -1, -1]


def test_a_second_request_with_the_same_id_answers_duplicate_with_the_stored_code(ledger):
    """Contract, Reservation: granted once per offer id; the code is the stored one (O3)."""
    first, again = ledger.reserve([ask(option(1, code="A1")), ask(option(1, code="B2"))])
    assert (first.code, first.duplicate) == ("A1", False)
    assert (again.granted, again.code, again.duplicate) == (0, "A1", True)
    (later,) = ledger.reserve([ask(option(7, at_most(1)), option(1), now_ms=T0 + 60_000)])
    assert (later.granted, later.code, later.duplicate) == (1, "A1", True)
    (other,) = ledger.reserve([ask(option(8, at_most(2)))])
    assert other.granted == 0, "the repetition took nothing"


def test_release_gives_back_once(ledger):
    """C2: a definite failure releases; the id stays taken."""
    ledger.reserve([ask(option(1))])
    ledger.release(offer_id(1))
    ledger.release(offer_id(1))
    ledger.release(offer_id(999))
    answers = ledger.reserve([ask(option(2, at_most(1))), ask(option(3, at_most(1))), ask(option(1))])
    assert [(answer.granted, answer.duplicate) for answer in answers] == [(0, False), (-1, False), (0, True)]


def test_an_unknown_outcome_keeps_what_was_taken_and_a_failure_gives_it_back(ledger):
    ledger.reserve([ask(option(1))])
    ledger.settle(offer_id(1), DispatchState.UNKNOWN)
    assert ledger.reserve([ask(option(2, at_most(1)))])[0].granted == -1
    ledger.settle(offer_id(1), DispatchState.FAILED)
    assert ledger.reserve([ask(option(3, at_most(1)))])[0].granted == 0


def test_what_does_not_count_is_seen_only_by_rules_that_look_at_it(ledger):
    """C2, B5: bypassing caps and counting toward them are two flags; re-entry looks at all."""
    ledger.reserve([ask(option(1, counts=False))])
    assert ledger.reserve([ask(option(2, at_most(1), counts=False))])[0].granted == 0
    assert ledger.reserve([ask(option(3, at_most(2, uncounted_too=True)))])[0].granted == -1


def test_a_withheld_grant_counts_for_the_holdout_only(ledger):
    """D3: the shadow reservation binds the holdout's own later ones, and re-entry."""
    ledger.reserve([ask(option(1, withheld=True))])
    assert ledger.reserve([ask(option(2, at_most(1), withheld=True))])[0].granted == -1
    assert ledger.reserve([ask(option(3, at_most(1, uncounted_too=True)))])[0].granted == -1
    assert ledger.reserve([ask(option(4, at_most(1)))])[0].granted == 0


def test_a_shadow_scenario_is_answered_and_leaves_nothing(ledger):
    """D8: shadow decides, writes nothing."""
    for number in (1, 1, 2):
        (answer,) = ledger.reserve([ask(option(number, at_most(1), shadow=True))])
        assert (answer.granted, answer.duplicate) == (0, False)


def test_a_deployment_limit_counts_one_scenario_over_everybody(ledger):
    """C7: hourly and daily; what is withheld was not sent."""
    rule = Rule(Scope.DEPLOYMENT, T0 - T0 % HOUR_MS - 1, 2, "paused")
    users = iter(range(100))
    numbers = iter(range(100))

    def granted(now_ms: int = T0, rule: Rule = rule, **fields) -> int:
        request = ask(option(next(numbers), rule, **fields), subject=f"u{next(users)}", now_ms=now_ms)
        return ledger.reserve([request])[0].granted

    assert [granted(withheld=True), granted(scenario="a/other"), granted()] == [0, 0, 0]
    ledger.release(offer_id(2))
    assert [granted(), granted(), granted(), granted(scenario="a/third")] == [0, 0, -1, 0]
    next_hour = T0 - T0 % HOUR_MS + HOUR_MS
    assert granted(next_hour, Rule(Scope.DEPLOYMENT, next_hour - 1, 2, "paused")) == 0


# --- stock and codes (O3) ---------------------------------------------------------------------------------------------

DAY_MS = 24 * HOUR_MS


def taking(number: int, *lines: StockLine, pool: str | None = None, subject: str = "u1", **fields) -> ReserveRequest:
    return ask(option(number, take=Take(lines, pool, T0 - T0 % DAY_MS), **fields), subject=subject)


def test_no_more_is_given_than_there_is_and_a_failure_gives_it_back(ledger):
    film = StockLine("film", 1200, total=2)
    answers = ledger.reserve([taking(number, film, subject=f"u{number}") for number in range(3)])
    assert [answer.refusals for answer in answers] == [(), (), ("stock",)]
    ledger.release(offer_id(0))
    ledger.release(offer_id(0))
    answers = ledger.reserve([taking(number, film, subject=f"u{number}") for number in (3, 4)])
    assert [answer.granted for answer in answers] == [0, -1]
    assert (ledger.stock.given()["film"].count, ledger.stock.given()["film"].fen) == (2, 2400)


@pytest.mark.parametrize(
    ("limits", "subject", "reason"),
    [
        ({"total": 1}, "u2", "stock"),
        ({"per_day": 1}, "u2", "stock"),
        ({"per_user": 1}, "u1", "stock"),
        ({"budget_fen": 2399}, "u2", "budget"),
        ({"budget_per_day_fen": 2399}, "u2", "budget"),
        ({"budget_per_user_fen": 2399}, "u1", "budget"),
    ],
)
def test_each_limit_of_a_benefit_holds_in_count_and_in_fen_and_is_named_by_the_refusal(ledger, limits, subject, reason):
    film, tea = StockLine("film", 1200, **limits), StockLine("tea", 300, total=9)
    assert ledger.reserve([taking(1, film)])[0].granted == 0
    ((name, most),) = limits.items()
    used, asked = (1200, 1200) if reason == "budget" else (1, 1)
    for is_shadow in (True, False):  # explain asks in shadow
        (answer,) = ledger.reserve([taking(2, tea, film, subject=subject, shadow=is_shadow)])
        assert answer.refusals == (reason,)
        assert answer.shorts == ((0, Short("film", name, most, used, asked)),)
    tomorrow = Take((film,), None, T0 - T0 % DAY_MS + DAY_MS)
    request = ask(option(3, take=tomorrow), subject="u3", now_ms=T0 + DAY_MS)
    passes = 0 if "per_day" in str(limits) or "per_user" in str(limits) else -1
    assert ledger.reserve([request])[0].granted == passes


def test_of_several_lines_all_are_taken_or_none_and_stock_is_asked_before_caps(ledger):
    film, tea = StockLine("film", 1200, total=1), StockLine("tea", 300, total=0)
    both = Take((film, tea), None, 0)
    (answer,) = ledger.reserve([ask(option(1, at_most(0), take=both), option(2, take=Take((film,), None, 0)))])
    assert (answer.granted, answer.refusals) == (1, ("stock",))
    assert "tea" not in ledger.stock.given() or ledger.stock.given()["tea"].count == 0


def test_codes_are_drawn_from_leases_lowest_first_and_a_repetition_names_the_same(ledger):
    (answer,) = ledger.reserve([taking(1, pool="p")])
    assert (answer.refusals, answer.shorts) == (("stock",), ((0, Short("p", "codes", 0, 0, 1)),)), "nothing is leased"
    ledger.lease_codes("p", 7, 2, 1)
    ledger.lease_codes("p", 7, 2, 1)
    answers = ledger.reserve([taking(number, pool="p", subject=f"u{number}") for number in (2, 3, 4)])
    assert [answer.code for answer in answers] == ["p#7", "p#8", None]
    assert answers[2].shorts == ((0, Short("p", "codes", 2, 2, 1)),)
    (again,) = ledger.reserve([taking(2, pool="p", subject="u2")])
    assert (again.duplicate, again.code) == (True, "p#7")
    ledger.release(offer_id(2))
    assert ledger.reserve([taking(5, pool="p", subject="u5")])[0].code == "p#7"


def test_withheld_and_shadow_options_ask_for_stock_and_take_none(ledger):
    """D3, D8."""
    ledger.lease_codes("p", 0, 1, 1)
    film = StockLine("film", total=1)
    for number, kind in enumerate(["withheld", "shadow"], 1):
        (answer,) = ledger.reserve([taking(number, film, pool="p", **{kind: True})])
        assert (answer.granted, answer.code) == (0, None)
    assert ledger.reserve([taking(3, film, pool="p", subject="u3")])[0].code == "p#0"
    assert ledger.reserve([taking(4, film, withheld=True, subject="u4")])[0].refusals == ("stock",)


def test_an_expired_lease_gives_nothing_more_and_its_offers_cannot_be_claimed(ledger):
    ledger.lease_codes("p", 0, 3, 1)
    (answer,) = ledger.reserve([taking(1, pool="p")])
    ledger.commit(1, T0, offers=[offer(1, code=answer.code)])
    ledger.recall_codes("p", 1)
    ledger.commit(2, T0)
    assert ledger.claim([(offer_id(1), "d1")], T0) == ["code_expired"]
    assert ledger.stock.returned("p") == [(1, 3)]
    assert (ledger.stock.available("p"), ledger.stock.has_lease("p", 1)) == (0, False)
    assert ledger.reserve([taking(2, pool="p", subject="u2")])[0].refusals == ("stock",)
    ledger.release(offer_id(1))
    ledger.commit(3, T0)
    assert ledger.stock.returned("p") == [(0, 3)], "given back, it returns as well"
    ledger.accept_return("p", [(0, 3)])
    ledger.lease_codes("p", 1, 1, 2)
    (answer,) = ledger.reserve([taking(3, pool="p", subject="u3")])
    ledger.commit(4, T0, offers=[offer(3, "u3", code=answer.code)])
    assert ledger.claim([(offer_id(3), "d3")], T0) == ["claimed"], "under its new epoch it is good"
    assert ledger.stock.returned("p") == []


@pytest.mark.parametrize("restarts", [False, True])
def test_what_arrived_or_was_redeemed_is_never_given_again_whatever_fails_afterwards(home, restarts):
    """G1, O3: the pipeline tells the ledger `delivered` of both; a ledger that is rebuilt still knows it (F10)."""
    ledger = home.open()
    ledger.lease_codes("p", 0, 2, 1)
    films = [taking(number, StockLine("film", 1200), pool="p", subject=f"u{number}") for number in (1, 2)]
    codes = [answer.code for answer in ledger.reserve(films)]
    offers = [offer(number, f"u{number}", code=code) for number, code in enumerate(codes, 1)]
    used = Redeemed(b"0" * 16, "u1", T0, offer_id(1), "film", None)
    ledger.commit(1, T0, offers=offers)
    ledger.delivered(offer_id(1))
    ledger.commit(2, T0, redemptions=[used])
    if restarts:
        ledger.close()
        ledger = home.open()
        ledger.rebuild(ledger.position())
    for number in (1, 2):
        ledger.release(offer_id(number))
    ledger.delivered(offer_id(2))
    (answer,) = ledger.reserve([taking(3, pool="p", subject="u3")])
    assert answer.code == "p#1", "what failed first went back"
    assert ledger.reserve([taking(4, pool="p", subject="u4")])[0].refusals == ("stock",)
    assert ledger.stock.given()["film"].count == 1


def test_a_restart_knows_what_was_given_and_forgets_what_was_not_committed(home):
    ledger = home.open()
    ledger.lease_codes("p", 0, 3, 1)
    film = StockLine("film", 1200, per_user=1)
    ledger.reserve([taking(1, film, pool="p")])
    ledger.commit(1, T0, offers=[offer(1, code="p#0")])
    ledger.reserve([taking(2, film, pool="p", subject="u2")])
    ledger.close()
    again = home.open()
    again.rebuild(again.position())
    answers = again.reserve([taking(3, film, pool="p"), taking(2, film, pool="p", subject="u2")])
    assert [(answer.refusals, answer.code) for answer in answers] == [(("stock",), None), ((), "p#1")]
    assert again.stock.given()["film"].count == 2


# --- commit and restart -----------------------------------------------------------------------------------------------


def test_position_and_effects_are_stored_together(home):
    ledger = home.open()
    assert ledger.position() == -1
    ledger.reserve([ask(option(1, code="A1"))])
    ledger.commit(10, T0, offers=[offer(1)], decisions=[decision(1, "u1", "offer")])
    ledger.close()
    again = home.open()
    assert again.position() == 10
    assert again.outbox(10) == [offer(1)]
    again.rebuild(10)
    (answer,) = again.reserve([ask(option(1))])
    assert (answer.duplicate, answer.code) == (True, "A1")


def test_what_was_not_committed_is_as_if_it_had_never_been(home):
    ledger = home.open()
    ledger.reserve([ask(option(1))])
    ledger.commit(10, T0)
    ledger.reserve([ask(option(2), subject="u2")])
    ledger.close()
    again = home.open()
    again.rebuild(again.position())
    answers = again.reserve([ask(option(3, at_most(1))), ask(option(2, at_most(1)), subject="u2")])
    assert [(answer.granted, answer.duplicate) for answer in answers] == [(-1, False), (0, False)]


def test_caps_are_rebuilt_as_they_were_at_any_position(home):
    """F10, and the start of a replay: grants and releases count from the position that brought them."""
    ledger = home.open()
    ledger.reserve([ask(option(1))])
    ledger.commit(10, T0)
    ledger.reserve([ask(option(2))])
    ledger.release(offer_id(1))
    ledger.commit(20, T0)
    for through, most, granted in [(9, 1, 0), (10, 1, -1), (10, 2, 0), (20, 1, -1), (20, 2, 0)]:
        ledger.rebuild(through)
        assert ledger.reserve([ask(option(50, at_most(most)))])[0].granted == granted, (through, most)


def test_a_replay_of_committed_records_changes_nothing(home):
    """Batches may be cut differently; what was claimed, withdrawn or paused later stays so meanwhile."""
    ledger = home.open()
    ledger.commit(10, T0, consents=[Consent("u1", "marketing.sms", True)], pauses=[("a/s", True)])
    ledger.reserve([ask(option(1))])
    ledger.commit(20, T0, offers=[offer(1)], pauses=[("a/s", False)])
    assert ledger.claim([(offer_id(1), "d1")], T0) == ["claimed"]
    ledger.commit(30, T0, consents=[Consent("u1", "marketing.sms", False)])
    before = ledger.counts()
    ledger.close()

    again = home.open()
    again.rebuild(5)
    again.commit(15, T0, consents=[Consent("u1", "marketing.sms", True)], pauses=[("a/s", True)])
    again.reserve([ask(option(1))])
    again.commit(25, T0, offers=[offer(1)], pauses=[("a/s", False)])
    assert again.outbox(10) == []
    assert again.paused() == set()
    again.reserve([ask(option(2), subject="u9")])
    again.commit(40, T0, offers=[offer(1), offer(2)], consents=[Consent("u1", "marketing.sms", False)])
    assert [one.offer_id for one in again.outbox(10)] == [offer_id(2)]
    assert again.claim([(offer_id(2), "d2")], T0) == ["no_consent"]
    after = again.counts()
    assert after["reservations"] == before["reservations"] + 1
    assert after["dispatches"] == before["dispatches"] + 1, "only the settling of the claim cut off by the crash"


def test_a_second_record_of_a_decision_replaces_the_first(ledger):
    """Contract, Decision: one id, its last record."""
    ledger.commit(1, T0, decisions=[decision(1, "u1", "held"), decision(2, "u2", "offer")])
    ledger.commit(2, T0, decisions=[decision(1, "u1", "offer")])
    assert ledger.decisions(user="u1", from_ms=T0, until_ms=T0 + 1) == [decision(1, "u1", "offer")[2]]
    assert ledger.decisions(user="u1", from_ms=T0 + 1, until_ms=T0 + 2) == []


def test_decisions_of_a_user_come_newest_first_and_only_theirs(ledger):
    for k in range(20):
        ledger.commit(
            k, T0 + k, decisions=[decision(k, f"u{k % 3}", "lost", T0 + k), decision(99, "u9", "lost", T0 - k)]
        )
    bodies = ledger.decisions(user="u1", from_ms=T0 + 3, until_ms=T0 + 17, limit=3)
    assert bodies == [decision(k, "u1", "lost", T0 + k)[2] for k in (16, 13, 10)]


def test_a_forgotten_user_leaves_no_trace_in_any_file(home, tmp_path):
    """I2: rows, free pages, write-ahead log and caps; others keep theirs."""
    ledger = home.open()
    for k in range(40):
        user = ("zarathustra", "other")[k % 2]
        ledger.reserve([ask(option(k), subject=user)])
        ledger.commit(k, T0, offers=[offer(k, user)], decisions=[decision(k, user, "offer")])
    ledger.claim([(offer_id(0), "d0")], T0)
    ledger.commit(200, T0, consents=[Consent("zarathustra", "marketing.sms", True)])
    ledger.forget("zarathustra")
    assert ledger.decisions(user="zarathustra", from_ms=0, until_ms=T0 * 2) == []
    assert len(ledger.decisions(user="other", from_ms=0, until_ms=T0 * 2)) == 20
    assert [one.user_id for one in ledger.outbox(99)] == ["other"] * 20
    answers = ledger.reserve([ask(option(60, at_most(1)), subject=user) for user in ("other", "zarathustra")])
    assert [answer.granted for answer in answers] == [-1, 0]
    for path in tmp_path.iterdir():
        assert b"zarathustra" not in path.read_bytes(), path.name


def test_old_rows_go_and_what_a_rule_without_a_window_looks_at_stays(home):
    """B5: re-entry `once` is for ever; the rest is kept as long as a cap or a replay may ask for it."""
    ledger = home.open()
    day_ms = 24 * HOUR_MS
    ledger.reserve([ask(option(1, Rule(Scope.SCENARIO, 0, 1, "reentry"))), ask(option(2), subject="u2")])
    ledger.commit(1, T0, offers=[offer(1), offer(2)], decisions=[decision(1, "u1", "offer")])
    late_ms = T0 + 40 * day_ms
    ledger.reserve([ask(Option(offer_id(3, late_ms), "a/s", "sms", "video", "p", ()), subject="u3", now_ms=late_ms)])
    ledger.commit(2, late_ms)
    ledger.expire(T0 + 4 * day_ms, T0 + 32 * day_ms)
    counts = ledger.counts()
    assert (counts["reservations"], counts["offers"], counts["outbox"], counts["decisions"]) == (2, 0, 0, 0)
    ledger.rebuild(2)
    request = ask(option(9, Rule(Scope.SCENARIO, 0, 1, "reentry")), now_ms=late_ms)
    assert ledger.reserve([request])[0].refusals == ("reentry",)


# --- claims -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def offered(ledger) -> EmbeddedLedger:
    """A ledger that holds offer 1, not claimed."""
    ledger.reserve([ask(option(1))])
    ledger.commit(1, T0, offers=[offer(1)])
    return ledger


def test_an_offer_is_claimed_once_and_leaves_the_outbox(offered):
    """D7: only the claimant submits."""
    assert offered.claim([(offer_id(1), "d1"), (offer_id(1), "d2")], T0 + 1) == ["claimed", "already"]
    assert offered.claim([(offer_id(1), "d1")], T0 + 1) == ["already"]
    assert offered.outbox(10) == []
    (row,) = offered.dispatches(offer_id(1))
    assert (row["dispatch_id"], row["state"], row["at_ms"]) == ("d1", "submitting", T0 + 1)


def test_every_refusal_of_a_claim_has_its_answer_and_writes_nothing(offered):
    """Contract, Claim: the checks and their order."""
    one = [(offer_id(1), "d1")]
    assert offered.claim([(offer_id(2), "d2")], T0) == ["unknown_offer"]
    assert offered.claim(one, T0 + HOUR_MS) == ["expired"]
    assert offered.claim(one, T0, epoch=offered.epoch - 1) == ["fenced"]
    offered.commit(2, T0, consents=[Consent("u1", "marketing.sms", False)])
    assert offered.claim(one, T0 + HOUR_MS) == ["no_consent"]
    offered.commit(3, T0, pauses=[("a/s", True)])
    assert offered.claim(one, T0) == ["paused"]
    offered.commit(4, T0, pauses=[("a/s", False), ("*", True)])
    assert offered.claim(one, T0) == ["paused"]
    assert offered.dispatches(offer_id(1)) == []
    offered.commit(5, T0, pauses=[("*", False)], consents=[Consent("u1", "marketing.sms", None)])
    assert offered.claim(one, T0) == ["claimed"]


def test_what_a_user_said_of_consent_stays_with_time_and_text_until_forgotten(ledger):
    """A3: the message is the evidence, whatever is said later."""
    out = Consent("u1", "marketing.sms", False, T0 + 5, "inbound-message", " 退订 ")
    ledger.commit(1, T0, consents=[out, Consent("u2", "marketing.sms", True)])
    ledger.commit(1, T0, consents=[out])  # a replay adds nothing
    ledger.commit(2, T0, consents=[Consent("u1", "marketing.sms", True, T0 + 9)])
    said = {
        "purpose": "marketing.sms",
        "granted": False,
        "at_ms": T0 + 5,
        "source": "inbound-message",
        "text": " 退订 ",
    }
    assert ledger.evidence("u1") == [said]
    assert ledger.evidence("u2") == []
    ledger.forget("u1")
    assert ledger.evidence("u1") == []


def test_without_a_record_and_without_assumption_there_is_no_consent(offered):
    """A2: no record means no send; service offers skip marketing consent."""
    offered.assumed_consent = frozenset()
    offered.commit(2, T0, offers=[offer(2, offer_class="service")])
    assert offered.claim([(offer_id(1), "d1"), (offer_id(2), "d2")], T0) == ["no_consent", "claimed"]
    offered.commit(3, T0, consents=[Consent("u1", "marketing.push", True)])
    assert offered.claim([(offer_id(1), "d1")], T0) == ["no_consent"]
    offered.commit(4, T0, consents=[Consent("u1", "marketing.sms", True)])
    assert offered.claim([(offer_id(1), "d1")], T0) == ["claimed"]


def test_a_person_who_withdrew_on_one_number_gets_nothing_on_the_other(ledger):
    """A4: consent is per subject."""
    ledger.reserve([ReserveRequest("person", "sim2", T0, (option(1),))])
    ledger.commit(1, T0, offers=[offer(1, "sim2")], consents=[Consent("person", "marketing.sms", False)])
    assert ledger.claim([(offer_id(1), "d1")], T0) == ["no_consent"]


def test_closing_a_user_voids_consent_and_cancels_what_is_queued(offered):
    """A4: user.closed and address.changed; the number may be somebody else's."""
    offered.commit(2, T0, consents=[Consent("u1", "marketing.sms", True)], offers=[offer(2, "u2")])
    offered.commit(3, T0, closed_users=["u1"])
    assert [one.offer_id for one in offered.outbox(10)] == [offer_id(2)]
    assert offered.claim([(offer_id(1), f"{offer_id(1)}/sms/1")], T0) == ["already"]
    offered.assumed_consent = frozenset()
    offered.commit(4, T0, offers=[offer(3)])
    assert offered.claim([(offer_id(3), "d3")], T0) == ["no_consent"]


def test_what_the_new_user_of_a_number_says_in_the_batch_of_the_close_stays(offered):
    """T4, A4: the close, a new consent and a new offer may fall into one batch or into three."""
    offered.assumed_consent = frozenset()
    consents = [Consent("u1", "marketing.push", True), Consent("u1", "marketing.sms", True)]
    offered.commit(2, T0, offers=[offer(2), offer(3)], consents=consents, closed_users=["u1"], closed_at=[(1, 1)])
    assert [one.offer_id for one in offered.outbox(10)] == [offer_id(3)]
    assert offered.claim([(offer_id(3), "d3")], T0) == ["claimed"]


def test_an_id_that_is_none_of_ours_releases_nothing(offered):
    """F20: receipts may name anything as offer."""
    for name in ("", "hello", "-1", "f" * 33, "F" * 32, "0" * 31 + "_", "\0", "😀"):
        offered.release(name)
    offered.commit(2, T0)


def test_a_claim_cut_off_by_a_crash_is_unknown_and_never_claimed_again(home):
    """D7: SUBMITTING after a crash is UNKNOWN."""
    ledger = home.open()
    ledger.commit(1, T0, offers=[offer(1), offer(2)])
    ledger.claim([(offer_id(1), "d1"), (offer_id(2), "d2")], T0)
    ledger.record_dispatch([Record("d2", offer_id(2), DispatchState.ACCEPTED, T0)])
    ledger.close()
    again = home.open()
    assert again.unsettled == 1
    assert [row["state"] for row in again.dispatches(offer_id(1))] == ["submitting", "unknown"]
    assert [row["state"] for row in again.dispatches(offer_id(2))] == ["submitting", "accepted"]
    assert again.outbox(10) == []
    assert again.claim([(offer_id(1), "d1"), (offer_id(1), "d3")], T0) == ["already", "already"]


def test_an_older_owner_is_fenced(home):
    """D7: the owner's epoch must be current."""
    old = home.open()
    old.commit(1, T0, offers=[offer(1)])
    new = home.open()
    assert old.claim([(offer_id(1), "d1")], T0) == ["fenced"]
    assert new.claim([(offer_id(1), "d1")], T0) == ["claimed"]


def test_a_definite_failure_allows_another_attempt_and_nothing_else_does(offered):
    """G2, G5: only what provably was not sent may be tried again, under a new dispatch id."""
    first, second = [(offer_id(1), f"{offer_id(1)}/sms/1")], [(offer_id(1), f"{offer_id(1)}/sms/2")]
    offered.claim(first, T0)
    assert offered.claim(second, T0) == ["already"]
    offered.record_dispatch([Record(first[0][1], offer_id(1), DispatchState.UNKNOWN, T0)])
    assert offered.claim(second, T0) == ["already"]
    offered.record_dispatch([Record(first[0][1], offer_id(1), DispatchState.REJECTED, T0)])
    assert offered.claim(first, T0) == ["already"]
    assert offered.claim(second, T0) == ["claimed"]
    offered.record_dispatch([Record(second[0][1], offer_id(1), DispatchState.ACCEPTED, T0, "g1")])
    assert [row["state"] for row in offered.dispatches(offer_id(1))] == [
        "submitting",
        "unknown",
        "rejected",
        "submitting",
        "accepted",
    ]


def test_exactly_one_of_many_threads_wins_every_claim(ledger):
    """D7: one atomic act."""
    count, threads = 60, 4
    ledger.commit(1, T0, offers=[offer(k) for k in range(count)])
    barrier = threading.Barrier(threads)
    answers: dict[int, list[str]] = {}

    def work(who: int) -> None:
        barrier.wait()
        answers[who] = [ledger.claim([(offer_id(k), f"{k}-{who}")], T0)[0] for k in range(count)]

    workers = [threading.Thread(target=work, args=(who,)) for who in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for k in range(count):
        assert sorted(answers[who][k] for who in range(threads)) == ["already"] * (threads - 1) + ["claimed"]


def test_commits_and_claims_go_on_beside_each_other(ledger):
    """The engine commits while the dispatcher claims; nobody sees half of either."""
    failures: list[BaseException] = []
    done = threading.Event()
    claimed = []

    def dispatch() -> None:
        try:
            while not done.is_set() or ledger.outbox(1):
                for one in ledger.outbox(50):
                    claimed.extend(ledger.claim([(one.offer_id, one.offer_id + "/sms/1")], T0))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=dispatch)
    thread.start()
    for k in range(200):
        ledger.reserve([ask(option(k), subject=f"u{k}")])
        ledger.commit(k, T0, offers=[offer(k, f"u{k}")])
    done.set()
    thread.join()
    assert failures == []
    assert claimed == ["claimed"] * 200


# --- states of a dispatch ---------------------------------------------------------------------------------------------

FINAL = [DispatchState.REJECTED, DispatchState.DELIVERED, DispatchState.FAILED, DispatchState.EXPIRED]


@pytest.mark.parametrize("final", FINAL)
@pytest.mark.parametrize("late", list(DispatchState))
def test_a_final_state_never_regresses(offered, final, late):
    """G1: what comes after is kept on record and changes nothing; a repetition leaves no row."""
    offered.claim([(offer_id(1), "d1")], T0)
    assert offered.record_dispatch([Record("d1", offer_id(1), final, T0)]) == [True]
    assert offered.record_dispatch([Record("d1", offer_id(1), late, T0 + 1)]) == [False]
    rows = offered.dispatches(offer_id(1))
    assert [row["state"] for row in rows if row["applied"]] == ["submitting", final.value]
    assert len(rows) == (2 if late is final else 3)


def test_a_late_receipt_of_a_first_attempt_does_not_touch_the_second(offered):
    """G1, G5: every dispatch has its own state."""
    offered.claim([(offer_id(1), "d1")], T0)
    offered.record_dispatch([Record("d1", offer_id(1), DispatchState.FAILED, T0)])
    offered.claim([(offer_id(1), "d2")], T0)
    assert offered.record_dispatch([Record("d1", offer_id(1), DispatchState.DELIVERED, T0)]) == [False]
    assert offered.record_dispatch([Record("d2", offer_id(1), DispatchState.DELIVERED, T0)]) == [True]


def test_a_receipt_for_what_was_never_claimed_is_kept_and_changes_nothing(offered):
    """G3: unmatched receipts are kept."""
    for state in (DispatchState.DELIVERED, DispatchState.ACCEPTED):
        assert offered.record_dispatch([Record("d1", offer_id(1), state, T0)]) == [False]
    assert len(offered.dispatches(offer_id(1))) == 2
    assert offered.claim([(offer_id(1), "d2")], T0) == ["claimed"]


def test_a_receipt_may_overtake_the_answer_to_the_submit(offered):
    """G3."""
    offered.claim([(offer_id(1), "d1")], T0)
    answers = offered.record_dispatch(
        [Record("d1", offer_id(1), DispatchState.DELIVERED, T0), Record("d1", offer_id(1), DispatchState.ACCEPTED, T0)]
    )
    assert answers == [True, False]


def test_an_offer_dropped_before_any_claim_leaves_the_outbox(offered):
    """D6: past its deadline it ends with a reason; a definite failure of an unclaimed offer is recorded too."""
    offered.record_dispatch([Record("d1", offer_id(1), DispatchState.EXPIRED, T0, None, "deadline")])
    assert offered.outbox(10) == []


def test_receipts_may_come_with_a_commit(offered):
    offered.claim([(offer_id(1), "d1")], T0)
    offered.commit(2, T0, dispatches=[Record("d1", offer_id(1), DispatchState.DELIVERED, T0)])
    assert offered.dispatches(offer_id(1))[-1]["state"] == "delivered"


def test_the_table_of_states_can_be_read(capsys):
    """G1: the table is data; final states are followed by nothing."""
    assert set(FOLLOWS) == {None, *DispatchState}
    for state in FINAL:
        assert not any(may_follow(state, after) for after in DispatchState)
    assert "accepted    -> delivered, expired, failed" in print_table()
