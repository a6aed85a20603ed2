"""Held events: a list of each user sorted by (at, accuracy, id), and a queue of each feed in order of arrival.

A feed holds each event equally long, so its queue is sorted by due instant too: the next due is the head of some
queue. When an event falls due, those of its user that sort before it go on first; so only the first of a user ever
leaves, and a user's list needs no search but where an event arrives out of order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from engine.kernels import inlined_lean_kernel, lean_kernel
from engine.model import EventType

int64: Any = np.int64
_PING, _USAGE = int(EventType.PING), int(EventType.USAGE)
_NO_ACCURACY_M = np.float32(np.inf)

DONE, MORE_OUT, MORE_ROWS, MORE_TEXT = range(4)
FOREVER = 1 << 62

# Places in Buffer.control
DUE, NOW, LIVE, UNUSED, FREE, TEXT_USED, TEXT_LIVE, NUMBER, EARLY, OUT, LATE, WANTED = range(12)
CONTROLS = 12

# Places in Limits.most
EVENTS, TEXT_BYTES, OF_A_USER = range(3)

LINK = np.dtype(
    [
        ("due_ms", "i8"),  # goes on when `now` reaches this
        ("position", "i8"),  # of its record
        ("number", "i8"),  # order of arrival
        ("earlier", "i4"),  # of the same user; of the first: the last
        ("later", "i4"),
        ("before", "i4"),  # of the same queue
        ("after", "i4"),  # of the same queue, or of the free rows
        ("queue", "i4"),  # -1: a free row
        ("count", "i4"),  # of the first of a user: how many the user has
    ],
    align=True,
)


class Buffer(NamedTuple):
    """Everything that is held.

    event    EVENT[S]     as decoded; the span of a usage event lies in `text`, that of a ping is empty
    link     LINK[S]
    text     uint8[B]     bytes of usage events, which filters may read; what is gone leaves a gap until repacked
    first    int32[U]     first held event of each user, -1
    queue    int32[Q, 2]  first and last of each queue, -1; queue 0 holds what a checkpoint brought back
    control  int64[CONTROLS]
    """

    event: np.ndarray
    link: np.ndarray
    text: np.ndarray
    first: np.ndarray
    queue: np.ndarray
    control: np.ndarray


class Limits(NamedTuple):
    """How long, and how much at most.

    queue_of  int32[F]  queue of each feed, -1 for one that holds nothing
    hold_ms   int64[F]
    most      int64[3]  events held, bytes of their texts, events of one user
    """

    queue_of: np.ndarray
    hold_ms: np.ndarray
    most: np.ndarray


class Out(NamedTuple):
    """What goes on, up to control[OUT].

    event     EVENT[K]  a held one's `record` is the number of records of the block, plus its place in `position`
    position  int64[K]  up to control[LATE]
    """

    event: np.ndarray
    position: np.ndarray


@lean_kernel
def advance(
    buffer: Buffer,
    limits: Limits,
    out: Out,
    events: np.ndarray,
    record_position: np.ndarray,
    data: np.ndarray,
    first_row: int,
    until_ms: int,
) -> tuple[int, int]:
    """Hold or pass the rows from `first_row` on, each after what is due by its `now`; then what is due by `until_ms`.

    events           EVENT[N]  in log order; only pings and usage events without `drop` are held
    record_position  int64[M]  positions of the records that `events.record` names
    data             uint8[B]  bytes that spans of `events` lie in

    Returns (next row, DONE or what is lacking): a row is taken wholly or not at all, so the caller empties `out`, or
    grows what lacks, and calls again.  Cost: one copy of 96 bytes a row passed, three a row held (bench/pipeline.py).
    Oracle: tests/property/test_reorder.py.
    """
    control = buffer.control
    records = record_position.shape[0]
    for row in range(first_row, events.shape[0]):
        event = events[row]
        while control[DUE] <= event.now_ms:
            if not let_go(buffer, out, max(control[DUE], control[NOW]), records):
                return row, MORE_OUT
        control[NOW] = max(control[NOW], int64(event.now_ms))
        queue = int64(limits.queue_of[event.feed])
        if queue < 0 or event.drop != 0 or (event.type != _PING and event.type != _USAGE):
            if control[OUT] == out.event.shape[0]:
                return row, MORE_OUT
            out.event[control[OUT]] = event
            control[OUT] += 1
            continue
        size = int64(event.span_end) - int64(event.span_start) if event.type == _USAGE else int64(0)
        if not make_place(buffer, limits, out, int64(event.user), size, records):
            return row, MORE_OUT
        if control[FREE] < 0 and control[UNUSED] == buffer.link.shape[0]:
            return row, MORE_ROWS
        if control[TEXT_USED] + size > buffer.text.shape[0]:
            control[WANTED] = size
            return row, MORE_TEXT
        due_ms = int64(event.now_ms) + limits.hold_ms[event.feed]
        place = hold(buffer, events, row, record_position[event.record], due_ms, queue)
        held = buffer.event[place]
        held.span_start = control[TEXT_USED]
        held.span_end = control[TEXT_USED] + size
        for at in range(size):
            buffer.text[control[TEXT_USED] + at] = data[event.span_start + at]
        control[TEXT_USED] += size
        control[TEXT_LIVE] += size
    while control[DUE] <= until_ms:
        if not let_go(buffer, out, max(control[DUE], control[NOW]), records):
            return events.shape[0], MORE_OUT
    control[NOW] = max(control[NOW], until_ms if until_ms < FOREVER else control[NOW])
    return events.shape[0], DONE


@inlined_lean_kernel
def make_place(buffer: Buffer, limits: Limits, out: Out, user: int, size: int, records: int) -> bool:
    """Let events go early until one more can be held, counted; False if `out` is full before."""
    control = buffer.control
    while control[LIVE] > 0:
        first = int64(buffer.first[user])
        if first >= 0 and buffer.link[first].count >= limits.most[OF_A_USER]:
            if not let_go_first(buffer, out, first, control[NOW], records):
                return False
        elif control[LIVE] >= limits.most[EVENTS] or control[TEXT_LIVE] + size > limits.most[TEXT_BYTES]:
            if not let_go(buffer, out, control[NOW], records):
                return False
        else:
            return True
        control[EARLY] += 1
    return True


@lean_kernel
def hold(buffer: Buffer, events: np.ndarray, row: int, position: int, due_ms: int, queue: int) -> int:
    """Put a row into its user's list and its queue; return its place. There is room."""
    control = buffer.control
    place = control[FREE]
    if place >= 0:
        control[FREE] = buffer.link[place].after
    else:
        place = control[UNUSED]
        control[UNUSED] += 1
    buffer.event[place] = events[row]
    link = buffer.link[place]
    link.due_ms = due_ms
    link.position = position
    link.number = control[NUMBER]
    control[NUMBER] += 1
    control[LIVE] += 1
    control[DUE] = min(control[DUE], due_ms)
    link.queue = queue
    link.after = -1
    link.before = buffer.queue[queue, 1]
    if link.before >= 0:
        buffer.link[link.before].after = place
    else:
        buffer.queue[queue, 0] = place
    buffer.queue[queue, 1] = place
    sort_in(buffer, place)
    return int(place)


