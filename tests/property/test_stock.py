"""Stock, budgets and codes against a list model, over every interleaving Hypothesis can think of (O3, D1, T3, T4)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.effects import Redeemed
from engine.ledger.caps import REPLAY_HORIZON_MS, Caps
from engine.ledger.embedded import EmbeddedLedger
from engine.ledger.pool import CodePool
from engine.ledger.redis.ledger import RedisLedger
from engine.ledger.redis.log import MemoryLog
from engine.ledger.stock import Stock
from engine.model import Offer, Option, ReserveAnswer, ReserveRequest, Rule, Scope, StockLine, Take
from engine.runtime import checkpoint
from engine.runtime.checkpoint import Checkpoint
from tests.oracle.stock_oracle import StockOracle

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
T0 = 1_700_000_000_000
COST_FEN = {"film": 1200, "tea": 300}
POOLS = ["p", "q"]


def limits(draw) -> dict[str, int]:
    names = draw(st.sets(st.sampled_from(["total", "per_day", "per_user"]), max_size=2))
    found = {name: draw(st.integers(1, 4)) for name in sorted(names)}
    for name in sorted(draw(st.sets(st.sampled_from(["budget_fen", "budget_per_day_fen", "budget_per_user_fen"])))):
        found[name] = draw(st.integers(1000, 5000))
    return found


@st.composite
def asked(draw, now_ms: int) -> ReserveRequest:
    """A request at `now_ms`. Offer ids, users and what is limited are few, so that everything meets its limit."""
    options = []
    subject = draw(st.sampled_from(["ann", "bob"]))
    of_user = 4 * ["ann", "bob"].index(subject)  # an id holds the user (D4)
    for _ in range(draw(st.integers(1, 3))):
        take = None
        if draw(st.integers(0, 3)):
            names = draw(st.lists(st.sampled_from(sorted(COST_FEN)), min_size=1, max_size=2, unique=True))
            lines = tuple(StockLine(name, COST_FEN[name], **limits(draw)) for name in names)
            # Users are counted for a benefit always or never: content says so for all of its offers.
            lines = tuple(
                StockLine(
                    *(getattr(line, name) for name in line.__struct_fields__[:4]),
                    min(line.per_user, 9),
                    line.budget_fen,
                    line.budget_per_day_fen,
                    line.budget_per_user_fen,
                )
                for line in lines
            )
            take = Take(lines, draw(st.sampled_from([None, *POOLS])), now_ms - now_ms % DAY_MS)
        rules = (Rule(Scope.ALL, 0, draw(st.integers(1, 6)), "cap:all"),) if draw(st.booleans()) else ()
        options.append(
            Option(
                f"{now_ms:012x}{draw(st.integers(0, 3)) + of_user:020x}",
                draw(st.sampled_from(["a/one", "a/two"])),
                "sms",
                "video",
                "p",
                rules,
                withheld=draw(st.integers(0, 5)) == 0,
                shadow=draw(st.integers(0, 5)) == 0,
                take=take,
            )
        )
    return ReserveRequest(subject, subject, now_ms, tuple(options))


# Caps keep grants for the longest window that anybody asked about so far; here all ask from the beginning on.
ASKING = Option("f" * 32, "a/one", "sms", "video", "p", (Rule(Scope.ALL, 0, 1_000_000, "cap:all"),), shadow=True)


Told = tuple[int, tuple[str, ...], bool, str | None, tuple[Any, ...]]
"""An answer: the option, the refusals before it, is it a duplicate, the code, and what stock lacked by option."""


class Model:
    """One request at a time: known ids first, then for each option stock, then its caps."""

    def __init__(self) -> None:
        self.stock = StockOracle()
        self.grants: dict[str, tuple[str, bool, bool]] = {}  # offer id: subject, withheld, released
        self.used: set[str] = set()

    def copy(self) -> Model:
        other = Model()
        other.stock, other.grants, other.used = self.stock.copy(), dict(self.grants), set(self.used)
        return other

    def answer(self, request: ReserveRequest) -> Told:
        for k, option in enumerate(request.options):
            if option.offer_id in self.grants:
                return k, ("duplicate",) * k, True, self.stock.code_of(option.offer_id), ()
        refusals: list[str] = []
        lacks: list[Any] = []
        for k, option in enumerate(request.options):
            refused = self.stock.refusal(option, request.subject)
            lacks += [(k, self.stock.lacking(option, request.subject))] if refused is not None else []
            for one in option.rules if refused is None else ():
                counted = [
                    grant
                    for grant in self.grants.values()
                    if grant[0] == request.subject and not grant[2] and (option.withheld or not grant[1])
                ]
                refused = one.reason if len(counted) >= one.most else None
            if refused is None:
                if not option.shadow:
                    self.grants[option.offer_id] = (request.subject, option.withheld, False)
                return k, tuple(refusals), False, self.stock.grant(option, request), tuple(lacks)
            refusals.append(refused)
        return -1, tuple(refusals), False, None, tuple(lacks)

    def release(self, offer_id: str) -> None:
        subject, withheld, _ = self.grants[offer_id]
        if offer_id in self.used:
            return
        self.grants[offer_id] = (subject, withheld, True)
        for one in self.stock.taken:
            if one.offer_id == offer_id:
                one.released = True


def told(answer: ReserveAnswer) -> Told:
    lacks = tuple((place, msgspec.structs.astuple(short)) for place, short in answer.shorts)
    return answer.granted, answer.refusals, answer.duplicate, answer.code, lacks


class StockMachine(RuleBasedStateMachine):
    """Lease, reserve, release, recall, commit, crash, checkpoint, let time pass; the answers must be the model's."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.ledger = self.open()
        self.model = Model()
        self.committed = Model()
        self.position = -1
        self.now_ms = T0
        self.next_number = dict.fromkeys(POOLS, 0)
        self.epoch = dict.fromkeys(POOLS, 1)
        self.leases: list[tuple[str, int, int, int]] = []
        self.ledger.reserve([ReserveRequest("nobody", "nobody", T0, (ASKING,))])
        self.commit()

    def open(self) -> EmbeddedLedger:
        return EmbeddedLedger(self.path / "ledger.db")

    @rule(span=st.sampled_from([1, HOUR_MS - 1, 7 * HOUR_MS, DAY_MS]))
    def time_passes(self, span: int) -> None:
        self.now_ms += span

    @rule(pool=st.sampled_from(POOLS), count=st.integers(1, 3))
    def lease(self, pool: str, count: int) -> None:
        first = self.next_number[pool]
        self.next_number[pool] += count
        self.ledger.lease_codes(pool, first, count, self.epoch[pool])
        self.model.stock.leased.setdefault(pool, set()).update(range(first, first + count))
        self.commit()  # the store of codes will not lease these numbers again

    @rule(pool=st.sampled_from(POOLS))
    def recall(self, pool: str) -> None:
        self.ledger.recall_codes(pool, self.epoch[pool])
        self.epoch[pool] += 1
        stock = self.model.stock
        free = set(stock.free(pool))
        stock.expired.setdefault(pool, set()).update(stock.leased.get(pool, set()))
        self.commit()
        returned = {number for first, end in self.ledger.stock.returned(pool) for number in range(first, end)}
        assert free <= returned, "what nobody has goes back"

    @rule(data=st.data(), count=st.integers(1, 5))
    def reserve(self, data, count: int) -> None:
        requests = [data.draw(asked(self.now_ms)) for _ in range(count)]
        assert [told(answer) for answer in self.ledger.reserve(requests)] == [
            self.model.answer(request) for request in requests
        ]

    @precondition(lambda self: self.model.grants)
    @rule(data=st.data())
    def release(self, data) -> None:
        offer_id = data.draw(st.sampled_from(sorted(self.model.grants)))
        if int(offer_id[:12], 16) > self.now_ms - REPLAY_HORIZON_MS:
            self.before_release()
            self.ledger.release(offer_id)
            self.model.release(offer_id)
            self.released()

    @precondition(lambda self: self.model.grants)
    @rule(data=st.data())
    def redeem(self, data) -> None:
        """Whoever used it keeps it, whatever fails later; what failed before is gone."""
        offer_id = data.draw(st.sampled_from(sorted(self.model.grants)))
        if int(offer_id[:12], 16) > self.now_ms - REPLAY_HORIZON_MS:
            self.before_release()
            self.ledger.delivered(offer_id)
            if not self.model.grants[offer_id][2]:
                self.model.used.add(offer_id)
            self.position += 1
            used = [Redeemed(bytes.fromhex(offer_id), "ann", self.now_ms, offer_id, None, None)]
            self.ledger.commit(self.position, self.now_ms, offers=self.offers(), redemptions=used)
            self.committed = self.model.copy()

    def offers(self) -> list[Offer]:
        return []

    def before_release(self) -> None:
        """Nothing: an embedded ledger loses no offers."""

    def released(self) -> None:
        """Nothing: an embedded ledger forgets with a crash what was not committed."""

    @rule()
    def commit(self) -> None:
        self.position += 1
        self.ledger.commit(self.position, self.now_ms, offers=self.offers())
        self.committed = self.model.copy()

    @rule()
    def crash_and_rebuild(self) -> None:
        self.ledger.close()
        self.ledger = self.open()
        self.ledger.rebuild(self.position)
        self.model = self.committed.copy()

    @rule()
    def save_and_restore(self) -> None:
        self.commit()
        checkpoint.write(self.path, Checkpoint(self.position, self.now_ms, self.ledger.arrays(), self.ledger.objects()))
        self.ledger.close()
        self.ledger = self.open()
        found = checkpoint.read_newest(self.path).checkpoint
        assert found is not None
        self.ledger.restore(found.arrays, found.objects)

    @invariant()
    def nothing_is_oversold_and_no_code_given_twice(self) -> None:
        if hasattr(self, "ledger"):
            self.nothing_is_oversold()

    def nothing_is_oversold(self) -> None:
        for pool in POOLS:
            assert self.ledger.stock.available(pool) == len(self.model.stock.free(pool))
        held = [one for one in self.model.stock.taken if not one.released and one.number is not None]
        assert len({(one.take.pool, one.number) for one in held}) == len(held)
        for name in COST_FEN:
            given = self.ledger.stock.given().get(name)
            count = sum(
                not one.released for one in self.model.stock.taken for line in one.take.lines if line.benefit == name
            )
            assert (given.count if given else 0) == count
            assert (given.fen if given else 0) == count * COST_FEN[name]

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.folder.cleanup()


StockMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestStock = StockMachine.TestCase


class RedisStockMachine(StockMachine):
    """The same over Redis, which at any instant may be emptied, or fall back to what it knew at some commit."""

    url = ""

    @initialize()
    def begin(self) -> None:
        self.client = redis.Redis.from_url(self.url)
        self.client.flushdb()
        self.log = MemoryLog()
        self.has_lost = False
        super().begin()

    def open(self) -> RedisLedger:
        return RedisLedger(self.url, reservations=self.log)

    def offers(self) -> list[Offer]:
        """Whose offer it was is known from the offer, once this process does not know it any more."""
        self.has_lost = False
        return [
            Offer(offer_id, "a/one", grant[0], "sms", "text", "film", "marketing", self.now_ms + HOUR_MS, self.now_ms)
            for offer_id, grant in self.model.grants.items()
        ]

    def before_release(self) -> None:
        """Offers are not rebuilt: what nobody knows any more keeps counting, whatever is reported of it."""
        if self.has_lost:
            self.commit()

    def released(self) -> None:
        self.commit()  # a log brings the same release again; this machine would not

    @rule()
    def is_wiped(self) -> None:
        self.has_lost = True
        self.client.flushdb()

    @rule()
    def is_wiped_while_nobody_owns_it(self) -> None:
        self.has_lost = True
        self.client.flushdb()
        self.crash_and_rebuild()

    @rule()
    def knows_only_what_it_knew_before(self) -> None:
        """A replica is promoted that had not heard of the last acts: the keys of some commit, under another server."""
        kept = {key: self.client.dump(key) for key in self.client.scan_iter("*")}
        super().commit()
        self.has_lost = True
        self.client.flushdb()
        for key, value in kept.items():
            self.client.restore(key, 0, value)
        self.client.hset("{default}0:meta", "run", "another server")
        self.client.hset("{default}r", "run", "another server")

    def nothing_is_oversold(self) -> None:
        self.ledger.reserve([ReserveRequest("nobody", "nobody", self.now_ms, (ASKING,))])
        super().nothing_is_oversold()

    def teardown(self) -> None:
        super().teardown()
        self.client.close()


