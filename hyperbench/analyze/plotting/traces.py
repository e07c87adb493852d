"""Traces that figures share: curves with interval bands, crosses where nothing could be measured, and their notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import (
    PASS_LABELS,
    at,
    counted,
    escape,
    is_null,
    lengths_text,
    milliseconds,
    passes_in,
    ratio,
    short,
)
from hyperbench.analyze.joins import records
from hyperbench.analyze.plotting.layout import Panel
from hyperbench.analyze.plotting.style import FAILED_COLOR, Look, rgba
from hyperbench.analyze.view import View, own_parameters, reason

if TYPE_CHECKING:
    import pandas as pd

#: Columns of a value and the ends of its interval.
TIMES = ("median_ms", "ci_low_ms", "ci_high_ms")
SPEEDUPS = ("speedup", "speedup_low", "speedup_high")


@dataclass(frozen=True)
class Points:
    """The points of a curve: places, values, and by place the interval, the hover (escaped) and whether it is hollow.

    A null value is a gap in the curve, a null bound one in the band. Throttled points are hollow.
    """

    x: Sequence[Any]
    y: Sequence[Any]
    low: Sequence[Any] | None = None
    high: Sequence[Any] | None = None
    hover: Sequence[str] | None = None
    hollow: Sequence[bool] | None = None


def lines_in(part: pd.DataFrame, methods: Iterable[str], value: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Method, pass and rows of each line of a panel that has a value at all."""
    for method in methods:
        for name in passes_in(part["pass"].unique()):
            line = part[(part["method"] == method) & (part["pass"] == name)]
            if line[value].notna().any():
                yield method, name, line


def points_of(rows: pd.DataFrame, columns: tuple[str, str, str], x: Sequence[Any], hover: Sequence[str]) -> Points:
    """The points of rows of a table at places `x`: the columns of the value and of its interval's ends."""
    value, low, high = (list(rows[column]) for column in columns)
    return Points(x, value, low, high, hover, list(is_throttled(rows, or_baseline=columns == SPEEDUPS)))


def curve(panel: Panel, points: Points, look: Look, *, name: str, group: str, visible: bool | str = True) -> None:
    """Draw a line through points with a band over their intervals; that of a point without neighbours is a bar.

    `name` is escaped by the caller.
    """
    x, low, high, color = points.x, points.low, points.high, look.color
    fill = ["white" if hollow else color for hollow in points.hollow or [False] * len(x)]
    panel.add(
        group,
        points.hover,
        x=list(x),
        y=[None if is_null(v) else float(v) for v in points.y],
        mode="lines+markers",
        name=name,
        line={"color": color, "dash": look.dash, "width": look.width},
        marker={"color": fill, "symbol": look.symbol, "size": look.size, "line": {"color": color, "width": 1.6}},
        connectgaps=False,
        visible=visible,
    )
    if low is None or high is None:
        return
    for part in _runs(low, high):
        alone = len(part) == 1
        shape = {"line": {"width": 7, "color": rgba(color, 0.3)}} if alone else {"line": {"width": 0}, "fill": "toself"}
        panel.add(
            group,
            x=[x[i] for i in part] + [x[i] for i in reversed(part)],
            y=[float(high[i]) for i in part] + [float(low[i]) for i in reversed(part)],
            mode="lines",
            fillcolor=rgba(color, 0.18),
            showlegend=False,
            name=f"{name} interval",
            visible=visible,
            **shape,
        )


def failures(panel: Panel, rows: pd.DataFrame, y: float, x: str = "seq_len") -> None:
    """Draw crosses at height y where a row has no value, one per x; the hover lists every row with its reason."""
    causes: dict[Any, list[str]] = {}
    for row in records(rows.sort_values(x, kind="stable")):
        causes.setdefault(row[x], []).append(f"{row['method']} {PASS_LABELS[row['pass']]}: {reason(row) or 'no value'}")
    crosses(panel, causes, y, x)


def crosses(panel: Panel, causes: Mapping[Any, Sequence[str]], y: float, x: str) -> None:
    """Draw a cross at height y for each place on the axis `x`; its hover holds the place's causes, escaped here."""
    if not causes:
        return
    hovers = [
        "<br>".join([f"<b>no value at {escape(at(x, place))}</b>", *(escape(short(line)) for line in lines)])
        for place, lines in causes.items()
    ]
    marker = {"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": FAILED_COLOR}}
    marks(panel, "failed", [place_of(place) for place in causes], y, hovers, "no value (reason in hover)", marker)


