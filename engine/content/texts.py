"""Offer texts: placeholders known, no forged signatures, no links but the claim link (rule O1)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.content.faults import Faults, Shown, did_you_mean
from engine.content.scenario_model import OfferModel
from engine.definitions import Placeholder

_BRACED = re.compile(r"\{([^{}]*)\}")
_LINK = re.compile(r"https?://|www\.|[a-z0-9-]+\.(com|cn|net|org|top|xyz|cc)(?![a-z0-9])", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\ue000]")

BUILT_IN = ("fence_name", "benefit_name", "claim_url", "code", "odds")
"""Placeholders that need no declaration."""

_SOURCES = {"fence_name": "fence.name", "benefit_name": "benefit.name", "odds": "lottery.odds"}


@dataclass(frozen=True, slots=True)
class TextPlaces:
    """What the placeholders of one offer may draw on."""

    has_fence: bool
    has_claim_domain: bool
    benefit_name: str
    has_codes: bool
    odds: str | None = None


def placeholders_of(offer: OfferModel, places: TextPlaces, file: str, faults: Faults) -> tuple[Placeholder, ...]:
    """Check text and title and return the placeholders they use, sorted by name."""
    used: set[str] = set()
    for name, text in (("text", offer.text), ("title", offer.title)):
        where = f"$.offer.{name}"
        used |= set(_BRACED.findall(text))
        rest = _BRACED.sub("", text)
        if "{" in rest or "}" in rest:
            faults.add(file, where, Shown("a single brace"), "placeholders such as {fence_name}")
            used -= set(_BRACED.findall(text))
        if "【" in rest or "】" in rest:
            faults.add(file, where, Shown("【 or 】"), "a text without them", "the policy's signature is put in front")
        if _CONTROL.search(rest):
            faults.add(file, where, Shown("a line break or control character"), "text on one line")
        link = _LINK.search(rest)
        if link:
            faults.add(file, where, link[0], "no link in the text", "use {claim_url}: the engine makes that link")
    known = {*offer.placeholders, *BUILT_IN}
    for name in sorted(used - known):
        hint = did_you_mean(name, known)
        faults.add(file, "$.offer.text", Shown(f"{{{name}}}"), "a placeholder declared under `placeholders`", hint)
    for name in sorted(set(offer.placeholders) - used):
        faults.warn(file, f"$.offer.placeholders.{name}", Shown("a placeholder not used"), "its use in text or title")
    return tuple(_placeholder(name, offer, places, file, faults) for name in sorted(used & known))


def _placeholder(name: str, offer: OfferModel, places: TextPlaces, file: str, faults: Faults) -> Placeholder:
    declared = offer.placeholders.get(name)
    source = declared.source if declared else _SOURCES.get(name, name)
    default = declared.default if declared else None
    where = f"$.offer.placeholders.{name}"
    if source == "fence.name" and not places.has_fence and default is None:
        hint = "a usage trigger knows no fence: give a default or leave it out"
        faults.add(file, where, Shown(f"{{{name}}} from the fence"), "a trigger that has a fence", hint)
    if source == "claim_url" and not places.has_claim_domain:
        faults.add(file, where, Shown(f"{{{name}}}"), "`claim_domains` in policy.yaml", "name the domain of the link")
    if source == "code" and not places.has_codes:
        hint = "name a pool under `stock.codes` of the benefit"
        faults.add(file, where, Shown(f"{{{name}}}"), "a benefit that has codes", hint)
    if source == "code" and default is not None:
        faults.add(file, f"{where}.default", Shown("a default for a code"), "none: without a code there is no offer")
    if source == "constant" and default is None:
        faults.add(file, where, Shown("a constant without default"), "its value under `default`")
    if source == "lottery.odds":
        if places.odds is None:
            faults.add(file, where, Shown(f"{{{name}}}"), "a scenario with a `lottery`")
        source, default = "constant", places.odds
    if source == "benefit.name":
        source, default = "constant", places.benefit_name
    return Placeholder(
        name=name,
        source=source.replace(".", ":", 1),
        type=declared.type if declared else "text",
        default=default,
        max_length=declared.max_length
        if declared
        else 200
        if source == "claim_url"
        else 64
        if source == "code"
        else 40,
    )
