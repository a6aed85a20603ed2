"""Partitions of a worker side by side, in one thread."""

from __future__ import annotations

import socket
import threading
import time
from functools import partial

import pytest

from engine.errors import StoreUnavailable
from engine.ledger.redis.shard import Turn
from engine.runtime.cluster.lanes import Lanes, OneByOne


def test_what_waits_in_one_lane_does_not_hold_up_the_others():
    """Each of four waits until all four have come."""
    lanes, there, done = Lanes(), set(), []

    def work(number: int) -> None:
        there.add(number)
        while len(there) < 4:
            assert lanes.until(lambda: len(there) == 4, lambda wait_s: None, 5.0)
        done.append(number)

    for number in range(4):
        lanes.begin(partial(work, number))
    lanes.finish()
    assert sorted(done) == [0, 1, 2, 3]
    assert not lanes.are_busy


def test_a_lane_goes_on_once_its_reply_is_there_and_others_meanwhile():
    lanes, done = Lanes(), []
    ends = [socket.socketpair() for _ in range(2)]

    def work(number: int) -> None:
        lanes.reply(ends[number][0])
        done.append((number, ends[number][0].recv(10)))

    for number in range(2):
        lanes.begin(partial(work, number))
    lanes.go_on()
    assert done == []
    ends[1][1].send(b"second")
    lanes.go_on()
    assert done == [(1, b"second")]
    ends[0][1].send(b"first")
    lanes.finish()
    assert done == [(1, b"second"), (0, b"first")]
    for pair in ends:
        for end in pair:
            end.close()


def test_a_lane_without_an_answer_waits_in_its_socket_after_a_while(monkeypatch):
    """Which knows when to give up, and says so."""
    monkeypatch.setattr("engine.runtime.cluster.lanes._MOST_S", 0.02)
    lanes = Lanes()
    mine, other = socket.socketpair()
    mine.settimeout(0.02)

    def work() -> None:
        lanes.reply(mine)
        mine.recv(1)

    lanes.begin(work)
    with pytest.raises(TimeoutError):
        lanes.finish()
    mine.close()
    other.close()


def test_what_is_waited_for_is_looked_for_and_waited_for_no_longer_than_said():
    lanes, looks = Lanes(), []

    def look(wait_s: float) -> None:
        looks.append(wait_s)
        time.sleep(wait_s)

    lanes.begin(lambda: lanes.until(lambda: False, look, 0.05) or None)
    begun_s = time.monotonic()
    lanes.finish()
    assert 0.04 < time.monotonic() - begun_s < 5
    assert max(looks) > 0, "a thread that only asks and never waits burns a core"


@pytest.mark.parametrize("bad", [0, 2])
def test_an_error_is_told_and_the_other_lanes_come_to_their_end(bad):
    lanes, done = Lanes(), []

    def work(number: int) -> None:
        lanes.give_way()
        if number == bad:
            raise StoreUnavailable("redis is gone")
        done.append(number)

    for number in range(3):
        lanes.begin(partial(work, number))
    with pytest.raises(StoreUnavailable, match="redis is gone"):
        lanes.finish()
    assert done == [number for number in range(3) if number != bad]


def test_closing_gives_up_what_is_under_way_and_lets_go_of_what_it_held():
    lanes, turn, ended = Lanes(), Turn(Lanes()), []

    def work() -> None:
        with turn:
            lanes.until(lambda: False, lambda wait_s: None, 60)
        ended.append(True)

    lanes.begin(work)
    lanes.go_on()
    lanes.close()
    assert ended == []
    assert not lanes.are_busy
    turn.acquire()
    turn.release()


def test_a_turn_is_one_lanes_at_a_time_and_may_be_taken_again_within():
    lanes, order = Lanes(), []
    turn = Turn(lanes)

    def work(number: int) -> None:
        with turn, turn:
            order.append((number, "in"))
            lanes.give_way()
            order.append((number, "out"))

    for number in range(3):
        lanes.begin(partial(work, number))
    lanes.finish()
    assert order == [(number, what) for number in range(3) for what in ("in", "out")]


def test_whoever_began_the_lanes_lets_them_go_on_while_one_has_its_turn():
    """The engine itself asks a ledger that a lane is mending."""
    lanes, order = Lanes(), []
    turn = Turn(lanes)

    def work() -> None:
        with turn:
            lanes.give_way()
            lanes.give_way()
            order.append("lane")

    lanes.begin(work)
    lanes.go_on()
    with turn:
        order.append("engine")
    assert order == ["lane", "engine"]


@pytest.mark.parametrize("by", ["reply", "until"])
def test_a_reply_reaches_the_lane_that_has_a_turn_while_others_wait_for_the_turn(by):
    """F8: shards heal one another; one that waits for another's turn must not keep it from its answer."""
    lanes, order, there = Lanes(), [], []
    turn = Turn(lanes)
    here, redis = socket.socketpair()

    def first() -> None:
        with turn:
            if by == "reply":
                lanes.reply(here)
            else:
                assert lanes.until(lambda: there, time.sleep, 5)
            order.append("first")

    def second() -> None:
        with turn:
            order.append("second")

    for work in (first, second):
        lanes.begin(work)
    lanes.go_on()
    redis.send(b"+OK")
    there.append(True)
    give_up_s = time.monotonic() + 5
    while lanes.are_busy and time.monotonic() < give_up_s:
        lanes.go_on()
    assert order == ["first", "second"]
    here.close()
    redis.close()


def test_a_turn_is_one_threads_at_a_time():
    turn, count = Turn(OneByOne()), [0]

    def work() -> None:
        for _ in range(200):
            with turn:
                seen = count[0]
                time.sleep(0)
                count[0] = seen + 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert count == [600]


def test_outside_a_lane_nothing_else_is_done():
    for lanes in (Lanes(), OneByOne()):
        assert not lanes.reply(None)
        assert not lanes.until(lambda: False, lambda wait_s: None, 60)
        assert not lanes.give_way()


def test_one_by_one_keeps_the_order():
    done: list[int] = []
    lanes = OneByOne()
    for number in (3, 1, 2):
        lanes.begin(partial(done.append, number))
    assert done == [3, 1, 2]
