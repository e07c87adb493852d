"""Scores of a language model over its examples: perplexity, what it is above exact attention's, speedups, accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import is_null
from hyperbench.analyze.joins import records
from hyperbench.analyze.view import own_parameters
from hyperbench.config.tasks import LAYER_METRIC, LAYERS, MODEL_LAYERS, numbered
from hyperbench.stats.means import Mean, mean, proportion, ratio
from hyperbench.store.parameters import OF_INPUT

if TYPE_CHECKING:
    import pandas as pd

#: Metrics of an example, by beginning: losses are told as perplexities.
_LOSS, _CORRECT = "loss", "correct"
#: Times of an example, and the names of their speedups over exact attention.
SPEEDUPS = {"attention_ms": "attention_speedup", "forward_ms": "forward_speedup"}
#: Losses that are told relative to exact attention's as well.
_COMPARED = ("loss", "loss_second")
ABOVE = "_over_exact"


@dataclass(frozen=True)
class Scored:
    """One point: its row of the table, the layers that attend by its method, and its scores by name.

    `count` are the examples with a score, `missing` says why others have none. Names: perplexity and its parts, each
    `exp` of the mean loss; perplexity_over_exact, the ratio to exact attention's on the same examples; speedups over
    it; accuracy; and the means of all other metrics but the times of single layers, which the table alone has.
    """

    row: Mapping[str, Any]
    layers: int
    is_exact: bool
    parameters: str
    count: int
    missing: str
    values: dict[str, Mean] = field(default_factory=dict)


def scored(scores: pd.DataFrame, baseline: str = "flash2") -> list[Scored]:
    """The scores of each point, in the order of the table.

    Exact attention is what attends in no layers of its own: the baseline, or the first such method where that is none.
    Raises ValueError on scores of a model whose number of layers is not told.
    """
    by_point: dict[str, list[dict[str, Any]]] = {}
    for row in records(scores):
        by_point.setdefault(str(row["point_id"]), []).append(row)
    exact: dict[Any, float] = {}
    for rows in sorted(by_point.values(), key=lambda rows: bool(rows[0]["method"] != baseline)):
        for row in rows if _is_exact(rows[0]) else ():
            if _is_good(row):
                exact.setdefault(_place(row), float(row["value"]))
    return [_scored(rows, exact, scores) for rows in by_point.values()]


def _is_exact(row: Mapping[str, Any]) -> bool:
    """True if a row's method attends exactly, in the whole model: it has no layers of its own."""
    return is_null(row.get(LAYERS))


def _is_good(row: Mapping[str, Any]) -> bool:
    return row["status"] == "ok" and math.isfinite(row["value"])


def _scored(rows: list[dict[str, Any]], exact: Mapping[Any, float], frame: pd.DataFrame) -> Scored:
    first, is_exact = rows[0], _is_exact(rows[0])
    good = [row for row in rows if _is_good(row)]
    bad = [row for row in rows if not _is_good(row)]
    missing = f"{bad[0]['status']}: {bad[0]['message']}" if bad else ""
    layers = "" if is_exact else str(first[LAYERS])
    parameters = own_parameters({**first, LAYERS: None}, frame)
    count = len({row["seed"] for row in good})
    found = Scored(first, len(numbered(layers, model_layers(first))), is_exact, parameters, count, missing)
    for metric in dict.fromkeys(str(row["metric"]) for row in good):
        if metric.startswith(LAYER_METRIC):
            continue
        of = [row for row in good if row["metric"] == metric]
        found.values.update(_values(metric, of, exact))
    return found


def _values(metric: str, rows: list[dict[str, Any]], exact: Mapping[Any, float]) -> dict[str, Mean]:
    """The scores that come of one metric of the examples."""
    values = [float(row["value"]) for row in rows]
    pairs = [(float(row["value"]), exact[_place(row)]) for row in rows if _place(row) in exact]
    if metric in SPEEDUPS:
        logs = [math.log(of / mine) for mine, of in pairs if mine > 0 and of > 0]
        return {metric: mean(values), **({SPEEDUPS[metric]: ratio(logs)} if logs else {})}
    if metric.startswith(_LOSS):
        name = "perplexity" + metric.removeprefix(_LOSS)
        above = {name + ABOVE: ratio([mine - of for mine, of in pairs])} if metric in _COMPARED and pairs else {}
        return {name: Mean(ratio(values).value), **above}
    return {"accuracy": proportion(values)} if metric == _CORRECT else {metric: mean(values)}


def model_layers(row: Mapping[str, Any]) -> int:
    """The number of layers of a row's model. Raises ValueError where it is not told, as in a journal made by hand."""
    count = row.get(f"{OF_INPUT}{MODEL_LAYERS}")
    if is_null(count) or not isinstance(count, int | float) or count < 1:
        raise ValueError(f"scores of {row['input']!r} do not tell the number of layers of their model")
    return int(count)


def model_name(row: Mapping[str, Any]) -> str:
    """The model of a row, as it was asked for: its folder, else its name."""
    path = row.get(f"{OF_INPUT}path")
    return str(path if isinstance(path, str) else row.get(f"{OF_INPUT}model"))


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("run_id", "input", "seq_len", "dtype", "device", "seed", "metric"))
