"""What is wrong with the declared gateways, all at once, beside the content whose offers they are to carry."""

from __future__ import annotations

import difflib
import ipaddress
from collections import defaultdict
from collections.abc import Iterator

import httpx

from engine.definitions import Content, Every, Expression, InOrganisation, Neither, Some
from engine.deliver.egress import is_allowed
from engine.deliver.gateways.build import GatewayMaker, route_of
from engine.deliver.gateways.common import allowed_networks
from engine.errors import Fault, SettingsError
from engine.gateway_settings import GatewayBase, HttpSettings, WebhookSettings
from engine.settings import FILE, Settings

EVERYBODY = "national"


def gateway_faults(content: Content, settings: Settings) -> list[Fault]:
    """List what cannot work as errors, and as warnings whose offers would reach nobody; [] without a gateway."""
    by_channel: dict[str, dict[str, GatewayBase]] = defaultdict(dict)
    for name, chosen in sorted(settings.gateways.items()):
        by_channel[chosen.channel or name][name] = chosen
    if not by_channel:
        return []
    faults = [*_not_made(settings), *_not_public(settings), *_unknown_provinces(content, settings)]
    offered = _offered(content)
    for channel, classes in sorted(offered.items()):
        faults += _unserved(channel, classes, by_channel.get(channel, {}))
    for channel, gateways in sorted(by_channel.items()):
        faults += _of_channel(channel, gateways)
    return faults


def _not_made(settings: Settings) -> Iterator[Fault]:
    maker = GatewayMaker(settings, now_ms=lambda: 0)
    for name, chosen in sorted(settings.gateways.items()):
        try:
            maker.make(name, chosen)
        except SettingsError as error:
            where = f"gateways.{name}"
            why = str(error).removeprefix(f"{where}: ")
            yield Fault(FILE, where, "a gateway that cannot work", "one that can", why)


def _not_public(settings: Settings) -> Iterator[Fault]:
    """Tell of addresses that no connection goes to (FAULTS A1); where a name leads is only known when it is called."""
    for name, chosen in sorted(settings.gateways.items()):
        if not isinstance(chosen, WebhookSettings | HttpSettings):
            continue
        url, networks = getattr(chosen, "url", None), chosen.allow_networks
        try:
            host = httpx.URL(url or "").host
            address = "127.0.0.1" if host == "localhost" else str(ipaddress.ip_address(host))
            is_public = is_allowed(address, allowed_networks(name, networks))
        except (httpx.InvalidURL, ValueError, SettingsError):  # a name, or told already
            continue
        if not is_public:
            hint = "in a network of your own: name it in allow_networks"
            yield Fault(FILE, f"gateways.{name}.url", f"{host}, which is not public", "a public address", hint)


def _of_channel(channel: str, gateways: dict[str, GatewayBase]) -> Iterator[Fault]:
    if channel != "sms":
        for name, chosen in gateways.items():
            for field in ("signature", "opt_out_text", "signature_at_end"):
                if getattr(chosen, field) not in (None, False):
                    where = f"gateways.{name}.{field}"
                    yield Fault(FILE, where, f"a gateway of channel {channel}", "a gateway of channel sms")
    if not any(one.weight for one in gateways.values()):
        names = ", ".join(gateways)
        expected = f"one of channel {channel} with a weight above 0"
        yield Fault(FILE, f"gateways {names}", "stand-ins only (weight 0)", expected, severity="warning")


def _offered(content: Content) -> dict[str, dict[str, str]]:
    """Map channels to the classes of benefits that scenarios offer by them, each with one of these scenarios."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for scenario in content.scenarios:
        offer = scenario.offer
        for channel in (*offer.channels, *filter(None, [offer.fallback_channel])):
            found[channel].setdefault(offer.benefit_class, scenario.id)
    return found


def _unserved(channel: str, classes: dict[str, str], gateways: dict[str, GatewayBase]) -> Iterator[Fault]:
    """Tell which offers of a channel no gateway takes: all, those of a class, those to users of other provinces."""
    if not gateways:
        hint = "declare one in opportune.toml, or the sandbox takes its offers and sends nothing"
        expected = "a table [gateways.NAME]"
        yield Fault("scenarios", f"channel {channel}", "no gateway for it", expected, hint, "warning")
        return
    routes = [route_of(one) for one in gateways.values()]
    for benefit_class, scenario in sorted(classes.items()):
        fitting = [one for one in routes if not one.benefit_classes or benefit_class in one.benefit_classes]
        if any(not one.provinces for one in fitting):
            continue
        what = f"benefits of class {benefit_class}, which {scenario} offers"
        if fitting:
            provinces = ", ".join(sorted(frozenset().union(*(one.provinces for one in fitting))))
            what += f", to users of no province or of another than {provinces}"
        hint = "their offers end as no_gateway"
        expected = "a gateway without provinces, for the rest" if fitting else "a gateway that takes them"
        yield Fault(FILE, f"gateways of channel {channel}", f"none for {what}", expected, hint, "warning")


def _unknown_provinces(content: Content, settings: Settings) -> Iterator[Fault]:
    """Tell of provinces that look like a slip of the pen: the profiles alone know them all."""
    ids = [*(one.id for one in content.fences), *(one.id for one in content.scenarios)]
    known = {one.partition("/")[0] for one in ids} - {EVERYBODY}
    for scenario in content.scenarios:
        known |= {path.partition("/")[0] for path in _organisations(scenario.audience)}
    for name, chosen in sorted(settings.gateways.items()):
        for province in chosen.provinces:
            near = difflib.get_close_matches(province, sorted(known), 1, 0.75)
            if province not in known and near:
                where, expected = f"gateways.{name}.provinces", f"the first step of users' organisation: {near[0]}?"
                yield Fault(FILE, where, province, expected, "content names no such province", "warning")


def _organisations(expression: Expression | None) -> Iterator[str]:
    match expression:
        case InOrganisation(path):
            yield path
        case Every(parts) | Some(parts) | Neither(parts):
            for part in parts:
                yield from _organisations(part)
