"""The marks that figures share: a curve with its interval band, and the places where nothing could be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import at, escape, is_null, milliseconds, pass_label, short
from hyperbench.analyze.joins import records
from hyperbench.analyze.plotting.style import FAILED_COLOR, passes_in, rgba
from hyperbench.analyze.view import reason

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

    The interval of a point without neighbours is a bar. `hollow` points (throttled ones) are drawn empty. `name` and
    `hover` are escaped by the caller.
    """
    import plotly.graph_objects as go

    fill = filled(color, hollow or [False] * len(x))
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
        alone = len(part) == 1
        shape = {"line": {"width": 7, "color": rgba(color, 0.3)}} if alone else {"line": {"width": 0}, "fill": "toself"}
        panel.add(
            go.Scatter(
                x=[x[i] for i in part] + [x[i] for i in reversed(part)],
                y=[float(high[i]) for i in part] + [float(low[i]) for i in reversed(part)],
                mode="lines",
                fillcolor=rgba(color, 0.18),
                hoverinfo="skip",
                showlegend=False,
                name=f"{name} interval",
                visible=visible,
                **shape,
            ),
            group,
        )


def failures(panel: Panel, rows: pd.DataFrame, y: float, x: str = "seq_len") -> None:
    """Crosses at height y where a row has no value, one per x; the hover lists every row with its reason."""
    causes: dict[Any, list[str]] = {}
    for row in records(rows.sort_values(x, kind="stable")):
        causes.setdefault(row[x], []).append(f"{row['method']} {pass_label(row['pass'])}: {reason(row) or 'no value'}")
    crosses(panel, causes, y, x)


def crosses(panel: Panel, causes: Mapping[Any, Sequence[str]], y: float, x: str) -> None:
    """A cross at height y for each place on the axis `x`; its hover holds the place's causes, escaped here."""
    import plotly.graph_objects as go

    if not causes:
        return
    places = [place_of(place) for place in causes]
    hovers = [
        "<br>".join([f"<b>no value at {escape(at(x, place))}</b>", *(escape(short(line)) for line in lines)])
        for place, lines in causes.items()
    ]
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


def place_of(value: Any) -> Any:
    """A value as a place on an axis: a number, or the escaped name of a category."""
    return escape(value) if isinstance(value, str) else float(value)


def failure_notes(rows: pd.DataFrame, limit: int = 4) -> list[str]:
    """Footnotes on rows without a value, one per method and reason: which passes and lengths are missing."""
    notes: dict[tuple[str, str], dict[str, set[Any]]] = {}
    for row in records(rows):
        why = reason(row) or "no value"
        entry = notes.setdefault((row["method"], why), {"pass": set(), "seq_len": set()})
        entry["pass"].add(row["pass"])
        entry["seq_len"].add(int(row["seq_len"]))
    texts = [
        f"No value: {method} {', '.join(map(pass_label, passes_in(entry['pass'])))} at n = "
        f"{', '.join(f'{n:,}' for n in sorted(entry['seq_len']))} ({short(why)})."
        for (method, why), entry in notes.items()
    ]
    if len(texts) > limit:
        texts = [*texts[:limit], f"{len(texts) - limit} more kinds of missing value are in the tables of the run."]
    return texts


def is_throttled(frame: pd.DataFrame, or_baseline: bool = False) -> pd.Series:
    """Which rows (or their baselines) were timed while clocks were throttled."""
    slow = frame["status"] == "throttled"
    return slow | (frame["baseline_status"] == "throttled") if or_baseline else slow


def filled(color: str, hollow: Sequence[bool]) -> list[str]:
    """The fills of markers: hollow ones are empty."""
    return ["white" if h else color for h in hollow]


def throttled_notes(frame: pd.DataFrame, or_baseline: bool = False) -> list[str]:
    """A footnote where clocks were throttled while something shown was timed."""
    slow = frame[is_throttled(frame, or_baseline)]
    if slow.empty:
        return []
    who = "they, or their baseline," if or_baseline else "they"
    lengths = ", ".join(f"{int(n):,}" for n in sorted(slow["seq_len"].unique()))
    return [f"Hollow points: clocks were throttled while {who} were timed (n = {lengths})."]


def timing_text(row: Mapping[str, Any], side: str = "") -> str:
    """A time, its interval and number of samples (side "baseline_": those of the baseline); "no time" without one."""
    if is_null(row[f"{side}median_ms"]):
        return "no time"
    interval = f" [{milliseconds(row[f'{side}ci_low_ms'])}, {milliseconds(row[f'{side}ci_high_ms'])}]"
    samples = row[f"{side}n_samples"]
    count = "" if is_null(samples) else f", {int(samples)} samples"
    return f"{milliseconds(row[f'{side}median_ms'])}{interval}{count}"


def _runs(low: Sequence[Any], high: Sequence[Any]) -> list[list[int]]:
    """The stretches of neighbouring indices at which both bounds have a value."""
    parts: list[list[int]] = [[]]
    for index in range(len(low)):
        if is_null(low[index]) or is_null(high[index]):
            parts.append([])
        else:
            parts[-1].append(index)
    return [part for part in parts if part]
