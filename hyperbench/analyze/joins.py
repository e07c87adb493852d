"""Tables made when read: errors alongside their points, the choice of rows, and the refusal to mix."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import is_null, plain, status_text
from hyperbench.config.catalog import nearest
from hyperbench.store.parameters import input_parameters, method_parameters
from hyperbench.store.tables import ERROR_SUFFIXES

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_BASELINE = "flash2"
SHAPE_DIMS = ("device", "dtype", "is_causal", "batch", "heads", "kv_heads", "seq_len", "head_dim")
CONDITION_DIMS = ("input", "seed", "protocol")
#: The word for a parameter that a method has, and that is null at some of its points.
NULL = "null"


class DoesNotFitError(ValueError):
    """A figure cannot be made from this run: it would mix dimensions it does not show, or has nothing to show."""


def check_baseline(timings: pd.DataFrame, baseline: str) -> None:
    """Raise ValueError on a baseline that was asked for and is no method of the run; the default may be missing."""
    methods = [str(m) for m in timings["method"].unique()]
    if baseline != DEFAULT_BASELINE and baseline not in methods:
        near = nearest(baseline, methods)
        raise ValueError(f"baseline {baseline!r} is no method of this run; allowed: {', '.join(methods)}{near}")


def error_table(errors: pd.DataFrame) -> pd.DataFrame:
    """One row per point_id; for each metric its median over the seeds of the draw, `<metric>_low` and `<metric>_high`.

    These span the seeds, with the intervals of errors that are estimated from a part of the rows. Of such there is
    `<metric>_half_width` too: the most over the seeds of half an interval over its value, null where there is none.
    Rows without a value are left out of the median and never stand as zero.
    """
    import pandas as pd

    numbers = {name: pd.to_numeric(errors[name]).astype(float) for name in ("value", "low", "high")}
    values = errors[["point_id", "metric"]].assign(**numbers).dropna(subset=["value"])
    values["half_width"] = (values["high"] - values["low"]) / (2.0 * values["value"])
    for end in ("low", "high"):
        values[end] = values[end].fillna(values["value"])
    over_seeds = values.groupby(["point_id", "metric"])
    parts = [
        part.unstack("metric").add_suffix(suffix)
        for suffix, part in zip(
            ERROR_SUFFIXES,
            (
                over_seeds["value"].median(),
                over_seeds["low"].min(),
                over_seeds["high"].max(),
                over_seeds["half_width"].max(),
            ),
            strict=True,
        )
    ]
    return pd.concat(parts, axis=1).rename_axis(columns=None)


def missing_errors(errors: pd.DataFrame, metric: str) -> dict[str, str]:
    """Reasons of draws without a value of an error metric: point_id -> status and message of the last such draw."""
    reasons = {}
    for row in records(errors[(errors["metric"] == metric) & errors["value"].isna()]):
        status = "not a number" if row["status"] == "ok" else row["status"]
        reasons[row["point_id"]] = status_text(status, row["message"])
    return reasons


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as dictionaries by column name."""
    names, columns = [str(name) for name in frame.columns], [frame[name].tolist() for name in frame.columns]
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def masks_in(frame: pd.DataFrame) -> list[bool]:
    """The maskings that occur, the one without causal masking first."""
    return sorted(bool(m) for m in frame["is_causal"].unique())


def dimensions(frame: pd.DataFrame) -> list[str]:
    """The columns that say what a row of a table, or of a view's timings, is of; the parameters of methods among them.

    Parameters of inputs are not: the name of an input has those that tell it from others.
    """
    return ["method", *SHAPE_DIMS, *method_parameters(frame), *CONDITION_DIMS, "pass", "run_id"]


def varying(frame: pd.DataFrame, dims: Iterable[str] | None = None) -> dict[str, list[Any]]:
    """The dimensions (default: all) that take several values, with the values sorted, and None last.

    A method's own parameters count within each method, since each is named with it, and null is a value of one that the
    method has elsewhere; kv_heads counts only where it is not simply the number of heads.
    """
    found: dict[str, list[Any]] = {}
    plain_heads, own = bool((frame["kv_heads"] == frame["heads"]).all()), method_parameters(frame)
    for dim in dimensions(frame) if dims is None else dims:
        if dim == "kv_heads" and plain_heads:
            continue
        groups = [g[dim] for _, g in frame.groupby("method", sort=False)] if dim in own else [frame[dim]]
        several = [cells for cells in groups if cells.nunique(dropna=dim not in own) > 1]
        if several:
            values = {v for cells in several for v in cells.dropna().unique()}
            nulls = [None] if dim in own and any(cells.isna().any() for cells in several) else []
            found[dim] = sorted(values, key=lambda v: (isinstance(v, str), v)) + nulls
    return found