@lean_kernel
def sort_in(buffer: Buffer, place: int) -> None:
    """Put a row into its user's list: most come in order, so the search begins at the end."""
    link = buffer.link[place]
    user = int64(buffer.event[place].user)
    first = int64(buffer.first[user])
    link.later = -1
    link.count = 1
    if first < 0:
        link.earlier = place
        buffer.first[user] = place
        return
    last = int64(buffer.link[first].earlier)
    at = last
    while at >= 0 and comes_before(buffer.event[place], buffer.event[at]):
        at = int64(-1) if at == first else int64(buffer.link[at].earlier)
    if at < 0:
        link.later = first
        link.earlier = last
        link.count = buffer.link[first].count + 1
        buffer.link[first].earlier = place
        buffer.first[user] = place
        return
    link.earlier = at
    link.later = buffer.link[at].later
    if link.later >= 0:
        buffer.link[link.later].earlier = place
    else:
        buffer.link[first].earlier = place
    buffer.link[at].later = place
    buffer.link[first].count += 1


@inlined_lean_kernel
def comes_before(one: Any, other: Any) -> bool:
    """Compare by (at, accuracy, id); a usage event has no accuracy and comes after the fixes of its instant."""
    if one.at_ms != other.at_ms:
        return bool(one.at_ms < other.at_ms)
    accuracy_m = one.accuracy_m if one.type == _PING else _NO_ACCURACY_M
    other_m = other.accuracy_m if other.type == _PING else _NO_ACCURACY_M
    if accuracy_m != other_m:
        return bool(accuracy_m < other_m)
    return bool(one.id_hash < other.id_hash)


