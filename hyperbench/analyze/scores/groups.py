"""Scores of LongBench by groups of datasets, a row for each method and number of patched layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hyperbench.analyze.format import short
from hyperbench.analyze.scores.summary import Scored, scored
from hyperbench.config.longbench import DATASET, datasets, groups
from hyperbench.config.tasks import LAYERS
from hyperbench.stats.means import Mean, weighted
from hyperbench.store.parameters import OF_INPUT

if TYPE_CHECKING:
    import pandas as pd

SCORE = "score"
DATASET_COLUMN = f"{OF_INPUT}{DATASET}"
#: Columns in which rows of different groups may differ, and no others.
_SAME = (
    "run_id", "method", "seq_len", "dtype", "device", LAYERS, f"{OF_INPUT}model", f"{OF_INPUT}path",
    f"{OF_INPUT}data", f"{OF_INPUT}chat",
)  # fmt: skip


@dataclass(frozen=True)
class Grouped:
    """A method in some layers at one length: `first` is one of its points, `count` its examples with a score.

    `scores` has the mean of each group over its datasets, and `mean` is that of the groups; a group is left out, and
    with it the mean, where a dataset that others have is without a score. `missing` says why examples have none.
    """

    first: Scored
    count: int
    scores: dict[str, Mean] = field(default_factory=dict)
    mean: Mean | None = None
    missing: str = ""


@dataclass(frozen=True)
class GroupTable:
    """The rows of one length, exact attention first, and the datasets of each group that are in it."""

    seq_len: int
    datasets: dict[str, tuple[str, ...]]
    rows: tuple[Grouped, ...]


def group_tables(scores: pd.DataFrame, baseline: str = "flash2") -> list[GroupTable]:
    """A table for each length; none where a run holds no datasets. Raises ValueError as `scored` does."""
    if DATASET_COLUMN not in scores:
        return []
    found = [one for one in scored(scores, baseline) if one.row.get(DATASET_COLUMN) in datasets()]
    lengths = sorted({int(one.row["seq_len"]) for one in found})
    return [_table(n, [one for one in found if one.row["seq_len"] == n]) for n in lengths]


def _table(seq_len: int, found: Sequence[Scored]) -> GroupTable:
    there = {str(one.row[DATASET_COLUMN]) for one in found}
    by_group = {
        group: tuple(name for name, dataset in datasets().items() if name in there and dataset.group == group)
        for group in groups()
    }
    by_group = {group: names for group, names in by_group.items() if names}
    rows: dict[tuple[str, ...], list[Scored]] = {}
    for one in found:
        key = (*(str(one.row.get(name)) for name in _SAME), one.parameters)
        rows.setdefault(key, []).append(one)
    methods = list(dict.fromkeys(str(one.row["method"]) for one in found))
    grouped = [_grouped(points, by_group) for points in rows.values()]
    grouped.sort(
        key=lambda row: (not row.first.is_exact, methods.index(str(row.first.row["method"])), row.first.layers)
    )
    return GroupTable(seq_len, by_group, tuple(grouped))


def _grouped(points: Sequence[Scored], by_group: dict[str, tuple[str, ...]]) -> Grouped:
    known = {str(one.row[DATASET_COLUMN]): one for one in points if SCORE in one.values}
    scores = {
        group: weighted([(1 / len(names), known[name].values[SCORE], known[name].count) for name in names])
        for group, names in by_group.items()
        if known.keys() >= set(names)
    }
    parts = [
        (1 / (len(names) * len(by_group)), known[name].values[SCORE], known[name].count)
        for names in by_group.values()
        for name in names
        if name in known
    ]
    missing = next((short(one.missing) for one in points if one.missing), "")
    whole = weighted(parts) if scores.keys() == by_group.keys() else None
    return Grouped(points[0], sum(one.count for one in known.values()), scores, whole, missing)