def value_text(value: Any) -> str:
    """A value of a dimension as a filter writes it."""
    return NULL if is_null(value) else plain(value)


def settings(frame: pd.DataFrame) -> dict[str, str]:
    """The parameters of each point, by its id, in which points of its method differ: "block_size=64 sampling=iid"."""
    found = {}
    for _, part in frame.drop_duplicates("point_id").groupby("method", sort=False):
        names = [name for name in method_parameters(frame) if part[name].nunique(dropna=False) > 1]
        for row in records(part):
            texts = [f"{name}={plain(row[name])}" for name in names if plain(row[name])]
            found[str(row["point_id"])] = " ".join(texts)
    return found


def check_single(frame: pd.DataFrame, shown_dims: Sequence[str]) -> None:
    """Raise DoesNotFitError, naming the dimension and its values, where one that is not in `shown_dims` varies.

    A parameter of the input that is shown stands for the input, as far as that differs in nothing else. Raises it also
    where two points differ in no column at all.
    """
    shown_input = [dim for dim in shown_dims if dim in input_parameters(frame)]
    told = bool(shown_input) and bool((frame.groupby(shown_input, dropna=False)["input"].nunique() == 1).all())
    for dim, values in varying(frame).items():
        if dim not in shown_dims and not (dim == "input" and told):
            listed = ", ".join(value_text(v) for v in values)
            raise DoesNotFitError(
                f"{dim} varies ({listed}) and this figure does not show it; "
                f"choose one: {shlex.quote(f'{dim}={value_text(values[0])}')}"
            )
    points = frame.drop_duplicates(["point_id", "pass", "protocol"])
    twice = points[points.duplicated(dimensions(frame))]
    if len(twice):
        row = twice.iloc[0]
        raise DoesNotFitError(
            f"several points of method {row['method']!r} at seq_len={plain(row['seq_len'])} differ only in what is no "
            "column of the tables; this figure cannot tell them apart"
        )


def inputs_in(frame: pd.DataFrame, most: int) -> list[str]:
    """The inputs that occur, in the order of the rows. Raises DoesNotFitError where there are more than `most`."""
    names = [str(name) for name in frame["input"].unique()]
    if len(names) > most:
        some = shlex.quote(f"input={','.join(names[:2])}")
        raise DoesNotFitError(
            f"{len(names)} inputs ({', '.join(names)}) are more than the {most} that this figure has panels for; "
            f"choose some: {some}"
        )
    return names


def parse_filters(texts: Iterable[str]) -> dict[str, list[str]]:
    """Filters written as `name=value` or `name=value,value`.

    Raises ValueError on a text without `=`, on one without a value, and on a dimension that is given twice.
    """
    where: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip()
        if not equals:
            raise ValueError(f"{text!r} is no filter; write KEY=VALUE or KEY=VALUE,VALUE, for example input=gaussian")
        chosen = [v.strip() for v in values.split(",") if v.strip()]
        if not chosen:
            raise ValueError(f"no value in {text!r}; write {name}=value or {name}=value,value")
        if name in where:
            raise ValueError(f"{name} is filtered twice; write it once: {name}={','.join([*where[name], *chosen])}")
        where[name] = chosen
    return where


def select(frame: pd.DataFrame, where: Mapping[str, Sequence[str]], keep_method: str | None = None) -> pd.DataFrame:
    """The rows that match every filter; those of a method that lacks a parameter match whatever is asked of it.

    Rows of `keep_method` stay whatever the filters of `method` and of parameters say. Raises ValueError on an unknown
    dimension, and where a filter matches nothing, with the values there are.
    """
    names = [*dimensions(frame), *input_parameters(frame)]
    own, allowed = method_parameters(frame), [name for name in names if name in frame]
    for name, wanted in where.items():
        if name not in allowed:
            raise ValueError(f"unknown dimension {name!r}; allowed: {', '.join(allowed)}{nearest(name, allowed)}")
        cells = frame[name].map(plain)
        if name in own:
            has = frame["method"].map(frame[name].notna().groupby(frame["method"]).any()).astype(bool)
            cells = cells.mask(has & frame[name].isna(), NULL)
        lowered = {value.lower() if str(frame[name].dtype) in ("bool", "boolean") else value for value in wanted}
        present = sorted({c for c in cells if c})
        unmatched = sorted(lowered - set(present))
        if unmatched:
            listed, near = ", ".join(present) or "none", nearest(unmatched[0], present)
            raise ValueError(f"{name}={unmatched[0]} is not in this run; there is: {listed}{near}")
        match = cells.isin(lowered)
        if name in own:
            match |= cells == ""
        if keep_method is not None and (name == "method" or name in own):
            match |= frame["method"] == keep_method
        frame = frame[match]
    return frame
