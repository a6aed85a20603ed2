"""Consent of a person with several numbers against a model of dictionaries (rules A2, A4)."""

from __future__ import annotations

import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.decide.profiles import ProfileTable
from tests.oracle.decide_world import NOON_MS, consent, profile

SLOTS, PURPOSES = 5, ("marketing.sms", "location")
slots, purposes = st.integers(0, SLOTS - 1), st.sampled_from(PURPOSES)
instants = st.integers(NOON_MS, NOON_MS + 6)


class PersonMachine(RuleBasedStateMachine):
    """Say yes and no on any number, link, unlink, close, restart; each number stands as the model says.

    said     (slot, purpose) -> (instant, whether yes), own words and those that bind it
    refused  (person, purpose) -> the person's newest no
    """

    @initialize()
    def begin(self) -> None:
        self.profiles = ProfileTable()
        self.profiles.ensure(SLOTS)
        self.person: dict[int, str] = {}
        self.said: dict[tuple[int, str], tuple[int, bool]] = {}
        self.refused: dict[tuple[str, str], int] = {}
        self.void: dict[int, int] = {}

    @rule(slot=slots, purpose=purposes, granted=st.booleans(), at_ms=instants)
    def say(self, slot: int, purpose: str, granted: bool, at_ms: int) -> None:
        counted = self.profiles.apply_consent(slot, consent(purpose, granted, at_ms))
        is_of_this_life = at_ms > self.void.get(slot, -1)
        expected = is_of_this_life and at_ms >= self.said.get((slot, purpose), (0, True))[0]
        assert counted is expected
        bound = set()
        if not granted and is_of_this_life and slot in self.person:
            key = (self.person[slot], purpose)
            self.refused[key] = max(at_ms, self.refused.get(key, 0))
            bound = self.bind(key)
        if expected:
            self.said[slot, purpose] = (at_ms, granted)
        self.check_told(bound - {slot})

    @rule(slot=slots, person=st.sampled_from([None, "p", "q"]))
    def link(self, slot: int, person: str | None) -> None:
        self.profiles.apply_profile(slot, profile(person=person), NOON_MS)
        self.person.pop(slot, None)
        bound = set()
        if person is not None:
            self.person[slot] = person
            for purpose in PURPOSES:
                key = (person, purpose)
                at_ms, granted = self.said.get((slot, purpose), (0, True))
                if not granted:
                    self.refused[key] = max(at_ms, self.refused.get(key, 0))
                bound |= self.bind(key)
        self.check_told(bound)

    def bind(self, key: tuple[str, str]) -> set[int]:
        if key not in self.refused:
            return set()
        bound = {
            slot
            for slot, person in self.person.items()
            if person == key[0] and self.said.get((slot, key[1]), (0, True))[0] <= self.refused[key]
        }
        bound -= {slot for slot in bound if self.said.get((slot, key[1])) == (self.refused[key], False)}
        for slot in bound:
            self.said[slot, key[1]] = (self.refused[key], False)
        return bound

    @rule(slot=slots, at_ms=instants)
    def close(self, slot: int, at_ms: int) -> None:
        self.profiles.close(slot, at_ms)
        self.person.pop(slot, None)
        self.void[slot] = max(at_ms, self.void.get(slot, -1))
        for purpose in PURPOSES:
            self.said.pop((slot, purpose), None)
        self.check_told(set())

    @rule()
    def restart(self) -> None:
        again = ProfileTable()
        again.restore(self.profiles.arrays(), json.loads(json.dumps(self.profiles.objects())))
        self.profiles = again

    def check_told(self, slots: set[int]) -> None:
        assert {one.slot for one in self.profiles.take_bound()} == slots

    @invariant()
    def every_number_stands_as_the_model_says(self) -> None:
        for slot in range(SLOTS) if hasattr(self, "profiles") else ():
            for purpose in PURPOSES:
                found = self.profiles.evidence(slot, purpose)
                told = None if found is None else (found.at_ms, found.granted)
                assert told == self.said.get((slot, purpose))


PersonMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestPersons = PersonMachine.TestCase
