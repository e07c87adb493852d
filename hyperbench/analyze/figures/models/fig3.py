"""Perplexity of a language model, and the speedup of its attention, by how many of its last layers are patched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.claims.published import load_claims
from hyperbench.analyze.format import escape, significant
from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.plotting import style
from hyperbench.analyze.plotting.layout import SIDE_LEGEND, finish
from hyperbench.analyze.scores.labels import labels, settings_notes
from hyperbench.analyze.scores.summary import Scored, scored
from hyperbench.analyze.scores.text import origin
from hyperbench.analyze.view import View
from hyperbench.config.tasks import LAYERS
from hyperbench.stats.means import Mean

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PANEL_PX = 300
_ROWS = (("perplexity", "perplexity"), ("attention_speedup", "attention: speedup"))
_EXACT_LINE = {"color": style.BASELINE_COLOR, "dash": "dash", "width": 1.5}


def build(view: View) -> go.Figure:
    """The figure of a run. Raises DoesNotFitError where no last layers were patched in turns."""
    found = _points(view)
    lengths = sorted({int(one.row["seq_len"]) for one in found})
    from plotly.subplots import make_subplots

    fig = make_subplots(
        rows=len(_ROWS), cols=len(lengths), shared_xaxes=True, vertical_spacing=0.05, horizontal_spacing=0.07,
        column_titles=[f"<b>{n:,} tokens</b>" for n in lengths],
    )  # fmt: skip
    patched = [one for one in found if not one.is_exact]
    names = dict(zip(map(id, patched), labels(patched), strict=True))
    looks = style.method_looks(list(dict.fromkeys(names.values())), view.baseline)
    counts = sorted({one.layers for one in found})
    for row, (score, title) in enumerate(_ROWS, start=1):
        for col, n in enumerate(lengths, start=1):
            _draw(fig, (row, col), score, [one for one in found if one.row["seq_len"] == n], names, looks)
            fig.update_xaxes(tickvals=counts, row=row, col=col)
        fig.update_yaxes(title_text=title, row=row, col=1)
        fig.update_yaxes(type="log" if score == "perplexity" else "linear", row=row)
    for col in range(1, len(lengths) + 1):
        fig.update_xaxes(title_text="patched layers L (the last ones)", row=len(_ROWS), col=col)
    fig.update_layout(margin_r=236, legend=SIDE_LEGEND)
    scores = view.scores
    assert scores is not None
    examples = max(one.count for one in found)
    return finish(
        fig,
        "Perplexity and attention's speedup by patched layers",
        [*_published(), "; ".join(origin(scores, view.environment))],
        [
            f"Perplexity: exp of the mean loss over {examples} texts. Bars: 95 % intervals over the texts (Student's"
            " t), of perplexities those of the ratio to exact attention on the same texts. Speedup: time of attention"
            " of all layers, exact over patched; 1 is exact attention.",
        ],
        settings_notes(patched),
        _PANEL_PX * len(_ROWS),
    )


def _points(view: View) -> list[Scored]:
    scores = view.scores
    if scores is None or scores.empty or LAYERS not in scores:
        raise DoesNotFitError("this run has no scores of a language model; `hyperbench run sweep=patched_layers` has")
    texts = scores[LAYERS].dropna().astype(str)
    if not (texts.str.startswith("last ") | (texts == "all")).all() or texts.nunique() < 2:
        raise DoesNotFitError("the last layers of the model were not patched in turns; sweep=patched_layers does so")
    found = [one for one in scored(scores, view.baseline) if "perplexity" in one.values]
    if not found:
        raise DoesNotFitError("this run holds no perplexity")
    return found


def _draw(
    fig: go.Figure, place: tuple[int, int], score: str, found: Sequence[Scored], names: dict[int, str], looks: Any
) -> None:
    """The curves of one panel; they begin at no patched layer with exact attention."""
    exact = next((one for one in found if one.is_exact), None)
    base = exact.values.get("perplexity") if exact is not None else None
    start = base.value if base is not None and score == "perplexity" else 1.0
    first = place == (1, 1)
    row, col = place
    if exact is not None:
        fig.add_hline(y=start, row=row, col=col, exclude_empty_subplots=False, line=_EXACT_LINE)
    curves: dict[str, list[Scored]] = {}
    for one in found:
        if not one.is_exact and score in one.values:
            curves.setdefault(names[id(one)], []).append(one)
    named = {trace.legendgroup for trace in fig.data}
    for name, points in curves.items():
        points = sorted(points, key=lambda one: one.layers)
        means = [_shown(one, score, start) for one in points]
        xs = [0, *(one.layers for one in points)] if exact is not None else [one.layers for one in points]
        heights = [*([start] if exact is not None else []), *(mean.value for mean in means)]
        bars = [*([Mean(start)] if exact is not None else []), *means]
        look = looks[name]
        fig.add_scatter(
            x=xs, y=heights, name=style.legend_name(name), legendgroup=name, showlegend=name not in named,
            row=row, col=col, mode="lines+markers", line={"color": look.color, "width": look.width, "dash": look.dash},
            marker={"symbol": look.symbol, "size": look.size},
            error_y={
                "type": "data", "symmetric": False, "thickness": 1.2, "width": 4,
                "array": [style.part(bar.high - bar.value) for bar in bars],
                "arrayminus": [style.part(bar.value - bar.low) for bar in bars],
            },
            hoverinfo="text",
            hovertext=[f"<b>{escape(name)}</b><br>L = {x}: {significant(y)}" for x, y in zip(xs, heights, strict=True)],
        )  # fmt: skip
    if exact is not None and first:
        fig.add_scatter(
            x=[None], y=[None], mode="lines", name=f"exact attention ({escape(exact.row['method'])})", showlegend=True,
            line=_EXACT_LINE, row=row, col=col,
        )  # fmt: skip


def _shown(one: Scored, score: str, exact: float) -> Mean:
    """The mean to show: of a perplexity the interval is that of its ratio to exact attention's."""
    over = one.values.get("perplexity_over_exact")
    if score != "perplexity" or over is None:
        return one.values[score]
    return Mean(one.values[score].value, exact * over.low, exact * over.high)


def _published() -> list[str]:
    """The paper's own numbers, of another model: they are told and not drawn."""
    return [f"Published, of another model: {claim.claim}" for claim in load_claims() if claim.id == "fig3-chatglm"]
