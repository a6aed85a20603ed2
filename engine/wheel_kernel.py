"""An array timing wheel (T8): millions of timers, one-second buckets, exact order, cancelled lazily.

A timer is (fire_ms, key, generation). The wheel does not know what a key means: whoever pops one looks up whether
it still holds that generation and drops it otherwise, so cancelling costs nothing. Timers come out by fire_ms, then
key, however the calls were cut, because what is about to fire passes through a small heap.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.kernels import inlined_lean_kernel, lean_kernel

BUCKETS = 1 << 17
"""36 h of seconds; a timer further off waits in the last bucket and is placed again when the wheel comes round."""

TIMER = np.dtype(
    [
        ("fire_ms", "i8"),
        ("key", "i8"),
        ("generation", "u4"),
        ("next", "i4"),  # of the same bucket, or of the free list; -1 at the end
    ],
    align=True,
)

CURSOR_S, FREE, HEAPED, WAITING, UNUSED = 0, 1, 2, 3, 4
CONTROLS = 5


class Wheel(NamedTuple):
    """The wheel's arrays; all of them are its state, and what a checkpoint keeps.

    head     int32[BUCKETS]   first timer of each second, -1 for none
    timer    TIMER[N]         pool; N bounds the number of timers, cancelled ones included
    heap     int32[N]         binary heap of the timers of seconds already reached
    control  int64[CONTROLS]  second reached (CURSOR_S), free list (FREE), timers in the heap (HEAPED), in buckets
                              (WAITING), timers never used yet (UNUSED: rows from len(timer) - UNUSED on)
    """

    head: np.ndarray
    timer: np.ndarray
    heap: np.ndarray
    control: np.ndarray


def new_wheel(capacity: int) -> Wheel:
    """Build an empty wheel with room for `capacity` timers."""
    control = np.zeros(CONTROLS, np.int64)
    control[FREE] = -1
    control[UNUSED] = capacity
    return Wheel(np.full(BUCKETS, -1, np.int32), np.zeros(capacity, TIMER), np.zeros(capacity, np.int32), control)


def grown_wheel(wheel: Wheel, capacity: int) -> Wheel:
    """Copy the wheel into larger arrays; timers keep their rows."""
    more = capacity - len(wheel.timer)
    assert more > 0
    timer = np.concatenate((wheel.timer, np.zeros(more, TIMER)))
    heap = np.concatenate((wheel.heap, np.zeros(more, np.int32)))
    control = wheel.control.copy()
    control[UNUSED] += more
    return Wheel(wheel.head, timer, heap, control)


@inlined_lean_kernel
def free_timers(wheel: Wheel) -> int:
    """Count the timers that can still be armed without growing."""
    control = wheel.control
    return int(wheel.timer.shape[0] - control[HEAPED] - control[WAITING])


@inlined_lean_kernel
def comes_before(timer: np.ndarray, first: int, second: int) -> bool:
    """Say whether timer row `first` fires before timer row `second`."""
    if timer[first].fire_ms != timer[second].fire_ms:
        return bool(timer[first].fire_ms < timer[second].fire_ms)
    return bool(timer[first].key < timer[second].key)


@lean_kernel
def push(wheel: Wheel, row: int) -> None:
    """Put a timer row into the heap."""
    heap, timer = wheel.heap, wheel.timer
    place = wheel.control[HEAPED]
    wheel.control[HEAPED] += 1
    while place > 0:
        parent = (place - 1) >> 1
        if not comes_before(timer, row, heap[parent]):
            break
        heap[place] = heap[parent]
        place = parent
    heap[place] = row


@inlined_lean_kernel
def settle(wheel: Wheel, row: int) -> None:
    """Place a filled timer row: into the heap if its second is reached, else into its bucket."""
    control = wheel.control
    second = wheel.timer[row].fire_ms // 1000
    if second <= control[CURSOR_S]:
        push(wheel, row)
        return
    bucket = min(second, control[CURSOR_S] + BUCKETS - 1) % BUCKETS
    wheel.timer[row].next = wheel.head[bucket]
    wheel.head[bucket] = row
    control[WAITING] += 1


@inlined_lean_kernel
def arm(wheel: Wheel, fire_ms: int, key: int, generation: int) -> None:
    """Add a timer.  The caller has made sure of room (`free_timers`) and popped once since time began.

    fire_ms  int64   epoch ms >= 0; in the past: it is the next to pop
    key      int64   the owner, and the order of timers of one instant

    Cost: O(1); O(log n) where its second is already reached.
    """
    control = wheel.control
    row = control[FREE]
    if row >= 0:
        control[FREE] = wheel.timer[row].next
    else:
        row = wheel.timer.shape[0] - control[UNUSED]
        control[UNUSED] -= 1
    wheel.timer[row].fire_ms = fire_ms
    wheel.timer[row].key = key
    wheel.timer[row].generation = generation
    settle(wheel, row)


@lean_kernel
def turn(wheel: Wheel, now_ms: int) -> None:
    """Move the cursor on until a timer is in the heap or the second of `now_ms` is reached."""
    control = wheel.control
    now_s = now_ms // 1000
    while control[HEAPED] == 0 and control[CURSOR_S] < now_s:
        if control[WAITING] == 0:
            control[CURSOR_S] = now_s
            return
        control[CURSOR_S] += 1
        bucket = control[CURSOR_S] % BUCKETS
        row = wheel.head[bucket]
        if row < 0:
            continue
        wheel.head[bucket] = -1
        while row >= 0:
            following = wheel.timer[row].next
            control[WAITING] -= 1
            settle(wheel, row)
            row = following


@inlined_lean_kernel
def is_reached(wheel: Wheel, now_ms: int) -> bool:
    """Say whether `pop` may have anything to do at `now_ms`; False is certain."""
    return bool(wheel.control[HEAPED] > 0 or wheel.control[CURSOR_S] < now_ms // 1000)


@lean_kernel
def pop(wheel: Wheel, now_ms: int) -> int:
    """Take the first timer with fire_ms <= now_ms; its row, or -1 if there is none.

    The row stays readable until the next `arm`.  Cost: O(log of the timers of one second), and one look per second
    that passed while timers wait.  Oracle: a sorted list (tests/unit/test_wheel.py).
    """
    control, heap, timer = wheel.control, wheel.heap, wheel.timer
    if control[HEAPED] == 0:
        turn(wheel, now_ms)
        if control[HEAPED] == 0:
            return -1
    row = heap[0]
    if timer[row].fire_ms > now_ms:
        return -1
    control[HEAPED] -= 1
    last = heap[control[HEAPED]]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= control[HEAPED]:
            break
        if child + 1 < control[HEAPED] and comes_before(timer, heap[child + 1], heap[child]):
            child += 1
        if not comes_before(timer, heap[child], last):
            break
        heap[place] = heap[child]
        place = child
    heap[place] = last
    timer[row].next = control[FREE]
    control[FREE] = row
    return int(row)
