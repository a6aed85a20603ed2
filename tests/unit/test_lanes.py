"""Partitions of a worker side by side."""

from __future__ import annotations

import threading

import pytest

from engine.runtime.cluster.lanes import Lanes, OneByOne


def test_what_waits_in_one_lane_does_not_hold_up_the_others():
    """Each of four waits until all four are there."""
    lanes = Lanes(4)
    there = threading.Barrier(4)
    done: list[int] = []

    def work(number: int) -> None:
        there.wait(10)
        done.append(number)

    lanes.each(work, range(4))
    assert sorted(done) == [0, 1, 2, 3]
    lanes.each(work, [])
    lanes.close()


@pytest.mark.parametrize("bad", [0, 2])
def test_an_error_is_told_once_every_lane_is_through(bad):
    lanes = Lanes(3)
    done: list[int] = []

    def work(number: int) -> None:
        if number == bad:
            raise ValueError("a bug")
        done.append(number)

    with pytest.raises(ValueError, match="a bug"):
        lanes.each(work, range(3))
    assert sorted(done) == [number for number in range(3) if number != bad]
    lanes.close()


def test_one_by_one_keeps_the_order():
    done: list[int] = []
    OneByOne().each(done.append, [3, 1, 2])
    assert done == [3, 1, 2]
