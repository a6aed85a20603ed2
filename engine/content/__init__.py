"""Files that ops write, to checked definitions."""

from engine.content.loading import Inspection, inspect_content, load_content, outdated

__all__ = ["Inspection", "inspect_content", "load_content", "outdated"]
