"""From candidate to decision: gates, arbitration, arms, reservation, reasons, explain."""

from engine.decide.decider import Decider
from engine.decide.plan import Propensity
from engine.decide.profiles import ProfileTable
from engine.decide.records import Decision, encode, encode_lines
from engine.decide.wave import Alarm

__all__ = ["Alarm", "Decider", "Decision", "ProfileTable", "Propensity", "encode", "encode_lines"]
