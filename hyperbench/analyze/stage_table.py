"""Stages of forward passes: rounds combined, alongside their sum and the pass as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hyperbench.analyze.format import is_null, status_text
from hyperbench.analyze.joins import records
from hyperbench.analyze.rounds import combine_rounds

if TYPE_CHECKING:
    import pandas as pd

#: The stages of the library, in the order in which areas are stacked and columns stand.
KNOWN = ("exact", "hash", "probe", "sort", "route", "sample", "attend", "leaves", "merge", "mean_keys")


def stage_table(stages: pd.DataFrame, timings: pd.DataFrame) -> pd.DataFrame:
    """One row per point and stage, rounds combined, with `sum_ms`, `share` and the columns `forward_...`.

    sum_ms is the sum of the medians of a point's stages and share a stage's part of it; both are null where a stage of
    the point has no time. forward_ms is the median of the forward pass timed as a whole, null where there is none, and
    forward_percent that in percent of the sum.
    """
    table = combine_rounds(stages)
    by_point = table.groupby("point_id", sort=False)
    whole = by_point["median_ms"].transform("count") == by_point["num_stages"].transform("max").fillna(
        by_point["stage"].transform("count")
    )
    with np.errstate(over="ignore"):
        table["sum_ms"] = by_point["median_ms"].transform("sum").where(whole.astype(bool))
    table["share"] = table["median_ms"] / table["sum_ms"].where(table["sum_ms"] > 0)
    forward = timings[timings["pass"] == "forward"].drop_duplicates("point_id").set_index("point_id")
    for name, column in (("forward", "median_ms"), ("forward_low", "ci_low_ms"), ("forward_high", "ci_high_ms")):
        table[f"{name}_ms"] = table["point_id"].map(forward[column]).astype(float)
    table["forward_percent"] = 100.0 * table["forward_ms"] / table["sum_ms"]
    table["forward_status"] = table["point_id"].map(forward["status"]).astype(object)
    return table


def stages_in(table: pd.DataFrame) -> list[str]:
    """The stages that have a time, in the order of the pass; those of the library first."""
    timed = table[table["median_ms"].notna()].sort_values("position", kind="stable")
    found = [str(name) for name in timed["stage"].unique()]
    return [name for name in KNOWN if name in found] + [name for name in found if name not in KNOWN]


def missing_stages(table: pd.DataFrame) -> dict[str, list[str]]:
    """Reasons of missing stages: point_id -> a line for each stage without a time; a killed run may just lack rows."""
    lines: dict[str, list[str]] = {}
    for row in records(table[table["sum_ms"].isna()]):
        found = lines.setdefault(row["point_id"], [])
        if is_null(row["median_ms"]):
            stage = "" if is_null(row["position"]) else f"stage {row['stage']}: "
            found.append(stage + status_text(row["status"], row["message"]))
    return {point: list(dict.fromkeys(found)) or ["not all stages were timed"] for point, found in lines.items()}


def by_point(table: pd.DataFrame) -> dict[str, dict[str, Mapping[str, Any]]]:
    """point_id -> stage -> row."""
    points = table.groupby("point_id", sort=False)
    return {str(point): {row["stage"]: row for row in records(part)} for point, part in points}
