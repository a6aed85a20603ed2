"""The reservations log: every commit of a shard as one record, written before Redis knows it (docs/contracts.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import orjson

from engine.model import CONTRACT_VERSION

HISTORY = 1 << 40
"""So many requests asked: the shard was made of others, and all that is asked before is history (lua/reserve.lua)."""


class ReservationLog(Protocol):
    """Where commits are written; topic `reservations` in a cluster."""

    def append(self, shard: int, entry: bytes) -> None:
        """Write one record durably; StoreUnavailable where it cannot be."""
        ...

    def read(self, shard: int, after: int) -> Iterable[bytes]:
        """Give the shard's records in order, at least those numbered above `after`."""
        ...


class GrantRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One grant; `number` is the place of its request in the shard's log, `flags` as in lua/shared.lua.

    Written as a list; made in a third of the time of a tuple with names, and there is one for every offer.
    """

    offer_id: str
    subject: str
    user: str
    scenario: str
    category: str
    partner: str
    channel: str
    flags: int
    at_ms: int
    number: int
    code: str | None
    # of stock: the day; benefit, cost in fen, counts users, ...
    taken: tuple[int, list[str | int | bool]] | None = None


class ReleaseRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One grant given back, or kept for good as its message arrived: the first that was told counts.

    number  of the first request that sees it so;  key  of the subject in Redis
    """

    offer_id: str
    key: str
    number: int


@dataclass(frozen=True, slots=True)
class LoggedCommit:
    """One commit: what it granted and released, and where the shard stood after it."""

    tenant: str
    shard: int
    number: int  # rises by one with each commit; a commit cut off by a crash may come twice
    position: int
    now_ms: int
    asked: int
    longest_ms: int
    grants: Sequence[GrantRow]
    releases: Sequence[ReleaseRow]
    stock: dict[str, Any] | None = None  # what the shard had given after it, where that changed (lua/stock.lua)
    arrived: Sequence[ReleaseRow] = ()  # delivered or redeemed: no failure gives them back any more


class MemoryLog:
    """A log in memory, for tests and simulation."""

    def __init__(self) -> None:
        self.entries: dict[int, list[bytes]] = {}

    def append(self, shard: int, entry: bytes) -> None:
        self.entries.setdefault(shard, []).append(entry)

    def read(self, shard: int, after: int) -> Iterable[bytes]:
        return list(self.entries.get(shard, ()))


def write_commit(commit: LoggedCommit) -> bytes:
    return msgspec.json.encode(
        {
            "v": CONTRACT_VERSION,
            "tenant": commit.tenant,
            "shard": commit.shard,
            "number": commit.number,
            "position": commit.position,
            "now_ms": commit.now_ms,
            "asked": commit.asked,
            "longest_ms": commit.longest_ms,
            "grants": commit.grants,
            "releases": commit.releases,
            **({"stock": commit.stock} if commit.stock is not None else {}),
            **({"arrived": commit.arrived} if commit.arrived else {}),
        }
    )


def read_commits(entries: Iterable[bytes], after: int) -> list[LoggedCommit]:
    """Read the commits numbered above `after`, in order; records of an unknown version are passed over."""
    found = []
    for entry in entries:
        told = orjson.loads(entry)
        if told.get("v") == CONTRACT_VERSION and told["number"] > after:
            found.append(
                LoggedCommit(
                    told["tenant"],
                    told["shard"],
                    told["number"],
                    told["position"],
                    told["now_ms"],
                    told["asked"],
                    told["longest_ms"],
                    [GrantRow(*row) for row in told["grants"]],
                    [ReleaseRow(*row) for row in told["releases"]],
                    told.get("stock"),
                    [ReleaseRow(*row) for row in told.get("arrived", ())],
                )
            )
    return found
