"""What there is to give, decided in memory as a function of the log alone (rule O3): counts, money, codes.

Codes are numbers here. Which number an offer takes follows from the log, in which every lease is a record; the text
behind a number is looked up in codes.db between claim and submit, and stands nowhere else (`engine.ledger.codes`).

Memory: about 250 bytes an offer that took something, for as long as it may be given back (72 h of log time); 150 a
subject and benefit with a limit per user.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from engine.hashing_kernel import hash_text
from engine.ledger.caps import REPLAY_HORIZON_MS, GrantRow
from engine.ledger.pool import CodePool, Lease
from engine.model import CODES, ReserveAnswer, ReserveRequest, Rule, Scope, Short, Take

TAKEN = np.dtype(
    [
        ("offer", "V16"),
        ("at_ms", "i8"),
        ("day_ms", "i8"),
        ("subject", "u8"),
        ("number", "i8"),  # of the code, -1 none, -2 given back
        ("what", "i4"),  # row of `_what`
    ]
)
PER_USER = np.dtype([("benefit", "i4"), ("subject", "u8"), ("count", "i8"), ("fen", "i8")])

StoredTake = tuple[int, list[tuple[str, int, bool]]]
"""What a reservation stores of it: the day, and of each line benefit, cost in fen, and whether users are counted."""

Verdicts = Mapping[int, Short]
"""What stock lacks, by the id of the take."""
_SWEEP_MS = 3_600_000
_NO_CODE, _GIVEN_BACK = -1, -2


class CapStore(Protocol):
    """The caps that must pass as well."""

    def reserve(self, requests: Sequence[ReserveRequest], made: list[GrantRow]) -> list[ReserveAnswer]: ...


class Given(msgspec.Struct):
    """What was given of one benefit so far."""

    count: int = 0
    fen: int = 0
    day_ms: int = -1
    day_count: int = 0
    day_fen: int = 0


class Stock:
    """Answers reservations together with the caps, and remembers what was taken.

    endless_codes  a pool without a lease gives whatever is asked: for recordings, whose codes stay at home
    """

    def __init__(self, *, endless_codes: bool = False) -> None:
        self._endless = endless_codes
        self._given: dict[str, Given] = {}
        self._pools: dict[str, CodePool] = {}
        self._what: list[tuple[str | None, tuple[tuple[str, int, bool], ...]]] = []
        self._what_row: dict[Any, int] = {}
        self._taken = _Rows(TAKEN)
        self._taken_row: dict[bytes, int] = {}
        self._per_user = _Rows(PER_USER)
        self._per_user_row: dict[tuple[int, int], int] = {}
        self._benefits: dict[str, int] = {}
        self._next_sweep_ms = -1

    # --- reserving ----------------------------------------------------------------------------------------------------

    def reserve(self, requests: Sequence[ReserveRequest], caps: CapStore, made: list[GrantRow]) -> list[ReserveAnswer]:
        """Answer requests in order; an option that stock refuses is refused before its caps are asked (D1).

        Requests are handed to the caps in runs, as long as it is certain what stock says to each whatever becomes of
        those before it; so the answers are those of one at a time.
        """
        if not _any_takes(requests):
            return self._told_again(requests, caps.reserve(requests, made))
        answers: list[ReserveAnswer] = []
        start = 0
        while start < len(requests):
            run, verdicts = self._certain_run(requests, start)
            first = len(made)
            told = self._take(run, caps.reserve(run, made), made, first)
            for row, one in verdicts.items():
                told[row] = _with_shorts(told[row], run[row], one)
            answers += told
            start += len(run)
        return answers

    def _certain_run(
        self, requests: Sequence[ReserveRequest], start: int
    ) -> tuple[list[ReserveRequest], dict[int, Verdicts]]:
        """Return the next run of requests, and by row of it what stock refuses."""
        run: list[ReserveRequest] = []
        refused: dict[int, Verdicts] = {}
        pending = _Pending()
        for request in requests[start:]:
            takes = {id(option.take): option.take for option in request.options if option.take is not None}
            if not takes:
                run.append(request)
                continue
            # A question that binds nobody changes nothing: explain asks at any time.
            if request.now_ms >= self._next_sweep_ms and not all(option.shadow for option in request.options):
                if run:
                    return run, refused
                self._sweep(request.now_ms)
            subject = hash_text(request.subject)
            verdicts: dict[int, Short] = {}
            for key, take in takes.items():
                short = self._short(take, subject, None)
                if run and self._short(take, subject, pending) != short:
                    return run, refused  # it depends on what becomes of those before
                if short is not None:
                    verdicts[key] = short
            for key, take in takes.items():
                if key not in verdicts:
                    pending.add(take, subject)
            if verdicts:
                refused[len(run)] = verdicts
                request = _with_refusals(request, verdicts)
            run.append(request)
        return run, refused

    def _short(self, take: Take, subject: int, pending: _Pending | None) -> Short | None:
        """Return which limit fails first were all that is pending granted before; None: none does.

        Each limit fails the sooner the more is given; so where the same one fails at the same sum without and with
        all that is pending, it fails so whatever part of it is granted.
        """
        if take.pool is not None and not self._has_code(take.pool, pending.codes(take.pool) if pending else 0):
            leased = self._pools[take.pool].leased if take.pool in self._pools else 0
            return Short(take.pool, CODES, leased, leased, 1)
        for line in take.lines:
            count = fen = user_count = user_fen = 0
            if pending is not None:
                count, fen = pending.of(line.benefit)
                user_count, user_fen = pending.of_user(line.benefit, subject)
            given = self._given.get(line.benefit)
            day_count, day_fen = count, fen
            if given is not None:
                count += given.count
                fen += given.fen
                if given.day_ms == take.day_ms:
                    day_count += given.day_count
                    day_fen += given.day_fen
            if count >= line.total:
                return Short(line.benefit, "total", line.total, count, 1)
            if day_count >= line.per_day:
                return Short(line.benefit, "per_day", line.per_day, day_count, 1)
            if fen + line.cost_fen > line.budget_fen:
                return Short(line.benefit, "budget_fen", line.budget_fen, fen, line.cost_fen)
            if day_fen + line.cost_fen > line.budget_per_day_fen:
                return Short(line.benefit, "budget_per_day_fen", line.budget_per_day_fen, day_fen, line.cost_fen)
            if line.counts_users:
                row = self._per_user_row.get((self._benefits.get(line.benefit, -1), subject))
                if row is not None:
                    held = self._per_user.rows[row]
                    user_count += int(held["count"])
                    user_fen += int(held["fen"])
                if user_count >= line.per_user:
                    return Short(line.benefit, "per_user", line.per_user, user_count, 1)
                if user_fen + line.cost_fen > line.budget_per_user_fen:
                    return Short(line.benefit, "budget_per_user_fen", line.budget_per_user_fen, user_fen, line.cost_fen)
        return None

    def _has_code(self, pool: str, pending: int) -> bool:
        known = self._pools.get(pool)
        return self._endless if known is None else known.available > pending

    def _take(
        self, run: list[ReserveRequest], answers: list[ReserveAnswer], made: list[GrantRow], row: int
    ) -> list[ReserveAnswer]:
        """Take for every grant of a run, and write down what: in the answer and in its row of `made`."""
        told = answers
        for number, (request, answer) in enumerate(zip(run, answers, strict=True)):
            if answer.granted < 0:
                continue
            option = request.options[answer.granted]
            if answer.duplicate or option.shadow:
                continue
            if option.take is not None and not option.withheld:
                take = option.take
                code = self._draw(take.pool)
                lines = tuple((line.benefit, line.cost_fen, line.counts_users) for line in take.lines)
                subject, key = hash_text(request.subject), bytes.fromhex(option.offer_id)
                self._write(key, request.now_ms, take.day_ms, subject, code, take.pool, lines)
                ref = None if code == _NO_CODE else f"{take.pool}#{code}"
                made[row] = (*made[row][:6], ref, (take.day_ms, list(lines)))
                told[number] = msgspec.structs.replace(answer, code=ref)
            row += 1
        return self._told_again(run, told)

    def _told_again(self, requests: Sequence[ReserveRequest], answers: list[ReserveAnswer]) -> list[ReserveAnswer]:
        """Name to a repeated question the code that its offer holds, whatever is asked for this time."""
        if not self._taken_row:
            return answers
        for number, answer in enumerate(answers):
            if answer.duplicate:
                held = self.code_of(requests[number].options[answer.granted].offer_id)
                if held is not None:
                    answers[number] = msgspec.structs.replace(answer, code=held)
        return answers

    def _draw(self, pool: str | None) -> int:
        if pool is None:
            return _NO_CODE
        known = self._pools.get(pool)
        if known is None:
            assert self._endless, "a pool that nothing was leased of"
            known = self._pools[pool] = CodePool()
            known.lease(0, 1 << 40, 0)
        return known.draw()

    def _write(
        self,
        offer: bytes,
        at_ms: int,
        day_ms: int,
        subject: int,
        number: int,
        pool: str | None,
        lines: tuple[tuple[str, int, bool], ...],
    ) -> None:
        what = self._what_row.setdefault((pool, lines), len(self._what))
        if what == len(self._what):
            self._what.append((pool, lines))
        self._taken_row[offer] = self._taken.add((offer, at_ms, day_ms, subject, number, what))
        for benefit, cost_fen, counts_users in lines:
            self._count(benefit, day_ms, 1, cost_fen)
            if counts_users:
                self._count_user(benefit, subject, 1, cost_fen)

    def _count(self, benefit: str, day_ms: int, count: int, fen: int) -> None:
        given = self._given.get(benefit)
        if given is None:
            given = self._given[benefit] = Given()
        given.count += count
        given.fen += fen
        if day_ms > given.day_ms and count > 0:
            given.day_ms, given.day_count, given.day_fen = day_ms, 0, 0
        if day_ms == given.day_ms:
            given.day_count += count
            given.day_fen += fen

    def _count_user(self, benefit: str, subject: int, count: int, fen: int) -> None:
        number = self._benefits.setdefault(benefit, len(self._benefits))
        row = self._per_user_row.get((number, subject))
        if row is None:
            self._per_user_row[number, subject] = self._per_user.add((number, subject, count, fen))
        else:
            held = self._per_user.rows[row]
            held["count"] += count
            held["fen"] += fen

    # --- giving back --------------------------------------------------------------------------------------------------

    def release(self, offer_id: str) -> None:
        """Give back what an offer took (a definite failure); harmless where it took nothing or gave it back."""
        row = self._taken_row.pop(bytes.fromhex(offer_id), None)
        if row is None:
            return
        one = self._taken.rows[row]
        pool, lines = self._what[one["what"]]
        if pool is not None and one["number"] >= 0:
            self._pools[pool].give_back(int(one["number"]))
        one["number"] = _GIVEN_BACK
        for benefit, cost_fen, counts_users in lines:
            self._count(benefit, int(one["day_ms"]), -1, -cost_fen)
            if counts_users:
                self._count_user(benefit, int(one["subject"]), -1, -cost_fen)

    def code_of(self, offer_id: str) -> str | None:
        """Return the code an offer holds, as pool#number."""
        row = self._taken_row.get(bytes.fromhex(offer_id))
        if row is None:
            return None
        one = self._taken.rows[row]
        return f"{self._what[one['what']][0]}#{one['number']}" if one["number"] >= 0 else None

    def forget(self, subject: str) -> None:
        """Keep what was given and to how many, not to whom (I2)."""
        hashed = hash_text(subject)
        self._taken.rows["subject"][self._taken.rows["subject"] == hashed] = 0
        for key in [key for key in self._per_user_row if key[1] == hashed]:
            row = self._per_user_row.pop(key)
            self._per_user.rows[row] = (-1, 0, 0, 0)

    # --- codes --------------------------------------------------------------------------------------------------------

    def lease(self, pool: str, first: int, count: int, epoch: int) -> None:
        """Add numbers first : first + count to what may be drawn; twice is once."""
        self._pools.setdefault(pool, CodePool()).lease(first, count, epoch)

    def recall(self, pool: str, epoch: int) -> None:
        """Let leases up to this epoch expire: what of them is not given is put aside for `returned`."""
        if pool in self._pools:
            self._pools[pool].recall(epoch)

    def spend(self, pool: str, spans: Iterable[Sequence[int]]) -> None:
        """Never give these numbers again."""
        if pool in self._pools:
            self._pools[pool].spend(spans)

    def returned(self, pool: str) -> list[tuple[int, int]]:
        """List the spans (first, end) that wait to go back to the store of codes."""
        return self._pools[pool].returned() if pool in self._pools else []

    def known(self, pool: str) -> list[tuple[int, int]]:
        """List the spans of a pool that were ever leased here."""
        return self._pools[pool].known() if pool in self._pools else []

    def has_lease(self, pool: str, epoch: int) -> bool:
        """Say whether a lease up to this epoch has not expired yet."""
        return pool in self._pools and self._pools[pool].has_lease(epoch)

    def accept_return(self, pool: str, spans: Iterable[Sequence[int]]) -> None:
        """Drop what the store of codes has taken back."""
        if pool in self._pools:
            self._pools[pool].accept_return(spans)

    def pools(self) -> list[str]:
        return sorted(self._pools)

    def available(self, pool: str) -> int:
        """Count codes that can be drawn now."""
        return self._pools[pool].available if pool in self._pools else 0

    def given(self) -> dict[str, Given]:
        """What was given so far, by benefit."""
        return self._given

    # --- checkpoints and rebuilding -----------------------------------------------------------------------------------

    def restore_grants(self, grants: Iterable[tuple[GrantRow, bool]], leases: Iterable[Lease]) -> None:
        """Rebuild from what the ledger stores: leases, and grants each with whether it was released."""
        used: dict[str, list[int]] = {}
        for (offer_id, subject, _, _, _, at_ms, code, taken), released in grants:
            if taken is None or released:
                continue
            day_ms, lines = taken
            pool, _, number = (code or "").partition("#")
            self._write(
                bytes.fromhex(offer_id),
                at_ms,
                day_ms,
                hash_text(subject),
                int(number) if code else _NO_CODE,
                pool or None,
                tuple((benefit, cost_fen, bool(users)) for benefit, cost_fen, users in lines),
            )
            if code:
                used.setdefault(pool, []).append(int(number))
        by_pool: dict[str, list[Lease]] = {}
        for lease in leases:
            by_pool.setdefault(lease.pool, []).append(lease)
        for pool, some in by_pool.items():
            self._pools[pool] = CodePool.rebuilt(some, used.get(pool, []))

    def arrays(self) -> dict[str, np.ndarray]:
        """The part of a checkpoint that grows with offers and users; views, copy before going on."""
        return {"stock.taken": self._taken.view(), "stock.per_user": self._per_user.view()}

    def objects(self) -> dict[str, Any]:
        """The part of a checkpoint that does not."""
        return {
            "given": {benefit: msgspec.to_builtins(given) for benefit, given in self._given.items()},
            "pools": {pool: one.state() for pool, one in self._pools.items()},
            "what": [[pool, [list(line) for line in lines]] for pool, lines in self._what],
            "benefits": list(self._benefits),
            "next_sweep_ms": self._next_sweep_ms,
        }

    def restore(self, arrays: Mapping[str, np.ndarray], objects: Mapping[str, Any]) -> None:
        """Take over what `arrays` and `objects` gave."""
        self._given = {benefit: msgspec.convert(given, Given) for benefit, given in objects["given"].items()}
        self._pools = {pool: CodePool.from_state(state) for pool, state in objects["pools"].items()}
        self._what = [(pool, tuple((b, c, bool(u)) for b, c, u in lines)) for pool, lines in objects["what"]]
        self._what_row = {what: row for row, what in enumerate(self._what)}
        self._benefits = {benefit: number for number, benefit in enumerate(objects["benefits"])}
        self._next_sweep_ms = int(objects["next_sweep_ms"])
        self._taken.take_over(arrays["stock.taken"])
        self._per_user.take_over(arrays["stock.per_user"])
        self._index()

    def _index(self) -> None:
        taken = self._taken.view()
        held = np.flatnonzero(taken["number"] != _GIVEN_BACK)
        self._taken_row = {bytes(taken["offer"][row]): row for row in held.tolist()}
        per_user = self._per_user.view()
        pairs = zip(per_user["benefit"].tolist(), per_user["subject"].tolist(), strict=True)
        self._per_user_row = {pair: row for row, pair in enumerate(pairs) if pair[0] >= 0}

    def _sweep(self, now_ms: int) -> None:
        """Once an hour of log time let go of offers too old to be given back; the counts stay."""
        self._next_sweep_ms = now_ms - now_ms % _SWEEP_MS + _SWEEP_MS
        rows = self._taken.view()
        young = (rows["at_ms"] > now_ms - REPLAY_HORIZON_MS) & (rows["number"] != _GIVEN_BACK)
        if not young.all():
            self._taken.take_over(rows[young])
            self._index()


