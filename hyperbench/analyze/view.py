"""A run as a figure or a table sees it: one row per point and pass, with speedups, errors and where it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.tables import (
    HYPER_DIMS,
    DoesNotFitError,
    add_speedup,
    combine_rounds,
    error_table,
    select,
)
from hyperbench.analyze.text import is_null, plain

if TYPE_CHECKING:
    import pandas as pd

    from hyperbench.store import Run

#: The error metric that stands beside every time, and the trivial answers that put it in proportion.
MAIN_ERROR = "out_rel_fro"
TRIVIAL_ERRORS = {"mean_v_rel_fro": "answer mean(v)", "zero_rel_fro": "answer zero"}
_SHORT = {"block_size": "b", "sample_size": "m", "num_projections": "r", "min_seq_len": "leaf"}


@dataclass(frozen=True)
class View:
    """What is shown: `timings` has a row per point and pass with speedup and error columns beside the stored ones."""

    timings: pd.DataFrame
    environment: dict[str, Any]
    baseline: str
    where: dict[str, list[str]] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """Every method but the baseline, in the order of the run."""
        return [m for m in self.timings["method"].unique() if m != self.baseline]


def make_view(run: Run, baseline: str = "flash2", where: Mapping[str, Sequence[str]] | None = None) -> View:
    """Select, combine rounds, join speedups and errors. Raises ValueError on a filter that matches nothing."""
    filters = {name: list(values) for name, values in (where or {}).items()}
    chosen = select(run.timings, filters, keep_method=baseline)
    joined = add_speedup(combine_rounds(chosen), baseline)
    return View(
        joined.merge(error_table(run.errors), how="left", left_on="point_id", right_index=True),
        run.environment,
        baseline,
        filters,
    )


def error_columns(frame: pd.DataFrame) -> list[str]:
    """The error metrics among a view's columns, without their low and high companions."""
    return [c for c in frame.columns if f"{c}_low" in frame.columns and f"{c}_high" in frame.columns and c != "speedup"]


def has_timing(frame: pd.DataFrame) -> pd.Series:
    """Which rows carry a time."""
    return frame["median_ms"].notna()


def require_timings(view: View) -> None:
    """Raise DoesNotFitError if no row has a time."""
    if view.timings.empty:
        raise DoesNotFitError("this run holds no timing yet")
    if not has_timing(view.timings).any():
        statuses = ", ".join(sorted({str(s) for s in view.timings["status"]}))
        raise DoesNotFitError(f"no point of this run has a time (status: {statuses})")


def parameters(frame: pd.DataFrame, method: str, without: Sequence[str] = ()) -> str:
    """A method's own parameters in short, "b=256 m=256 r=7 leaf=1,024"; several values are listed, none is "" ."""
    rows = frame[frame["method"] == method]
    parts = []
    for dim in HYPER_DIMS:
        values = [] if dim in without else [v for v in rows[dim].unique() if not is_null(v)]
        if values:
            listed = "|".join(v if isinstance(v, str) else f"{int(v):,}" for v in sorted(values))
            parts.append(f"{_SHORT[dim]}={listed}" if dim in _SHORT else listed)
    return " ".join(parts)


def provenance(view: View, varying_dims: Sequence[str] = ()) -> list[str]:
    """Where the numbers come from, as short texts: machine, shape, methods, baseline, protocol, input and commit.

    Dimensions in `varying_dims` are on an axis and not repeated. The texts are not escaped.
    """
    frame, env = view.timings, view.environment
    listed = {
        dim: ", ".join(plain(v) for v in frame[dim].dropna().unique())
        for dim in ("device", "dtype", "batch", "heads", "kv_heads", "head_dim", "protocol", "input", "seed")
    }
    machine = str(env.get("machine") or env.get("gpu_name") or env.get("cpu_model") or "machine not recorded")
    shape = [f"{dim}={listed[dim]}" for dim in ("batch", "heads", "head_dim") if dim not in varying_dims]
    if listed["kv_heads"] != listed["heads"]:
        shape.append(f"kv_heads={listed['kv_heads']}")
    kernels = [str(i) for i in frame.loc[frame["method"] == view.baseline, "implementation"].dropna().unique() if i]
    methods = [(m, parameters(frame, m, varying_dims)) for m in view.methods]
    threads = f", {env['threads']} threads" if env.get("threads") and listed["device"] == "cpu" else ""
    commit = str(env.get("commit") or "")
    return [
        f"{machine} ({listed['device']}{threads})",
        f"{listed['dtype']}, {', '.join(shape)}" if shape else listed["dtype"],
        *(f"{m}: {text}" for m, text in methods if text),
        f"baseline {view.baseline}" + (f" = {', '.join(kernels)}" if kernels else " (not in this run)"),
        f"protocol {listed['protocol']}",
        f"input {listed['input']} (seed {listed['seed']})",
        f"commit {commit[:10] or 'not recorded'}" + (", dirty" if env.get("dirty") else ""),
    ]


def reason(row: Mapping[str, Any]) -> str:
    """Why a row has no speedup, or what is the matter with its time; "" where all is well. Not escaped."""
    status = plain(row["status"])
    message = f": {row['message']}" if not is_null(row["message"]) and row["message"] else ""
    if status != "ok":
        return f"{status}{message}"
    base = plain(row["baseline_status"])
    if is_null(row["speedup"]) and base != "ok":
        why = f": {row['baseline_message']}" if not is_null(row["baseline_message"]) and row["baseline_message"] else ""
        return f"baseline {base}{why}"
    return ""
