"""Events of feeds that report out of order wait a moment, and go on sorted (T5). Public: `Reorder`."""

from engine.reorder.reorder import FOREVER_MS, GoneOn, Reorder

__all__ = ["FOREVER_MS", "GoneOn", "Reorder"]
