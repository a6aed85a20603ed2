"""What the format can say and the engine does not do yet: `check` answers "not supported yet", nothing is ignored.

Remove a line when the thing is built; nothing else has to change here.
"""

from __future__ import annotations

NOT_SUPPORTED_YET: frozenset[str] = frozenset()
