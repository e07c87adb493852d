"""The sheet of a figure: a grid of panels with their axes and legends, title above, notes and provenance below."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import escape
from hyperbench.analyze.plotting.style import AXIS, GRID, INK, QUIET_INK
from hyperbench.analyze.view import View, headline, meanings, provenance

if TYPE_CHECKING:
    import plotly.graph_objects as go

# A page shows a figure some 900 px wide: at this width the smallest text is still 10 px there.
WIDTH = 1080
_FONT_PX = {"title": 20, "subtitle": 14, "text": 14, "panel": 15, "legend": 12.5, "footer": 12}
_LINE_CHARS = {"title": 84, "subtitle": 140, "footer": 158}
_SEPARATOR = " · "
_SUBTITLE_LINE_PX = 18
_FOOTER_LINE_PX = 17
_LEGEND_ROW_PX = 23
_MARGIN = {"left": 76, "right": 236, "top": 88, "bottom": 66}
#: Right margin of a figure whose legends stand inside its panels.
_NARROW_MARGIN = 36
_TOP_LEFT = {"xanchor": "left", "yanchor": "top"}
_LEGEND = {**_TOP_LEFT, "font": {"size": _FONT_PX["legend"]}}
#: To the right of the axes, where it grows downwards and never covers a curve.
SIDE_LEGEND = {**_LEGEND, "x": 1.015, "y": 1, "tracegroupgap": 3, "groupclick": "togglegroup", "itemsizing": "trace"}
#: Inside a panel, at its upper left corner.
_PANEL_LEGEND = {**_LEGEND, "bgcolor": "rgba(255,255,255,0.75)", "tracegroupgap": 0}


@dataclass
class Panel:
    """One subplot of a figure; `named` holds the legend groups already in the legend, shared by a figure's panels."""

    fig: go.Figure
    row: int
    col: int
    named: set[str] = field(default_factory=set)
    legend: str = "legend"

    def add(self, group: str, hover: Sequence[str] | None = None, **trace: Any) -> None:
        """Draw a scatter trace with hovers, if any; of a group only the first trace with a name is in the legend."""
        first = group not in self.named and trace.get("showlegend") is not False
        if first:
            self.named.add(group)
        trace |= {"legendgroup": group, "showlegend": first, "legend": self.legend}
        trace |= {"hoverinfo": "skip"} if hover is None else {"hoverinfo": "text", "hovertext": list(hover)}
        self.fig.add_scatter(row=self.row, col=self.col, **trace)


class Sheet:
    """A figure of panels in rows and titled columns; axes are shared along rows and columns."""

    def __init__(
        self,
        rows: int,
        column_titles: Sequence[str],
        spacing: tuple[float, float],
        heights: Sequence[float] | None = None,
        legend_in_panels: bool = False,
    ) -> None:
        """Make the grid; `spacing` is vertical and horizontal, `heights` are parts of 1 by row.

        With `legend_in_panels` each panel has a legend of its own, and all panels have the same axes.
        """
        from plotly.subplots import make_subplots

        self.num_rows, self.num_cols = rows, len(column_titles)
        self.legend_in_panels = legend_in_panels
        self.fig: go.Figure = make_subplots(
            rows=rows,
            cols=len(column_titles),
            row_heights=heights,
            shared_xaxes="all" if legend_in_panels else True,
            shared_yaxes="all" if legend_in_panels else True,
            vertical_spacing=spacing[0],
            horizontal_spacing=spacing[1],
            column_titles=[f"<b>{title}</b>" for title in column_titles],
        )
        self._named: set[str] = set()

    def panel(self, row: int, col: int, x_axis: Mapping[str, Any], y_axis: Mapping[str, Any]) -> Panel:
        """The panel at a place, counted from 1, with these axes."""
        self.fig.update_xaxes(x_axis, row=row, col=col)
        self.fig.update_yaxes(y_axis, row=row, col=col)
        if not self.legend_in_panels:
            return Panel(self.fig, row, col, self._named)
        number = (row - 1) * self.num_cols + col
        legend = "legend" if number == 1 else f"legend{number}"
        subplot = self.fig.get_subplot(row, col)
        corner = {"x": subplot.xaxis.domain[0] + 0.006, "y": subplot.yaxis.domain[1] - 0.005}
        self.fig.update_layout({legend: _PANEL_LEGEND | corner})
        return Panel(self.fig, row, col, set(), legend)

    def finish(
        self,
        view: View,
        title: str,
        axes: tuple[str, Sequence[str]],
        notes: Sequence[str],
        plot_height: int,
        *,
        swept: Sequence[str] = (),
        fixed: Sequence[str] = (),
    ) -> go.Figure:
        """Title the axes (the x axis, and the y axis of each row), add title, legend and footer, and return the figure.

        Parameters that are `swept` stand on the x axis, and not in the provenance; `fixed` is added there.
        """
        x_title, y_titles = axes
        for col in range(1, self.num_cols + 1):
            self.fig.update_xaxes(title_text=x_title, row=self.num_rows, col=col)
        for row, y_title in enumerate(y_titles, start=1):
            self.fig.update_yaxes(title_text=y_title, row=row, col=1)
        if self.legend_in_panels:
            self.fig.update_layout(margin_r=_NARROW_MARGIN)
        else:
            self.fig.update_layout(margin_r=_MARGIN["right"], legend=SIDE_LEGEND)
        footer = [*notes, *meanings(view, swept)], [*provenance(view, swept), *fixed]
        return finish(self.fig, title, headline(view), *footer, plot_height)


