"""Apprise, for the long tail of services that nobody writes a gateway for.

Apprise says only whether it believes that the message went out: True is taken (Submitted), anything else proves
nothing (GatewayUnknown, never resent). There are no receipts. It makes its connections itself, so the guard against
private addresses does not cover it: only the operator's configuration may name where it goes, never an address.
"""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import apprise

from engine.deliver.contract import Capabilities, Dispatch, Sessionless, Submitted
from engine.errors import GatewayUnknown, SettingsError


class AppriseGateway(Sessionless):
    """Notify through one Apprise URL; `{to}` in it stands for the address.

    title  of notifications whose offer has none
    """

    def __init__(
        self,
        name: str,
        channel: str,
        url: str,
        *,
        title: str = "",
        capabilities: Capabilities | None = None,
        timeout_s: float = 20.0,
    ) -> None:
        host = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
        if "{to}" in host:
            raise SettingsError(f"gateways.{name}.url: an address must not choose the host; put {{to}} behind it")
        if not apprise.Apprise.instantiate(url.replace("{to}", "12000000000"), suppress_exceptions=True):
            raise SettingsError(f"gateways.{name}.url is no address that Apprise understands")
        self.name = name
        self.channel = channel
        self.capabilities = capabilities or Capabilities(window=8, messages_per_s=20)
        self._url = url
        self._title = title
        self._timeout_s = timeout_s

    async def submit(self, dispatch: Dispatch) -> Submitted:
        # Encoded wholly: an address with a slash or a question mark must not become another path or option.
        exit_ = apprise.Apprise(asset=apprise.AppriseAsset(secure_logging=True, app_id="opportune"))
        exit_.add(self._url.replace("{to}", quote(dispatch.address, safe="")))
        title = dispatch.title or self._title
        try:
            async with asyncio.timeout(self._timeout_s):
                went_out = await exit_.async_notify(body=dispatch.text, title=title)
        except TimeoutError:
            raise GatewayUnknown(f"{self.name}: no answer") from None
        except Exception as error:
            raise GatewayUnknown(f"{self.name}: {type(error).__name__}") from None
        if not went_out:
            raise GatewayUnknown(f"{self.name}: not confirmed")
        return Submitted((dispatch.dispatch_id,))

    async def close(self, timeout_s: float = 5.0) -> None:
        return None
