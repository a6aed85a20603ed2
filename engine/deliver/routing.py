"""Which of several gateways of a channel an offer takes: a function of the offer and the configuration alone.

The province is that of the user's profile when the offer was granted, never one guessed from the number: numbers move
between operators. A share is drawn from a hash of the offer id, so that the same offer takes the same way again, and
taking one gateway away moves only the offers that it had (weighted rendezvous hashing).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from engine.model import Offer


@dataclass(frozen=True, slots=True)
class Route:
    """Which offers of its channel one gateway takes; an empty set takes all of them.

    weight  its share among those that suit an offer equally well; 0: a stand-in, when none of the others can take it
    """

    provinces: frozenset[str] = frozenset()
    benefit_classes: frozenset[str] = frozenset()
    weight: float = 1.0

    def takes(self, offer: Offer) -> bool:
        return (not self.provinces or offer.province in self.provinces) and (
            not self.benefit_classes or offer.benefit_class in self.benefit_classes
        )

    @property
    def detail(self) -> int:
        """How much the route says: one for a province precedes one for a class of benefits, that one for anything."""
        return 2 * bool(self.provinces) + bool(self.benefit_classes)


EVERYTHING = Route()


def rank(offer: Offer, gateways: Sequence[str], routes: Mapping[str, Route]) -> list[str]:
    """List the gateways that take this offer, the one that should first; empty where none does."""
    found = []
    for name in gateways:
        route = routes.get(name, EVERYTHING)
        if route.takes(offer):
            found.append((not route.weight, -route.detail, _lot(offer.offer_id, name) / (route.weight or 1.0), name))
    return [name for *_, name in sorted(found)]


def _lot(offer_id: str, gateway: str) -> float:
    """Draw an exponential number from the pair: the least of several, each divided by its weight, falls by weight."""
    drawn = int.from_bytes(blake2b(f"{offer_id}/{gateway}".encode(), digest_size=8).digest())
    return -math.log((drawn + 1) / (1 << 64))
