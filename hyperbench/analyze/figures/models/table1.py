"""LongBench scores of a language model by group of datasets, method and patched layers, as in the paper's Table 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hyperbench.analyze.claims.published import load_claims
from hyperbench.analyze.format import escape, short
from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.plotting.layout import finish
from hyperbench.analyze.scores.groups import Grouped, GroupTable, group_tables
from hyperbench.analyze.scores.labels import labels, settings_notes
from hyperbench.analyze.scores.text import GROUP_NOTE, datasets_note, origin
from hyperbench.analyze.view import View
from hyperbench.config.longbench import datasets, groups
from hyperbench.stats.means import Mean

if TYPE_CHECKING:
    import plotly.graph_objects as go

_ROW_PX, _GAP_PX, _CHAR_PX, _LABEL_CHARS = 40, 90, 7, 44
_SCALE = [[0.0, "#B2182B"], [0.5, "#FFFFFF"], [1.0, "#2166AC"]]
#: Differences in points at which colours are strongest, at the least.
_LEAST_RANGE = 5.0


def build(view: View) -> go.Figure:
    """The figure of a run. Raises DoesNotFitError where it holds no scores of LongBench."""
    from plotly.subplots import make_subplots

    scores = view.scores
    tables = [] if scores is None or scores.empty else group_tables(scores, view.baseline)
    if scores is None or not tables:
        raise DoesNotFitError("this run has no scores of LongBench; `hyperbench run sweep=longbench data=DIR` has")
    heights = [_ROW_PX * (1 + len(table.rows)) for table in tables]
    fig = make_subplots(
        rows=len(tables), cols=1, row_heights=heights,
        vertical_spacing=min(0.5, _GAP_PX / sum(heights)) if tables[1:] else 0,
        subplot_titles=[f"<b>prompt and answer in {table.seq_len:,} tokens</b>" for table in tables],
    )  # fmt: skip
    names = [_names(table) for table in tables]
    for i, (table, own) in enumerate(zip(tables, names, strict=True), start=1):
        fig.add_trace(_map(table, own), row=i, col=1)
        fig.update_xaxes(tickangle=0, tickfont_size=12, row=i, col=1)
        fig.update_yaxes(type="category", autorange="reversed", row=i, col=1)
    differences = [abs(cell) for trace in fig.data for row in trace.z for cell in row if cell is not None]
    limit = max(_LEAST_RANGE, *differences)
    bar = {"title": {"text": "points above<br>exact attention"}}
    fig.update_layout(coloraxis={"colorscale": _SCALE, "cmin": -limit, "cmax": limit, "colorbar": bar}, margin_r=150)
    finish(
        fig,
        "LongBench scores by patched layers",
        [*_published(), "; ".join(origin(scores, view.environment))],
        [f"{GROUP_NOTE}. L: patched layers. n: examples.", f"{datasets_note(tables)}."],
        settings_notes([row.first for table in tables for row in table.rows if not row.first.is_exact]),
        sum(heights) + _GAP_PX * (len(tables) - 1),
    )
    widest = max(len(name) for own in names for name in own)
    labels_px = max(0, _CHAR_PX * widest - 40)
    return fig.update_layout(margin_l=fig.layout.margin.l + labels_px, width=fig.layout.width + labels_px)


def _names(table: GroupTable) -> list[str]:
    """The name of each row: method, patched layers and number of examples."""
    named = zip(labels([row.first for row in table.rows]), table.rows, strict=True)
    return [
        f"exact ({name}), n = {row.count}"
        if row.first.is_exact
        else f"{short(name, _LABEL_CHARS)}, L = {row.first.layers}, n = {row.count}"
        for name, row in named
    ]


def _map(table: GroupTable, names: list[str]) -> Any:
    """Scores as cells, coloured by what they are above those of exact attention, if the run has these."""
    import plotly.graph_objects as go

    columns = [group for group in groups() if group in table.datasets]
    exact = next((row for row in table.rows if row.first.is_exact), None)
    cells: list[list[float | None]] = []
    texts: list[list[str]] = []
    for row in table.rows:
        found = _scores(row, columns)
        of = _scores(exact, columns) if exact is not None else [None] * len(found)
        cells.append(
            [None if a is None else a.value - (a if b is None else b).value for a, b in zip(found, of, strict=True)]
        )
        texts.append([_text(score) for score in found])
    return go.Heatmap(
        x=[*(f"{escape(groups()[name])}<br>{_share(table, name)}" for name in columns), "<b>mean</b>"],
        y=[escape(name) for name in names], z=cells, text=texts, texttemplate="%{text}", coloraxis="coloraxis",
        hoverinfo="x+y+text", xgap=2, ygap=2,
    )  # fmt: skip


def _share(table: GroupTable, group: str) -> str:
    every = sum(dataset.group == group for dataset in datasets().values())
    return f"{len(table.datasets[group])} of {every} datasets"


def _scores(row: Grouped, columns: list[str]) -> list[Mean | None]:
    return [*(row.scores.get(name) for name in columns), row.mean]


def _text(score: Mean | None) -> str:
    """A score, and half of its interval."""
    if score is None:
        return "–"
    half = f" ± {score.high - score.value:.1f}" if score.low < score.high else ""
    return f"{score.value:.1f}{half}"


def _published() -> list[str]:
    """The paper's own table, of another model."""
    return [f"Published, of another model: {c.claim}; {c.caveat}" for c in load_claims() if c.id == "table1"]
