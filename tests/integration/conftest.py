"""Says at the end what was counted over all fault tests."""

from __future__ import annotations

import pytest

from tests.peers.invariants import TALLY


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.messages or TALLY.offers:
        terminalreporter.write_line(
            f"delivery invariants: {TALLY.messages:,} messages to handsets, none twice, none past its deadline; "
            f"{TALLY.opt_outs:,} opt-outs kept within a second; {TALLY.offers:,} offers, each with a final state "
            "or in the outbox"
        )
