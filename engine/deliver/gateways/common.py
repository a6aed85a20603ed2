"""What making any gateway from its settings needs."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from engine.deliver.contract import Capabilities
from engine.deliver.egress import Network
from engine.errors import SettingsError
from engine.gateway_settings import GatewayBase


def capabilities_of(channel: str, chosen: GatewayBase, *, receipts: bool = False, **more: Any) -> Capabilities:
    """Return what the settings say of a gateway; `more` replaces (a window over several connections, ...)."""
    fields: dict[str, Any] = {
        "window": chosen.window,
        "messages_per_s": chosen.messages_per_s,
        "receipts": receipts,
        "signature": chosen.signature,
        "opt_out_text": chosen.opt_out_text,
        "signature_at_end": chosen.signature_at_end,
        "sms": channel == "sms",
        "daily_quota": chosen.daily_quota,
    }
    return Capabilities(**(fields | more))


def allowed_networks(name: str, networks: Iterable[str], setting: str = "allow_networks") -> list[Network]:
    try:
        return [ipaddress.ip_network(network) for network in networks]
    except ValueError as error:
        raise SettingsError(f"gateways.{name}.{setting}: {error}") from None
