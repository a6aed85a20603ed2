"""From settings to gateways: one per channel of the content, the sandbox where nothing is configured."""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Callable, Iterable

from engine.clock import wall_ms
from engine.definitions import Content
from engine.deliver.contract import Capabilities, Gateway
from engine.deliver.sandbox import SandboxGateway, SandboxMessage
from engine.deliver.webhook import WebhookGateway
from engine.errors import SettingsError
from engine.settings import GatewaySettings, Settings


def content_channels(content: Content) -> set[str]:
    return {channel for scenario in content.scenarios for channel in scenario.offer.channels}


def build_gateways(
    settings: Settings,
    channels: Iterable[str],
    *,
    now_ms: Callable[[], int],
    messages: deque[SandboxMessage] | None = None,
    on_message: Callable[[SandboxMessage], None] | None = None,
) -> list[Gateway]:
    """Build the gateways of these channels and of all configured ones; raise SettingsError for what cannot work.

    now_ms    the engine's clock, for the sandbox's display
    messages  where all sandboxes keep what they were given
    """
    gateways: list[Gateway] = []
    store: deque[SandboxMessage] = deque(maxlen=1000) if messages is None else messages
    for channel in sorted({*channels, *settings.gateways}):
        chosen = settings.gateways.get(channel) or GatewaySettings()
        if chosen.kind == "sandbox":
            gateways.append(SandboxGateway(channel, now_ms, store=store, on_message=on_message))
        else:
            gateways.append(_webhook(channel, chosen))
    return gateways


def callback_secrets(settings: Settings) -> dict[str, str]:
    """Map channels to the secret their gateway signs callbacks with: that of its submits."""
    found = {channel: _secret(chosen) for channel, chosen in settings.gateways.items()}
    return {channel: secret for channel, secret in found.items() if secret}


def _secret(chosen: GatewaySettings) -> str | None:
    if chosen.secret_file is not None:
        try:
            return chosen.secret_file.read_text().strip()
        except OSError as error:
            raise SettingsError(f"secret_file {chosen.secret_file} cannot be read: {error.strerror}") from None
    return chosen.secret


def _webhook(channel: str, chosen: GatewaySettings) -> WebhookGateway:
    secret = _secret(chosen)
    if not chosen.url or not secret:
        raise SettingsError(f"gateways.{channel}: a webhook needs url and secret or secret_file")
    try:
        exceptions = [ipaddress.ip_network(network) for network in chosen.allow_networks]
    except ValueError as error:
        raise SettingsError(f"gateways.{channel}.allow_networks: {error}") from None
    return WebhookGateway(
        channel,
        chosen.url,
        secret,
        now_ms=wall_ms,
        timeout_s=chosen.timeout_s,
        allow_http=chosen.allow_http,
        exceptions=exceptions,
        capabilities=Capabilities(
            window=chosen.window,
            messages_per_s=chosen.messages_per_s,
            receipts=True,
            signature_at_end=chosen.signature_at_end,
            sms=channel == "sms",
        ),
    )
