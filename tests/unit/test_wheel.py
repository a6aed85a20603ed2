"""The timing wheel against a sorted list (T8): exact order, far timers, growth, a copy that goes on alike."""

from __future__ import annotations

import random

import numpy as np
import pytest

from engine.wheel_kernel import BUCKETS, Wheel, arm, free_timers, grown_wheel, new_wheel, pop

START = 1_700_000_000_000
HORIZON_MS = BUCKETS * 1000


def take(wheel: Wheel, now_ms: int) -> list[tuple[int, int, int]]:
    taken = []
    while (row := pop(wheel, now_ms)) >= 0:
        timer = wheel.timer[row]
        taken.append((int(timer["fire_ms"]), int(timer["key"]), int(timer["generation"])))
    return taken


def started(capacity: int) -> Wheel:
    wheel = new_wheel(capacity)
    assert pop(wheel, START) == -1
    return wheel


def test_timers_come_by_instant_and_then_by_key() -> None:  # T8
    wheel = started(8)
    for fire_ms, key in ((START + 1500, 7), (START + 1200, 9), (START + 1500, 3), (START + 90_000, 1)):
        arm(wheel, fire_ms, key, 0)
    assert [key for _, key, _ in take(wheel, START + 1500)] == [9, 3, 7]
    assert take(wheel, START + 89_999) == []
    assert [key for _, key, _ in take(wheel, START + 90_000)] == [1]


def test_a_timer_fires_when_its_millisecond_is_reached_and_not_before() -> None:  # T8
    wheel = started(1)
    arm(wheel, START + 1500, 1, 0)
    assert take(wheel, START + 1499) == []
    assert take(wheel, START + 1500) == [(START + 1500, 1, 0)]


def test_a_timer_in_the_past_is_the_next_to_come() -> None:  # T8
    wheel = started(3)
    arm(wheel, START + 10, 5, 0)
    arm(wheel, START - 60_000, 6, 0)
    assert [key for _, key, _ in take(wheel, START + 10)] == [6, 5]


def test_a_timer_beyond_the_wheels_horizon_waits_its_turn() -> None:  # T8
    wheel = started(2)
    arm(wheel, START + 3 * HORIZON_MS + 5, 1, 0)
    arm(wheel, START + 3 * HORIZON_MS + 4, 2, 0)
    assert take(wheel, START + 3 * HORIZON_MS + 3) == []
    assert [key for _, key, _ in take(wheel, START + 4 * HORIZON_MS)] == [2, 1]


def test_an_empty_wheel_leaps_over_years() -> None:
    wheel = started(1)
    assert pop(wheel, START + 10**12) == -1
    arm(wheel, START + 10**12 + 1, 1, 0)
    assert len(take(wheel, START + 10**12 + 1)) == 1


def test_rows_are_used_again_and_the_wheel_grows_with_its_timers_in_place() -> None:
    wheel = started(2)
    for round_ms in range(0, 10_000, 1000):
        arm(wheel, START + round_ms, 1, 0)
        arm(wheel, START + round_ms + 1, 2, 4_000_000_000)
        assert free_timers(wheel) == 0
        assert take(wheel, START + round_ms + 1)[1][2] == 4_000_000_000
    arm(wheel, START + 20_000, 1, 0)
    arm(wheel, START + 21_000, 2, 0)
    wheel = grown_wheel(wheel, 5)
    assert free_timers(wheel) == 3
    arm(wheel, START + 20_500, 3, 0)
    assert [key for _, key, _ in take(wheel, START + 30_000)] == [1, 3, 2]


@pytest.mark.parametrize("seed", range(8))
def test_the_order_is_that_of_a_sorted_list_however_time_is_cut(seed: int) -> None:  # T4, T8
    source = random.Random(seed)
    wheel, expected, now = started(4), [], START
    for _ in range(400):
        for _ in range(source.randrange(6)):
            ahead = source.choice((0, 1, 900, 1000, 30_000, 1_800_000, 86_400_000, 2 * HORIZON_MS))
            timer = (now + ahead + source.randrange(3000) - 500, source.randrange(50), source.randrange(9))
            if free_timers(wheel) == 0:
                wheel = grown_wheel(wheel, 2 * len(wheel.timer))
            arm(wheel, *timer)
            expected.append(timer)
        now += source.choice((0, 1, 500, 1000, 7000, 2_000_000, 90_000_000))
        due = sorted(timer[:2] for timer in expected if timer[0] <= now)
        expected = [timer for timer in expected if timer[0] > now]
        if source.random() < 0.1:
            wheel = Wheel(*(np.array(array) for array in wheel))
        assert [timer[:2] for timer in take(wheel, now)] == due
