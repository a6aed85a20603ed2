"""A pack of 255 scenarios under the traffic of a made-up city: every template speaks, batches do not matter (T4)."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from engine.city import City
from engine.content import load_content
from engine.content.activity import load_templates, write_yaml
from engine.content.pack import make_pack
from engine.definitions import Content
from engine.settings import Settings
from tests.world import block_of, make_pipeline, told

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Content:
    import shutil

    folder = tmp_path_factory.mktemp("pack") / "scenarios"
    folder.mkdir()
    shutil.copy(ROOT / "scenarios" / "policy.yaml", folder)
    shutil.copytree(ROOT / "scenarios" / "benefits", folder / "benefits")
    catalogue = folder / "benefits" / "national.yaml"
    text = catalogue.read_text()
    text = text.replace("  - id: movie-voucher\n", "  - id: movie-voucher\n    stock: {total: 6, per_user: 1}\n")
    catalogue.write_text(text.replace("  - id: scan-coupon\n", "  - id: scan-coupon\n    stock: {budget_fen: 2500}\n"))
    shipped = load_content(ROOT / "geofences", ROOT / "scenarios")
    for file, scenario in make_pack(list(load_templates().values()), shipped, 255):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(write_yaml(scenario, "a test"))
    return load_content(ROOT / "geofences", folder)


def run(content: Content, lines: list[bytes], cut: int) -> tuple[list[bytes], list]:
    pipeline = make_pipeline(content, Settings())
    said, decisions = [], []
    for start in range(0, len(lines), cut):
        effects = pipeline.process(block_of(lines[start : start + cut], position=start))
        said += told(pipeline, effects)
        decisions += effects.decisions
    decisions += pipeline.finish().decisions
    return said, decisions


def test_every_template_speaks_and_stock_binds_however_the_records_are_cut(pack: Content) -> None:
    city = City(pack, people=150, seed=3, from_hour=9.0, until_hour=15.0)
    lines = [city.registrations(), *(part.lines for part in city.slices(timedelta(minutes=5)) if part.lines)]
    said, decisions = run(pack, lines, 1)
    again, _ = run(pack, lines, 7)
    assert sorted(again) == sorted(said)
    outcomes: dict[str, Counter[str]] = {}
    for one in decisions:
        outcomes.setdefault(one.scenario.partition("/")[2].rpartition("-")[0], Counter())[one.reason] += one.count
    assert set(outcomes) == set(load_templates()), "every template has candidates"
    reasons = sum(outcomes.values(), Counter())
    assert reasons["granted"] >= 50
    assert reasons["not_drawn"] > 0
    assert reasons["stock"] + reasons["budget"] > 0
    offered = Counter(one.offer.benefit for one in decisions if one.offer is not None)
    parts = {one.id: {one.id, *one.parts} for one in pack.benefits}
    films = sum(count for benefit, count in offered.items() if "movie-voucher" in parts[benefit])
    assert 1 <= films <= 6, "a bundle takes from the stock of its parts"
    assert offered["scan-coupon"] <= 5
