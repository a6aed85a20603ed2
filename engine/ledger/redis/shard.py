"""One shard in Redis: who has it and what it is called there.

Every act names the owner's epoch, the last commit and the server; Redis refuses where they differ (FAULTS F4, F8, F10).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple, TypeVar

import structlog
from greenlet import getcurrent

from engine.errors import StoreFenced
from engine.ledger.redis.link import NOTHING_ELSE, Meanwhile, RedisLink
from engine.ledger.redis.log import GrantRow, LoggedCommit, ReleaseRow, ReservationLog, read_commits
from engine.ledger.redis.packing import decode
from engine.model import ReserveRequest

log = structlog.get_logger("opportune.ledger")

HORIZON_MS = 72 * 3_600_000
OFFER_KEEP_MS = 30 * 24 * 3_600_000
MOST_REMEMBERED = 65_536
_LOOK_S = 0.01


class Authority(NamedTuple):
    """What a rebuilt shard must know beside its grants; the engine's state has it."""

    consents: Iterable[tuple[str, str, bool]]  # user, purpose, granted
    pauses: Iterable[str]


class Turn:
    """A lock that whoever has it may take again: a lane or a thread. Who must wait lets other lanes go on."""

    def __init__(self, meanwhile: Meanwhile) -> None:
        self._meanwhile = meanwhile
        self._lock = threading.Lock()
        self._owner: object = None
        self._depth = 0

    def acquire(self) -> None:
        me = getcurrent()
        if self._owner is not me:
            while not self._lock.acquire(blocking=False):
                if not self._meanwhile.give_way() and self._lock.acquire(timeout=_LOOK_S):
                    break
            self._owner = me
        self._depth += 1

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


F = TypeVar("F", bound=Callable[..., Any])


def in_turn(act: F) -> F:
    """Make an act of the engine hold the shard's `turn`: a peer in another lane may heal the shard between two."""

    @wraps(act)
    def alone(self: RedisShard, *arguments: Any, **named: Any) -> Any:
        with self.turn:
            return act(self, *arguments, **named)

    return alone  # type: ignore[return-value]


class RedisShard(ABC):
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
        meanwhile: Meanwhile = NOTHING_ELSE,
    ) -> None:
        self.shard = shard
        self.shards = shards
        self.peers: Callable[[], Iterable[RedisShard]] = tuple
        self.turn = Turn(meanwhile)
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
        self._calls_made = 0
        self._made: list[GrantRow] = []
        self._released: list[ReleaseRow] = []
        self._arrived: list[ReleaseRow] = []
        self._acts: list[tuple[str, int, str, bytes]] = []
        self._settles: list[tuple[str, bytes, str, int]] = []
        self._subjects: dict[str, tuple[str, str]] = {}
        self._refused: dict[str, bytes] = {}
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
        self._link = RedisLink(url, home=self._everywhere, meanwhile=meanwhile, **waits)  # type: ignore[arg-type]
        self._claims = RedisLink(url, home=self._everywhere, **waits)  # type: ignore[arg-type]
        self.take(engine, dispatcher)

    # --- taking over ---------------------------------------------------------------------------------

    def take(self, engine: bool, dispatcher: bool) -> None:
        self._engine_epoch = self.epoch = self.unsettled = 0
        self._asked = self._kept = self._longest_ms = self._logged = self._now_ms = 0
        self._position = self._unlogged = -1
        self._needs_heal = False
        link = self._link if engine else self._claims
        answer = self._call_take(link, "1" if engine else "0", dispatcher)
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
            if not run_id:
                # Nothing was ever committed. Named only now: whoever dies before leaves a shard that nobody knows.
                link.command("HSET", self._meta, "run", link.run_id)
            self._join()

    def _call_take(self, link: RedisLink, what: str, dispatcher: bool) -> bytes:
        """Run lua/take.lua: `what` is "1" for the engine's part, "0" without it, "again" for what is not committed."""
        answer: bytes = link.script(
            "take",
            [self._meta, self._open],
            lambda: (
                self._engine_epoch,
                0,
                link.run_id,
                self._prefix,
                self._sent,
                what,
                "1" if dispatcher else "0",
                OFFER_KEEP_MS,
                self._everywhere,
            ),
        )
        self._must_be_ours(answer)
        return answer

    def _take_back(self) -> None:
        """Take back every grant that was never committed."""
        self._call_take(self._link, "again", False)

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
        self._must_be_ours(answer)
        if answer == b"behind":
            self._needs_heal = True
            return True
        return False

    def _claimed(self) -> tuple[int, int, str]:
        """What every act names, for Redis to compare."""
        return self._engine_epoch, self._logged, self._link.run_id

    def _must_be_ours(self, answer: Any) -> None:
        if answer == b"fenced":
            raise StoreFenced(f"shard {self.shard} was taken over by another process")

    @abstractmethod
    def _heal(self) -> None:
        """Make the shard whole; StoreFenced where it is another's by now."""

    @abstractmethod
    def _join(self) -> None:
        """Say that this shard is whole, so that what all shards gave can be counted."""

    def _keys(self, kind: str) -> list[bytes]:
        escaped = f"{self._prefix}{kind}".replace("[", "\\[").replace("*", "\\*").replace("?", "\\?")
        return self._claims.scan(f"{escaped}*".encode())

    def _read_log(self, after: int) -> list[LoggedCommit]:
        return read_commits(self._log.read(self.shard, after), after) if self._log is not None else []

    def close_links(self) -> None:
        self._link.close()
        self._claims.close()

    # --- inside --------------------------------------------------------------------------------------------------

    def _forget_batch(self) -> None:
        self._made.clear()
        self._acts.clear()
        self._released.clear()
        self._arrived.clear()
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
