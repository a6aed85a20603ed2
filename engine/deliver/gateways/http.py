"""From settings to gateways behind an HTTP API, and to Apprise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.clock import wall_ms
from engine.deliver.contract import Gateway
from engine.deliver.gateways.common import allowed_networks, capabilities_of
from engine.deliver.gateways.fcm import FcmGateway
from engine.deliver.gateways.kannel import KannelGateway
from engine.deliver.gateways.twilio import TwilioGateway
from engine.deliver.gateways.webpush import WebPushGateway
from engine.deliver.outbound import Outbound
from engine.errors import SettingsError
from engine.gateway_settings import (
    AppriseSettings,
    FcmSettings,
    HttpSettings,
    KannelSettings,
    TwilioSettings,
    WebPushSettings,
    read_secret,
)


def make_http(name: str, channel: str, chosen: HttpSettings | AppriseSettings) -> Gateway:
    """Make the gateway that the settings describe; raise SettingsError for what cannot work."""
    match chosen:
        case KannelSettings():
            return _kannel(name, channel, chosen)
        case TwilioSettings():
            return _twilio(name, channel, chosen)
        case FcmSettings():
            common = _common(channel, chosen)
            out = _outbound(name, chosen)
            return FcmGateway(name, channel, out, chosen.account_file, url=chosen.url, title=chosen.title, **common)
        case WebPushSettings():
            common = _common(channel, chosen)
            out = _outbound(name, chosen)
            return WebPushGateway(name, channel, out, chosen.key_file, chosen.subject, title=chosen.title, **common)
        case AppriseSettings():
            return _apprise(name, channel, chosen)
    raise SettingsError(f"gateways.{name}: this kind of gateway cannot be made here")


def _outbound(name: str, chosen: HttpSettings) -> Outbound:
    return Outbound(
        name,
        window=chosen.window,
        timeout_s=chosen.timeout_s,
        allow_http=chosen.allow_http,
        exceptions=allowed_networks(name, chosen.allow_networks),
    )


def _common(channel: str, chosen: HttpSettings) -> dict[str, Any]:
    """Return what all gateways behind an HTTP API are made with."""
    return {"now_ms": wall_ms, "capabilities": capabilities_of(channel, chosen, receipts=bool(chosen.callback_url))}


def _needed(value: str | None, file: Path | None, where: str) -> str:
    secret = read_secret(value, file, where)
    if not secret:
        raise SettingsError(f"{where} is missing")
    return secret


def _kannel(name: str, channel: str, chosen: KannelSettings) -> KannelGateway:
    return KannelGateway(
        name,
        channel,
        _outbound(name, chosen),
        chosen.url,
        chosen.login,
        _needed(chosen.password, chosen.password_file, f"gateways.{name}.password_file"),
        sender=chosen.sender,
        smsc=chosen.smsc,
        callback_url=chosen.callback_url,
        callback_secret=read_secret(
            chosen.callback_secret, chosen.callback_secret_file, f"gateways.{name}.callback_secret_file"
        ),
        allow_from=allowed_networks(name, chosen.allow_from, "allow_from"),
        **_common(channel, chosen),
    )


def _twilio(name: str, channel: str, chosen: TwilioSettings) -> TwilioGateway:
    return TwilioGateway(
        name,
        channel,
        _outbound(name, chosen),
        chosen.account,
        _needed(chosen.password, chosen.password_file, f"gateways.{name}.password_file"),
        url=chosen.url,
        sender=chosen.sender,
        messaging_service=chosen.messaging_service,
        callback_url=chosen.callback_url,
        **_common(channel, chosen),
    )


def _apprise(name: str, channel: str, chosen: AppriseSettings) -> Gateway:
    # A hundred services' code: loaded only where one is declared.
    from engine.deliver.gateways.apprise import AppriseGateway

    return AppriseGateway(
        name,
        channel,
        _needed(chosen.url, chosen.url_file, f"gateways.{name}.url_file"),
        title=chosen.title,
        timeout_s=chosen.timeout_s,
        capabilities=capabilities_of(channel, chosen),
    )
