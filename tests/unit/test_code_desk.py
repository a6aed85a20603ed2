"""Leases between codes.db and the log: whatever a crash cuts off, no code is lost and none given twice (O3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.definitions import BenefitDefinition, FieldTest, StockLimits, UsageTrigger
from engine.ledger.codes import CodeStore
from engine.ledger.codes_import import import_codes
from engine.ledger.embedded import EmbeddedLedger
from engine.model import Option, RecordKind, ReserveRequest, StockLine, Take
from engine.runtime.code_desk import CodeDesk, pools_of
from tests.world import NOON_MS, block_of, make_pipeline, offer, scenario, small_content

FILM = BenefitDefinition("film", "film", "video", "p", stock=StockLimits(pool="film"))
CONTENT = small_content(
    scenarios=(scenario("a", UsageTrigger((FieldTest("app", "==", "x"),)), offer=offer(terms=(FILM,))),)
)


class World:
    """A ledger and a store of codes, with a log that is a list of control records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log: list[dict[str, Any]] = []
        self.read = 0
        self.open()

    def open(self) -> None:
        self.ledger = EmbeddedLedger(self.folder / "ledger.db")
        self.store = CodeStore(self.folder / "codes.db")
        self.desk = CodeDesk(self.store, self.ledger, self.append, lambda: self.read - 1, lease_codes=4)

    def close(self) -> None:
        self.ledger.close()
        self.store.close()

    def append(self, record: bytes) -> int:
        self.log.append(orjson.loads(record))
        return len(self.log) - 1

    def process(self) -> None:
        """Let a pipeline apply what was journaled, and commit it."""
        pipeline = make_pipeline(CONTENT)
        pipeline.ledger = self.ledger
        for position in range(self.read, len(self.log)):
            record = block_of([self.log[position]], position=position, kinds=RecordKind.CONTROL, append_ms=NOON_MS)
            effects = pipeline.process(record)
            assert effects.is_stored
            self.ledger.commit(position, NOON_MS)
        self.read = len(self.log)

    def draw(self, number: int) -> str | None:
        take = Take((StockLine("film"),), "film", 0)
        option = Option(f"{NOON_MS:012x}{number:020x}", "a/s", "sms", "c", "p", (), take=take)
        return self.ledger.reserve([ReserveRequest("u", "u", NOON_MS, (option,))])[0].code


@pytest.fixture
def world(tmp_path: Path):
    (tmp_path / "codes.csv").write_text("".join(f"C{number}\n" for number in range(10)))
    store = CodeStore(tmp_path / "codes.db")
    import_codes(store, "film", tmp_path / "codes.csv")
    store.close()
    world = World(tmp_path)
    yield world
    world.close()


def test_what_runs_low_is_leased_again_and_only_once_until_it_is_read(world: World) -> None:
    assert pools_of(CONTENT) == {"film"}
    world.desk.settle()
    for _ in range(3):
        world.desk.supply(CONTENT)
    assert world.log == [{"lease": "film", "first": 0, "count": 4, "epoch": 1}]
    world.process()
    world.desk.supply(CONTENT)
    assert len(world.log) == 1, "half is left"
    assert [world.draw(number) for number in range(5)] == ["film#0", "film#1", "film#2", "film#3", None]
    world.desk.supply(CONTENT)
    assert world.log[1] == {"lease": "film", "first": 4, "count": 4, "epoch": 1}


def test_a_pool_that_no_scenario_draws_on_is_left_alone(world: World) -> None:
    world.desk.supply(small_content())
    assert world.log == []


def test_a_lease_that_a_crash_kept_from_the_log_is_leased_anew(world: World) -> None:
    world.store.lease("film", 4)  # and then the process died
    world.close()
    world.open()
    world.desk.settle()
    world.desk.supply(CONTENT)
    assert world.log == [{"lease": "film", "first": 0, "count": 4, "epoch": 1}]


def test_recalled_codes_return_and_are_leased_under_the_next_epoch(world: World) -> None:
    world.desk.supply(CONTENT)
    world.process()
    assert world.draw(1) == "film#0"
    world.store.recall("film")
    world.desk.supply(CONTENT)
    assert world.log[1:] == [{"recall": "film", "epoch": 1}]
    world.process()
    assert world.draw(2) is None
    world.desk.supply(CONTENT)
    assert world.log[2:] == [
        {"returned": "film", "spans": [[1, 4]]},
        {"lease": "film", "first": 1, "count": 3, "epoch": 2},
        {"lease": "film", "first": 4, "count": 1, "epoch": 2},
    ]
    world.process()
    assert [world.draw(number) for number in (3, 4, 5, 6, 7)] == ["film#1", "film#2", "film#3", "film#4", None]
    world.ledger.release(f"{NOON_MS:012x}{1:020x}")
    world.process()
    assert world.ledger.stock.returned("film") == [(0, 1)], "a code of an expired lease goes home when it is given back"


def test_codes_of_records_that_a_power_loss_took_are_never_given_again(world: World) -> None:
    world.desk.supply(CONTENT)
    world.process()
    assert world.draw(1) == "film#0"
    assert world.draw(2) == "film#1"
    world.ledger.commit(7, NOON_MS)  # the record at 7 is in the ledger, and lost from the journal
    world.close()
    world.open()
    world.ledger.rebuild(world.read - 1)
    world.desk.settle()
    assert world.log[1:] == [{"spent": "film", "spans": [[0, 2]]}]
    world.ledger.spend_codes("film", world.log[1]["spans"])
    assert world.draw(3) == "film#2"
