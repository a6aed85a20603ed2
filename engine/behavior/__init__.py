"""Usage events -> which scenarios they start. Public: `Behavior`."""

from engine.behavior.behavior import Behavior

__all__ = ["Behavior"]
