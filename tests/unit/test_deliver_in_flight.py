"""Submits on their way: cancelled when they take too long, each after its own time (D7, G1)."""

from __future__ import annotations

import asyncio
import time

from engine.deliver.in_flight import InFlight


class Submits:
    def __init__(self) -> None:
        self.in_flight = InFlight()
        self.told: list[tuple[int, str, float]] = []
        self.begin_s = time.monotonic()

    def start(self, number: int, takes_s: float, timeout_s: float = 0.1) -> None:
        async def submit() -> None:
            self.in_flight.begins(timeout_s)
            outcome = "answered"
            try:
                await asyncio.sleep(takes_s)
            except asyncio.CancelledError:
                outcome = "cancelled"
                await asyncio.sleep(0)
            self.told.append((number, outcome, time.monotonic() - self.begin_s))
            self.in_flight.ends()

        self.in_flight.start(submit())


def test_each_submit_is_cancelled_after_its_time_and_others_are_left_alone() -> None:
    async def work() -> Submits:
        submits = Submits()
        submits.start(1, 0.01)
        submits.start(2, 9.0)
        await asyncio.sleep(0.05)
        submits.start(3, 9.0)
        submits.start(4, 0.02)
        assert len(submits.in_flight) == 3, "the first has its answer"
        await asyncio.sleep(0.3)
        assert not submits.in_flight
        submits.start(5, 9.0)  # after a while with nothing
        await asyncio.sleep(0.15)
        return submits

    told = asyncio.run(work()).told
    assert [one[:2] for one in told] == [
        (1, "answered"),
        (4, "answered"),
        (2, "cancelled"),
        (3, "cancelled"),
        (5, "cancelled"),
    ]
    assert told[2][2] >= 0.1
    assert told[3][2] >= 0.15
    assert told[4][2] >= 0.45


def test_a_submit_that_has_not_begun_when_the_process_sleeps_is_not_cancelled_before_it_can_say_so() -> None:
    """F4: a process that is stopped between claim and submit, for longer than a submit may take."""

    async def work() -> Submits:
        submits = Submits()
        submits.start(1, 9.0, timeout_s=0.02)
        await asyncio.sleep(0)
        submits.start(2, 0.0, timeout_s=0.02)
        time.sleep(0.05)
        await submits.in_flight.finish(1.0)
        return submits

    assert sorted(one[:2] for one in asyncio.run(work()).told) == [(1, "cancelled"), (2, "answered")]


def test_what_has_no_answer_in_the_end_is_cancelled_and_waited_for() -> None:
    async def work() -> Submits:
        submits = Submits()
        submits.start(1, 0.01, timeout_s=9.0)
        submits.start(2, 9.0, timeout_s=9.0)
        await submits.in_flight.finish(0.05)
        assert not submits.in_flight
        return submits

    assert [one[:2] for one in asyncio.run(work()).told] == [(1, "answered"), (2, "cancelled")]
