"""One shard in Redis: who has it, what it is called there, and how it is made whole after Redis lost something.

What Redis may lose is in the reservations log, and is put back before anything else is granted or claimed
(FAULTS F8, F10): every act names the owner's epoch, the last commit and the server; Redis refuses where they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import structlog

from engine.errors import StoreCorrupt, StoreFenced
from engine.ledger.redis.link import RedisLink
from engine.ledger.redis.log import GrantRow, LoggedCommit, ReleaseRow, ReservationLog, read_commits
from engine.ledger.redis.packing import binary, decode, encode
from engine.model import ReserveRequest

log = structlog.get_logger("opportune.ledger")

HORIZON_MS = 72 * 3_600_000
OFFER_KEEP_MS = 30 * 24 * 3_600_000
MOST_REMEMBERED = 65_536
_CHUNK = 1000


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
        self.assumed_consent = assumed_consent
        self.authority = authority
        self.rebuilds = 0
        self._tenant = tenant
        self._prefix = f"{{{tenant}:{shard}}}"
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
        self._settles: list[tuple[str, bytes, str, int]] = []
        self._subjects: dict[str, tuple[str, str]] = {}
        self._refused: dict[str, bytes] = {}
        self._is_dispatcher = dispatcher
        self._link = RedisLink(url, patience_s=patience_s, timeout_s=timeout_s, is_stopped=is_stopped)
        self._claims = RedisLink(url, patience_s=patience_s, timeout_s=timeout_s, is_stopped=is_stopped)
        self.take(engine, dispatcher)

    # --- taking over, and healing ---------------------------------------------------------------------------------

    def take(self, engine: bool, dispatcher: bool) -> None:
        self._engine_epoch = self.epoch = self.unsettled = 0
        self._asked = self._longest_ms = self._logged = self._now_ms = 0
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
            ),
        )
        epoch, claims, position, now_ms, asked, longest_ms, logged, run_id, settled = decode(answer)
        self._engine_epoch, self.epoch, self.unsettled = epoch, claims, settled
        if not engine:
            return
        self._position, self._now_ms, self._asked, self._longest_ms = position, now_ms, asked, longest_ms
        self._logged = logged
        later = self._read_log(logged)
        same = run_id == link.run_id
        # One commit more in the log of the same server was cut off before it was stored: replay decides it again.
        if (run_id and not same) or len({one.number for one in later}) > (1 if same else 0):
            self._needs_heal = True
            if later:
                last = later[-1]
                self._position, self._now_ms = last.position, last.now_ms
                self._asked, self._longest_ms, self._logged = last.asked, last.longest_ms, last.number

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

    def _claimed(self) -> tuple[int, int, str]:
        """What every act names, for Redis to compare."""
        return self._engine_epoch, self._logged, self._link.run_id

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
        commits = [one for one in self._read_log(base) if one.number <= self._logged]
        grants = [grant for one in commits for grant in one.grants]
        releases = [release for one in commits for release in one.releases]
        self._refill([*grants, *self._made], [*releases, *self._released])
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
                self._asked,
                self._longest_ms,
                self._logged,
                OFFER_KEEP_MS,
                encode(sorted(told.pauses) if told is not None else []),
            ),
        )
        if answer == b"fenced":
            raise StoreFenced(f"shard {self.shard} was taken over by another process")
        self._needs_heal = False
        self.rebuilds += 1
        log.info("the shard is rebuilt", shard=self.shard, grants=len(grants))

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
            lambda: (0, 0, self._link.run_id, self._prefix, self._sent, "again", "0", OFFER_KEEP_MS),
        )

    # --- inside --------------------------------------------------------------------------------------------------

    def _forget_batch(self) -> None:
        self._made.clear()
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