def test_redis_never_oversells_and_gives_no_code_twice_whatever_it_forgets(redis_url: str) -> None:
    """O3, F8, F10: the same machine, with a Redis that is wiped and rolled back between."""
    RedisStockMachine.url = redis_url
    steps = settings(max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(RedisStockMachine, settings=steps)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), steps=st.lists(st.sampled_from([0, 1, HOUR_MS // 2, 9 * HOUR_MS, 2 * DAY_MS]), max_size=25))
def test_how_requests_are_grouped_does_not_matter(data, steps: list[int]) -> None:
    """T4: any cut into calls gives the same answers, the same codes and the same memory."""
    requests, now_ms = [], T0
    for step in steps:
        now_ms += step
        requests.append(data.draw(asked(now_ms)))
    results = []
    for is_cut in (False, True):
        caps, stock, made = Caps(), Stock(), []
        for pool in POOLS:
            stock.lease(pool, 0, 3, 1)
        answers, first = [], 0
        while first < len(requests):
            size = data.draw(st.integers(1, 5)) if is_cut else len(requests)
            answers += [told(answer) for answer in stock.reserve(requests[first : first + size], caps, made)]
            first += size
        arrays = {name: array.tobytes() for name, array in stock.arrays().items()}
        results.append((answers, made, arrays, stock.objects()))
    assert results[0] == results[1]


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["lease", "draw", "back", "recall", "accept"]), st.integers(0, 5))))
def test_a_pool_gives_the_lowest_number_that_is_free(steps) -> None:
    """A set of numbers, whatever became of leases, draws, returns and recalls before."""
    pool, free, out, expired, returned, top, epoch = CodePool(), set(), [], set(), set(), 0, 1
    for step, size in steps:
        if step == "lease":
            pool.lease(top, size, epoch)
            free |= set(range(top, top + size))
            top += size
        elif step == "draw" and free:
            number = pool.draw()
            assert number == min(free)
            free.remove(number)
            out.append(number)
        elif step == "back" and out:
            number = out.pop(size % len(out))
            pool.give_back(number)
            (returned if number in expired else free).add(number)
        elif step == "recall":
            pool.recall(epoch)
            epoch += 1
            expired |= set(range(top))
            returned |= free
            free = set()
        elif step == "accept":
            pool.accept_return(pool.returned())
            returned = set()
        assert pool.available == len(free)
        assert {number for first, end in pool.returned() for number in range(first, end)} == returned
        pool = CodePool.from_state(pool.state()) if size == 5 else pool
