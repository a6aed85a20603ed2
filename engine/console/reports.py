"""Reports over one state folder: what the ledger stored and the content of that time; the service may be running."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import structlog

from engine.console.seen import read_seen
from engine.definitions import Content
from engine.errors import OpportuneError, StoreError, slip_of
from engine.ledger.codes import CodeStore
from engine.ledger.reading import Granted, LedgerReader
from engine.report.credit import Credited, Terms, TermsOf, Use, credit
from engine.report.effect import effect_sheet
from engine.report.settlement import Claimed, reconciliation_sheet, settlement_sheet
from engine.report.sheet import Sheet
from engine.runtime.archive import ContentArchive

log = structlog.get_logger("opportune.reports")

DAY_MS = 86_400_000
LOOK_BACK_MS = 62 * DAY_MS
"""How long before a period an offer may have been made that is redeemed in it; the ledger keeps no more."""


class Reports:
    """Makes sheets from one state folder; `close` it."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._ledger = LedgerReader(state / "ledger.db")
        self._archive = ContentArchive(state / "content")
        self._contents: dict[str, Content | None] = {}

    def close(self) -> None:
        self._ledger.close()

    def effect(self, from_ms: int, until_ms: int, within_days: int) -> Sheet:
        grants = self._ledger.granted(from_ms, until_ms)
        beyond_ms = until_ms + within_days * DAY_MS
        uses = self._ledger.redemptions(from_ms, beyond_ms)
        refunds = self._ledger.redemptions(from_ms, beyond_ms, refunds=True)
        sent = self._ledger.sent({one.offer_id for one in grants})
        return effect_sheet(grants, sent, uses, refunds, self._terms_of(grants), within_days)

    def settlement(self, from_ms: int, until_ms: int) -> Sheet:
        grants, terms_of, credited, _ = self._credited(from_ms, until_ms)
        placed = self._ledger.sent({one.offer_id for one in grants})
        return settlement_sheet(grants, credited, terms_of, placed, from_ms, until_ms)

    def reconciliation(
        self, partner: str, claims: list[tuple[int, str, int | None]], from_ms: int, until_ms: int
    ) -> Sheet:
        """Compare claims of a partner: line, offer id or code, amount in fen.

        Raises OpportuneError where no offer is of such a partner, and the name is a slip of one that has some.
        """
        grants, terms_of, credited, unexplained = self._credited(from_ms, until_ms)
        partners = {name for terms in terms_of.values() for name, *_ in terms.owed(None)}
        if partner not in partners and (slip := slip_of(partner, partners)):
            raise OpportuneError(f"no offer of this time is of a partner {partner!r}{slip}")
        made = {one.offer_id: one for one in grants if not one.withheld}
        by_code = self._by_code(set(made))
        known = [
            Claimed(line, named, named.lower() if named.lower() in made else by_code.get(named), fen)
            for line, named, fen in claims
        ]
        here = [one for one in credited if from_ms <= one.use.at_ms < until_ms]
        late = [one for one in unexplained if from_ms <= one.at_ms < until_ms]
        return reconciliation_sheet(partner, made, here, late, known, terms_of)

    def activity(self, organisations: Sequence[str], month: str | None) -> Sheet:
        """Return the activity rate of each organisation subtree in a month `YYYY-MM`; None: the log's running one.

        Visits are as of the newest checkpoint, messages as of now. Raises OpportuneError where there is no checkpoint,
        for a month that is not kept, and for an organisation that nobody belongs to.
        """
        seen = read_seen(self._state / "checkpoints", self._content)
        from_ms, until_ms = month_of(month or seen.running_month, seen.time_zone)
        return seen.sheet(organisations, from_ms, self._ledger.received(from_ms, until_ms))

    def time_zone(self) -> str:
        """The zone of the newest content that decided; days and months are its own."""
        for version in reversed(self._ledger.versions()):
            content = self._content(version)
            if content is not None:
                return content.policy.time_zone
        return "Asia/Shanghai"

    def _credited(self, from_ms: int, until_ms: int) -> tuple[list[Granted], TermsOf, list[Credited], list[Use]]:
        grants = self._ledger.granted(from_ms - LOOK_BACK_MS, until_ms)
        terms_of = self._terms_of(grants)
        uses = self._ledger.redemptions(from_ms - LOOK_BACK_MS, until_ms)
        refunds = self._ledger.redemptions(from_ms - LOOK_BACK_MS, until_ms, refunds=True)
        credited, unexplained = credit(grants, uses, refunds, terms_of)
        return grants, terms_of, credited, unexplained

    def _terms_of(self, grants: list[Granted]) -> TermsOf:
        out = {}
        for version, scenario in sorted({(one.content_version, one.scenario) for one in grants}):
            content = self._content(version)
            found = next((one for one in content.scenarios if one.id == scenario), None) if content else None
            if content is None or found is None:
                continue
            offer, is_service = found.offer, found.offer.offer_class == "service"
            universal = 0.0 if is_service else content.policy.universal_holdout_percent / 100
            share = 1 - (1 - universal) * (1 - found.holdout_percent / 100)
            out[version, scenario] = Terms(offer.terms, offer.benefit, offer.partner, share)
        return out

    def _content(self, version: str) -> Content | None:
        if version not in self._contents:
            try:
                self._contents[version] = self._archive.load(version)
            except (StoreError, OpportuneError) as error:
                log.warning("content of that time cannot be read; its offers count without terms", error=str(error))
                self._contents[version] = None
        return self._contents[version]

    def _by_code(self, offer_ids: set[str]) -> dict[str, str]:
        """Return offer ids by the code each gave."""
        path = self._state / "codes.db"
        if not path.exists():
            return {}
        store = CodeStore(path)
        try:
            out = {}
            for offer_id, sent in self._ledger.sent(offer_ids).items():
                text = None if sent.code is None else store.reveal(sent.code) or sent.code
                if text is not None:
                    out[text] = offer_id
            return out
        finally:
            store.close()


def month_of(text: str, zone: str) -> tuple[int, int]:
    """Return the instants a month `YYYY-MM` begins and ends at in a zone; raise OpportuneError."""
    try:
        first = datetime.strptime(text, "%Y-%m").replace(tzinfo=ZoneInfo(zone))
    except ValueError:
        raise OpportuneError(f"{text!r} is no month such as 2026-11") from None
    after = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return int(first.timestamp() * 1000), int(after.timestamp() * 1000)
