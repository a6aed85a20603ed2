"""Caps against a dict model, over every interleaving Hypothesis can think of (C1-C3, D3, D8, O3, T3, T4).

The model keeps plain tuples and shares no code with the engine.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.ledger.caps import REPLAY_HORIZON_MS, Caps
from engine.ledger.embedded import EmbeddedLedger
from engine.model import Option, ReserveAnswer, ReserveRequest, Rule, Scope
from engine.runtime import checkpoint
from engine.runtime.checkpoint import Checkpoint

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
T0 = 1_700_000_000_000
SPANS = [1, 60_000, HOUR_MS, DAY_MS, 3 * DAY_MS, 30 * DAY_MS]


class Model:
    """What SEMANTICS C says, in the plainest words: a list of grants and a count."""

    def __init__(self) -> None:
        self.grants: list[dict] = []
        self.ids: dict[str, dict] = {}

    def copy(self) -> Model:
        other = Model()
        other.grants = [dict(grant) for grant in self.grants]
        other.ids = {grant["id"]: grant for grant in other.grants}
        return other

    def answer(self, request: ReserveRequest) -> tuple[int, tuple[str, ...], bool, str | None]:
        for k, option in enumerate(request.options):
            known = self.ids.get(option.offer_id)
            if known is not None:
                return k, ("duplicate",) * k, True, known["code"]
        refusals: list[str] = []
        for k, option in enumerate(request.options):
            failed = next((one.reason for one in option.rules if self.refuses(request, option, one)), None)
            if failed is None:
                if not option.shadow:
                    grant = {
                        "id": option.offer_id,
                        "subject": request.subject,
                        "at_ms": request.now_ms,
                        "channel": option.channel,
                        "scenario": option.scenario,
                        "category": option.category,
                        "partner": option.partner,
                        "counts": option.counts,
                        "withheld": option.withheld,
                        "code": option.code,
                        "released": False,
                    }
                    self.grants.append(grant)
                    self.ids[option.offer_id] = grant
                return k, tuple(refusals), False, option.code
            refusals.append(failed)
        return -1, tuple(refusals), False, None

    def refuses(self, request: ReserveRequest, option: Option, one: Rule) -> bool:
        found = 0
        for grant in self.grants:
            if grant["released"] or grant["at_ms"] <= one.since_ms:
                continue
            if one.scope is Scope.DEPLOYMENT:
                found += grant["scenario"] == option.scenario and not grant["withheld"]
                continue
            if grant["subject"] != request.subject:
                continue
            if not one.uncounted_too and (not grant["counts"] or (grant["withheld"] and not option.withheld)):
                continue
            name = one.scope.name.lower()
            found += one.scope is Scope.ALL or grant[name] == getattr(option, name)
        return found >= one.most


def told(answer: ReserveAnswer) -> tuple[int, tuple[str, ...], bool, str | None]:
    return answer.granted, answer.refusals, answer.duplicate, answer.code


@st.composite
def asked(draw, now_ms: int) -> ReserveRequest:
    """A request at `now_ms`. Ids are few, so that repetitions happen."""
    options = []
    for _ in range(draw(st.integers(1, 3))):
        rules = []
        for _ in range(draw(st.integers(0, 4))):
            scope = draw(st.sampled_from(list(Scope)))
            if scope is Scope.DEPLOYMENT:
                # Calendar hours and days begin on whole minutes (C7).
                since_ms = now_ms - now_ms % draw(st.sampled_from([HOUR_MS, DAY_MS])) - 1
            else:
                since_ms = draw(st.sampled_from([0, *(now_ms - span for span in SPANS)]))
            rules.append(Rule(scope, since_ms, draw(st.integers(1, 4)), f"cap:{scope.name}", draw(st.booleans())))
        options.append(
            Option(
                offer_id=f"{now_ms:012x}{draw(st.integers(0, 3)):020x}",
                scenario=draw(st.sampled_from(["a/one", "a/two"])),
                channel=draw(st.sampled_from(["sms", "push"])),
                category=draw(st.sampled_from(["video", "travel"])),
                partner=draw(st.sampled_from(["p", "q"])),
                rules=tuple(rules),
                counts=draw(st.booleans()),
                withheld=draw(st.booleans()),
                shadow=draw(st.integers(0, 9)) == 0,
                code=draw(st.sampled_from([None, "code"])),
            )
        )
    subject = draw(st.sampled_from(["ann", "bob"]))
    return ReserveRequest(subject, subject, now_ms, tuple(options))


class CapMachine(RuleBasedStateMachine):
    """Reserve, release, commit, crash, checkpoint and let time pass; the answers must be the model's."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.ledger = EmbeddedLedger(self.path / "ledger.db")
        self.model = Model()
        self.committed = Model()
        self.position = -1
        self.now_ms = T0
        self.ask_for_the_longest_window()

    def ask_for_the_longest_window(self) -> None:
        """Grants are kept as long as the longest window that was ever asked for; the model keeps them all."""
        rules = (Rule(Scope.ALL, self.now_ms - max(SPANS), 1, "cap:all"),)
        option = Option(f"{0:032x}", "a/one", "sms", "video", "p", rules, shadow=True)
        self.ledger.reserve([ReserveRequest("nobody", "nobody", self.now_ms, (option,))])

    @rule(span=st.sampled_from([1, 59_000, HOUR_MS - 1, 7 * HOUR_MS, DAY_MS]))
    def time_passes(self, span: int) -> None:
        self.now_ms += span

    @rule(data=st.data(), count=st.integers(1, 4))
    def reserve(self, data, count: int) -> None:
        requests = [data.draw(asked(self.now_ms)) for _ in range(count)]
        assert [told(answer) for answer in self.ledger.reserve(requests)] == [
            self.model.answer(request) for request in requests
        ]

    @precondition(lambda self: self.model.grants)
    @rule(data=st.data())
    def release(self, data) -> None:
        grant = data.draw(st.sampled_from(list(self.model.grants)))
        if grant["at_ms"] > self.now_ms - REPLAY_HORIZON_MS:
            self.ledger.release(grant["id"])
            grant["released"] = True

    @rule()
    def commit(self) -> None:
        self.position += 1
        self.ledger.commit(self.position, self.now_ms)
        self.committed = self.model.copy()

    @rule()
    def crash_and_rebuild(self) -> None:
        self.ledger.close()
        self.ledger = EmbeddedLedger(self.path / "ledger.db")
        assert self.ledger.position() == self.position
        self.ledger.rebuild(self.position)
        self.ask_for_the_longest_window()
        self.model = self.committed.copy()

    @rule()
    def save_and_restore(self) -> None:
        self.commit()
        state = Checkpoint(self.position, self.now_ms, self.ledger.arrays(), self.ledger.objects())
        checkpoint.write(self.path, state)
        self.ledger.close()
        self.ledger = EmbeddedLedger(self.path / "ledger.db")
        found = checkpoint.read_newest(self.path).checkpoint
        assert found is not None
        self.ledger.restore(found.arrays, found.objects)

    @invariant()
    def the_store_never_holds_more_than_was_granted(self) -> None:
        if hasattr(self, "ledger"):
            assert self.ledger.counts()["reservations"] == len(self.committed.grants)

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.folder.cleanup()


CapMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestCaps = CapMachine.TestCase


@settings(max_examples=40, deadline=None)
@given(data=st.data(), steps=st.lists(st.sampled_from([0, 1, HOUR_MS // 2, 9 * HOUR_MS, 2 * DAY_MS]), max_size=25))
def test_how_requests_are_grouped_does_not_matter(data, steps: list[int]) -> None:
    """T4, with sweeps in between: any cut into calls gives the same answers and the same memory."""
    requests, now_ms = [], T0
    for step in steps:
        now_ms += step
        requests.append(data.draw(asked(now_ms)))
    whole, cut = Caps(), Caps()
    expected = [told(answer) for answer in whole.reserve(requests, [])]
    got, first = [], 0
    while first < len(requests):
        size = data.draw(st.integers(1, 5))
        got += [told(answer) for answer in cut.reserve(requests[first : first + size], [])]
        first += size
    assert got == expected
    assert whole.count == cut.count
    assert np.array_equal(whole.arrays()["caps.grants"], cut.arrays()["caps.grants"])


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_many_subjects_grow_the_tables_without_mixing(count: int, seed: int) -> None:
    """Growth of the tables loses nobody and mixes nobody up."""
    caps = Caps()
    rng = np.random.default_rng(seed)
    subjects = [f"user-{number}" for number in rng.permutation(count).tolist()]
    now_ms = T0

    def once(subject: str, number: int) -> ReserveRequest:
        rules = (Rule(Scope.ALL, 0, 1, "cap:all"),)
        option = Option(f"{now_ms:012x}{number:020x}", "a/s", "sms", "c", "p", rules)
        return ReserveRequest(subject, subject, now_ms, (option,))

    first = caps.reserve([once(subject, number) for number, subject in enumerate(subjects)], [])
    assert all(answer.granted == 0 for answer in first)
    now_ms = T0 + 40 * DAY_MS
    again = caps.reserve([once(subject, number) for number, subject in enumerate(subjects)], [])
    assert all(answer.refusals == ("cap:all",) for answer in again), "once is for ever, sweeps or not"
