"""Parameters of the paper's theorem (alpha, kappa, stable rank) over sequence length, with the exponent of alpha."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import MASK_LABELS, escape, is_null, short, significant
from hyperbench.analyze.joins import CONDITION_DIMS, SHAPE_DIMS, DoesNotFitError, check_single, masks_in, records
from hyperbench.analyze.measures import PROPERTIES, measure_columns
from hyperbench.analyze.plotting import style, traces
from hyperbench.analyze.plotting.layout import Panel, Sheet
from hyperbench.analyze.view import View
from hyperbench.stats.power_law import PowerLaw, power_law

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SHOWN = ("method", "is_causal", "pass", "seq_len", "input")
_LABELS = {"alpha": "alpha", "kappa": "kappa", "stable_rank": "stable rank"}
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
_FIT = style.Look("", "dot", width=1.4, size=0)
_NO_PLACE = 1e300


def build(view: View) -> go.Figure:
    """The figure of a run. Raises DoesNotFitError without these properties, or where others than inputs vary."""
    rows = _properties(view)
    lengths = sorted({int(n) for n in rows["seq_len"]})
    if len(lengths) < 2:
        raise DoesNotFitError(f"seq_len has one value, {lengths[0]}: there is no curve to draw")
    masks, inputs = masks_in(rows), [str(name) for name in rows["input"].unique()]
    laws = {
        (name, is_causal): law for name in inputs for is_causal in masks if (law := _law(_curve(rows, name, is_causal)))
    }
    looks = {
        name: style.Look(style.PALETTE[i % len(style.PALETTE)], symbol=_SYMBOLS[i % len(_SYMBOLS)])
        for i, name in enumerate(inputs)
    }
    x_axis = style.seq_len_axis(lengths)
    sheet = Sheet(len(PROPERTIES), [MASK_LABELS[m] for m in masks], spacing=(0.04, 0.035), heights=(0.4, 0.3, 0.3))
    for row, metric in enumerate(PROPERTIES, start=1):
        shown = [v for v in rows[metric].dropna() if 0.0 < v < _NO_PLACE]
        y_axis = style.log_axis(shown, pad=0.1)
        for col, is_causal in enumerate(masks, start=1):
            panel = sheet.panel(row, col, x_axis, y_axis)
            for name in inputs:
                line = _curve(rows, name, is_causal)
                law = laws.get((name, is_causal)) if metric == "alpha" else None
                _draw(panel, line, metric, looks[name], _legend(name, laws), law)
    return sheet.finish(
        view,
        title=f"alpha, kappa and stable rank of {style.listed(inputs, 'inputs')} over sequence length",
        axes=("sequence length n", [_LABELS[metric] for metric in PROPERTIES]),
        notes=[*_exponents(laws), *_meanings(masks)],
        plot_height=780,
    )


def _properties(view: View) -> pd.DataFrame:
    """One row per input, masking and length. Raises DoesNotFitError where the run has none, or mixes others."""
    frame = view.timings
    if not {*PROPERTIES} <= {*measure_columns(frame)} or not frame["alpha"].notna().any():
        raise DoesNotFitError(
            "this run holds no alpha; `hyperbench run sweep=alpha` measures it, as does error.extra=[theory] in any "
            "sweep"
        )
    # They are the same for every method on an input.
    rows = frame[frame["alpha"].notna()].drop_duplicates([*SHAPE_DIMS, *CONDITION_DIMS, "run_id"])
    check_single(rows, SHOWN)
    return rows.sort_values("seq_len", kind="stable")


def _curve(rows: pd.DataFrame, name: str, is_causal: bool) -> pd.DataFrame:
    return rows[(rows["input"] == name) & (rows["is_causal"] == is_causal)]


def _law(line: pd.DataFrame) -> PowerLaw | None:
    return power_law((float(n), float(alpha)) for n, alpha in zip(line["seq_len"], line["alpha"], strict=True))


def _draw(panel: Panel, line: pd.DataFrame, metric: str, look: style.Look, legend: str, law: PowerLaw | None) -> None:
    """The curve of one property of one input, and the power law that was fitted to it."""
    if line.empty:
        return
    lengths = [int(n) for n in line["seq_len"]]
    values = [v if 0.0 < v < _NO_PLACE else math.nan for v in line[metric]]
    points = traces.Points(lengths, values, hover=[_hover(row, law) for row in records(line)])
    traces.curve(panel, points, look, name=legend, group=str(line["input"].iloc[0]))
    if law is not None:
        panel.add(
            str(line["input"].iloc[0]),
            x=lengths,
            y=[law.at(n) for n in lengths],
            mode="lines",
            line={"color": look.color, "dash": _FIT.dash, "width": _FIT.width},
            showlegend=False,
            name="fit",
        )


def _hover(row: Mapping[str, Any], law: PowerLaw | None) -> str:
    lines = [f"<b>{escape(short(str(row['input']), 60))}, n = {int(row['seq_len']):,}</b>"]
    lines += [f"{_LABELS[metric]} {_number(row[metric])}" for metric in PROPERTIES]
    lines += [f"alpha over n: {_number(float(row['alpha']) / int(row['seq_len']))}"]
    return "<br>".join([*lines, *([f"fitted: alpha ∝ n^{law.exponent:.2f}"] if law else [])])


def _number(value: Any) -> str:
    """A number that may be very large: kappa has no bound."""
    if is_null(value) or not math.isfinite(value) or value < 1e6:
        return significant(value)
    return f"{value:.1e}"


def _legend(name: str, laws: Mapping[tuple[str, bool], PowerLaw]) -> str:
    found = {is_causal: law for (of, is_causal), law in laws.items() if of == name}
    powers = [f"n<sup>{law.exponent:.2f}</sup>{' causal' if causal else ''}" for causal, law in sorted(found.items())]
    told = f"<br>alpha ∝ {', '.join(powers)}" if powers else ""
    return f"{style.legend_name(name)}{told}"


def _exponents(laws: Mapping[tuple[str, bool], PowerLaw]) -> list[str]:
    told = [
        f"{name} {'causal' if is_causal else 'non-causal'} {law.exponent:.2f} ({law.least:.2f} to {law.most:.2f})"
        for (name, is_causal), law in laws.items()
    ]
    if not told:
        return []
    return [
        f"Exponents of alpha by least squares in logarithms (in brackets: from one length to the next): "
        f"{'; '.join(told)}. Below 1 alpha grows more slowly than n."
    ]


def _meanings(masks: list[bool]) -> list[str]:
    causal = (
        " Under a causal mask: of the second half of the queries over the first half of the keys, the largest node of "
        "Algorithm 4; of the whole, alpha is n or more, since the first query sees one key."
    )
    return [
        "alpha = n times the largest squared column norm of D^-1 A; kappa = largest over least row sum of A outside "
        "the blocks of Algorithm 1; stable rank = |D^-1 A|_F^2 / |D^-1 A|_op^2; each is the largest over the heads."
        + (causal if True in masks else "")
    ]
