"""Rounds of a run as one row per point and pass, and speedups over a baseline from pairs of rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hyperbench.analyze.format import flags_in, is_null, plain
from hyperbench.analyze.joins import CONDITION_DIMS, SHAPE_DIMS
from hyperbench.stats.rounds import MIN_ROUNDS, paired_log_ratios

if TYPE_CHECKING:
    import pandas as pd

#: What a row of timings is of, but for the round.
_ROW = ("run_id", "point_id", "pass", "stage", "protocol")
#: What a row shares with the row of its baseline: never another run, nor another device.
_JOIN = ("run_id", *SHAPE_DIMS, *CONDITION_DIMS, "pass", "stage")
_TAKEN = (
    "median_ms", "ci_low_ms", "ci_high_ms", "p20_ms", "status", "implementation", "message", "n_samples", "flags"
)  # fmt: skip
_TIMES = ("median_ms", "ci_low_ms", "ci_high_ms")
#: Columns of several rounds as one row.
_OVER_ROUNDS = {
    "median_ms": "median", "p20_ms": "median", "min_ms": "min", "ci_low_ms": "min", "ci_high_ms": "max",
    "n_samples": "sum", "peak_memory_bytes": "max", "resident_peak_bytes": "max",
}  # fmt: skip


def combine_rounds(timings: pd.DataFrame) -> pd.DataFrame:
    """One row per point, pass and stage: over several rounds the median of medians, with the hull of their intervals.

    Rounds without a timing are counted in `message`; the row has a timing if any round has one.
    """
    import pandas as pd

    frame = timings.reset_index(drop=True)
    if not frame.duplicated(list(_ROW)).any():
        return frame
    group = frame.groupby(list(_ROW), sort=False).ngroup()
    is_timed = frame["median_ms"].notna()
    order = frame.assign(group=group, is_lost=~is_timed).sort_values(["group", "is_lost"], kind="stable")
    rows = frame.loc[order.drop_duplicates("group").index].reset_index(drop=True)
    timed, of = frame[is_timed], group[is_timed]
    for name, how in _OVER_ROUNDS.items():
        found = timed[name].groupby(of).agg(how)
        rows.loc[found.index, name] = found.astype(rows[name].dtype)
    flags = _by_row(of, timed["flags"])
    names = [",".join(flags_in(flags.get(at, []))) or None for at in range(len(rows))]
    rows["flags"] = pd.Series(names, rows.index, dtype=object)
    rows.loc[of[timed["status"] == "throttled"].unique(), "status"] = "throttled"
    rows["round"] = 0
    failed = frame[~is_timed & group.isin(of)]
    lost, counts = _by_row(group[failed.index], failed["status"]), group.value_counts()
    messages = list(rows["message"])
    for at, statuses in lost.items():
        note = f"{len(statuses)} of {counts[at]} rounds have no timing ({', '.join(sorted(set(statuses)))})."
        messages[at] = f"{note} {messages[at] or ''}".strip()
    rows["message"] = pd.Series(messages, rows.index, dtype=object)
    return rows


def _by_row(rows: pd.Series[int], cells: pd.Series[str]) -> dict[int, list[str]]:
    """Row number -> its cells, without null ones."""
    found: dict[int, list[str]] = {}
    for row, cell in zip(rows, cells, strict=True):
        if not is_null(cell):
            found.setdefault(int(row), []).append(str(cell))
    return found


def add_speedup(timings: pd.DataFrame, baseline: str = "flash2", *, per_round: bool = False) -> pd.DataFrame:
    """One row per point, pass and stage (`per_round`: and round), with its baseline's columns and its speedup.

    A row meets the baseline's row of its own run, shape, masking, pass, stage, input and protocol. `speedup` is the
    geometric mean of the ratios of medians within each round that has both (`speedup_rounds` of them), and
    `speedup_low`, `speedup_high` are its 95 % interval over rounds (see hyperbench.stats.rounds). Below MIN_ROUNDS
    rounds there is none, and they are the hull of base_low / other_high to base_high / other_low of each round.
    Without a timing on either side the speedup is null and `baseline_status` says why ("missing": no such row). No row
    is ever dropped. Raises ValueError where the baseline has several rows for one key.
    """
    rows = timings.reset_index(drop=True) if per_round else combine_rounds(timings)
    of_round = ["round"] if per_round else []
    joined = _with_baseline(rows, baseline, [*_JOIN, *of_round])
    timed = timings[timings["median_ms"].notna()]
    base = timed.loc[timed["method"] == baseline, [*_JOIN, "round", *_TIMES]]
    pairs = timed.merge(base, on=[*_JOIN, "round"], suffixes=("", "_base"))
    return joined.merge(_speedups(pairs, [*_ROW, *of_round]), on=[*_ROW, *of_round], how="left")


def _with_baseline(rows: pd.DataFrame, baseline: str, join: list[str]) -> pd.DataFrame:
    """The rows with the columns `baseline_...` of the row that they share the columns `join` with."""
    import pandas as pd

    names = {name: f"baseline_{name}" for name in _TAKEN}
    base = rows.loc[rows["method"] == baseline, [*join, *_TAKEN]].rename(columns=names)
    twice = base[base.duplicated(join)]
    if len(twice):
        where = ", ".join(f"{key}={plain(twice.iloc[0][key])}" for key in ("seq_len", "is_causal", "pass"))
        raise ValueError(f"baseline {baseline!r} has several rows at {where}: it must be one configuration")
    if base.empty:
        joined = rows.assign(**dict.fromkeys(names.values()))
    else:
        joined = rows.merge(base, on=join, how="left", validate="many_to_one")
    known = joined["baseline_status"].notna()
    joined["baseline_status"] = joined["baseline_status"].astype(object).where(known, "missing")
    for name in _TIMES:
        joined[f"baseline_{name}"] = pd.to_numeric(joined[f"baseline_{name}"]).astype(float)
    return joined


def _speedups(pairs: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """The speedup of each key, its interval and its number of rounds, from rows that meet their baseline's round."""
    import pandas as pd

    rows = pairs[key].drop_duplicates(ignore_index=True)
    group = pairs.groupby(key, sort=False).ngroup().to_numpy()
    counts = np.bincount(group, minlength=len(rows))
    order = np.argsort(group, kind="stable")
    columns = [f"{name}{side}" for side in ("", "_base") for name in _TIMES]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        logs = np.log(pairs[columns].to_numpy(float)[order])
        found = np.full((len(rows), 3), np.nan)
        for count in np.unique(counts):
            own, own_low, own_high, base, base_low, base_high = (
                logs[counts[group[order]] == count].reshape(-1, count, len(columns)).transpose(2, 0, 1)
            )
            ratio, low, high = paired_log_ratios(own, base)
            if count < MIN_ROUNDS:
                known = np.isfinite(ratio)
                low = np.where(known, (base_low - own_high).min(-1), np.nan)
                high = np.where(known, (base_high - own_low).max(-1), np.nan)
            found[counts == count] = np.column_stack([ratio, low, high])
        speedups = pd.DataFrame(np.exp(found), columns=["speedup", "speedup_low", "speedup_high"])
    return rows.join(speedups.assign(speedup_rounds=counts))
