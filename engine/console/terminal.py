"""The terminal that commands write to: what users, partners and operators named is shown as it stands.

Rich reads `[...]` in a text as markup and `:name:` as a picture. A user called `[/]` would end the command that
explains what became of it, and an escape sequence in an attribute would be obeyed by the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment


class Terminal(Console):
    """A console without markup that lets no control character of a text through; only styles are its own.

    is_error  write to standard error, where progress and faults go
    """

    def __init__(self, *, is_error: bool = False, **more: Any) -> None:
        super().__init__(stderr=is_error, markup=False, emoji=False, **more)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control is None and not text.isprintable() and text != "\n":
                yield Segment(shown(text), segment.style)
            else:
                yield segment


def shown(text: str) -> str:
    """Return what of a text may be shown: line breaks and printable characters."""
    return text if text.isprintable() else "".join(one for one in text if one.isprintable() or one in "\n\t")
