"""Usage events and transitions -> which scenarios they start, by themselves or as patterns. Public: `Behavior`."""

from engine.behavior.behavior import Behavior
from engine.behavior.plan import Plan, compile_plan

__all__ = ["Behavior", "Plan", "compile_plan"]
