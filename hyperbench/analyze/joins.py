"""Tables made when read: errors alongside their points, the choice of rows, and the refusal to mix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import plain, status_text
from hyperbench.config.catalog import nearest

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_BASELINE = "flash2"
SHAPE_DIMS = ("device", "dtype", "is_causal", "batch", "heads", "kv_heads", "seq_len", "head_dim")
CONDITION_DIMS = ("input", "seed", "protocol")
HYPER_DIMS = ("block_size", "sample_size", "num_projections", "min_seq_len", "sampling", "pairing")
DIMENSIONS = ("method", *SHAPE_DIMS, *HYPER_DIMS, *CONDITION_DIMS, "pass", "run_id")

#: Columns of an error metric: its name with each of these behind it.
ERROR_SUFFIXES = ("", "_low", "_high", "_half_width")


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
    return [{str(name): cell for name, cell in row.items()} for row in frame.to_dict("records")]


def masks_in(frame: pd.DataFrame) -> list[bool]:
    """The maskings that occur, the one without causal masking first."""
    return sorted(bool(m) for m in frame["is_causal"].unique())


def varying(frame: pd.DataFrame, dims: Iterable[str] = DIMENSIONS) -> dict[str, list[Any]]:
    """The dimensions that take several values, with the values sorted.

    A method's own parameters count within each method, since each is named with it; kv_heads counts only where it is
    not simply the number of heads.
    """
    found: dict[str, list[Any]] = {}
    plain_heads = bool((frame["kv_heads"] == frame["heads"]).all())
    for dim in dims:
        if dim == "kv_heads" and plain_heads:
            continue
        groups = [g for _, g in frame.groupby("method", sort=False)] if dim in HYPER_DIMS else [frame]
        values = {v for g in groups if g[dim].nunique() > 1 for v in g[dim].dropna().unique()}
        if values:
            found[dim] = sorted(values, key=lambda v: (isinstance(v, str), v))
    return found


def check_single(frame: pd.DataFrame, shown_dims: Sequence[str]) -> None:
    """Raise ValueError, naming the dimension and its values, where one that is not in `shown_dims` varies.

    Also where two points differ in no column at all (in a parameter of a custom method or of the input).
    """
    for dim, values in varying(frame).items():
        if dim not in shown_dims:
            listed = ", ".join(plain(v) for v in values)
            raise DoesNotFitError(
                f"{dim} varies ({listed}) and this figure does not show it; choose one: {dim}={plain(values[0])}"
            )
    points = frame.drop_duplicates(["point_id", "pass", "protocol"])
    twice = points[points.duplicated(list(DIMENSIONS))]
    if len(twice):
        row = twice.iloc[0]
        raise DoesNotFitError(
            f"several points of method {row['method']!r} at seq_len={plain(row['seq_len'])} differ only in a parameter "
            "that is no column of the tables; this figure cannot tell them apart"
        )


def parse_filters(texts: Iterable[str]) -> dict[str, list[str]]:
    """Filters written as `name=value` or `name=value,value`. Raises ValueError on an unknown dimension or no value."""
    where: dict[str, list[str]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.strip()
        if name not in DIMENSIONS:
            near = nearest(name, DIMENSIONS)
            raise ValueError(f"unknown dimension {name!r} in {text!r}; allowed: {', '.join(DIMENSIONS)}{near}")
        chosen = [v.strip() for v in values.split(",") if v.strip()]
        if not chosen:
            raise ValueError(f"no value in {text!r}; write {name}=value or {name}=value,value")
        where[name] = chosen
    return where


def select(frame: pd.DataFrame, where: Mapping[str, Sequence[str]], keep_method: str | None = None) -> pd.DataFrame:
    """The rows that match every filter; a null (a parameter that a method lacks) matches.

    Rows of `keep_method` stay whatever the filters of `method` and of parameters say. Raises ValueError where a
    filter matches nothing, with the values there are.
    """
    for name, wanted in where.items():
        cells = frame[name].map(plain)
        lowered = {value.lower() if name == "is_causal" else value for value in wanted}
        present = sorted({c for c in cells if c})
        unmatched = sorted(lowered - set(present))
        if unmatched:
            listed, near = ", ".join(present) or "none", nearest(unmatched[0], present)
            raise ValueError(f"{name}={unmatched[0]} is not in this run; there is: {listed}{near}")
        match = cells.isin(lowered)
        if name in HYPER_DIMS:
            match |= cells == ""
        if keep_method is not None and (name == "method" or name in HYPER_DIMS):
            match |= frame["method"] == keep_method
        frame = frame[match]
    return frame
