"""What a figure says, read back from it: the traces of a panel, the texts a reader meets, the page a browser meets."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import plotly.graph_objects as go

# What figures write themselves; everything else in angle brackets came from a run.
_ENTITY = re.compile(r"&(?:amp|lt|gt|nbsp|times|plusmn|deg|mu|#\d+|#x[\da-fA-F]+);")
_OWN_TAGS = re.compile(r"</?(?:b|sup)>|<br>")


def panel(fig: go.Figure, row: int, col: int) -> list[Any]:
    """The traces of one subplot."""
    name = fig.get_subplot(row, col).xaxis.plotly_name.replace("axis", "")
    return [t for t in fig.data if (t.xaxis or "x") == name]


def curve(fig: go.Figure, row: int, col: int, name: str) -> Any:
    """The one trace of a subplot that has this name and a hover."""
    (found,) = [t for t in panel(fig, row, col) if t.hoverinfo == "text" and shown(t.name) == name]
    return found


def has_curve(fig: go.Figure, row: int, col: int, name: str) -> bool:
    """Whether a subplot has a trace of this name."""
    return any(shown(t.name) == name for t in panel(fig, row, col))


def values(trace: Any) -> dict[Any, float | None]:
    """Height over place of a trace."""
    return dict(zip(trace.x, trace.y, strict=True))


def bands(fig: go.Figure, row: int, col: int, name: str) -> list[Any]:
    """The interval bands of a curve in one subplot."""
    return [t for t in panel(fig, row, col) if t.name == f"{name} interval"]


def crosses(fig: go.Figure, row: int, col: int) -> dict[Any, str]:
    """Place and hover of the marks of missing values in one subplot."""
    found = [t for t in panel(fig, row, col) if t.marker.symbol == "x-thin"]
    return {x: text for t in found for x, text in zip(t.x, t.hovertext, strict=True)}


def footer(fig: go.Figure) -> str:
    """The footer as a reader sees it, on one line."""
    (note,) = [a for a in fig.layout.annotations if a.name == "footer"]
    return shown(note.text)


def shown(text: str) -> str:
    """A text of a figure as a reader sees it, on one line: own markup gone, the entities that plotly knows resolved."""
    return _ENTITY.sub(lambda found: html.unescape(found[0]), _OWN_TAGS.sub(" ", text))


def texts(fig: go.Figure) -> list[str]:
    """Every text of a figure that plotly reads as markup: titles, notes, names, hovers, ticks and categories."""
    layout = fig.layout
    found = [layout.title.text, layout.title.subtitle.text, *(a.text for a in layout.annotations)]
    for axis in [*fig.select_xaxes(), *fig.select_yaxes()]:
        found += [axis.title.text, *(axis.ticktext or ()), *(axis.categoryarray or ())]
    for trace in fig.data:
        hovers = [trace.hovertext] if isinstance(trace.hovertext, str) else list(trace.hovertext or ())
        found += [trace.name, *hovers, *(trace.text or ()), *(x for x in trace.x if isinstance(x, str))]
    return [t for t in found if t]


def foreign_markup(fig: go.Figure) -> list[str]:
    """The texts of a figure in which something but its own markup would be interpreted."""
    return [t for t in texts(fig) if set(_OWN_TAGS.sub("", t)) & set("<>$")]


def letters(text: str) -> str:
    """A text without its spaces, for a look into one that was broken into lines."""
    return "".join(text.split())


class Page(HTMLParser):
    """The tags of a page, the texts of its title, scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"title": [], "script": [], "style": []}
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in self.inside:
            self.inside[self._open].append(data)

    def loads(self) -> Iterator[str]:
        """Every address that the page would fetch as it opens, and every handler it would run."""
        for tag, attributes in self.tags:
            for name in attributes:
                if name in ("src", "srcset", "href", "data", "action", "poster") or name.startswith("on"):
                    yield f"{tag} {name}={attributes[name]}"
        for style in self.inside["style"]:
            yield from re.findall(r"@import|url\(", style)
