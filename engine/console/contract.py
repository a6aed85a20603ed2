"""What the HTTP side asks of the running engine; `engine.runtime.service` answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.deliver.contract import Callback, Reply
from engine.model import RecordKind


@dataclass(frozen=True, slots=True)
class Component:
    """One row of /readyz; a critical one that is not ok makes the whole not ready."""

    ok: bool
    detail: str = ""
    critical: bool = True


@dataclass(frozen=True, slots=True)
class FenceOccupancy:
    fence: str
    name: str
    kind: str
    users: int
    crowded: bool = False


class Engine(Protocol):
    """The service as the API sees it. Every call runs in the API's event loop."""

    @property
    def backlog_bytes(self) -> int:
        """Bytes journaled and not yet processed."""
        ...

    @property
    def is_accepting(self) -> bool:
        """False once the service stops."""
        ...

    async def append(self, payloads: Sequence[bytes], kind: RecordKind = RecordKind.EVENTS) -> Sequence[int]:
        """Journal payloads as one record each, in one write; return their positions once they are durable.

        Raises StoreUnavailable where the journal cannot take them.
        """
        ...

    def append_at_once(self, payloads: Sequence[bytes]) -> Sequence[int] | None:
        """`append` of events without waiting; None where it would wait for the disk, and nothing is journaled."""
        ...

    async def processed(self, position: int) -> None:
        """Return once the record at `position` and all its effects are committed; raises StoreUnavailable."""
        ...

    def occupancy(self) -> Sequence[FenceOccupancy]:
        """Count users inside each fence now (P9), fences without users included."""
        ...

    def ready(self) -> dict[str, Component]:
        """Say of each component whether it works: journal, ledger, content, pipeline, gateways, ..."""
        ...

    async def explain(self, user: str, at_ms: int | None, scenario: str | None) -> dict[str, Any]:
        """Say why this user did or did not get something, newest decisions first; raises Refused."""
        ...

    async def audience(self, scenario: str | None, expression: str | None) -> dict[str, Any]:
        """Count whom an audience would reach; raises ContentError for an expression that cannot be read, Refused."""
        ...

    async def explain_decision(self, decision_id: str) -> dict[str, Any]:
        """Say all of one decision; no decisions where the id is unknown."""
        ...

    async def pause(self, scenario: str, paused: bool, by: str) -> None:
        """Pause or resume one scenario, or all with "*"; returns once no new submit can start (D8)."""
        ...

    async def gateway_callback(self, name: str, callback: Callback) -> Reply | None:
        """Hand a callback to the gateway of that name or channel; None where none of them is called back.

        Raises CallbackRefused, StoreUnavailable.
        """
        ...

    def sandbox_messages(self, limit: int) -> Sequence[dict[str, Any]]:
        """List the newest sandbox messages, newest first, addresses masked."""
        ...
