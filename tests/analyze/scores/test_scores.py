"""Scores as tables, figures and exports: means by hand, in every output, whatever failed."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from hyperbench.analyze.export import export_run
from hyperbench.analyze.figures import builder
from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.plot import plot_run
from hyperbench.analyze.scores.summary import scored
from hyperbench.analyze.scores.text import score_tables
from hyperbench.analyze.show import run_summary, show_run
from hyperbench.store.schema import ErrorRow, Point, Record, Status
from tests.helpers.synthetic_runs import MakeRun, view_from

PARAMS = {"task": "perplexity", "model": "tiny", "model_layers": 30}
EXACT = 2.0
TEXTS = (0, 1, 2)


def point(method: str, layers: str = "", seq_len: int = 4096, task: str = "perplexity") -> Point:
    """A point of a task."""
    hyper = {"layers": layers} if layers else {}
    more = {"depths": [0.1, 0.9]} if task == "passkey" else {}
    return Point(
        method, f"package.{method}", "cpu", "float32", True, 1, 9, 3, seq_len, 64, task, 0, hyper,
        {**PARAMS, "task": task, **more},
    )  # fmt: skip


def rows(of: Point, loss: float, attention_ms: float) -> list[ErrorRow]:
    """The scores of three texts, whose losses differ from each other."""
    return [
        row
        for text in TEXTS
        for row in (
            ErrorRow(of, text, "loss", loss + text),
            ErrorRow(of, text, "loss_late", loss + text),
            ErrorRow(of, text, "attention_ms", attention_ms * (1 + text)),
        )
    ]


def perplexities() -> list[Record]:
    """Exact attention, and a method in 1, 10 and all layers, at two lengths."""
    found: list[Record] = []
    for n in (4096, 8192):
        found += rows(point("flash2", seq_len=n), EXACT, 100.0)
        for layers, above in (("last 1", 0.1), ("last 10", 0.2), ("last 30", 0.5)):
            found += rows(point("hyper", layers, n), EXACT + above, 50.0)
    return found


def facts() -> list[Record]:
    """A word that exact attention finds, and a method finds where it is late."""
    found: list[Record] = []
    for method in ("flash2", "hyper"):
        for example in range(4):
            correct = 1.0 if method == "flash2" or example % 2 else 0.0
            of = point(method, "" if method == "flash2" else "all", task="passkey")
            found += [ErrorRow(of, example, "correct", correct), ErrorRow(of, example, "rank", 3.0 - 2 * correct)]
    return found


def test_perplexities_are_over_all_texts_and_beside_those_of_exact_attention() -> None:
    found = scored(view_from(perplexities()).scores)  # type: ignore[arg-type]
    exact, last_1 = (one for one in found if one.row["seq_len"] == 4096 and one.layers < 2)
    assert exact.is_exact
    assert (exact.layers, last_1.layers, exact.count) == (0, 1, 3)
    # The mean loss of the texts is one above that of the first.
    assert exact.values["perplexity"].value == pytest.approx(math.exp(3.0))
    assert last_1.values["perplexity"].value == pytest.approx(math.exp(3.1))
    # Texts differ, but the method is as far above exact attention on each.
    assert last_1.values["perplexity_over_exact"] == pytest.approx([math.exp(0.1)] * 3)
    assert last_1.values["attention_speedup"] == pytest.approx((2.0, 2.0, 2.0))
    assert last_1.values["attention_ms"].value == pytest.approx(100.0)


def test_facts_are_shares_with_their_intervals() -> None:
    exact, hyper = scored(view_from(facts()).scores)  # type: ignore[arg-type]
    assert exact.values["accuracy"].value == 1.0
    assert hyper.values["accuracy"].value == 0.5
    assert 0 < hyper.values["accuracy"].low < 0.5 < hyper.values["accuracy"].high < 1
    assert hyper.values["rank"].value == 2.0


def test_examples_that_exact_attention_failed_at_are_compared_with_nothing() -> None:
    lost = [
        ErrorRow(r.point, r.seed, r.metric, None, Status.ERROR, "why")
        if isinstance(r, ErrorRow) and not r.point.hyper and r.seed == 0 else r
        for r in perplexities()
    ]  # fmt: skip
    one = next(one for one in scored(view_from(lost).scores) if one.layers == 1)  # type: ignore[arg-type]
    assert one.count == 3
    assert one.values["perplexity_over_exact"].value == pytest.approx(math.exp(0.1))


def test_another_baseline_is_no_exact_attention() -> None:
    found = scored(view_from(perplexities()).scores, "hyper")  # type: ignore[arg-type]
    assert {str(one.row["method"]) for one in found if one.is_exact} == {"flash2"}


def test_scores_made_by_hand_are_one_line_and_no_traceback(make_run: MakeRun, tmp_path: Path) -> None:
    of = Point("flash2", "p.f", "cpu", "float32", True, 1, 1, 1, 64, 8, "mine", 0, {}, {"task": "mine"})
    run = make_run([ErrorRow(of, 0, "correct", 1.0)])
    with pytest.raises(ValueError, match="do not tell the number of layers"):
        show_run(run, Console(file=io.StringIO()))
    told = dataclasses.replace(of, input_params={"task": "mine", "model_layers": 3})
    with pytest.raises(ValueError, match="does not tell its depths"):
        plot_run(make_run([ErrorRow(told, 0, "correct", 1.0)], "told"), ["retrieval"], "html", tmp_path / "out")


def test_a_method_without_scores_of_a_task_leaves_its_map_empty() -> None:
    lost = [
        ErrorRow(r.point, r.seed, r.metric, None, Status.ERROR, "why")
        if isinstance(r, ErrorRow) and r.point.hyper else r
        for r in facts()
    ]  # fmt: skip
    other = dataclasses.replace(facts()[-1].point, input="again")
    fig = builder("retrieval")(view_from([*lost, ErrorRow(other, 0, "correct", 1.0)]))
    assert len(fig.data) == 2


def test_an_example_that_failed_is_told_and_left_out_of_the_mean() -> None:
    lost = [
        ErrorRow(r.point, r.seed, r.metric, None, Status.OOM, "too large")
        if isinstance(r, ErrorRow) and r.point.hyper and r.seed == 2 else r
        for r in perplexities()
    ]  # fmt: skip
    one = next(one for one in scored(view_from(lost).scores) if one.layers == 1)  # type: ignore[arg-type]
    assert one.count == 2
    assert one.missing == "oom: too large"
    assert one.values["perplexity"].value == pytest.approx(math.exp(2.6))
    assert one.values["perplexity_over_exact"].value == pytest.approx(math.exp(0.1))
    (table, _) = score_tables(view_from(lost).scores)  # type: ignore[arg-type]
    assert "2 (oom: too large)" in table.rows[1]


def test_a_run_of_scores_is_shown_exported_and_drawn(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(perplexities())
    out = io.StringIO()
    show_run(run, Console(file=out, width=180))
    for text in ("perplexity, 4,096 tokens", "perplexity, 8,192 tokens", "last 10", "1.105", "2.000", "model tiny"):
        assert text in out.getvalue()
    summary = run_summary(run)
    assert len(summary["scores"]) == 8
    assert json.dumps(summary, allow_nan=False)
    (path,) = export_run(run, "csv", tmp_path / "out")
    assert len(pd.read_csv(path)) == len(perplexities())
    for kind in ("latex", "markdown"):
        (path,) = export_run(run, kind, tmp_path / kind)
        text = path.read_text(encoding="utf-8")
        assert text.count("last 10") == 2
        assert "1.105" in text
        assert "exp of the mean loss" in text
    paths, messages, unwritten = plot_run(run, None, "html", tmp_path / "figures")
    assert [path.name for path in paths] == ["fig3.html"]
    assert unwritten == []
    assert any("retrieval left out" in message for message in messages)


def test_a_part_of_a_run_of_scores_is_shown(make_run: MakeRun) -> None:
    run = make_run(perplexities())
    summary = run_summary(run, where={"seq_len": ["8192"], "layers": ["last 10"]})
    assert [(row["method"], row["seq_len"], row["layers"]) for row in summary["scores"]] == [
        ("flash2", 8192, None), ("hyper", 8192, "last 10"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="seq_len=1 is not in this run; there is: 4096, 8192"):
        run_summary(run, where={"seq_len": ["1"]})
    with pytest.raises(ValueError, match="baseline 'hypr' is no method of this run; allowed: flash2, hyper"):
        run_summary(run, "hypr")


def test_curves_of_figure_3_begin_with_exact_attention() -> None:
    fig = builder("fig3")(view_from(perplexities()))
    curves = [trace for trace in fig.data if trace.name == "hyper"]
    assert len(curves) == 4
    perplexity, speedup = curves[0], curves[2]
    assert list(perplexity.x) == list(speedup.x) == [0, 1, 10, 30]
    assert list(perplexity.y) == pytest.approx([math.exp(3.0 + above) for above in (0, 0.1, 0.2, 0.5)])
    assert list(speedup.y) == pytest.approx([1, 2, 2, 2])
    lines = [shape.y0 for shape in fig.layout.shapes]
    assert lines == pytest.approx([math.exp(3.0)] * 2 + [1.0] * 2)


def test_a_map_of_facts_has_a_cell_for_each_depth_and_length() -> None:
    fig = builder("retrieval")(view_from(facts()))
    exact, hyper = fig.data
    assert [list(cells) for cells in exact.z] == [[1.0], [1.0]]
    assert [list(cells) for cells in hyper.z] == [[0.0], [1.0]]
    assert [list(cells) for cells in hyper.text] == [["0/2"], ["2/2"]]
    assert list(hyper.y) == ["0.1", "0.9"]


@pytest.mark.parametrize(("figure", "records"), [("fig3", facts()), ("retrieval", perplexities())])
def test_a_run_of_something_else_does_not_fit(figure: str, records: list[Record]) -> None:
    with pytest.raises(DoesNotFitError):
        builder(figure)(view_from(records))
