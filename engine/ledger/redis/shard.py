"""One shard in Redis: who has it, what it is called there, and how it is made whole after Redis lost something.

What Redis may lose is in the reservations log, and is put back before anything else is granted or claimed
(FAULTS F8, F10): every act names the owner's epoch, the last commit and the server; Redis refuses where they differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import structlog

from engine.errors import StoreCorrupt, StoreFenced, StoreUnavailable
from engine.ledger.kernel import WITHHELD
from engine.ledger.redis.link import RedisLink
from engine.ledger.redis.log import GrantRow, LoggedCommit, ReleaseRow, ReservationLog, read_commits
from engine.ledger.redis.packing import binary, decode, encode
from engine.model import ReserveRequest

log = structlog.get_logger("opportune.ledger")

HORIZON_MS = 72 * 3_600_000
OFFER_KEEP_MS = 30 * 24 * 3_600_000
MOST_REMEMBERED = 65_536
_CHUNK = 1000
_POSITIONS = 10_000
_OTHERS_WAIT, _OTHERS_PAUSE_S = 40, 0.05


class Authority(NamedTuple):
    """What a rebuilt shard must know beside its grants; the engine's state has it."""

    consents: Iterable[tuple[str, str, bool]]  # user, purpose, granted
    pauses: Iterable[str]