def finish(
    fig: go.Figure,
    title: str,
    subtitle: Sequence[str],
    notes: Sequence[str],
    provenance: Sequence[str],
    plot_height: int,
) -> go.Figure:
    """Give a figure its title, the lines of its subtitle and a footer of notes and provenance below the axes.

    Every text is escaped here. `plot_height` is the least height of the axes in px; a long legend next to them makes
    them higher, and the footer takes what it needs.
    """
    under = [line for text in subtitle if text for line in _wrap(text, "subtitle")]
    lines = [line for note in notes for line in _wrap(note, "footer")]
    lines += _pack(provenance)
    top = _MARGIN["top"] + _SUBTITLE_LINE_PX * len(under)
    bottom = _MARGIN["bottom"] + _FOOTER_LINE_PX * len(lines) + 12
    height = top + max(plot_height, _legend_height(fig)) + bottom
    fig.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=height,
        margin={"l": _MARGIN["left"], "t": top, "b": bottom},
        font={"family": "Helvetica, Arial, 'Liberation Sans', sans-serif", "size": _FONT_PX["text"], "color": INK},
        title={
            "text": f"<b>{escape(textwrap.shorten(title, _LINE_CHARS['title'], placeholder=' …'))}</b>",
            "subtitle": {
                "text": "<br>".join(escape(line) for line in under),
                "font": {"size": _FONT_PX["subtitle"], "color": QUIET_INK},
            },
            "font": {"size": _FONT_PX["title"]},
            "xref": "paper",
            "x": 0,
            "yref": "container",
            "y": 1 - 22 / height,
            **_TOP_LEFT,
        },
        hoverlabel={"align": "left", "bgcolor": "white", "font": {"size": 13, "color": INK}},
        hovermode="closest",
    )
    axis = {"showline": True, "linecolor": AXIS, "gridcolor": GRID, "zeroline": False, "ticks": "outside", "ticklen": 4}
    fig.update_xaxes(axis, title_font_size=_FONT_PX["panel"])
    fig.update_yaxes(axis, title_font_size=_FONT_PX["panel"])
    fig.update_annotations(font_size=_FONT_PX["panel"])
    fig.add_annotation(
        text="<br>".join(escape(line) for line in lines),
        font={"size": _FONT_PX["footer"], "color": QUIET_INK},
        align="left",
        showarrow=False,
        name="footer",
        **{"xref": "paper", "x": 0, "yref": "paper", "y": 0, "yshift": -_MARGIN["bottom"], **_TOP_LEFT},
    )
    return fig


def _legend_height(fig: go.Figure) -> int:
    """The height in px of the legend next to the axes; legends inside panels have numbers in their names."""
    entries = [t for t in fig.data if t.showlegend and t.legend in (None, "legend")]
    return _LEGEND_ROW_PX * sum(1 + (t.name or "").count("<br>") for t in entries) + 16


def _pack(parts: Sequence[str]) -> list[str]:
    """Short texts side by side, broken between them and not inside where a line is full."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + len(_SEPARATOR) <= _LINE_CHARS["footer"]:
            lines[-1] += _SEPARATOR + part
        else:
            lines.append(part)
    return [piece for line in lines for piece in _wrap(line, "footer")]


def _wrap(text: str, where: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), _LINE_CHARS[where]) or [""]
