"""Time and error of many methods at one length, a row each, the fastest on top: what speed costs, method by method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import MASK_LABELS, PASS_LABELS, escape, is_null, passes_in, ratio, short
from hyperbench.analyze.joins import DoesNotFitError, check_single, inputs_in, masks_in, records, settings
from hyperbench.analyze.plotting import errors, style, traces
from hyperbench.analyze.plotting.layout import Panel, Sheet
from hyperbench.analyze.view import MAIN_ERROR, TRIVIAL_ERRORS, View, reason, require_timings
from hyperbench.store.parameters import method_parameters

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Row = Mapping[str, Any]
SHOWN = ("method", "is_causal", "pass", "input")
_MIN_METHODS = 3
_MAX_INPUTS = 4
_ROW_PX, _PANEL_PX, _CHAR_PX = 24, 70, 7.4
_LABEL_CHARS = 34
#: Name and look of the marks of errors, by the kind of the method.
_ERRORS = {
    "": ("error", style.Look(style.INK, symbol="diamond", size=9)),
    "trivial": ("error of a trivial method", style.Look("#8A6FB0", symbol="diamond-open", size=9)),
    "oracle": ("error of an oracle", style.Look("#009E73", symbol="star-open", size=10)),
}


@dataclass(frozen=True)
class _Place:
    """The rows of one input and masking at the one length, and the labels of its methods, the fastest first."""

    rows: list[dict[str, Any]]
    labels: dict[str, str]
    view: View

    @property
    def ends(self) -> list[str]:
        """The first and the last label: a line between them crosses all rows."""
        names = list(self.labels.values())
        return [names[0], names[-1]]


def build(view: View) -> go.Figure:
    """The figure of a run. Raises DoesNotFitError where it has several lengths, or too few methods to be laid out."""
    require_timings(view)
    frame = view.timings
    check_single(frame, (*SHOWN, *method_parameters(frame)))
    count = frame["method"].nunique()
    if count < _MIN_METHODS:
        raise DoesNotFitError(f"{count} methods are too few for this figure, which takes {_MIN_METHODS} or more")
    told = settings(frame)
    places = {
        (name, is_causal): _place(view, frame[(frame["input"] == name) & (frame["is_causal"] == is_causal)], told)
        for name in inputs_in(frame, _MAX_INPUTS)
        for is_causal in masks_in(frame[frame["input"] == name])
    }
    times = style.log_axis([*frame["ci_low_ms"].dropna(), *frame["ci_high_ms"].dropna()], pad=0.1)
    scale = errors.error_scale(view, (MAIN_ERROR,))
    sheet = Sheet(len(places), ["time in ms", errors.AXIS_TITLE], spacing=(0.1 / max(2, len(places)), 0.03))
    for i, place in enumerate(places.values(), start=1):
        order = list(reversed(place.labels.values()))
        y_axis = {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": order,
            "range": [-0.6, len(order) - 0.4],
        }
        _draw_times(sheet.panel(i, 1, times, y_axis), place, style.foot(times))
        _draw_errors(sheet.panel(i, 2, scale.axis, y_axis), place, scale)
    several = len({name for name, _ in places}) > 1
    heads = [
        f"{MASK_LABELS[is_causal]}{f'<br>{escape(short(name, 32))}' if several else ''}" for name, is_causal in places
    ]
    rows = max(len(place.labels) for place in places.values())
    length = int(frame["seq_len"].iloc[0])
    fig = sheet.finish(
        view,
        title=f"Time and error of {count} methods, n = {length:,}",
        axes=("", heads),
        notes=[
            "Times: medians, bars: 95 % intervals (least to most below 6 samples); thin lines: those of the baseline.",
            *errors.error_notes(view),
            *traces.gap_notes(frame, "median_ms"),
        ],
        plot_height=(_PANEL_PX + _ROW_PX * rows) * len(places),
        fixed=[f"seq_len={length}"],
    )
    longest = max(len(label) for place in places.values() for label in place.labels.values())
    labels_px = int(_CHAR_PX * min(longest, _LABEL_CHARS)) + 16
    # Wider by as much: the footer begins where the axes do.
    return fig.update_layout(margin_l=fig.layout.margin.l + labels_px, width=fig.layout.width + labels_px)


def _place(view: View, frame: pd.DataFrame, told: Mapping[str, str]) -> _Place:
    """The rows of a place with a label for each point, sorted by the time of the first pass that they have."""
    first = passes_in(frame["pass"])[0]
    rows = records(frame)
    times = {row["point_id"]: row["median_ms"] for row in rows if row["pass"] == first}
    labels = {row["point_id"]: _label(row, told) for row in rows}
    # Names that are cut may be alike, and yet need a row each.
    counts: Counter[str] = Counter()
    for point, label in labels.items():
        counts[label] += 1
        labels[point] = label if counts[label] == 1 else f"{label} ({counts[label]})"
    order = sorted(labels, key=lambda p: (is_null(times.get(p)), 0.0 if is_null(times.get(p)) else times[p]))
    return _Place(rows, {p: labels[p] for p in order}, view)


def _label(row: Row, told: Mapping[str, str]) -> str:
    """The name of a row of a panel, escaped: a method, with the parameters in which its settings differ."""
    return escape(short(f"{row['method']} {told[str(row['point_id'])]}".strip(), _LABEL_CHARS))


def _draw_times(panel: Panel, place: _Place, foot: float) -> None:
    """A mark with its interval for each pass of each method, the time of the baseline as a line, what is missing."""
    for name in passes_in(row["pass"] for row in place.rows):
        rows = [row for row in place.rows if row["pass"] == name and not is_null(row["median_ms"])]
        look = style.pass_look(name, style.PASS_COLOR[name], size=9)
        hover = [_hover(row, place.view) for row in rows]
        _marks(panel, place, rows, traces.TIMES, (PASS_LABELS[name], look), hover)
        for row in rows:
            if row["method"] == place.view.baseline:
                line = {"color": look.color, "width": 1, "dash": "dot"}
                x = [float(row["median_ms"])] * 2
                panel.add(f"base/{name}", x=x, y=place.ends, mode="lines", line=line, showlegend=False)
    causes: dict[str, list[str]] = {}
    for row in place.rows:
        if is_null(row["median_ms"]):
            told = f"{PASS_LABELS[row['pass']]}: {reason(row) or 'no value'}"
            causes.setdefault(place.labels[row["point_id"]], []).append(told)
    _crosses(panel, causes, foot)


def _draw_errors(panel: Panel, place: _Place, scale: errors.ErrorScale) -> None:
    """A mark with its interval for the error of each method, those of trivial answers as lines, and what is missing."""
    view = place.view
    by_point = {row["point_id"]: row for row in reversed(place.rows)}
    rows = [by_point[point] for point in place.labels if MAIN_ERROR in by_point[point]]
    for metric, label in TRIVIAL_ERRORS.items():
        values = [float(row[metric]) for row in rows if not is_null(row.get(metric)) and scale.shows(row, metric)]
        if values:
            look = style.TRIVIAL_LOOK[metric]
            line = {"color": look.color, "width": look.width, "dash": look.dash}
            name = f"error of {label}"
            panel.add(f"error/{metric}", x=[values[0]] * 2, y=place.ends, mode="lines", line=line, name=name)
    shown = {row["point_id"]: row for row in rows if scale.shows(row, MAIN_ERROR)}
    columns = (MAIN_ERROR, f"{MAIN_ERROR}_low", f"{MAIN_ERROR}_high")
    for kind, named in _ERRORS.items():
        some = [row for row in shown.values() if _kind(view, row) == kind]
        _marks(panel, place, some, columns, named, [_hover(row, view) for row in some])
    # What no trivial answer errs by, and yet has no place on the axis.
    tiny = {row["point_id"]: row for row in rows if row["point_id"] not in shown and 0.0 <= row[MAIN_ERROR] < 1.0}
    foot, look = style.foot(scale.axis), style.Look(style.INK, symbol="triangle-left-open", size=9)
    at = [(foot, place.labels[point]) for point in tiny]
    _put(panel, "tiny", at, "exact, or nearly", look, [_hover(row, view) for row in tiny.values()])
    measured = errors.with_errors(view)
    causes = {
        place.labels[point]: [f"error: {view.error_reasons.get(point, 'not measured')}"]
        for point, row in by_point.items()
        if row["method"] in measured and point not in shown and point not in tiny
    }
    _crosses(panel, causes, foot)


def _kind(view: View, row: Row) -> str:
    kind = view.kinds.get(str(row["method"]), "")
    return kind if kind in _ERRORS else ""


def _marks(
    panel: Panel,
    place: _Place,
    rows: Sequence[Row],
    columns: tuple[str, str, str],
    named: tuple[str, style.Look],
    hover: Sequence[str],
) -> None:
    """Marks at a value with bars over its interval, a row each; those that were throttled are hollow."""
    if not rows:
        return
    name, look = named
    value, low, high = columns
    x = [float(row[value]) for row in rows]
    sides = [
        [0.0 if is_null(row[end]) else max(0.0, sign * (float(row[end]) - at)) for row, at in zip(rows, x, strict=True)]
        for end, sign in ((high, 1.0), (low, -1.0))
    ]
    bars = {"type": "data", "symmetric": False, "array": sides[0], "arrayminus": sides[1], "color": look.color}
    fill = ["white" if row["status"] == "throttled" else look.color for row in rows]
    panel.add(
        f"mark/{name}", hover, x=x, y=[place.labels[row["point_id"]] for row in rows], mode="markers", name=name,
        marker={"color": fill, "symbol": look.symbol, "size": look.size, "line": {"color": look.color, "width": 1.6}},
        error_x={**bars, "thickness": 1.6, "width": 3},
    )  # fmt: skip


def _crosses(panel: Panel, causes: Mapping[str, Sequence[str]], foot: float) -> None:
    """Crosses at the foot of the axis where there is no value; the causes stand in the hover, escaped here."""
    hovers = [
        "<br>".join([f"<b>{label}</b>", *(escape(short(line)) for line in lines)]) for label, lines in causes.items()
    ]
    look = style.Look(style.FAILED_COLOR, symbol="x-thin", size=9)
    _put(panel, "failed", [(foot, label) for label in causes], "no value (reason in hover)", look, hovers)


def _put(
    panel: Panel, group: str, places: Sequence[tuple[float, str]], name: str, look: style.Look, hover: Sequence[str]
) -> None:
    """Marks without an interval at pairs of a value and a label."""
    if places:
        marker = {
            "symbol": look.symbol,
            "size": look.size,
            "color": look.color,
            "line": {"color": look.color, "width": 2},
        }
        x, y = [x for x, _ in places], [y for _, y in places]
        panel.add(group, hover, x=x, y=y, mode="markers", name=name, marker=marker, cliponaxis=False)


def _hover(row: Row, view: View) -> str:
    lines = [f"<b>{escape(row['method'])}, {PASS_LABELS[row['pass']]}</b>", *traces.input_line(row, view)]
    lines += [traces.timing_text(row), *traces.parameter_lines(row, view)]
    if row["method"] != view.baseline:
        if not is_null(row["speedup"]):
            lines.append(f"speedup over {escape(view.baseline)} {ratio(row['speedup'])}")
        lines += errors.error_lines(row, view)
    return "<br>".join(lines)
