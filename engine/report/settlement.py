"""What partners are owed, by province, and whether three books agree: issued, redeemed, the partner's own (MISSION)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.report.credit import Credited, Grant, TermsOf, Use
from engine.report.sheet import Sheet

SETTLEMENT = ("partner", "province", "benefit", "issued", "redeemed", "refunded", "face_value_fen", "cost_fen")
MISMATCH = ("mismatch", "offer_id", "partner", "ours", "theirs", "line")
TOTAL = "total"


class Placed(Protocol):
    """An offer with where its user belongs."""

    @property
    def province(self) -> str | None: ...


def province_of(grant: Grant, placed: Mapping[str, Placed]) -> str:
    """The user's province when the offer was made; where none was known, the owner of the scenario."""
    known = placed.get(grant.offer_id)
    return (known.province if known is not None else None) or grant.scenario.partition("/")[0]


def settlement_sheet(
    grants: Iterable[Grant],
    credited: Iterable[Credited],
    terms_of: TermsOf,
    placed: Mapping[str, Placed],
    from_ms: int,
    until_ms: int,
) -> Sheet:
    """Return what is owed for a period, by partner, province and benefit, with totals.

    An offer counts when it was made, a redemption when it happened, a refund when it was given back: what was redeemed
    in one period and given back in the next is owed in the first and taken off in the second.
    """
    lines: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])

    def owed(grant: Grant, named: str | None) -> list[tuple[tuple[str, str, str], int, int]]:
        terms = terms_of.get((grant.content_version, grant.scenario))
        province = province_of(grant, placed)
        parts = terms.owed(named) if terms is not None else [("unknown", "unknown", 0, 0)]
        return [((partner, province, benefit), face, cost) for partner, benefit, face, cost in parts]

    for grant in grants:
        if not grant.withheld and from_ms <= grant.at_ms < until_ms:
            for key, _, _ in owed(grant, None):
                lines[key][0] += 1
    for one in credited:
        for key, face, cost in owed(one.grant, one.use.benefit):
            for place, at_ms, sign in ((1, one.use.at_ms, 1), (2, one.refunded_ms, -1)):
                if at_ms is not None and from_ms <= at_ms < until_ms:
                    line = lines[key]
                    line[place] += 1
                    line[3] += sign * face
                    line[4] += sign * cost
    rows: list[tuple[object, ...]] = [(*key, *line) for key, line in sorted(lines.items())]
    for partner in sorted({key[0] for key in lines}):
        sums = [sum(line[place] for key, line in lines.items() if key[0] == partner) for place in range(5)]
        rows.append((partner, TOTAL, TOTAL, *sums))
    sheet = Sheet("settlement", SETTLEMENT, rows)
    return Sheet(sheet.title, sheet.columns, sheet.rows, (f"sha256 {sheet.digest()}",))


@dataclass(frozen=True, slots=True)
class Claimed:
    """A line of the partner's file: the offer that it means, as far as it names one of ours."""

    line: int
    named: str  # offer id or code, as the partner wrote it
    offer_id: str | None
    amount_fen: int | None


def reconciliation_sheet(
    partner: str,
    grants: Mapping[str, Grant],
    credited: Iterable[Credited],
    unexplained: Iterable[Use],
    claims: Sequence[Claimed],
    terms_of: TermsOf,
) -> Sheet:
    """List where the three books disagree.

    not_issued       they claim what we never issued
    other_partner    they claim what another partner owes
    not_redeemed     they claim what nobody redeemed with us
    refunded         they claim what was given back
    claimed_twice    they claim it more often than it was redeemed
    amount           they ask another amount than the benefit costs
    not_claimed      redeemed with us, and not in their file
    issued_unknown   a redemption names an offer that we never issued
    """
    cost: dict[str, int] = {}
    for offer_id, grant in grants.items():
        terms = terms_of.get((grant.content_version, grant.scenario))
        if terms is not None:
            parts = [fen for name, _, _, fen in terms.owed(None) if name == partner]
            if parts:
                cost[offer_id] = sum(parts)
    redeemed: Counter[str] = Counter()
    refunded: Counter[str] = Counter()
    for one in credited:
        (refunded if one.refunded else redeemed)[one.grant.offer_id] += 1
    rows: list[tuple[object, ...]] = []
    claimed: Counter[str] = Counter()
    for claim in claims:
        if claim.offer_id is None or claim.offer_id not in grants:
            rows.append(("not_issued", claim.named, partner, None, claim.amount_fen, claim.line))
            continue
        offer_id = claim.offer_id
        if offer_id not in cost:
            rows.append(("other_partner", offer_id, partner, None, claim.amount_fen, claim.line))
            continue
        claimed[offer_id] += 1
        ours = cost[offer_id]
        if claimed[offer_id] > max(redeemed[offer_id], 1) or (not redeemed[offer_id] and claimed[offer_id] > 1):
            rows.append(("claimed_twice", offer_id, partner, ours, claim.amount_fen, claim.line))
        elif not redeemed[offer_id]:
            kind = "refunded" if refunded[offer_id] else "not_redeemed"
            rows.append((kind, offer_id, partner, 0, claim.amount_fen, claim.line))
        elif claim.amount_fen is not None and claim.amount_fen != ours:
            rows.append(("amount", offer_id, partner, ours, claim.amount_fen, claim.line))
    for missed in sorted(redeemed):
        if missed in cost and redeemed[missed] > claimed[missed]:
            fen = cost[missed] * (redeemed[missed] - claimed[missed])
            rows.append(("not_claimed", missed, partner, fen, None, None))
    for use in unexplained:
        named = use.offer_id
        if named is not None:
            rows.append(("issued_unknown", named, partner, None, use.amount_fen, None))
    issued = len(cost)
    agreed = len(claims) - sum(row[5] is not None for row in rows)
    note = (
        f"{issued:,} issued, {sum(redeemed[one] for one in cost):,} redeemed, {len(claims):,} claimed, {agreed:,} agree"
    )
    return Sheet(f"reconciliation with {partner}", MISMATCH, rows, (note,))
