"""A task in a worker: every example of every point has its scores, and what fails becomes rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from hyperbench.config.tasks import metrics_of
from hyperbench.config.types import ErrorConfig
from hyperbench.measure import work_items
from hyperbench.measure.models import scoring
from hyperbench.store.schema import ErrorRow, Point
from tests.helpers.scored import scored
from tests.helpers.tiny_models import language_model

EXACT = Point(
    "flash2", "hyperbench.measure.methods.exact.flash2", "cpu", "float32", True, 1, 4, 2, 90, 16, "perplexity", 0,
    {}, {
        "task": "hyperbench.measure.models.tasks.reading.perplexity", "text": None, "model_layers": 3,
        "metrics": ["loss", "loss_early", "loss_middle", "loss_late", "attention_ms"],
    },
)  # fmt: skip
METRICS = metrics_of(EXACT)
HYPER = replace(
    EXACT, method="hyper", target="hyperbench.measure.methods.hyper.hyper",
    hyper={"block_size": 4, "sample_size": 4, "min_seq_len": 8, "num_probes": 4, "seed": 0, "layers": "last 2"},
)  # fmt: skip


def fails(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """A method that does not work."""
    raise RuntimeError("it does not work")


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of every point."""
    found = language_model()
    monkeypatch.setattr(scoring, "model_of", lambda point: found)


def values(rows: Sequence[ErrorRow], point: Point, metric: str) -> list[Any]:
    """The values of a metric at a point by the number of the example."""
    return [row.value for row in rows if row.point == point and row.metric == metric]


def test_every_example_of_every_point_has_its_scores() -> None:
    rows, poisoned = scored([EXACT, HYPER])
    assert not poisoned
    for point in (EXACT, HYPER):
        for seed in (0, 1):
            found = {row.metric for row in rows if (row.point, row.seed) == (point, seed)}
            assert found >= set(METRICS)
            expected = work_items.expected_metrics(point, (), ErrorConfig((0,), 1, None, 0, 0))
            assert set(expected) <= found
    assert all(row.value is not None and row.status == "ok" for row in rows)
    exact, hyper = (values(rows, point, "loss") for point in (EXACT, HYPER))
    assert exact != hyper
    # Where the last layers alone are patched, the whole pass was not timed.
    assert len(values(rows, EXACT, "forward_ms")) == 2
    assert values(rows, HYPER, "forward_ms") == []


def test_blocks_that_hold_every_key_score_as_exact_attention() -> None:
    everything = replace(HYPER, hyper={**HYPER.hyper, "block_size": 128, "layers": "0,2"})
    rows, _ = scored([EXACT, everything])
    for metric in ("loss", "loss_early", "loss_late"):
        assert values(rows, everything, metric) == pytest.approx(values(rows, EXACT, metric), abs=1e-4)


def test_a_method_that_fails_costs_its_own_rows_alone() -> None:
    failing = replace(EXACT, method="fails", target=f"{__name__}.fails", hyper={"layers": "all"})
    absent = replace(failing, method="absent", target="no_such_module.attention")
    rows, _ = scored([failing, absent, HYPER])
    for point, told in ((failing, "RuntimeError: it does not work"), (absent, "cannot be imported")):
        of = [row for row in rows if row.point == point]
        assert len(of) == 2 * len(METRICS)
        assert {row.status for row in of} == {"error"}
        assert all(told in row.message for row in of)
    assert None not in values(rows, HYPER, "loss")


def test_an_example_that_cannot_be_made_is_a_row_with_its_reason() -> None:
    longer = replace(EXACT, seq_len=90_000)
    rows, _ = scored([longer, replace(HYPER, seq_len=90_000)], seeds=(1,))
    assert len(rows) == 2 * len(METRICS)
    assert all("example 1 needs 90,000 tokens of argparse.py" in row.message for row in rows)


def test_attention_is_timed_by_layer_in_the_layers_that_were_run() -> None:
    rows, _ = scored([EXACT, HYPER])
    for point, layers in ((EXACT, range(3)), (HYPER, range(1, 3))):
        found = {row.metric for row in rows if row.point == point and row.metric.startswith("attention_ms_layer")}
        assert found == {f"attention_ms_layer{layer}" for layer in layers}
    for seed in (0, 1):
        of = {(row.point.method, row.metric): row.value or 0.0 for row in rows if row.seed == seed}
        exact = [of["flash2", f"attention_ms_layer{layer}"] for layer in range(3)]
        assert of["flash2", "attention_ms"] == pytest.approx(sum(exact))
        patched = [of["hyper", f"attention_ms_layer{layer}"] for layer in (1, 2)]
        assert of["hyper", "attention_ms"] == pytest.approx(exact[0] + sum(patched))


def test_the_memory_of_a_whole_pass_is_that_of_one_example() -> None:
    everywhere = replace(HYPER, hyper={**HYPER.hyper, "layers": "all"})
    rows, _ = scored([EXACT, HYPER, everywhere])
    found = {row.point.point_id: row for row in rows if row.metric == "peak_memory_bytes"}
    assert found.keys() == {EXACT.point_id, everywhere.point_id}
    # At least the states of two layers and the queries, keys and values of one: 90 tokens of 64, 64, 64, 32 and 32.
    assert all((row.value or 0) > 90 * 256 * 4 for row in found.values())
    assert {row.seed for row in found.values()} == {0}
    assert len([row for row in rows if row.metric == "peak_memory_bytes"]) == 2


def test_states_that_are_kept_for_others_are_no_part_of_the_memory() -> None:
    alone, _ = scored([EXACT], (0,))
    beside, _ = scored([EXACT, HYPER], (0,))
    assert values(alone, EXACT, "peak_memory_bytes") == values(beside, EXACT, "peak_memory_bytes")
