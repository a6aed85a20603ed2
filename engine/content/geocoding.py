"""Addresses to circles by a geocoding service, through geopy: politely, and never in a hurry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from geopy.exc import GeocoderNotFound, GeopyError
from geopy.extra.rate_limiter import RateLimiter
from geopy.geocoders import get_geocoder_for_service

from engine.content.faults import Faults, Shown
from engine.content.importing import Draft

# The datum a service answers in, where it is not WGS-84.
_DATUMS = {"baidu": "bd09", "baiduv3": "bd09"}


@dataclass(frozen=True, slots=True)
class Provider:
    """Which service to ask, and how. `domain` may begin with http:// or https://."""

    name: str = "nominatim"
    domain: str | None = None
    api_key: str | None = None
    user_agent: str = "opportune"
    pause_s: float = 1.0
    timeout_s: float = 10.0
    retries: int = 2

    @property
    def datum(self) -> str:
        return _DATUMS.get(self.name.lower(), "wgs84")


@dataclass(frozen=True, slots=True)
class Address:
    place: str
    name: str
    address: str


def read_addresses(text: str) -> list[Address]:
    """Read one address a line, `address` or `name<TAB>address`; empty lines and # comments do not count."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        name, _, address = line.rpartition("\t")
        if address.strip() and not line.startswith("#"):
            found.append(Address(f"line {number}", name.strip() or address.strip(), address.strip()))
    return found


def geocode(addresses: Iterable[Address], provider: Provider, file: str, faults: Faults) -> Iterator[Draft]:
    """Ask the service for each address, `pause_s` apart; what is not found or not answered becomes a fault."""
    ask = RateLimiter(
        _geocoder(provider).geocode,
        min_delay_seconds=provider.pause_s,
        max_retries=provider.retries,
        error_wait_seconds=max(provider.pause_s, 0.01),
        swallow_exceptions=False,
    )
    for one in addresses:
        try:
            answer = ask(one.address)
        except GeopyError as error:
            hint = "try again later; what was found is kept"
            faults.add(file, one.place, Shown(type(error).__name__), f"an answer from {provider.name}", hint)
            continue
        if answer is None:
            faults.add(
                file, one.place, one.address, "an address the service knows", "add the city, or mend the spelling"
            )
            continue
        position = [round(answer.longitude, 7), round(answer.latitude, 7)]
        yield Draft(one.place, {"type": "Point", "coordinates": position}, {"name": one.name})


def _geocoder(provider: Provider) -> Any:
    try:
        service = get_geocoder_for_service(provider.name)
    except GeocoderNotFound:
        raise ValueError(f"geopy knows no geocoder called {provider.name!r}") from None
    options: dict[str, Any] = {"timeout": provider.timeout_s, "user_agent": provider.user_agent}
    if provider.domain:
        scheme, mark, rest = provider.domain.partition("://")
        options["domain"] = rest if mark else provider.domain
        if mark:
            options["scheme"] = scheme
    if provider.api_key:
        options["api_key"] = provider.api_key
    try:
        return service(**options)
    except TypeError as error:
        raise ValueError(f"{provider.name}: {error}") from None
