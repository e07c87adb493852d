"""The panel of a trade-off: errors over speedups, the Pareto front, and the region that trivial methods rule out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import PASS_LABELS, escape, is_null, significant
from hyperbench.analyze.joins import records
from hyperbench.analyze.plotting import errors, style, traces
from hyperbench.analyze.plotting.layout import Panel
from hyperbench.analyze.view import MAIN_ERROR, TRIVIAL_ERRORS, View
from hyperbench.stats.pareto import Choice, dominated_outline, pareto_front

if TYPE_CHECKING:
    import pandas as pd

#: Methods that give one of the trivial answers, which are lines here: they are as fast as doing nothing.
ANSWERS = {metric.removesuffix("_rel_fro"): metric for metric in TRIVIAL_ERRORS}
#: Kinds of methods: one that any other has to beat, and one that nobody could run since it knows the answer.
TRIVIAL, ORACLE = "trivial", "oracle"
REGION, FRONT, BELOW = "ruled out by trivial methods", "Pareto front", "error below 1e-6"
_ERRORS = (MAIN_ERROR, f"{MAIN_ERROR}_low", f"{MAIN_ERROR}_high")
_FOOT = 0.05
_ORACLE_SYMBOL = "star-diamond-open"
_THROTTLED_FILL = "white"


def with_place(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a view's timings whose speedup and error have a place: positive, and at least 0, both finite."""
    if MAIN_ERROR not in frame:
        return frame.iloc[:0]
    speed, error = frame["speedup"], frame[MAIN_ERROR]
    return frame[(speed > 0) & (speed < math.inf) & (error >= 0) & (error < math.inf)]


def settings_of(view: View) -> pd.DataFrame:
    """The rows that are points: with a place, of approximate methods, but for those that give a trivial answer."""
    rows = with_place(view.timings)
    return rows[~rows["method"].isin([*view.exact_methods, *ANSWERS])]


def speedup_axis(settings: pd.DataFrame) -> dict[str, Any]:
    """The axis of the speedups of settings, with the place of the baseline."""
    axis = style.log_axis([1.0, *_positive(settings, traces.SPEEDUPS)], suffix="×", pad=0.06)
    ticks, texts = style.apart(axis["tickvals"], axis["ticktext"], axis["range"])
    return axis | {"tickvals": ticks, "ticktext": texts}


def error_axis(settings: pd.DataFrame, rows: pd.DataFrame) -> dict[str, Any]:
    """The axis of the errors of settings and of the trivial answers among rows; marks at the foot have space."""
    is_tiny = _is_tiny(settings)
    values = _positive(settings[~is_tiny], _ERRORS) + _positive(rows, [m for m in TRIVIAL_ERRORS if m in rows])
    axis = style.log_axis(values, pad=0.08, dense_decades=2.5)
    if is_tiny.any():
        low, high = axis["range"]
        axis["range"] = [low - 0.15 * (high - low), high]
    return axis


