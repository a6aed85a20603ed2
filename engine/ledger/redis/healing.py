"""How a shard is made whole after Redis lost something (FAULTS F8, F10): from the reservations log and the engine.

What was committed is put back before anything else is granted or claimed. A healing has a token in Redis, and every
step of it is refused once the token is gone: Redis was lost once more, or the shard is healed by somebody else. Whoever
heals may die between any two steps: what is not committed is listed before it is put back, so that the next owner
takes it back, and no server counts as whole before the last step.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import structlog

from engine.errors import StoreCorrupt, StoreFenced, StoreUnavailable
from engine.ledger.kernel import DELIVERED, WITHHELD
from engine.ledger.redis.log import GrantRow, ReleaseRow
from engine.ledger.redis.packing import binary, encode
from engine.ledger.redis.shard import HORIZON_MS, MOST_REMEMBERED, OFFER_KEEP_MS, RedisShard

log = structlog.get_logger("opportune.ledger")

_CHUNK = 1000
_POSITIONS = 10_000
_OTHERS_WAIT, _OTHERS_PAUSE_S = 40, 0.05


class _Overtaken(Exception):
    """Redis is not the one that the healing began with, or somebody else heals."""


class HealingShard(RedisShard):
    """A shard that finds out what Redis lost, and puts it back."""

    def _heal(self) -> None:
        while True:
            with suppress(_Overtaken):
                self._heal_once()
                return

    def _heal_once(self) -> None:
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
        # What is open there was committed since, is open still, or was given up: the log and this process know which.
        self._take_back()
        token = secrets.token_hex(8)
        grants = self._put_back(token, base if is_known else -1)
        told = self.authority() if self.authority is not None else None
        if told is not None:
            self._tell_consents(token, told.consents)
        self._step(
            token,
            "heal",
            [self._meta],
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
                *self._batch_under_way(),
            ),
        )
        self._needs_heal = False
        self.rebuilds += 1
        log.info("the shard is rebuilt", shard=self.shard, grants=grants)

    def _step(self, token: str, name: str, keys: Sequence[bytes], arguments: Callable[[], Sequence[Any]]) -> bytes:
        """Run one step; the token is its last argument."""
        answer: bytes = self._link.script(name, keys, lambda: (*arguments(), token))
        self._must_be_ours(answer)
        if answer == b"behind":
            raise _Overtaken
        return answer

    def _put_back(self, token: str, base: int, absent: int | str = "") -> int:
        """Put grants, and what they took of stock, back from the log; return how many grants.

        base    the last commit that Redis still has; -1: it does not know the shard
        absent  the shard where this is done for an owner that is not there
        """
        commits = [one for one in self._read_log(-1) if one.number <= self._logged]
        later = [one for one in commits if one.number > base]
        flat: list[Any] | None = None  # where nothing committed was lost, what was given stands as it should
        if self._log is not None and base < self._logged:
            stock = next((one.stock for one in reversed(commits) if one.stock is not None), None) or {}
            flat = [value for pair in stock.items() for value in pair]
        self._number_marks_of(self._made)
        epoch = self._engine_epoch if absent == "" else 1 << 53
        told = encode(flat), absent, encode(self._opened())
        begun = self._link.script(
            "restock",
            [self._meta, self._open],
            lambda: (epoch, 0, self._link.run_id, self._prefix, self._everywhere, *told, token),
        )
        self._must_be_ours(begun)
        if begun == b"whole":
            return 0
        grants = [grant for one in later for grant in one.grants]
        # Whose they are was in their offers, which are gone: a failure that is reported later still gives back (C2).
        self._subjects |= {one.offer_id: (one.subject, one.user) for one in grants[-MOST_REMEMBERED:]}
        releases = [release for one in later for release in one.releases]
        arrived = [row for one in later for row in one.arrived]
        self._refill(token, [*grants, *self._made], releases, arrived)
        if later:
            # How many requests came before each position, for a replay without a checkpoint.
            marks = [text for one in later[-_POSITIONS:] for text in (one.position, f"{one.position}:{one.asked}")]
            self._link.command("ZADD", self._positions, *marks)
        for act in self._acts:
            # Numbered: what the log's stock has already is passed over.
            self._step(token, "supply", [self._meta], _always("again", 0, 0, self._prefix, *act))
        self._retake(token, grants, {one.offer_id for one in releases})
        return len(grants)

    def _opened(self) -> list[Any]:
        """List what was granted and is not committed, as lua/take.lua takes it back; marks are numbered by now."""
        opened: list[Any] = []
        for one in self._made:
            scenario = self._marks[_mark_of(one)][0]
            counted = -1 if one.flags & WITHHELD else scenario
            key = self._subject_key(one.subject, one.user)
            opened += [key, binary(bytes.fromhex(one.offer_id)), counted, one.at_ms]
        return opened

    def _refill(
        self,
        token: str,
        grants: Sequence[GrantRow],
        releases: Sequence[ReleaseRow],
        arrived: Sequence[ReleaseRow],
    ) -> None:
        self._number_marks_of(grants)
        released = {one.offer_id: one for one in releases}
        kept = {one.offer_id: one for one in arrived}
        rows: list[tuple[str, list[Any]]] = []
        for one in grants:
            gone = released.pop(one.offer_id, None)
            packed_id = binary(bytes.fromhex(one.offer_id))
            number = gone.number + 1 if gone else 0
            flags = one.flags | (DELIVERED if kept.pop(one.offer_id, None) else 0)
            row = [packed_id, one.at_ms, one.number, self.shard, number, *self._marks[_mark_of(one)], flags]
            rows.append((self._subject_key(one.subject, one.user), row))
            if one.code is not None:
                self._link.command("SET", f"{self._prefix}v:{one.offer_id}", one.code, "PX", 2 * HORIZON_MS)
        for gone in released.values():
            row = [binary(bytes.fromhex(gone.offer_id)), -1, 0, self.shard, gone.number + 1, *[0] * 5]
            rows.append((gone.key, row))
        for here in kept.values():
            rows.append((here.key, [_binary_id(here), -1, 0, self.shard, 0, *[0] * 4, DELIVERED]))
        keep_ms = max(self._longest_ms, HORIZON_MS) + HORIZON_MS
        for chunk in _chunks(rows):
            place = {key: row for row, key in enumerate(dict.fromkeys(key for key, _ in chunk), 2)}
            packed = encode([value for key, row in chunk for value in (place[key], *row)])
            keys = [self._meta, *(key.encode() for key in place)]
            self._step(token, "refill", keys, _always(self._sent, keep_ms, packed))

    def _retake(self, token: str, grants: Sequence[GrantRow], gone: set[str]) -> None:
        """Put back what committed grants took of stock; the sums have it already."""
        rows = _take_rows(grants, gone)
        for chunk in _chunks(rows):
            call = _always(self._prefix, self._everywhere, 2 * HORIZON_MS, encode(chunk), encode([]))
            self._step(token, "retake", [self._meta], call)
        if gone:
            call = _always(self._prefix, self._everywhere, 2 * HORIZON_MS, encode([]), encode(sorted(gone)))
            self._step(token, "retake", [self._meta], call)

    def _tell_consents(self, token: str, consents: Iterable[tuple[str, str, bool]]) -> None:
        """Make the claim store know what the engine knows, and nothing else."""
        for keys in _chunks(self._keys("c:")):
            self._step(token, "consents", [self._meta, *keys], _always(self._prefix, encode([])))
        rows = [value for user, purpose, granted in consents for value in (user, purpose, int(granted))]
        for chunk in _chunks(rows, 3 * _CHUNK):
            self._step(token, "consents", [self._meta], _always(self._prefix, encode(chunk)))

    def _batch_under_way(self) -> tuple[Any, ...]:
        """What the batch that is not committed gave back, kept and took; what it gave back itself it did not take."""
        gone = {one.offer_id for one in self._released}
        told = [(one, "r") for one in self._released] + [(one, "d") for one in self._arrived]
        settled = [value for one, act in told for value in (one.key, _binary_id(one), act, one.number)]
        taken = encode(_take_rows(self._made, gone))
        return encode(settled), taken, 2 * HORIZON_MS, self._persons, self._sent

    # --- together with other shards -----------------------------------------------------------------------------------

    def _join(self) -> None:
        if self.shard >= 0:
            answer = self._link.script("join", [self._meta], lambda: (*self._claimed(), self._everywhere, self.shard))
            if self._is_behind(answer):
                self._heal()

    def _await_others(self) -> None:
        """Wait until every shard is whole that this one shares limits with: what it lost counts too (F8, F10).

        Those of this process are asked; after a while what absent ones gave is put back on their behalf.
        """
        self.turn.release()  # a peer in another lane may wait for this one just as well
        try:
            for peer in self.peers():
                if peer is not self:
                    with peer.turn, suppress(StoreFenced):  # whoever took it over makes it whole
                        peer.recover()
                        peer._join()
        finally:
            self.turn.acquire()
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
            other: Any = self._again(number)
            try:
                with suppress(_Overtaken):  # its owner is back
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
        raw = self._link.command("HMGET", self._meta, "logged", "run")
        base = int(raw[0] or 0) if raw[1] is not None else -1
        every = self._read_log(-1)
        self._logged = every[-1].number if every else 0
        self._longest_ms = every[-1].longest_ms if every else 0
        token = secrets.token_hex(8)
        self._put_back(token, base, self.shard)
        self._step(token, "adopt", [self._meta], lambda: (self._everywhere, self._link.run_id, self.shard))

    def _number_marks_of(self, grants: Iterable[GrantRow]) -> None:
        missing = {_mark_of(one) for one in grants} - self._marks.keys()
        if missing:
            self._number(sorted(missing))


def _mark_of(one: GrantRow) -> tuple[str, str, str, str]:
    return one.scenario, one.category, one.partner, one.channel


def _binary_id(one: ReleaseRow) -> Any:
    return binary(bytes.fromhex(one.offer_id))


def _take_rows(grants: Iterable[GrantRow], gone: set[str]) -> list[list[Any]]:
    """What grants took, as lua/stock.lua's take_again reads it; without those that were given back."""
    rows: list[list[Any]] = []
    for one in grants:
        if one.taken is not None and one.offer_id not in gone:
            pool, _, number = (one.code or "").rpartition("#")
            rows.append([one.offer_id, one.subject, pool or False, int(number or -1), *one.taken])
    return rows


def _chunks(rows: Sequence[Any], size: int = _CHUNK) -> Iterator[Sequence[Any]]:
    return (rows[first : first + size] for first in range(0, len(rows), size))


def _always(*arguments: Any) -> Callable[[], Sequence[Any]]:
    return lambda: arguments
