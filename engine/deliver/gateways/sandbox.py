"""The sandbox gateway: accepts everything, sends nothing, keeps the newest messages for whoever watches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.clock import wall_ms
from engine.deliver.contract import Capabilities, Dispatch, Sessionless, Submitted


@dataclass(frozen=True, slots=True)
class SandboxMessage:
    """A message as it would have gone out, its address masked."""

    number: int  # counts from 1 over all gateways that share a store
    dispatch_id: str
    offer_id: str
    channel: str
    to: str
    text: str
    title: str
    at_ms: int  # on the engine's clock
    wall_ms: int
    data: Mapping[str, Any]


class SandboxGateway(Sessionless):
    """Keep the newest `keep` messages and tell `on_message` of each.

    on_message must be quick and must not raise; it runs in the dispatcher's loop.
    """

    def __init__(
        self,
        channel: str,
        now_ms: Callable[[], int],
        *,
        keep: int = 1000,
        on_message: Callable[[SandboxMessage], None] | None = None,
        store: deque[SandboxMessage] | None = None,
        name: str | None = None,
        capabilities: Capabilities | None = None,
    ) -> None:
        self.name = name or f"sandbox-{channel}"
        self.channel = channel
        self.capabilities = capabilities or Capabilities(window=256, messages_per_s=20_000.0, sms=channel == "sms")
        self.messages: deque[SandboxMessage] = deque(maxlen=keep) if store is None else store
        self.accepted = 0
        self._now_ms = now_ms
        self._on_message = on_message

    async def submit(self, dispatch: Dispatch) -> Submitted:
        self.accepted += 1
        message = SandboxMessage(
            number=self.messages[-1].number + 1 if self.messages else 1,
            dispatch_id=dispatch.dispatch_id,
            offer_id=dispatch.offer_id,
            channel=self.channel,
            to=mask(dispatch.address),
            text=dispatch.text,
            title=dispatch.title,
            at_ms=self._now_ms(),
            wall_ms=wall_ms(),
            data=dispatch.data,
        )
        self.messages.append(message)
        if self._on_message is not None:
            self._on_message(message)
        return Submitted((f"{self.name}-{self.accepted}",))

    async def close(self, timeout_s: float = 5.0) -> None:
        return None

    def recent(self, limit: int = 100) -> list[dict[str, Any]]:
        """List the newest messages, newest first, as JSON-ready objects."""
        newest = list(self.messages)[-limit:] if limit > 0 else []
        return [asdict(message) for message in reversed(newest)]


def mask(address: str) -> str:
    """Hide all of an address but its first two and last two characters; short ones wholly."""
    return f"{address[:2]}{'*' * (len(address) - 4)}{address[-2:]}" if len(address) >= 8 else "*" * len(address)