class _Pending:
    """The most that a run of requests not yet answered can take."""

    def __init__(self) -> None:
        self._all: dict[str, tuple[int, int]] = {}
        self._user: dict[tuple[str, int], tuple[int, int]] = {}
        self._codes: dict[str, int] = {}

    def add(self, take: Take, subject: int) -> None:
        if take.pool is not None:
            self._codes[take.pool] = self._codes.get(take.pool, 0) + 1
        for line in take.lines:
            count, fen = self.of(line.benefit)
            self._all[line.benefit] = count + 1, fen + line.cost_fen
            if line.counts_users:
                count, fen = self.of_user(line.benefit, subject)
                self._user[line.benefit, subject] = count + 1, fen + line.cost_fen

    def of(self, benefit: str) -> tuple[int, int]:
        return self._all.get(benefit, (0, 0))

    def of_user(self, benefit: str, subject: int) -> tuple[int, int]:
        return self._user.get((benefit, subject), (0, 0))

    def codes(self, pool: str) -> int:
        return self._codes.get(pool, 0)


class _Rows:
    """A structured array that grows by half; what was read of it before is a view of the old one."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.rows = np.zeros(64, dtype)
        self.used = 0

    def add(self, row: tuple[Any, ...]) -> int:
        if self.used == len(self.rows):
            grown = np.zeros(self.used + self.used // 2 + 64, self.rows.dtype)
            grown[: self.used] = self.rows
            self.rows = grown
        self.rows[self.used] = row
        self.used += 1
        return self.used - 1

    def view(self) -> np.ndarray:
        return self.rows[: self.used]

    def take_over(self, rows: np.ndarray) -> None:
        self.used = len(rows)
        self.rows = np.zeros(self.used + self.used // 2 + 64, self.rows.dtype)
        self.rows[: self.used] = rows


def _any_takes(requests: Sequence[ReserveRequest]) -> bool:
    for request in requests:
        for option in request.options:
            if option.take is not None:
                return True
    return False


def _with_shorts(answer: ReserveAnswer, request: ReserveRequest, verdicts: Verdicts) -> ReserveAnswer:
    """Name what stock lacked, of the options that it refused; what was granted before is not among them."""
    options = zip(request.options, answer.refusals, strict=False)
    shorts = tuple(
        (place, short)
        for place, (option, reason) in enumerate(options)
        if (short := verdicts.get(id(option.take))) is not None and reason == short.reason.value
    )
    return msgspec.structs.replace(answer, shorts=shorts) if shorts else answer


def _with_refusals(request: ReserveRequest, verdicts: Verdicts) -> ReserveRequest:
    """Give every refused option a rule that nothing can pass; an id granted before is a duplicate all the same."""
    options = []
    for option in request.options:
        short = verdicts.get(id(option.take)) if option.take is not None else None
        if short is not None:
            never = Rule(Scope.ALL, request.now_ms, 0, short.reason.value)
            option = msgspec.structs.replace(option, rules=(never, *option.rules))
        options.append(option)
    return msgspec.structs.replace(request, options=tuple(options))
