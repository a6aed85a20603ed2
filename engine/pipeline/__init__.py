"""The composition of the stages, and the only place where they meet.

    records -> decode -> consent -> locate -> presence -\
                                           behavior ----+-> candidates -> decide (reserve) -> Effects

One object for live, replay, backtest and simulation. It does no I/O of its own and reads no clock: time is in the
records (T2), the ledger is handed in. Same records, same effects, however they are cut into blocks (T3, T4).
"""

from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stages import Reserver

__all__ = ["Pipeline", "Reserver"]
