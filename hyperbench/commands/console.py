"""Consoles through which no text of a run, a path or a machine can act on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from hyperbench.analyze.format import letters


class SafeConsole(Console):
    """A console that prints letters and its own styles, and none of the control characters of a text."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of something to print, their texts without control characters."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=letters(segment.text))
