"""docs/operations.md lists every metric exactly as the registry has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from engine import metrics

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def documented() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    rows = {}
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("| `opportune_") and line.count("|") == 5:
            name, kind, labels, text = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name.strip("`")] = (kind, text, () if labels == "-" else tuple(labels.split(", ")))
    return rows


def test_the_table_of_metrics_is_that_of_the_registry() -> None:
    assert documented() == metrics.catalogue()


def test_names_follow_the_conventions() -> None:
    for name, (kind, _, labels) in metrics.catalogue().items():
        assert name.startswith("opportune_")
        assert name.endswith("_total") == (kind == "counter"), name
        assert not {"user", "offer", "offer_id", "address"} & set(labels), name


def test_offers_of_endless_scenarios_end_in_one_label(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    monkeypatch.setattr(metrics, "OFFERS", Counter("opportune_offers_total", "", ["scenario"], registry=registry))
    monkeypatch.setattr(metrics, "_seen_scenarios", set())
    metrics.add_offers({f"national/s{number}": 1 for number in range(2_100)})
    samples = metrics.read_exposition(generate_latest(registry).decode())["opportune_offers_total"]
    assert len(samples) == 2_001
    assert samples[("other",)] == 100
