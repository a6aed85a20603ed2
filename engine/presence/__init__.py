"""Who is where, and since when: fixes and timers in, transitions out (rules P1-P9, L8-L10, T5, T7, T8).

docs/presence.md says exactly what each rule is taken to mean.
"""

from engine.presence.presence import Presence

__all__ = ["Presence"]
