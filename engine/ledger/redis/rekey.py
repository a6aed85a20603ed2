"""Move what Redis holds of one deployment to another with other shards, or with users under other ids (offline).

The target is another database, so that the source stays as it was. Grants keep their instants and count as before; they
are marked as another shard's, so that no replay takes them for its own. Until its first commit a new shard grants
nothing: what it reads up to `position` was decided before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from engine.errors import OpportuneError
from engine.ledger.redis.link import RedisLink
from engine.ledger.redis.log import HISTORY, GrantRow, LoggedCommit, ReleaseRow, ReservationLog, write_commit
from engine.ledger.redis.packing import GRANT_BYTES, decode, encode, read_grants

_NOBODY = (0xFFFF).to_bytes(2, "little")
_SHARD_AT = 28
_GRANTS_A_RECORD = 5000
_BY_OFFER = ("v:", "t:")
_OF_OFFERS = ("outbox", "s", "b", "bz")


@dataclass(slots=True)
class _Shard:
    """What becomes of one new shard besides its keys."""

    grants: list[GrantRow] = field(default_factory=list)
    releases: list[ReleaseRow] = field(default_factory=list)
    stock: dict[str, Any] = field(default_factory=dict)


class LedgerMove:
    """Copies every key of a tenant.

    shard_of   the new shard of a user, by the new id
    users      new ids of users that get one
    positions  of each new shard: the last record that was decided before
    """

    def __init__(
        self,
        source: str,
        target: str,
        tenant: str,
        shards: int,
        shard_of: Callable[[str], int],
        users: Mapping[str, str],
    ) -> None:
        self._home = f"{{{tenant}}}"
        self._tenant = tenant
        self._old = RedisLink(source, home=self._home)
        self._new = RedisLink(target, home=self._home)
        self._shards = [_Shard() for _ in range(shards)]
        self._shard_of = shard_of
        self._users = users
        self._moved: dict[str, int] = {}  # new shard by offer
        self._names: dict[str, dict[int, str]] = {}
        self._place = self._longest_ms = self._now_ms = 0
        if self._new.scan(f"{self._home}*".encode()):
            raise OpportuneError("the target Redis database holds keys of this tenant already; name an empty one")

    def close(self) -> None:
        self._old.close()
        self._new.close()

    def run(
        self, positions: Mapping[int, int], reservations: ReservationLog, progress: Callable[[int, int], None]
    ) -> int:
        """Copy everything and write the new shards' reservations; return how many offers there are."""
        keys = [key.decode() for key in self._old.scan(f"{self._home}*".encode())]
        for name, numbered in self._hash(f"{self._home}n").items():
            kind, _, text = name.decode().partition(":")
            self._names.setdefault(kind, {})[int(numbered)] = text
        # Offers first: other keys belong to the shard of theirs.
        keys.sort(key=lambda key: (":f:" not in key, key))
        for done, key in enumerate(keys):
            self._move(key)
            if done % 500 == 0:
                progress(done, len(keys))
        progress(len(keys), len(keys))
        for number, shard in enumerate(self._shards):
            self._finish(number, shard, positions.get(number, -1), reservations)
        return len(self._moved)

    # --- keys -------------------------------------------------------------------------------------------------------

    def _move(self, key: str) -> None:
        rest = key.removeprefix(self._home)
        number, colon, name = rest.partition(":")
        if not (colon and number.lstrip("-").isdigit()):
            self._move_shared(key, rest)
            return
        kind, _, about = name.partition(":")
        if kind == "f" and about:
            self._move_offer(key, about)
        elif kind in ("u", "c", "e", "x") and about:
            self._move_user(key, kind, about)
        elif f"{kind}:" in _BY_OFFER and about:
            shard = self._moved.get(about.partition("/")[0], 0)
            self._copy(key, f"{self._home}{shard}:{kind}:{about}")
        elif name in _OF_OFFERS:
            self._split(key, name)
        elif name == "p":
            for shard in range(len(self._shards)):
                for scenario, at in self._hash(key).items():
                    self._new.command("HSET", f"{self._home}{shard}:p", scenario, at)
        elif name == "stock":
            self._add_stock(key)
        elif name == "meta":
            meta = self._hash(key)
            self._place = max(self._place, int(meta.get(b"place", 0)))
            self._longest_ms = max(self._longest_ms, int(meta.get(b"longest", 0)))
            self._now_ms = max(self._now_ms, int(meta.get(b"now", 0)))
        elif name == "open":
            raise OpportuneError("a worker was cut off with a batch under way: start it once, stop it, and try again")

    def _move_shared(self, key: str, rest: str) -> None:
        kind, colon, about = rest.partition(":")
        if rest == "r":
            return
        if kind == "u" and colon:
            packed = self._as_others(key)
            self._log_grants(0, about, "", packed)
            self._put(key, f"{self._home}u:{self._subject(about)}", packed)
        elif kind == "z" and colon:
            self._copy(key, f"{self._home}z:{self._subject(about)}")
        elif kind == "g" and colon:
            # A part by its gateway's name: which shard its offer is in now (engine.ledger.redis.receipts).
            _, *part = orjson.loads(self._old.command("GET", key))
            self._put(key, key, orjson.dumps([self._moved.get(part[0], 0), *part]))
        else:
            self._copy(key, key)

    def _move_offer(self, key: str, offer_id: str) -> None:
        offer = decode(self._old.command("GET", key))
        user = offer[0]
        if not user:
            return
        offer[0] = self._users.get(user, user)
        offer[1] = self._subject(offer[1])
        if offer[0] != user:
            offer[8] = offer[8].replace(f'"user_id":"{user}"', f'"user_id":"{offer[0]}"', 1)
        self._moved[offer_id] = self._shard_of(offer[0])
        self._put(key, f"{self._home}{self._moved[offer_id]}:f:{offer_id}", encode(offer))

    def _move_user(self, key: str, kind: str, user: str) -> None:
        subject = self._subject(user)
        shard = self._shard_of(subject.partition("#")[0])
        target = f"{self._home}{shard}:{kind}:{subject}"
        if kind == "u":
            packed = self._as_others(key)
            self._log_grants(shard, subject, subject, packed)
            self._put(key, target, packed)
        else:
            self._copy(key, target)

    def _as_others(self, key: str) -> bytes:
        packed: bytes = self._old.command("GET", key)
        parts = []
        for at in range(0, len(packed), GRANT_BYTES):
            one = packed[at : at + GRANT_BYTES]
            parts.append(one[:_SHARD_AT] + _NOBODY + one[_SHARD_AT + 2 :])
        return b"".join(parts)

    def _log_grants(self, shard: int, subject: str, user: str, packed: bytes) -> None:
        key = f"{self._home}{shard}:u:{subject}" if user else f"{self._home}u:{subject}"
        for one in read_grants(packed):
            offer_id = one.offer_id.hex()
            row = GrantRow(
                offer_id,
                subject,
                user,
                self._name("scenario", one.scenario),
                self._name("category", one.category),
                self._name("partner", one.partner),
                self._name("channel", one.channel),
                one.flags,
                one.at_ms,
                0,
                None,
            )
            self._shards[shard].grants.append(row)
            if one.released:
                self._shards[shard].releases.append(ReleaseRow(offer_id, key, 0))

    def _split(self, key: str, name: str) -> None:
        if name in ("s", "b"):
            for offer, value in self._hash(key).items():
                shard = self._moved.get(offer.decode(), 0)
                self._new.command("HSET", f"{self._home}{shard}:{name}", offer, value)
            return
        found = self._old.command("ZRANGE", key, 0, -1, "WITHSCORES")
        for member, score in zip(found[::2], found[1::2], strict=True):
            shard = self._moved.get(member.decode().partition("/")[0], 0)
            self._new.command("ZADD", f"{self._home}{shard}:{name}", score, member)

    def _add_stock(self, key: str) -> None:
        """All that was given, and all leases, go to shard 0; what of them nobody has comes back from there."""
        stock = self._shards[0].stock
        for name, value in ((name.decode(), value) for name, value in self._hash(key).items()):
            if not name.startswith("k:"):
                stock[name] = stock.get(name, 0) + int(value)
                continue
            pool = decode(value)
            known = stock.setdefault(name, [[], [], [], [], -1])
            for place in range(4):
                known[place] = sorted([*known[place], *pool[place]])

    # --- the new shards -----------------------------------------------------------------------------------------------

    def _finish(self, number: int, shard: _Shard, position: int, reservations: ReservationLog) -> None:
        released = {one.offer_id: one for one in shard.releases}
        chunks = [shard.grants[at : at + _GRANTS_A_RECORD] for at in range(0, len(shard.grants), _GRANTS_A_RECORD)] or [
            []
        ]
        for logged, grants in enumerate(chunks, 1):
            commit = LoggedCommit(
                self._tenant,
                number,
                logged,
                position,
                self._now_ms,
                HISTORY,
                self._longest_ms,
                grants,
                [released[one.offer_id] for one in grants if one.offer_id in released],
                shard.stock or None,
            )
            reservations.append(number, write_commit(commit))
        prefix = f"{self._home}{number}:"
        for name, value in shard.stock.items():
            self._new.command("HSET", f"{prefix}stock", name, encode(value) if name.startswith("k:") else value)
        meta: dict[str, int | str] = {
            "epoch": 0,
            "claims": 0,
            "position": position,
            "now": self._now_ms,
            "asked": HISTORY,
            "longest": self._longest_ms,
            "logged": len(chunks),
            "place": self._place,
            "run": self._new.run_id,
        }
        self._new.command("HSET", f"{prefix}meta", *[part for pair in meta.items() for part in pair])

    def _name(self, kind: str, number: int) -> str:
        return self._names.get(kind, {}).get(number, "")

    # --- inside -------------------------------------------------------------------------------------------------------

    def _subject(self, name: str) -> str:
        user, mark, generation = name.partition("#")
        return f"{self._users[user]}{mark}{generation}" if user in self._users else name

    def _hash(self, key: str) -> dict[bytes, bytes]:
        found = self._old.command("HGETALL", key)
        return dict(zip(found[::2], found[1::2], strict=True))

    def _put(self, key: str, target: str, value: bytes) -> None:
        left_ms = int(self._old.command("PTTL", key))
        self._new.command("SET", target, value, *(("PX", left_ms) if left_ms > 0 else ()))

    def _copy(self, key: str, target: str) -> None:
        dumped = self._old.command("DUMP", key)
        if dumped is not None:
            left_ms = max(int(self._old.command("PTTL", key)), 0)
            self._new.command("RESTORE", target, left_ms, dumped, "REPLACE")