def marks(
    panel: Panel, group: str, x: Sequence[Any], y: float, hover: Sequence[str], name: str, marker: Mapping[str, Any]
) -> None:
    """Draw markers at height y that the edge of the panel does not cut; hovers are escaped by the caller."""
    panel.add(group, hover, x=list(x), y=[y] * len(x), mode="markers", name=name, marker=marker, cliponaxis=False)


def input_line(row: Mapping[str, Any], view: View) -> list[str]:
    """The input of a row as a line of its hover, escaped; none where all rows have the same."""
    return [f"input {escape(row['input'])}"] if view.timings["input"].nunique() > 1 else []


def place_of(value: Any) -> Any:
    """A value as a place on an axis: a number, or the escaped name of a category."""
    return escape(value) if isinstance(value, str) else float(value)


def gap_notes(rows: pd.DataFrame, value: str) -> list[str]:
    """Footnotes on what was throttled (for a speedup also: whose baseline was), and on what has no value."""
    return [*throttled_notes(rows, or_baseline=value == "speedup"), *failure_notes(rows[rows[value].isna()])]


def failure_notes(rows: pd.DataFrame, limit: int = 4) -> list[str]:
    """Footnotes on rows without a value, one per method and reason, with the passes and lengths that are missing."""
    reasons = [reason(row) or "no value" for row in records(rows)]
    texts = notes_by_reason(rows, reasons, "No value: {}", with_passes=True)
    if len(texts) > limit:
        texts = [*texts[:limit], f"{len(texts) - limit} more kinds of missing value are in the tables of the run."]
    return texts


def notes_by_reason(
    rows: pd.DataFrame, reasons: Sequence[str] | pd.Series, head: str, with_passes: bool = False
) -> list[str]:
    """Footnotes on rows, one per method and reason, with their lengths; `head` has the place of the method."""
    import pandas as pd

    notes = []
    whys = pd.Series(list(reasons), rows.index, dtype=object).rename("reason")
    for (method, why), part in rows.groupby([rows["method"], whys], sort=False):
        passes = [PASS_LABELS[name] for name in passes_in(part["pass"])] if with_passes else []
        name = f"{method} {', '.join(passes)}".strip()
        notes.append(f"{head.format(name)} at n = {lengths_text(part['seq_len'].unique())} ({short(str(why))}).")
    return notes


def is_throttled(frame: pd.DataFrame, or_baseline: bool = False) -> pd.Series:
    """Mask of the rows that were timed while clocks were throttled, or whose baselines were."""
    slow = frame["status"] == "throttled"
    return slow | (frame["baseline_status"] == "throttled") if or_baseline else slow


def throttled_notes(frame: pd.DataFrame, or_baseline: bool = False) -> list[str]:
    """A footnote where clocks were throttled while something shown was timed."""
    slow = frame[is_throttled(frame, or_baseline)]
    if slow.empty:
        return []
    who = "they, or their baseline," if or_baseline else "they"
    lengths = lengths_text(slow["seq_len"].unique())
    return [f"Hollow points: clocks were throttled while {who} were timed (n = {lengths})."]


def parameter_lines(row: Mapping[str, Any], view: View) -> list[str]:
    """The line of a hover that tells the parameters of a row's method, escaped; none where it has none."""
    told = own_parameters(row, view.timings)
    return [escape(told)] if told else []


def timing_text(row: Mapping[str, Any], prefix: str = "") -> str:
    """A time, its interval and number of samples (prefix "baseline_": those of the baseline); "no time" without one."""
    median, low, high = (row[f"{prefix}{name}"] for name in TIMES)
    if is_null(median):
        return "no time"
    if is_null(low):
        return milliseconds(median)
    samples = row[f"{prefix}n_samples"]
    count = "" if is_null(samples) else f", {int(samples)} samples"
    return f"{milliseconds(median)} [{milliseconds(low)}, {milliseconds(high)}]{count}"


def speedup_text(row: Mapping[str, Any]) -> str:
    """A speedup, its interval where it has one, and its number of rounds."""
    if is_null(row["speedup"]):
        return "no speedup"
    interval = "" if is_null(row["speedup_low"]) else f" [{ratio(row['speedup_low'])}, {ratio(row['speedup_high'])}]"
    return f"speedup {ratio(row['speedup'])}{interval}, {counted(int(row['speedup_rounds']), 'round')}"


def _runs(low: Sequence[Any], high: Sequence[Any]) -> list[list[int]]:
    """The stretches of neighbouring indices at which both bounds have a value."""
    parts: list[list[int]] = [[]]
    for index in range(len(low)):
        if is_null(low[index]) or is_null(high[index]):
            parts.append([])
        else:
            parts[-1].append(index)
    return [part for part in parts if part]