class RedisShard:
    """The part of a ledger that holds on to its shard; RedisLedger says what the arguments are."""

    def __init__(
        self,
        url: str,
        shard: int = 0,
        *,
        tenant: str = "default",
        shards: int = 1,
        assumed_consent: frozenset[str] = frozenset(),
        engine: bool = True,
        dispatcher: bool = True,
        reservations: ReservationLog | None = None,
        authority: Callable[[], Authority] | None = None,
        patience_s: float = 5.0,
        timeout_s: float = 5.0,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.shard = shard
        self.shards = shards
        self.peers: Callable[[], Iterable[RedisShard]] = tuple
        self.assumed_consent = assumed_consent
        self.authority = authority
        self.rebuilds = 0
        self._tenant = tenant
        # One hash slot a tenant: persons, limits over all and stock are checked in one act with a user's caps.
        self._everywhere = f"{{{tenant}}}"
        self._prefix = f"{self._everywhere}{shard}:"
        self._meta, self._open, self._positions = (
            f"{self._prefix}{name}".encode() for name in ("meta", "open", "positions")
        )
        self._persons, self._sent = f"{{{tenant}}}u:", f"{{{tenant}}}d:"
        self._pauses, self._names_key = f"{{{tenant}}}p", f"{{{tenant}}}n".encode()
        self._log = reservations
        self._names: dict[str, int] = {}
        self._marks: dict[tuple[str, str, str, str], tuple[int, int, int, int]] = {}
        self._made: list[GrantRow] = []
        self._released: list[ReleaseRow] = []
        self._acts: list[tuple[str, int, str, bytes]] = []
        self._settles: list[tuple[str, bytes, str, int]] = []
        self._subjects: dict[str, tuple[str, str]] = {}
        self._refused: dict[str, bytes] = {}
        self._is_dispatcher = dispatcher
        # Another shard of the same deployment, for putting back what its owner is not there to put back.
        self._again: Callable[[int], RedisShard] = partial(
            type(self),
            url,
            tenant=tenant,
            shards=shards,
            engine=False,
            dispatcher=False,
            reservations=reservations,
            patience_s=patience_s,
            timeout_s=timeout_s,
            is_stopped=is_stopped,
        )
        self._is_stopped = is_stopped
        waits = {"patience_s": patience_s, "timeout_s": timeout_s, "is_stopped": is_stopped}
        self._link = RedisLink(url, home=self._everywhere, **waits)  # type: ignore[arg-type]
        self._claims = RedisLink(url, home=self._everywhere, **waits)  # type: ignore[arg-type]
        self.take(engine, dispatcher)

    # --- taking over, and healing ---------------------------------------------------------------------------------

    def take(self, engine: bool, dispatcher: bool) -> None:
        self._engine_epoch = self.epoch = self.unsettled = 0
        self._asked = self._kept = self._longest_ms = self._logged = self._now_ms = 0
        self._position = self._unlogged = -1
        self._needs_heal = False
        link = self._link if engine else self._claims
        answer = link.script(
            "take",
            [self._meta, self._open],
            lambda: (
                0,
                0,
                link.run_id,
                self._prefix,
                self._sent,
                "1" if engine else "0",
                "1" if dispatcher else "0",
                OFFER_KEEP_MS,
                self._everywhere,
            ),
        )
        epoch, claims, position, now_ms, asked, longest_ms, logged, run_id, settled = decode(answer)
        self._engine_epoch, self.epoch, self.unsettled = epoch, claims, settled
        if not engine:
            return
        self._position, self._now_ms, self._asked, self._longest_ms = position, now_ms, asked, longest_ms
        self._logged, self._kept = logged, asked
        later = self._read_log(logged)
        same = run_id == link.run_id
        # One commit more in the log of the same server was cut off before it was stored: replay decides it again.
        if (run_id and not same) or len({one.number for one in later}) > (1 if same else 0):
            self._needs_heal = True
            if later:
                last = later[-1]
                self._position, self._now_ms = last.position, last.now_ms
                self._asked, self._longest_ms, self._logged = last.asked, last.longest_ms, last.number
                self._kept = last.asked
        if not self._needs_heal:
            self._join()

    def take_claims(self) -> None:
        """Become the dispatcher of this shard anew, after the store was rebuilt."""
        self.take(False, True)

    def recover(self) -> None:
        """Put back what Redis lost, if it lost anything; `reserve` and `commit` do so by themselves."""
        if self._needs_heal:
            self._heal()

    def _guarded(self, name: str, keys: Sequence[bytes], arguments: Callable[[], Sequence[Any]]) -> Any:
        """Run an act of the engine; heal the shard first where Redis is not what it was."""
        while True:
            self.recover()
            answer = self._link.script(name, keys, lambda: (*self._claimed(), *arguments()))
            if not self._is_behind(answer):
                return answer

    def _is_behind(self, answer: Any) -> bool:
        if answer == b"behind":
            self._needs_heal = True
            return True
        if answer == b"fenced":
            raise StoreFenced(f"shard {self.shard} was taken over by another process")
        return False

    def _heal(self) -> None:
        """Bring a wiped or rolled-back shard to what was committed, from the log and the engine's state."""
        raw = self._link.command("HMGET", self._meta, "epoch", "logged", "run")
        is_known = raw[0] is not None and raw[2] is not None
        base = int(raw[1] or 0) if is_known else 0
        if raw[0] is not None and int(raw[0]) > self._engine_epoch:
            raise StoreFenced(f"shard {self.shard} was taken over by another process")
        if self._log is None and self._logged > base:
            raise StoreCorrupt(
                f"Redis lost {self._logged - base} commits of shard {self.shard}, and there is no reservations log to "
                "rebuild them from; restore Redis from a copy"
            )
        log.warning("redis is not what it was; the shard is rebuilt", shard=self.shard, known=is_known, behind=base)
        self._names.clear()
        self._marks.clear()
        self._refused.clear()
        grants = self._put_back(base, self._engine_epoch, "")
        told = self.authority() if self.authority is not None else None
        if told is not None:
            self._tell_consents(told.consents)
        answer = self._link.script(
            "heal",
            [self._meta, self._open],
            lambda: (
                self._engine_epoch,
                self.epoch,
                self._link.run_id,
                self._prefix,
                self._position,
                self._now_ms,
                self._kept,
                self._longest_ms,
                self._logged,
                OFFER_KEEP_MS,
                encode(sorted(told.pauses) if told is not None else []),
                self._everywhere,
                self.shard,
                encode(self._opened()),
            ),
        )
        if answer == b"fenced":
            raise StoreFenced(f"shard {self.shard} was taken over by another process")
        self._needs_heal = False
        self.rebuilds += 1
        log.info("the shard is rebuilt", shard=self.shard, grants=grants)

    def _opened(self) -> list[Any]:
        """List what was granted and is not committed, as lua/take.lua takes it back; marks are numbered by now."""
        opened: list[Any] = []
        for one in self._made:
            scenario = self._marks[one.scenario, one.category, one.partner, one.channel][0]
            counted = -1 if one.flags & WITHHELD else scenario
            key = self._subject_key(one.subject, one.user)
            opened += [key, binary(bytes.fromhex(one.offer_id)), counted, one.at_ms]
        return opened

    def _put_back(self, base: int, epoch: int, absent: int | str) -> int:
        """Put grants, and what they took of stock, back from the log; return how many grants.

        base    the last commit that Redis still has
        absent  the shard where this is done for an owner that is not there
        """
        if self._log is None:
            # Nothing that was committed is lost, or the rebuild would have stopped before.
            self._refill(self._made, self._released)
            return 0
        commits = [one for one in self._read_log(-1) if one.number <= self._logged]
        later = [one for one in commits if one.number > base]
        stock = next((one.stock for one in reversed(commits) if one.stock is not None), {})
        flat = [value for pair in (stock or {}).items() for value in pair]
        call = (epoch, 0, self._link.run_id, self._prefix, self._everywhere, encode(flat), absent)
        answer = self._link.script("restock", [self._meta], lambda: call)
        if answer == b"fenced":
            raise StoreFenced(f"shard {self.shard} was taken over by another process")
        if answer == b"whole":
            return 0
        grants = [grant for one in later for grant in one.grants]
        releases = [release for one in later for release in one.releases]
        self._refill([*grants, *self._made], [*releases, *self._released])
        if later:
            # How many requests came before each position, for a replay without a checkpoint.
            marks = [text for one in later[-_POSITIONS:] for text in (one.position, f"{one.position}:{one.asked}")]
            self._link.command("ZADD", self._positions, *marks)
        for act in self._acts:
            # Numbered: what the log's stock has already is passed over.
            self._link.script("supply", [self._meta], partial(_same, ("again", 0, 0, self._prefix, *act)))
        self._retake(grants, {one.offer_id for one in releases})
        return len(grants)

    def _retake(self, grants: Sequence[GrantRow], gone: set[str]) -> None:
        """Put back what grants took of stock; the sums have what was committed, not the batch under way."""
        rows = [
            _take_row(one, is_known)
            for some, is_known in ((grants, True), (self._made, False))
            for one in some
            if one.taken is not None and one.offer_id not in gone
        ]
        given_back = encode(sorted(gone)), encode([one.offer_id for one in self._released])
        for first in range(0, max(len(rows), 1), _CHUNK):
            told = given_back if first + _CHUNK >= len(rows) else (encode([]), encode([]))
            call = (self._prefix, self._everywhere, 2 * HORIZON_MS, encode(rows[first : first + _CHUNK]), *told)
            self._link.script("retake", [self._meta], partial(_same, call))

    def _join(self) -> None:
        """Say that this shard is whole, so that what all shards gave can be counted."""
        if self.shard >= 0:
            answer = self._link.script("join", [self._meta], lambda: (*self._claimed(), self._everywhere, self.shard))
            if self._is_behind(answer):
                self._heal()

    def _claimed(self) -> tuple[int, int, str]:
        """What every act names, for Redis to compare."""
        return self._engine_epoch, self._logged, self._link.run_id

    def _await_others(self) -> None:
        """Wait until every shard is whole that this one shares limits with: what it lost counts too (F8, F10).

        Those of this process are asked; after a while what absent ones gave is put back on their behalf.
        """
        for peer in self.peers():
            if peer is not self:
                with suppress(StoreFenced):  # whoever took it over makes it whole
                    peer.recover()
                    peer._join()
        self._join()
        for pause in range(_OTHERS_WAIT + 1):
            missing = self._missing()
            if not missing:
                return
            if pause < _OTHERS_WAIT:
                if self._is_stopped():
                    raise StoreUnavailable(f"stopped while shards {missing[:5]} are not whole yet")
                time.sleep(_OTHERS_PAUSE_S)
        for number in missing:
            log.warning("what an absent shard gave is put back for it", shard=number)
            other = self._again(number)
            try:
                other._adopt()
            finally:
                other.close_links()

    def _missing(self) -> list[int]:
        told = self._link.command("HGETALL", f"{self._everywhere}r")
        found = dict(zip(told[::2], told[1::2], strict=True))
        if found.get(b"run", b"").decode() != self._link.run_id:
            return list(range(self.shards))
        return [] if len(found) > self.shards else [n for n in range(self.shards) if b"%d" % n not in found]

    def _adopt(self) -> None:
        raw = self._link.command("HMGET", self._meta, "logged", "longest")
        base = int(raw[0] or 0)
        every = self._read_log(-1)
        self._logged = every[-1].number if every else 0
        self._longest_ms = every[-1].longest_ms if every else 0
        self._put_back(base, 1 << 53, self.shard)
        self._link.script("adopt", [self._meta], lambda: (self._everywhere, self._link.run_id, self.shard))

    def close_links(self) -> None:
        self._link.close()
        self._claims.close()

    def _refill(self, grants: Sequence[GrantRow], releases: Sequence[ReleaseRow]) -> None:
        released = {one.offer_id: one for one in releases}
        rows: list[tuple[str, list[Any]]] = []
        for one in grants:
            mark = (one.scenario, one.category, one.partner, one.channel)
            if mark not in self._marks:
                self._number([mark])
            gone = released.pop(one.offer_id, None)
            packed_id = binary(bytes.fromhex(one.offer_id))
            number = gone.number + 1 if gone else 0
            row = [packed_id, one.at_ms, one.number, self.shard, number, *self._marks[mark], one.flags]
            rows.append((self._subject_key(one.subject, one.user), row))
            if one.code is not None:
                self._link.command("SET", f"{self._prefix}v:{one.offer_id}", one.code, "PX", 2 * HORIZON_MS)
        for gone in released.values():
            row = [binary(bytes.fromhex(gone.offer_id)), -1, 0, self.shard, gone.number + 1, *[0] * 5]
            rows.append((gone.key, row))
        keep_ms = max(self._longest_ms, HORIZON_MS) + HORIZON_MS
        for first in range(0, len(rows), _CHUNK):
            chunk = rows[first : first + _CHUNK]
            place = {key: row for row, key in enumerate(dict.fromkeys(key for key, _ in chunk), 1)}
            packed = encode([value for key, row in chunk for value in (place[key], *row)])
            keys = [key.encode() for key in place]
            self._link.script("refill", keys, lambda packed=packed: (self._sent, keep_ms, packed))  # type: ignore[misc]

    def _tell_consents(self, consents: Iterable[tuple[str, str, bool]]) -> None:
        for key in self._keys("c:"):
            self._link.command("DEL", key)
        for user, purpose, granted in consents:
            self._link.command("HSET", f"{self._prefix}c:{user}", purpose, int(granted))

    def _keys(self, kind: str) -> list[bytes]:
        escaped = f"{self._prefix}{kind}".replace("[", "\\[").replace("*", "\\*").replace("?", "\\?")
        return self._claims.scan(f"{escaped}*".encode())

    def _read_log(self, after: int) -> list[LoggedCommit]:
        return read_commits(self._log.read(self.shard, after), after) if self._log is not None else []

    def _take_back(self) -> None:
        self._link.script(
            "take",
            [self._meta, self._open],
            lambda: (
                0,
                0,
                self._link.run_id,
                self._prefix,
                self._sent,
                "again",
                "0",
                OFFER_KEEP_MS,
                self._everywhere,
            ),
        )

    # --- inside --------------------------------------------------------------------------------------------------

    def _forget_batch(self) -> None:
        self._made.clear()
        self._acts.clear()
        self._released.clear()
        self._settles.clear()
        if len(self._subjects) > MOST_REMEMBERED:
            for old in list(self._subjects)[: MOST_REMEMBERED // 2]:
                del self._subjects[old]

    def _subject_key(self, subject: str, user: str) -> str:
        """A person of several users may have them in several shards; such a subject belongs to none."""
        return f"{self._prefix}u:{subject}" if subject == user else self._persons + subject

    def _number_marks(self, requests: Sequence[ReserveRequest]) -> None:
        marks = {
            (option.scenario, option.category, option.partner, option.channel)
            for request in requests
            for option in request.options
        }
        missing = [mark for mark in marks if mark not in self._marks]
        if missing:
            self._number(sorted(missing))

    def _number(self, marks: Sequence[tuple[str, str, str, str]]) -> None:
        kinds = ("scenario", "category", "partner", "channel")
        named = [(kind, name) for mark in marks for kind, name in zip(kinds, mark, strict=True)]
        arguments = [text for pair in named for text in pair]
        numbers = iter(decode(self._link.script("names", [self._names_key], lambda: arguments)))
        for mark in marks:
            self._marks[mark] = (next(numbers), next(numbers), next(numbers), next(numbers))


def _take_row(one: GrantRow, is_known: bool) -> list[Any]:
    """What a grant took, as lua/retake.lua reads it."""
    assert one.taken is not None
    pool, _, number = (one.code or "").rpartition("#")
    return [one.offer_id, one.subject, pool or False, int(number or -1), *one.taken, is_known]


def _same(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return arguments
