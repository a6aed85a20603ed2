"""From settings to gateways: those that are declared, and the sandbox for channels that nobody serves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from engine.clock import wall_ms
from engine.definitions import Content
from engine.deliver.contract import Gateway
from engine.deliver.gateways.common import allowed_networks, capabilities_of
from engine.deliver.gateways.http import make_http
from engine.deliver.gateways.operator import make_operator
from engine.deliver.gateways.sandbox import SandboxGateway, SandboxMessage
from engine.deliver.gateways.webhook import WebhookGateway
from engine.errors import Fault, SettingsError
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


def content_channels(content: Content) -> set[str]:
    """Return every channel that scenarios name."""
    named: set[str] = set()
    for scenario in content.scenarios:
        named |= {*scenario.offer.channels, *filter(None, [scenario.offer.fallback_channel])}
    return named


def unserved(content: Content, settings: Settings) -> list[Fault]:
    """List, as warnings, channels for which no gateway is declared although others are: their offers reach nobody."""
    served = served_channels(settings)
    if not served:
        return []
    hint = "declare one in opportune.toml, or the sandbox takes its offers and sends nothing"
    return [
        Fault("scenarios", f"channel {channel}", "no gateway for it", "a table [gateways.NAME]", hint, "warning")
        for channel in sorted(content_channels(content) - served)
    ]


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
        return [self._make(name, chosen) for name, chosen in sorted(self._settings.gateways.items())]

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

    def _make(self, name: str, chosen: GatewayBase) -> Gateway:
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


def callback_secrets(settings: Settings) -> dict[str, str]:
    """Map channels to the secret their gateway signs callbacks with: that of its submits."""
    found: dict[str, str] = {}
    for name, chosen in settings.gateways.items():
        if isinstance(chosen, WebhookSettings):
            secret = read_secret(chosen.secret, chosen.secret_file, f"gateways.{name}.secret_file")
            if secret:
                found[chosen.channel or name] = secret
    return found


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