@dataclass(frozen=True)
class TradeoffPanel:
    """A panel with its axes, in which settings of the view's methods are drawn."""

    panel: Panel
    view: View
    x_axis: dict[str, Any]
    y_axis: dict[str, Any]

    def draw(self, settings: pd.DataFrame, rows: pd.DataFrame, looks: Mapping[str, style.Look]) -> None:
        """Draw settings; `rows` are all of the panel, among them those of exact attention."""
        known = {metric: float(rows[metric].median()) for metric in TRIVIAL_ERRORS if metric in rows}
        answers = {metric: value for metric, value in known.items() if 0 < value < math.inf}
        self._region(settings, answers)
        self._answer_lines(answers)
        self._front(settings, rows)
        for method, points in settings.groupby("method", sort=False):
            self._method(str(method), points, looks[str(method)])
        place = {"row": self.panel.row, "col": self.panel.col}
        self.panel.fig.add_vline(1.0, line={"color": style.INK, "width": 1}, **place)

    def _region(self, settings: pd.DataFrame, answers: Mapping[str, float]) -> None:
        """Shade what is slower and less accurate than a trivial method; an answer is as fast as the axis reaches."""
        left, right = (10.0**end for end in self.x_axis["range"])
        trivial = _choices(settings[settings["method"].map(self.view.kinds) == TRIVIAL])
        choices = [*trivial, *((right, error) for error in answers.values())]
        outline = dominated_outline(choices, left, style.height_at(self.y_axis, 1))
        if outline:
            self.panel.add(
                "region",
                x=[x for x, _ in outline],
                y=[y for _, y in outline],
                mode="lines",
                fill="toself",
                fillcolor=style.rgba(style.AXIS, 0.22),
                # Simplified, its stairs would be a box.
                line={"width": 0, "simplify": False},
                name=style.legend_name(REGION),
            )

    def _answer_lines(self, answers: Mapping[str, float]) -> None:
        for metric, error in answers.items():
            label, look = TRIVIAL_ERRORS[metric], style.TRIVIAL_LOOK[metric]
            self.panel.add(
                f"error/{metric}",
                [f"error of {label}: {significant(error)}"] * 2,
                x=[10.0**end for end in self.x_axis["range"]],
                y=[error] * 2,
                mode="lines",
                line={"color": look.color, "dash": look.dash, "width": look.width},
                name=style.legend_name(f"error of {label}"),
            )

    def _front(self, settings: pd.DataFrame, rows: pd.DataFrame) -> None:
        """Draw the stairs of the front of what can be chosen: exact attention is a choice without error, oracles none.

        From one setting to the next the error of the next holds, since nothing is faster and as accurate.
        """
        exact = with_place(rows[rows["method"].isin(self.view.exact_methods)])
        rivals = [(float(speedup), 0.0) for speedup in exact["speedup"]]
        if self.view.baseline in self.view.exact_methods:
            rivals.append((1.0, 0.0))
        chosen = _choices(settings[settings["method"].map(self.view.kinds) != ORACLE])
        every = [*chosen, *rivals]
        front = [chosen[i] for i in pareto_front(every) if i < len(chosen)]
        if front:
            self.panel.add(
                "front",
                x=[x for x, _ in front],
                y=[max(y, style.height_at(self.y_axis, _FOOT)) for _, y in front],
                mode="lines+markers",
                line={"color": style.INK, "width": 1.2, "shape": "vh"},
                marker={"symbol": "circle-open", "size": 15, "color": style.INK, "line": {"width": 1.2}},
                name=FRONT,
            )

    def _method(self, method: str, rows: pd.DataFrame, look: style.Look) -> None:
        """Draw a method's settings with their intervals; those at which it is exact stand at the foot."""
        kind, is_tiny = self.view.kinds.get(method), _is_tiny(rows)
        name = f"{method} ({kind})" if kind else method
        points, tiny = rows[~is_tiny], rows[is_tiny]
        if len(points):
            slow = traces.is_throttled(points, or_baseline=True)
            marker: dict[str, Any] = {
                "symbol": look.symbol,
                "size": look.size,
                "color": [_THROTTLED_FILL if throttled else look.color for throttled in slow],
                "line": {"color": look.color, "width": 1.2},
            }
            if kind == ORACLE:
                marker |= {"symbol": _ORACLE_SYMBOL, "size": look.size + 3, "color": look.color}
            self.panel.add(
                f"method/{method}",
                [self._hover(row) for row in records(points)],
                x=list(points["speedup"]),
                y=list(points[MAIN_ERROR]),
                error_x=_bars(points, traces.SPEEDUPS, look.color),
                error_y=_bars(points, _ERRORS, look.color),
                mode="markers",
                marker=marker,
                name=style.legend_name(name),
            )
        if len(tiny):
            self.panel.add(
                f"method/{method}/{BELOW}",
                [self._hover(row) for row in records(tiny)],
                x=list(tiny["speedup"]),
                y=[style.height_at(self.y_axis, _FOOT)] * len(tiny),
                mode="markers",
                marker={"symbol": "triangle-down-open", "size": 9, "color": look.color, "line": {"width": 1.8}},
                name=style.legend_name(f"{name}: {BELOW}"),
            )

    def _hover(self, row: Mapping[str, Any]) -> str:
        kind = self.view.kinds.get(row["method"])
        name = f"{row['method']} ({kind})" if kind else row["method"]
        lines = [
            f"<b>{escape(name)}, {PASS_LABELS[row['pass']]}, n = {int(row['seq_len']):,}</b>",
            *traces.input_line(row, self.view),
            *traces.parameter_lines(row, self.view),
            traces.speedup_text(row),
            f"{escape(row['method'])}: {traces.timing_text(row)}",
            f"{escape(self.view.baseline)}: {traces.timing_text(row, 'baseline_')}",
            *errors.error_lines(row, self.view),
            "" if row["status"] == "ok" else f"status {escape(row['status'])}",
            "" if is_null(row["message"]) else escape(row["message"]),
        ]
        return "<br>".join(line for line in lines if line)


def _positive(rows: pd.DataFrame, columns: Sequence[str]) -> list[float]:
    return [float(value) for column in columns for value in rows[column] if 0 < value < math.inf]


def _choices(rows: pd.DataFrame) -> list[Choice]:
    return [(float(speedup), float(error)) for speedup, error in zip(rows["speedup"], rows[MAIN_ERROR], strict=True)]


def _is_tiny(rows: pd.DataFrame) -> pd.Series:
    """Mask of the rows whose errors have no place on the axis: settings at which a method is exact."""
    import pandas as pd

    tiny = [row[MAIN_ERROR] <= errors.least_shown(row, frozenset()) for row in records(rows)]
    return pd.Series(tiny, rows.index, dtype=bool)


def _bars(rows: pd.DataFrame, columns: tuple[str, str, str], color: str) -> dict[str, Any]:
    """The intervals of values as bars; an end that is unknown, endless or has no place has none."""
    value, low, high = (rows[column] for column in columns)
    up, down = (high - value).where(high < math.inf), (value - low).where(low > 0)
    sizes = {"array": list(up.fillna(0.0).clip(lower=0.0)), "arrayminus": list(down.fillna(0.0).clip(lower=0.0))}
    return {"type": "data", "symmetric": False, **sizes, "color": style.rgba(color, 0.55), "thickness": 1.2, "width": 0}
