"""Softmax mass that blocks and sample of a plan catch, by layer and head, beside random blocks and the best keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import MASK_LABELS, at, escape, is_null, short
from hyperbench.analyze.joins import DoesNotFitError, check_single, masks_in, records, value_text, varying
from hyperbench.analyze.measures import measure_columns
from hyperbench.analyze.plotting import style, traces
from hyperbench.analyze.plotting.layout import Panel, Sheet
from hyperbench.analyze.view import View

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

#: Dimensions that have panels, or no influence; one of the others may vary, and is the x axis.
SHOWN = ("method", "is_causal", "pass")
_MASSES = ("mass_blocks", "mass_sample", "mass_random_blocks", "mass_best")
_LEAF = "mass_leaf"
_AXIS_TITLES = {"seq_len": "sequence length n"}
_PANEL_PX = 330
#: Name, masses that are added up, look.
_CURVES: tuple[tuple[str, tuple[str, ...], style.Look], ...] = (
    ("best keys, as many as blocks and sample", ("mass_best",), style.Look("#000000", "solid", 1.6, "diamond-open", 9)),
    ("blocks and sample", ("mass_blocks", "mass_sample"), style.Look("#0072B2", "solid", 2.4, "circle", 8)),
    ("blocks", ("mass_blocks",), style.Look("#D55E00", "solid", 2.4, "square", 7)),
    ("random blocks", ("mass_random_blocks",), style.Look("#5F6368", "dash", 1.6, "x-thin-open", 8)),
)
_LEAF_CURVE = ("exact leaf alone", (), style.Look("#8A6FB0", "dot", 1.6, "triangle-up", 7))


def build(view: View) -> go.Figure:
    """The figure of a run. Raises DoesNotFitError without these masses, or where several dimensions vary."""
    rows = _points(view)
    axis = _axis(rows)
    check_single(rows, (*SHOWN, axis))
    masks = masks_in(rows)
    # The last row has the axes: not that of a method without a causal form.
    methods = [
        str(m) for m in rows.groupby("method", sort=False)["is_causal"].nunique().sort_values(kind="stable").index
    ]
    sheet = Sheet(len(methods), [MASK_LABELS[m] for m in masks], spacing=(0.06, 0.035))
    x_axis = _x_axis(rows, axis)
    for i, method in enumerate(methods, start=1):
        for j, is_causal in enumerate(masks, start=1):
            panel = sheet.panel(i, j, x_axis, {"range": [0.0, 1.05], "tickformat": ".0%", "dtick": 0.2})
            part = rows[(rows["method"] == method) & (rows["is_causal"] == is_causal)]
            _draw(panel, part, axis)
    heads = [f"{escape(short(method, 24))}<br>" if len(methods) > 1 else "" for method in methods]
    return sheet.finish(
        view,
        title=f"Softmax mass that the blocks and the sample of {style.listed(methods, 'methods')} catch",
        axes=(
            "" if axis == "input" else _AXIS_TITLES.get(axis, axis),
            [f"{head}mean mass of a query" for head in heads],
        ),
        notes=_notes(masks),
        plot_height=_PANEL_PX * len(methods),
        swept=() if axis == "input" else (axis,),
    )


def _points(view: View) -> pd.DataFrame:
    frame = view.timings
    if not {*_MASSES} <= {*measure_columns(frame)} or not frame["mass_blocks"].notna().any():
        raise DoesNotFitError(
            "this run holds no masses; `hyperbench run sweep=recall` measures them, as does error.extra=[recall] in "
            "any sweep, for methods that attend at a plan"
        )
    return frame[frame["mass_blocks"].notna()].drop_duplicates("point_id")


def _axis(rows: pd.DataFrame) -> str:
    """The one dimension that varies, the input where none does. Raises DoesNotFitError where several do."""
    found = {dim: values for dim, values in varying(rows).items() if dim not in SHOWN}
    if len(found) > 1:
        listed = "; ".join(f"{dim}: {', '.join(value_text(v) for v in values)}" for dim, values in found.items())
        fixed = next(dim for dim in found if dim != "input")
        raise DoesNotFitError(
            f"several dimensions vary ({listed}); keep one and choose a value of each other: "
            f"{fixed}={value_text(found[fixed][0])}"
        )
    return next(iter(found), "input")


def _x_axis(rows: pd.DataFrame, axis: str) -> dict[str, Any]:
    places = list(rows[axis].dropna().unique())
    if any(isinstance(place, str) for place in places):
        names = [traces.place_of(place) for place in places]
        ticks: dict[str, Any] = {
            "tickvals": names,
            "ticktext": _short_names([str(place) for place in places]),
            "tickangle": 0,
        }
        # Half a place on either side, so that labels at the edges of neighbouring panels do not touch.
        ticks["range"] = [-0.5, len(names) - 0.5]
        return {"type": "category", "categoryorder": "array", "categoryarray": names, **ticks}
    return style.seq_len_axis(places) if axis == "seq_len" else style.value_axis(sorted(float(p) for p in places))


def _short_names(names: list[str]) -> list[str]:
    """Names for an axis, escaped, a word a line; of several without the words that all have in common."""
    words = [name.split() for name in names]
    common = set.intersection(*map(set, words)) if len(names) > 1 else set()
    kept = [[word for word in each if word not in common] or each for each in words]
    return ["<br>".join(escape(short(word, 24)) for word in each) for each in kept]


def _draw(panel: Panel, part: pd.DataFrame, axis: str) -> None:
    """The curves of one method under one mask; over inputs, which have no order, marks alone."""
    if part.empty:
        return
    if not isinstance(part[axis].iloc[0], str):
        part = part.sort_values(axis, kind="stable")
    leaf = part[_LEAF].fillna(0.0) if _LEAF in part else 0.0 * part["mass_blocks"]
    hover = [_hover(row, axis) for row in records(part)]
    for name, masses, look in (*_CURVES, *([_LEAF_CURVE] if leaf.any() else [])):
        heights = leaf + sum(part[mass] for mass in masses)
        shown = replace(look, width=0.0) if isinstance(part[axis].iloc[0], str) else look
        points = traces.Points([traces.place_of(x) for x in part[axis]], list(heights), hover=hover)
        traces.curve(panel, points, shown, name=style.legend_name(name), group=name)


def _hover(row: Mapping[str, Any], axis: str) -> str:
    told = {"exact leaf": row.get(_LEAF), "blocks": row["mass_blocks"], "random blocks": row["mass_random_blocks"],
            "sample outside the blocks": row["mass_sample"], "best keys": row["mass_best"]}  # fmt: skip
    lines = [f"{name} {100 * value:.1f} %" for name, value in told.items() if value is not None and not is_null(value)]
    return "<br>".join([f"<b>{escape(row['method'])}, {escape(short(at(axis, row[axis]), 60))}</b>", *lines])


def _notes(masks: list[bool]) -> list[str]:
    causal = (
        " Under a causal mask every curve begins with the mass of the query's exact leaf, and the others are of keys "
        "before it."
    )
    return [
        "Mass: share of a query's softmax that lies on the keys it meets, mean over queries and heads, median over "
        "seeds. Random blocks: the expectation for as many random keys as the blocks have. Best keys: the heaviest, as "
        "many as blocks and sample have together." + (causal if True in masks else "")
    ]