@lean_kernel
def let_go(buffer: Buffer, out: Out, now_ms: int, records: int) -> bool:
    """Let go on what sorts first of the user whose event is due first; False if `out` is full.

    Called again while that event is due, it lets go the event itself last.
    """
    place = next_due(buffer)
    return bool(let_go_first(buffer, out, int64(buffer.first[buffer.event[place].user]), now_ms, records))


@inlined_lean_kernel
def next_due(buffer: Buffer) -> int:
    """Place of the event that is due first, of several the one that arrived first; -1 where nothing is held."""
    best = int64(-1)
    for queue in range(buffer.queue.shape[0]):
        head = int64(buffer.queue[queue, 0])
        if head < 0:
            continue
        if best >= 0:
            one, other = buffer.link[head], buffer.link[best]
            if one.due_ms > other.due_ms or (one.due_ms == other.due_ms and one.number > other.number):
                continue
        best = head
    return int(best)


@lean_kernel
def let_go_first(buffer: Buffer, out: Out, place: int, now_ms: int, records: int) -> bool:
    """Let go on the first event of a user, at `now_ms`; False if `out` is full."""
    control = buffer.control
    if control[OUT] == out.event.shape[0]:
        return False
    number = control[OUT]
    out.event[number] = buffer.event[place]
    gone = out.event[number]
    gone.now_ms = now_ms
    gone.record = records + control[LATE]
    out.position[control[LATE]] = buffer.link[place].position
    control[OUT] += 1
    control[LATE] += 1
    take_out(buffer, place)
    return True


@lean_kernel
def take_out(buffer: Buffer, place: int) -> None:
    """Give the row of a user's first event back."""
    control = buffer.control
    link = buffer.link[place]
    event = buffer.event[place]
    later = int64(link.later)
    buffer.first[event.user] = later
    if later >= 0:
        buffer.link[later].earlier = link.earlier
        buffer.link[later].count = link.count - 1
    if link.before >= 0:
        buffer.link[link.before].after = link.after
    else:
        buffer.queue[link.queue, 0] = link.after
    if link.after >= 0:
        buffer.link[link.after].before = link.before
    else:
        buffer.queue[link.queue, 1] = link.before
    control[TEXT_LIVE] -= int64(event.span_end) - int64(event.span_start)
    link.queue = -1
    link.after = control[FREE]
    control[FREE] = place
    control[LIVE] -= 1
    following = next_due(buffer)
    control[DUE] = buffer.link[following].due_ms if following >= 0 else FOREVER


@lean_kernel
def let_go_user(buffer: Buffer, out: Out, user: int, now_ms: int, records: int) -> int:
    """Let go on all of a user, in order; DONE, or MORE_OUT where `out` must be emptied before."""
    while buffer.first[user] >= 0:
        if not let_go_first(buffer, out, int64(buffer.first[user]), now_ms, records):
            return MORE_OUT
    return DONE


@lean_kernel
def discard_user(buffer: Buffer, user: int) -> None:
    """Take all of a user out; nothing goes on."""
    while buffer.first[user] >= 0:
        take_out(buffer, int64(buffer.first[user]))


@lean_kernel
def repack(buffer: Buffer, text: np.ndarray) -> None:
    """Copy the bytes that are still wanted, one after another, into `text`, which becomes the buffer's."""
    control = buffer.control
    used = int64(0)
    for place in range(control[UNUSED]):
        if buffer.link[place].queue < 0:
            continue
        event = buffer.event[place]
        size = int64(event.span_end) - int64(event.span_start)
        for at in range(size):
            text[used + at] = buffer.text[event.span_start + at]
        event.span_start = used
        event.span_end = used + size
        used += size
    control[TEXT_USED] = used


@lean_kernel
def take_back(buffer: Buffer, events: np.ndarray, link: np.ndarray) -> None:
    """Hold EVENT[N] and LINK[N] of a checkpoint, sorted by due instant; there is room, and `text` is in place."""
    control = buffer.control
    newest = int64(-1)
    for row in range(events.shape[0]):
        place = hold(buffer, events, row, int64(link[row].position), int64(link[row].due_ms), 0)
        buffer.link[place].number = link[row].number
        newest = max(newest, int64(link[row].number))
        control[TEXT_LIVE] += int64(events[row].span_end) - int64(events[row].span_start)
    control[NUMBER] = newest + 1
