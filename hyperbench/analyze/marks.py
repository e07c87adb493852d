"""The marks that figures share: a curve with its interval band, and the places where nothing could be measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.style import FAILED_COLOR, rgba
from hyperbench.analyze.tables import records
from hyperbench.analyze.text import escape, is_null, milliseconds, pass_label, plain, significant, thousands
from hyperbench.analyze.view import MAIN_ERROR, error_columns, reason

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass
class Panel:
    """One subplot of a figure; `named` holds the legend groups already in the legend, shared by a figure's panels."""

    fig: go.Figure
    row: int
    col: int
    named: set[str] = field(default_factory=set)
    legend: str = "legend"

    def add(self, trace: go.Scatter, group: str = "") -> None:
        """Put a trace in this panel; of a group only the first trace with a name stands in the legend."""
        if group:
            first = group not in self.named and trace.showlegend is not False
            trace.update(legendgroup=group, showlegend=first, legend=self.legend)
            if first:
                self.named.add(group)
        else:
            trace.update(showlegend=False)
        self.fig.add_trace(trace, row=self.row, col=self.col)


def curve(
    panel: Panel,
    x: Sequence[Any],
    y: Sequence[Any],
    *,
    name: str,
    group: str,
    color: str,
    low: Sequence[Any] | None = None,
    high: Sequence[Any] | None = None,
    hover: Sequence[str] | None = None,
    dash: str = "solid",
    width: float = 2.4,
    symbol: str = "circle",
    size: float = 8,
    hollow: Sequence[bool] | None = None,
    visible: bool | str = True,
) -> None:
    """A line through points with a band from `low` to `high`; null values leave a gap in both.

    `hollow` points (throttled ones) are drawn empty. `name` and `hover` are escaped by the caller.
    """
    import plotly.graph_objects as go

    fill = [("white" if h else color) for h in (hollow or [False] * len(x))]
    panel.add(
        go.Scatter(
            x=list(x),
            y=[None if is_null(v) else float(v) for v in y],
            mode="lines+markers",
            name=name,
            line={"color": color, "dash": dash, "width": width},
            marker={"color": fill, "symbol": symbol, "size": size, "line": {"color": color, "width": 1.6}},
            hovertext=list(hover) if hover is not None else None,
            hoverinfo="text" if hover is not None else "skip",
            connectgaps=False,
            visible=visible,
        ),
        group,
    )
    if low is None or high is None:
        return
    for part in _runs(low, high):
        panel.add(
            go.Scatter(
                x=[x[i] for i in part] + [x[i] for i in reversed(part)],
                y=[float(high[i]) for i in part] + [float(low[i]) for i in reversed(part)],
                mode="lines",
                line={"width": 0},
                fill="toself",
                fillcolor=rgba(color, 0.18),
                hoverinfo="skip",
                showlegend=False,
                name=f"{name} interval",
                visible=True if visible is True else visible,
            ),
            group,
        )


def failures(panel: Panel, rows: pd.DataFrame, y: float, x: str = "seq_len") -> None:
    """Crosses at height y where a row has no value, one per x; the hover lists every row with its reason."""
    import plotly.graph_objects as go

    if rows.empty:
        return
    places, hovers = [], []
    for place, group in rows.groupby(x, sort=True):
        lines = [
            f"{escape(r['method'])} {pass_label(r['pass'])}: {escape(reason(r)) or 'no value'}" for r in records(group)
        ]
        places.append(place)
        hovers.append("<br>".join([f"<b>no value at {x} = {plain(place)}</b>", *lines]))
    panel.add(
        go.Scatter(
            x=places,
            y=[y] * len(places),
            mode="markers",
            name="no value (reason in hover)",
            marker={"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": FAILED_COLOR}},
            hovertext=hovers,
            hoverinfo="text",
            cliponaxis=False,
        ),
        "failed",
    )


def failure_notes(rows: pd.DataFrame, limit: int = 4) -> list[str]:
    """Footnotes on rows without a value, one per method and reason: which passes and lengths are missing."""
    notes: dict[tuple[str, str], dict[str, set[Any]]] = {}
    for row in records(rows):
        why = reason(row) or "no value"
        entry = notes.setdefault((row["method"], why), {"pass": set(), "seq_len": set()})
        entry["pass"].add(pass_label(row["pass"]))
        entry["seq_len"].add(int(row["seq_len"]))
    texts = [
        f"No value: {method} {', '.join(sorted(entry['pass']))} at n = "
        f"{', '.join(f'{n:,}' for n in sorted(entry['seq_len']))} ({why[:160]})."
        for (method, why), entry in notes.items()
    ]
    if len(texts) > limit:
        texts = [*texts[:limit], f"{len(texts) - limit} more kinds of missing value are in the tables of the run."]
    return texts


def throttled_notes(frame: pd.DataFrame) -> list[str]:
    """A footnote where clocks throttled while something shown was timed."""
    slow = frame[(frame["status"] == "throttled") | (frame["baseline_status"] == "throttled")]
    if slow.empty:
        return []
    lengths = ", ".join(thousands(n) for n in sorted(slow["seq_len"].unique()))
    return [f"Hollow points: clocks were throttled while they, or their baseline, were timed (n = {lengths})."]


def timing_text(row: Mapping[str, Any], side: str = "") -> str:
    """A time, its interval and number of samples (side "baseline_": those of the baseline); "no time" without one."""
    if is_null(row[f"{side}median_ms"]):
        return "no time"
    interval = f" [{milliseconds(row[f'{side}ci_low_ms'])}, {milliseconds(row[f'{side}ci_high_ms'])}]"
    samples = row[f"{side}n_samples"]
    count = "" if is_null(samples) else f", {int(samples)} samples"
    return f"{milliseconds(row[f'{side}median_ms'])}{interval}{count}"


def error_lines(row: Mapping[str, Any], frame: pd.DataFrame) -> list[str]:
    """Every error metric of a row, the main one first, with the range over the seeds of the draw."""
    metrics = error_columns(frame)
    ordered = [m for m in (MAIN_ERROR, *metrics) if m in metrics]
    lines = []
    for metric in dict.fromkeys(ordered):
        if is_null(row[metric]):
            continue
        low, high = significant(row[f"{metric}_low"]), significant(row[f"{metric}_high"])
        spread = f" ({low} to {high} over seeds)" if low != high else ""
        lines.append(f"{escape(metric)} {significant(row[metric])}{spread}")
    return lines or ["error not measured"]


def largest(rows: pd.DataFrame, metrics: Iterable[str]) -> float:
    """The largest finite value that the error metrics reach over all draws; 1 where none has a value above zero."""
    columns = [f"{metric}_high" for metric in metrics if f"{metric}_high" in rows]
    values = [float(v) for column in columns for v in rows[column] if not is_null(v) and math.isfinite(v)]
    return max(values, default=1.0) or 1.0


def _runs(low: Sequence[Any], high: Sequence[Any]) -> list[list[int]]:
    """The stretches of neighbouring indices at which both bounds have a value."""
    parts: list[list[int]] = [[]]
    for index in range(len(low)):
        if is_null(low[index]) or is_null(high[index]):
            parts.append([])
        else:
            parts[-1].append(index)
    return [part for part in parts if len(part) > 1]
