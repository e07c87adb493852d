"""Loss of a language model above exact attention's with one layer patched at a time, by layer and method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hyperbench.analyze.format import escape, significant
from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.plotting import style
from hyperbench.analyze.plotting.layout import SIDE_LEGEND, finish
from hyperbench.analyze.scores.labels import settings_notes
from hyperbench.analyze.scores.sensitivity import curves
from hyperbench.analyze.scores.text import origin
from hyperbench.analyze.view import View

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PANEL_PX = 300
_ZERO_LINE = {"color": style.BASELINE_COLOR, "dash": "dash", "width": 1.5}


def build(view: View) -> go.Figure:
    """The figure of a run. Raises DoesNotFitError where no layers were patched one at a time."""
    from plotly.subplots import make_subplots

    scores = view.scores
    found = [] if scores is None or scores.empty else curves(scores, view.baseline)
    if scores is None or not found:
        raise DoesNotFitError("this run has no layers patched one by one; `hyperbench run sweep=layer_sensitivity` has")
    lengths = sorted({curve.seq_len for curve in found})
    fig = make_subplots(
        rows=len(lengths), cols=1, shared_xaxes=True, vertical_spacing=0.12 / len(lengths),
        subplot_titles=[f"<b>{n:,} tokens</b>" for n in lengths],
    )  # fmt: skip
    looks = style.method_looks(list(dict.fromkeys(curve.name for curve in found)), view.baseline)
    for i, n in enumerate(lengths, start=1):
        fig.add_hline(y=0.0, row=i, col=1, exclude_empty_subplots=False, line=_ZERO_LINE)
        for curve in (curve for curve in found if curve.seq_len == n):
            layers, look = sorted(curve.costs), looks[curve.name]
            costs = [curve.costs[layer] for layer in layers]
            fig.add_scatter(
                x=layers, y=[cost.value for cost in costs], name=style.legend_name(curve.name), row=i, col=1,
                legendgroup=curve.name, showlegend=i == 1, mode="lines+markers",
                line={"color": look.color, "width": 1.2, "dash": look.dash},
                marker={"symbol": look.symbol, "size": look.size},
                error_y={
                    "type": "data", "symmetric": False, "thickness": 1.2, "width": 4,
                    "array": [style.part(cost.high - cost.value) for cost in costs],
                    "arrayminus": [style.part(cost.value - cost.low) for cost in costs],
                },
                hoverinfo="text",
                hovertext=[
                    f"<b>{escape(curve.name)}</b><br>layer {layer}: {significant(cost.value)}"
                    for layer, cost in zip(layers, costs, strict=True)
                ],
            )  # fmt: skip
        fig.update_yaxes(title_text="loss above exact attention's", row=i, col=1)
    fig.update_xaxes(title_text="the patched layer (0 is the first)", row=len(lengths), col=1)
    fig.update_layout(margin_r=236, legend=SIDE_LEGEND)
    texts = max(curve.first.count for curve in found)
    return finish(
        fig,
        "Layer sensitivity: loss above exact attention's with one layer patched",
        ["; ".join(origin(scores, view.environment))],
        [
            f"Mean difference of the loss (natural logarithm) to exact attention's on the same {texts} texts, with 95 %"
            " intervals over the texts (Student's t). `hyperbench show` prints the layers in order of their cost."
        ],
        settings_notes([curve.first for curve in found]),
        _PANEL_PX * len(lengths),
    )
