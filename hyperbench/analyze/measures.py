"""Metrics of a view that are no errors (docs/theory.md): properties of an input, and softmax mass that plans catch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

PROPERTIES = ("alpha", "kappa", "stable_rank")
_MASS = "mass_"


def measure_columns(frame: pd.DataFrame) -> list[str]:
    """The metrics among a view's columns that are no errors, without their low and high companions."""
    return [c for c in metric_columns(frame) if is_measure(c)]


def metric_columns(frame: pd.DataFrame) -> list[str]:
    """All metrics among a view's columns, without their low and high companions."""
    return [c for c in frame.columns if {f"{c}_low", f"{c}_high"} <= set(frame.columns) and c != "speedup"]


def is_measure(column: str) -> bool:
    """True for the column of a property or a mass; one whose name was taken is called "error NAME"."""
    name = column.removeprefix("error ")
    return name in PROPERTIES or name.startswith(_MASS)
