"""Scores of a language model as tables of texts, one for each task and length."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import is_null, machine_of, printable, significant
from hyperbench.analyze.joins import records
from hyperbench.analyze.scores.groups import DATASET_COLUMN, GroupTable, group_tables
from hyperbench.analyze.scores.labels import labels, settings_notes
from hyperbench.analyze.scores.summary import ABOVE, Scored, model_layers, model_name, scored
from hyperbench.analyze.text_table import TextTable
from hyperbench.config.longbench import datasets, groups
from hyperbench.config.tasks import LAYERS
from hyperbench.stats.means import Mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

#: Columns of a table with their headings, as far as a task has them; what others have stands behind these.
_COLUMNS = {
    "perplexity": "perplexity", "perplexity_over_exact": "over exact", "perplexity_early": "early",
    "perplexity_middle": "middle", "perplexity_late": "late", "perplexity_first": "first reading",
    "perplexity_between": "between", "perplexity_second": "second reading",
    "perplexity_second_over_exact": "over exact", "accuracy": "accuracy", "rank": "rank", "margin": "margin",
    "attention_ms": "attention", "attention_speedup": "speedup", "forward_ms": "forward pass",
    "forward_speedup": "speedup", "peak_memory_bytes": "peak memory",
}  # fmt: skip
NOTE = (
    "Perplexity: exp of the mean loss over all tokens and texts; over exact: its ratio to exact attention's on the same"
    " texts; [ ]: 95 % interval over texts or examples (Student's t, Wilson's for accuracies); attention: all layers"
    " together, those that attend exactly included; peak memory: of a whole pass of one example, above the weights"
)

GROUP_NOTE = (
    "Scores of LongBench, 0 to 100: means over the examples of a dataset, then the datasets of a group, then the"
    " groups; with 95 % intervals over examples (Student's t)"
)


def score_tables(scores: pd.DataFrame, baseline: str = "flash2") -> list[TextTable]:
    """A table for each task and length: a row for each method, its settings and the layers it attends in.

    The datasets of LongBench are one table for each length.
    """
    tables: dict[tuple[str, int], list[Scored]] = {}
    for one in scored(scores, baseline):
        if is_null(one.row.get(DATASET_COLUMN)):
            tables.setdefault((str(one.row["input"]), int(one.row["seq_len"])), []).append(one)
    by_group = [_group_table(table) for table in group_tables(scores, baseline)]
    return [*(_table(place, found) for place, found in sorted(tables.items())), *by_group]


def notes(scores: pd.DataFrame, baseline: str = "flash2") -> list[str]:
    """The meaning of the numbers in the tables, a text each."""
    tables = group_tables(scores, baseline)
    is_all = DATASET_COLUMN in scores and scores[DATASET_COLUMN].notna().all()
    return [*([] if is_all else [NOTE]), *([GROUP_NOTE, datasets_note(tables)] if tables else [])]


def datasets_note(tables: Sequence[GroupTable]) -> str:
    """The datasets of each group that a run has, of how many there are."""
    told = []
    for group, label in groups().items():
        found = dict.fromkeys(name for table in tables for name in table.datasets.get(group, ()))
        every = sum(dataset.group == group for dataset in datasets().values())
        told.append(f"{label}: {', '.join(found) or 'none'}" + (f" (of {every})" if len(found) < every else ""))
    return f"Datasets: {'; '.join(told)}"


def _group_table(table: GroupTable) -> TextTable:
    """A table with a row for each method and its layers, and a column for each group."""
    names = [group for group in groups() if group in table.datasets]
    columns = ("method", "layers", "examples", *(groups()[name] for name in names), "mean")
    rows = tuple(
        (
            label, "" if row.first.is_exact else str(row.first.row[LAYERS]),
            f"{row.count}" + (f" ({printable(row.missing)})" if row.missing else ""),
            *(score_text(score) for score in (*(row.scores.get(name) for name in names), row.mean)),
        )
        for label, row in zip(labels([row.first for row in table.rows]), table.rows, strict=True)
    )  # fmt: skip
    is_number = (False, False, True, *(True for _ in (*names, "mean")))
    return TextTable(f"LongBench, prompt and answer in {table.seq_len:,} tokens", columns, is_number, rows)


def score_text(score: Mean | None) -> str:
    """A score of LongBench with its interval."""
    if score is None:
        return "–"
    interval = f" [{score.low:.1f} to {score.high:.1f}]" if score.low < score.high else ""
    return f"{score.value:.1f}{interval}"


def _table(place: tuple[str, int], found: Sequence[Scored]) -> TextTable:
    there = dict.fromkeys(name for one in found for name in one.values)
    names = [*(name for name in _COLUMNS if name in there), *(name for name in there if name not in _COLUMNS)]
    columns = ("method", "layers", "examples", *(_COLUMNS.get(name, printable(name)) for name in names))
    methods = list(dict.fromkeys(str(one.row["method"]) for one in found))
    ordered = sorted(found, key=lambda one: (not one.is_exact, methods.index(str(one.row["method"])), one.layers))
    rows = tuple(
        (
            label, "" if one.is_exact else str(one.row[LAYERS]),
            f"{one.count}" + (f" ({one.missing})" if one.missing else ""),
            *(_cell(name, one.values.get(name), is_exact=one.is_exact) for name in names),
        )
        for label, one in zip(labels(ordered), ordered, strict=True)
    )  # fmt: skip
    task, seq_len = place
    is_number = (False, False, True, *(True for _ in names))
    return TextTable(f"{task}, {seq_len:,} tokens", columns, is_number, rows)


def _cell(name: str, value: Mean | None, *, is_exact: bool) -> str:
    if value is None or (is_exact and name.endswith((ABOVE, "speedup"))):
        return "–"
    if name.endswith("_ms"):
        return f"{value.value:,.0f} ms"
    if name.endswith("_bytes"):
        return f"{value.value / 1e6:,.0f} MB"
    text = f"{value.value:.0%}" if name == "accuracy" else _number(value.value)
    if math.isnan(value.low) or name in ("rank", "margin"):
        return text
    ends = (f"{end:.0%}" if name == "accuracy" else _number(end) for end in (value.low, value.high))
    return f"{text} [{' to '.join(ends)}]"


def _number(value: float) -> str:
    return f"{value:.3f}" if 0.1 <= value < 10 else significant(value)


def settings_lines(scores: pd.DataFrame, baseline: str = "flash2") -> list[str]:
    """A line for each method, or setting of one, that tells all of its parameters."""
    return settings_notes([one for one in scored(scores, baseline) if not one.is_exact])


def origin(scores: pd.DataFrame, environment: Mapping[str, Any]) -> list[str]:
    """The origin of scores as short texts: machine, dtype, model, and the commit."""
    row = records(scores.iloc[:1])[0]
    commit = str(environment.get("commit") or "")
    threads = f", {environment['threads']} threads" if environment.get("threads") and row["device"] == "cpu" else ""
    return [
        f"{machine_of(environment)} ({row['device']}{threads})",
        str(row["dtype"]),
        f"model {printable(model_name(row))}, {model_layers(row)} layers, {int(row['heads'])} heads",
        f"commit {commit[:10] or 'not recorded'}" + (", dirty" if environment.get("dirty") else ""),
    ]
