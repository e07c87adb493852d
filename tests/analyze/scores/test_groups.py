"""LongBench by groups of datasets, and layers by what they cost: means by hand, as tables and figures."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from hyperbench.analyze.figures import builder
from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.plot import plot_run
from hyperbench.analyze.scores.groups import group_tables
from hyperbench.analyze.scores.sensitivity import curves, order_lines
from hyperbench.analyze.scores.text import notes, score_tables
from hyperbench.analyze.show import run_summary, show_run
from hyperbench.store.schema import ErrorRow, Record, Status
from tests.helpers.figure_reading import footer
from tests.helpers.made_scores import LONGBENCH, longbench, one_layer_at_a_time
from tests.helpers.synthetic_runs import MakeRun, view_from

GROUPS = ["single_doc_qa", "multi_doc_qa", "summarization", "few_shot", "synthetic", "code"]
EXACT = [40.0, 30.0, 20.0, 60.0, 10.0, 60.0]


def without(dataset: str, records: list[Record]) -> list[Record]:
    """The same, the scores of the method on a dataset lost."""
    return [
        ErrorRow(r.point, r.seed, r.metric, None, Status.ERROR, "line 1 is\x1b[2J no JSON")
        if isinstance(r, ErrorRow) and r.point.hyper and r.point.input == f"longbench/{dataset}"
        else r
        for r in records
    ]


def test_scores_are_means_over_datasets_and_then_over_groups() -> None:
    (table,) = group_tables(view_from(longbench()).scores)  # type: ignore[arg-type]
    assert list(table.datasets) == GROUPS
    assert table.datasets["multi_doc_qa"] == ("hotpotqa", "musique")
    assert [(str(row.first.row["method"]), row.first.layers) for row in table.rows] == [
        ("flash2", 0), ("hyper", 7), ("hyper", 30),
    ]  # fmt: skip
    for row, expected in zip(table.rows, (EXACT, [x - 10 for x in EXACT], [x / 2 for x in EXACT]), strict=True):
        assert [row.scores[name].value for name in GROUPS] == pytest.approx(expected)
        assert row.mean is not None
        assert row.mean.value == pytest.approx(sum(expected) / 6)
        assert row.count == 3 * len(LONGBENCH)
    # Of three examples 20 apart: Student's t of two degrees times 20 over the root of three; of two datasets, one of
    # which is the same for all of its examples, half as much.
    assert table.rows[0].scores["single_doc_qa"].high - 40 == pytest.approx(4.303 * 10 / math.sqrt(3), rel=1e-3)
    assert table.rows[0].scores["multi_doc_qa"].high - 30 == pytest.approx(4.303 * 20 / math.sqrt(3) / 2, rel=1e-3)


def test_a_group_without_one_of_its_datasets_is_left_out_and_so_is_the_mean() -> None:
    records = without("musique", longbench())
    (table,) = group_tables(view_from(records).scores)  # type: ignore[arg-type]
    exact, hyper, _ = table.rows
    assert exact.mean is not None
    assert hyper.mean is None
    assert list(hyper.scores) == [name for name in GROUPS if name != "multi_doc_qa"]
    (text,) = score_tables(view_from(records).scores)  # type: ignore[arg-type]
    assert text.rows[1][2] == "18 (error: line 1 is[2J no JSON)"
    assert text.rows[1][4] == text.rows[1][-1] == "–"


def test_a_run_of_datasets_is_one_table_with_what_it_has(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(longbench())
    out = io.StringIO()
    show_run(run, Console(file=out, width=220))
    for text in (
        "LongBench, prompt and answer in 8,192 tokens",
        "36.7",
        "last 30",
        "multi-document QA: hotpotqa, musique (of 4)",
    ):
        assert text in out.getvalue()
    assert "Perplexity" not in out.getvalue()
    summary = run_summary(run)
    assert len(summary["scores"]) == 3 * len(LONGBENCH)
    assert json.dumps(summary, allow_nan=False)
    paths, messages, unwritten = plot_run(run, None, "html", tmp_path / "figures")
    assert [path.name for path in paths] == ["table1.html"]
    assert not unwritten
    assert any("fig3 left out" in message for message in messages)


def test_both_kinds_of_tables_have_their_notes() -> None:
    frame = view_from([*longbench(), *one_layer_at_a_time(2)]).scores
    assert [table.title for table in score_tables(frame)] == [  # type: ignore[arg-type]
        "perplexity, 4,096 tokens", "LongBench, prompt and answer in 8,192 tokens",
    ]  # fmt: skip
    assert [note.split()[0] for note in notes(frame)] == ["Perplexity:", "Scores", "Datasets:"]  # type: ignore[arg-type]


def test_cells_of_table_1_are_scores_coloured_by_their_difference_to_exact_attention() -> None:
    fig = builder("table1")(view_from(longbench((8192, 16384))))
    assert len(fig.data) == 2
    exact, last_7, last_30 = fig.data[0].z
    assert list(exact) == [0.0] * 7
    assert list(last_7) == pytest.approx([-10.0] * 7)
    assert list(last_30[:6]) == pytest.approx([-x / 2 for x in EXACT])
    assert fig.data[0].text[0][0] == "40.0 ± 24.8"
    assert list(fig.data[0].y) == ["exact (flash2), n = 21", "hyper, L = 7, n = 21", "hyper, L = 30, n = 21"]
    assert fig.data[0].x[1] == "multi-document QA<br>2 of 4 datasets"
    assert "lcc (of 2)" in footer(fig)
    assert "the values are not available here" in fig.layout.title.subtitle.text


def test_table_1_without_exact_attention_and_with_scores_that_are_missing() -> None:
    fig = builder("table1")(view_from(without("lcc", [r for r in longbench() if r.point.hyper]), baseline="hyper"))
    assert list(fig.data[0].text[0][5:]) == ["–", "–"]
    assert fig.data[0].z[0][5] is None
    assert set(fig.data[0].z[0][:5]) == {0.0}


def test_a_layer_costs_its_loss_above_exact_attention() -> None:
    (curve,) = curves(view_from(one_layer_at_a_time()).scores)  # type: ignore[arg-type]
    assert {layer: cost.value for layer, cost in curve.costs.items()} == pytest.approx({i: i * 0.01 for i in range(30)})
    half = 4.303 * 0.001 / math.sqrt(3)
    assert curve.costs[10].high - 0.1 == pytest.approx(10 * half, rel=1e-3)
    assert curve.order == tuple(range(30))


def test_the_order_of_layers_is_what_input_layers_takes(make_run: MakeRun) -> None:
    worse = [
        dataclasses.replace(r, value=r.value + 1.0)
        if isinstance(r, ErrorRow) and r.value and r.point.hyper.get("layers") == "1" else r
        for r in one_layer_at_a_time(4)
    ]  # fmt: skip
    (line,) = order_lines(view_from(worse).scores)  # type: ignore[arg-type]
    assert line.startswith("hyper, 4,096 tokens: layers from the least costly on")
    assert line.endswith("input.layers=[0,2,3,1]")
    out = io.StringIO()
    show_run(make_run(worse), Console(file=out, width=200))
    assert "input.layers=[0,2,3,1]" in out.getvalue()


def test_the_figure_of_sensitivity_has_a_bar_for_each_layer() -> None:
    fig = builder("sensitivity")(view_from(one_layer_at_a_time(5)))
    (trace,) = fig.data
    assert list(trace.x) == [0, 1, 2, 3, 4]
    assert list(trace.y) == pytest.approx([0.0, 0.01, 0.02, 0.03, 0.04])
    assert trace.error_y.array[4] > trace.error_y.array[1] > 0


@pytest.mark.parametrize("figure", ["table1", "sensitivity"])
def test_a_run_of_something_else_does_not_fit(figure: str) -> None:
    other = one_layer_at_a_time(1) if figure == "sensitivity" else one_layer_at_a_time()
    with pytest.raises(DoesNotFitError):
        builder(figure)(view_from(other))
