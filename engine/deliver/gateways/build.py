"""From settings to gateways: those that are declared, and the sandbox for channels that nobody serves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from engine.clock import wall_ms
from engine.deliver.contract import Gateway
from engine.deliver.gateways.common import allowed_networks, capabilities_of
from engine.deliver.gateways.http import make_http
from engine.deliver.gateways.operator import make_operator
from engine.deliver.gateways.sandbox import SandboxGateway, SandboxMessage
from engine.deliver.gateways.webhook import WebhookGateway
from engine.deliver.routing import EVERYTHING, Route
from engine.errors import SettingsError
from engine.gateway_settings import (
    AppriseSettings,
    CmppSettings,
    GatewayBase,
    HttpSettings,
    SandboxSettings,
    SgipSettings,
    SmgpSettings,
    SmppSettings,
    WebhookSettings,
    read_secret,
)
from engine.settings import Settings

ROUTING = {"provinces", "benefit_classes", "weight"}
"""The settings that can change without a restart."""


def served_channels(settings: Settings) -> set[str]:
    """Return the channels for which a gateway is declared."""
    return {chosen.channel or name for name, chosen in settings.gateways.items()}


class GatewayMaker:
    """Makes the declared gateways, and sandboxes where a channel has none. Raises SettingsError for what cannot work.

    now_ms    the engine's clock, for the sandbox's display
    messages  where all sandboxes keep what they were given
    """

    def __init__(
        self,
        settings: Settings,
        *,
        now_ms: Callable[[], int],
        messages: deque[SandboxMessage] | None = None,
        on_message: Callable[[SandboxMessage], None] | None = None,
    ) -> None:
        self._settings = settings
        self._now_ms = now_ms
        self._store: deque[SandboxMessage] = deque(maxlen=1000) if messages is None else messages
        self._on_message = on_message

    def declared(self) -> list[Gateway]:
        """Make all that are declared; raises one SettingsError that names everything that is wrong with them."""
        made, wrong = [], []
        for name, chosen in sorted(self._settings.gateways.items()):
            try:
                made.append(self.make(name, chosen))
            except SettingsError as error:
                wrong.append(str(error))
        if wrong:
            raise SettingsError("\n  ".join(wrong))
        return made

    def sandbox(self, channel: str, name: str | None = None, chosen: GatewayBase | None = None) -> Gateway:
        capabilities = capabilities_of(channel, chosen or SandboxSettings())
        return SandboxGateway(
            channel,
            self._now_ms,
            name=name,
            store=self._store,
            on_message=self._on_message,
            capabilities=capabilities,
        )

    def make(self, name: str, chosen: GatewayBase) -> Gateway:
        channel = chosen.channel or name
        match chosen:
            case SandboxSettings():
                return self.sandbox(channel, None if name == channel else name, chosen)
            case WebhookSettings():
                return _webhook(name, channel, chosen)
            case SgipSettings() | CmppSettings() | SmgpSettings() | SmppSettings():
                return make_operator(name, channel, chosen)
            case HttpSettings() | AppriseSettings():
                return make_http(name, channel, chosen)
        raise SettingsError(f"gateways.{name}: this kind of gateway cannot be made here")


def routes(settings: Settings) -> dict[str, Route]:
    """Return which offers the declared gateways take, of those that do not simply take all of their channel."""
    found = {name: route_of(one) for name, one in settings.gateways.items()}
    return {name: route for name, route in found.items() if route != EVERYTHING}


def route_of(chosen: GatewayBase) -> Route:
    return Route(frozenset(chosen.provinces), frozenset(chosen.benefit_classes), chosen.weight)


def rerouted(now: Settings, wanted: Settings) -> tuple[dict[str, Route], list[str]]:
    """Return the routes of gateways that are there as `wanted` says, and what of it needs a restart, by name."""
    found, later = {name: route_of(one) for name, one in now.gateways.items()}, []
    for name in sorted({*now.gateways, *wanted.gateways}):
        here, there = now.gateways.get(name), wanted.gateways.get(name)
        if here is not None and there is not None:
            found[name] = route_of(there)
        if here is None or there is None or here.model_dump(exclude=ROUTING) != there.model_dump(exclude=ROUTING):
            later.append(name)
    return {name: route for name, route in found.items() if route != EVERYTHING}, later


def build_gateways(
    settings: Settings,
    channels: Iterable[str],
    *,
    now_ms: Callable[[], int],
    messages: deque[SandboxMessage] | None = None,
    on_message: Callable[[SandboxMessage], None] | None = None,
) -> list[Gateway]:
    """Build all declared gateways, and a sandbox for each of `channels` that none serves."""
    maker = GatewayMaker(settings, now_ms=now_ms, messages=messages, on_message=on_message)
    return [*maker.declared(), *(maker.sandbox(channel) for channel in sorted({*channels} - served_channels(settings)))]


def _webhook(name: str, channel: str, chosen: WebhookSettings) -> WebhookGateway:
    secret = read_secret(chosen.secret, chosen.secret_file, f"gateways.{name}.secret_file")
    if not chosen.url or not secret:
        raise SettingsError(f"gateways.{name}: a webhook needs url and secret or secret_file")
    return WebhookGateway(
        channel,
        chosen.url,
        secret,
        name=None if name == channel else name,
        now_ms=wall_ms,
        timeout_s=chosen.timeout_s,
        allow_http=chosen.allow_http,
        exceptions=allowed_networks(name, chosen.allow_networks),
        capabilities=capabilities_of(channel, chosen, receipts=True),
    )
