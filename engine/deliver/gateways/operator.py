"""From settings to the operators' gateways: SGIP, CMPP, SMGP, SMPP."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from engine.clock import wall_ms
from engine.deliver.contract import Gateway
from engine.deliver.gateways import cmpp, sgip, smgp, smpp
from engine.deliver.gateways.common import allowed_networks, capabilities_of
from engine.deliver.gateways.sgip_dialect import Account
from engine.deliver.operators import cmpp as cmpp_codec
from engine.deliver.operators.link import Timing
from engine.deliver.operators.parts import count
from engine.deliver.operators.session import LONGEST_SUBMIT_S, OperatorGateway, Peer
from engine.errors import SettingsError
from engine.gateway_settings import (
    CmppSettings,
    OperatorSettings,
    SgipSettings,
    SmgpSettings,
    SmppSettings,
    read_secret,
)


def make_operator(
    name: str,
    channel: str,
    chosen: SgipSettings | CmppSettings | SmgpSettings | SmppSettings,
    now_ms: Callable[[], int] = wall_ms,
) -> Gateway:
    """Make one gateway; raise SettingsError for what cannot work."""
    password = _secret(name, "password", chosen)
    capabilities = capabilities_of(
        channel,
        chosen,
        receipts=True,
        window=chosen.window * chosen.connections,
        timeout_s=2 * chosen.answer_timeout_s + LONGEST_SUBMIT_S,
        count_parts=count,
    )
    peer = Peer(
        chosen.host,
        chosen.port,
        chosen.connections,
        chosen.window,
        Timing(
            answer_s=chosen.answer_timeout_s,
            test_after_s=chosen.keep_alive_s,
            tests=chosen.keep_alive_tries,
            sleep_after_s=chosen.idle_s if isinstance(chosen, SgipSettings) else None,
        ),
    )
    if isinstance(chosen, SgipSettings):
        secret = read_secret(chosen.listen_password, chosen.listen_password_file, f"gateways.{name}.listen_password")
        return sgip.SgipGateway(
            name,
            channel,
            peer,
            Account(
                chosen.login, password, chosen.node, chosen.corporation, chosen.sender, chosen.service, chosen.charged
            ),
            sgip.Listening(
                chosen.listen_host,
                chosen.listen_port,
                chosen.listen_login or chosen.login,
                secret or password,
                allowed_networks(name, chosen.allow_from, "allow_from"),
            ),
            capabilities,
            now_ms=now_ms,
        )
    # Sequences begin anywhere, so that those of a restart do not meet those before it.
    first = partial(random.getrandbits, 31)
    if isinstance(chosen, CmppSettings):
        version = cmpp_codec.V3 if chosen.version == "3.0" else cmpp_codec.V2
        mobile = cmpp.Account(chosen.login, password, chosen.sender, chosen.service, version)
        return OperatorGateway(
            name, channel, peer, partial(cmpp.CmppDialect, mobile, first), capabilities, now_ms=now_ms
        )
    if isinstance(chosen, SmppSettings):
        account = smpp.Account(
            chosen.login,
            password,
            chosen.sender,
            chosen.service,
            chosen.system_type,
            chosen.sender_ton,
            chosen.sender_npi,
            chosen.number_ton,
            chosen.number_npi,
            chosen.ids,
        )
        return OperatorGateway(
            name, channel, peer, partial(smpp.SmppDialect, account, first), capabilities, now_ms=now_ms
        )
    telecom = smgp.Account(chosen.login, password, chosen.sender, chosen.service)
    return OperatorGateway(name, channel, peer, partial(smgp.SmgpDialect, telecom, first), capabilities, now_ms=now_ms)


def _secret(name: str, field: str, chosen: OperatorSettings) -> str:
    found = read_secret(chosen.password, chosen.password_file, f"gateways.{name}.{field}")
    if not found:
        raise SettingsError(f"gateways.{name}: give password_file, or {field}")
    if not found.isascii():
        raise SettingsError(f"gateways.{name}.{field} must be ASCII")
    return found
