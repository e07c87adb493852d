"""Facts hidden in a text: how often a language model finds them, by length, depth and method."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import escape, printable, short
from hyperbench.analyze.joins import DoesNotFitError, records
from hyperbench.analyze.plotting.layout import finish
from hyperbench.analyze.scores.labels import labels, settings_notes
from hyperbench.analyze.scores.summary import Scored, scored
from hyperbench.analyze.scores.text import origin
from hyperbench.analyze.view import View

if TYPE_CHECKING:
    import plotly.graph_objects as go

_METRIC = "correct"
_PANEL_PX = 200
_SCALE = [[0.0, "#B2182B"], [0.5, "#F7F7F7"], [1.0, "#2166AC"]]


def build(view: View) -> go.Figure:
    """The figure of a run. Raises DoesNotFitError where no facts were hidden."""
    from plotly.subplots import make_subplots

    scores = view.scores
    if scores is None or scores.empty or not (scores["metric"] == _METRIC).any():
        raise DoesNotFitError("this run has no hidden facts; `hyperbench run sweep=retrieval` has")
    found = [one for one in scored(scores, view.baseline) if "accuracy" in one.values]
    names = labels(found)
    tasks = list(dict.fromkeys(str(one.row["input"]) for one in found))
    methods = list(dict.fromkeys(names))
    fig = make_subplots(
        rows=len(tasks), cols=len(methods), shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.05,
        horizontal_spacing=0.02, column_titles=[f"<b>{escape(short(name, 24))}</b>" for name in methods],
    )  # fmt: skip
    correct = {
        (row["point_id"], row["seed"]): float(row["value"])
        for row in records(scores[(scores["metric"] == _METRIC) & scores["value"].notna()])
    }
    for i, task in enumerate(tasks, start=1):
        for j, method in enumerate(methods, start=1):
            points = [one for one, name in zip(found, names, strict=True) if (one.row["input"], name) == (task, method)]
            if points:
                fig.add_trace(_map(points, correct), row=i, col=j)
        fig.update_yaxes(title_text=f"{escape(short(task, 24))}<br>depth", row=i, col=1)
    fig.update_xaxes(type="category")
    fig.update_yaxes(type="category", autorange="reversed")
    for j in range(1, len(methods) + 1):
        fig.update_xaxes(title_text="tokens", row=len(tasks), col=j)
    fig.update_layout(
        coloraxis={"colorscale": _SCALE, "cmin": 0, "cmax": 1, "colorbar": {"title": "found"}}, margin_r=110
    )
    return finish(
        fig,
        "Facts hidden in a text: how often each method finds them",
        ["; ".join(origin(scores, view.environment))],
        [
            "Found: the hidden word is the likeliest of sixteen where it is asked for (by chance 6 %). Depth: its"
            " place in the text, from 0 (the beginning) to 1. Numbers: found of how many examples.",
        ],
        settings_notes([one for one in found if not one.is_exact]),
        _PANEL_PX * len(tasks),
    )


def _depths(point: Scored) -> list[float]:
    """The depths of a task. Raises DoesNotFitError where it tells none, as in a journal made by hand."""
    try:
        found = json.loads(str(point.row.get("input.depths")))
        return [float(depth) for depth in found] or [0.0]
    except (ValueError, TypeError):
        raise DoesNotFitError(f"the task {printable(point.row['input'])} does not tell its depths") from None


def _map(points: list[Scored], correct: dict[tuple[Any, Any], float]) -> Any:
    """The share of found facts by depth (rows) and length (columns)."""
    import plotly.graph_objects as go

    points = sorted(points, key=lambda one: int(one.row["seq_len"]))
    depths = _depths(points[0])
    cells: list[list[float | None]] = []
    texts: list[list[str]] = []
    for i in range(len(depths)):
        values = [
            [
                v
                for (point_id, seed), v in correct.items()
                if point_id == one.row["point_id"] and seed % len(depths) == i
            ]
            for one in points
        ]
        cells.append([sum(v) / len(v) if v else None for v in values])
        texts.append([f"{sum(v):.0f}/{len(v)}" if v else "" for v in values])
    return go.Heatmap(
        x=[f"{int(one.row['seq_len']):,}" for one in points], y=[f"{depth:g}" for depth in depths], z=cells,
        text=texts, texttemplate="%{text}", coloraxis="coloraxis", hoverinfo="x+y+text",
    )  # fmt: skip
