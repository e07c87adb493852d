"""Pages: nothing is fetched, and no text of a run becomes anything but letters."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from hyperbench.analyze.figures import builder
from hyperbench.analyze.plotting.write import html_page
from hyperbench.analyze.view import View
from hyperbench.store.schema import ErrorRow, Record, Status, Timing
from tests.helpers.figure_reading import Page, footer, foreign_markup, letters, shown, texts
from tests.helpers.slow import slow
from tests.helpers.synthetic_runs import HOSTILE, HYPER, failed, grid, sweep, view_from


def hostile_lines(text: str) -> list[Record]:
    """A run over lengths in which every name and message is this text."""
    records = grid(lengths=(1024, 2048, 4096), methods=("flash2", text, f"other {text}"), input=text)
    return [hostile_record(r, text) for r in records]


def hostile_sweep(text: str) -> list[Record]:
    """A run over a parameter whose values, like every name and message, are this text."""
    return [hostile_record(r, text) for r in sweep("sampling", (text, f"{text} 2"), methods=("flash2 not", text))]


def hostile_record(record: Any, text: str) -> Record:
    """A record with this text wherever a run puts text."""
    if isinstance(record, Timing):
        changed = dataclasses.replace(record, protocol=text, implementation=text, message=text)
        is_lost = record.point.seq_len == 2048 and record.point.method != "flash2"
        return failed(record.point, record.pass_, Status.ERROR, text) if is_lost else changed
    if isinstance(record, ErrorRow) and record.seed == 2:
        if record.metric == "out_rel_fro":
            return dataclasses.replace(record, value=None, status=Status.ERROR, message=text)
        return dataclasses.replace(record, metric=text)
    return record  # type: ignore[no-any-return]


def build(name: str, text: str) -> tuple[go.Figure, View]:
    """A figure of a run full of this text, and its view."""
    records = hostile_sweep(text) if name == "sweep" else hostile_lines(text)
    records = [dataclasses.replace(r, protocol=text) if isinstance(r, Timing) else r for r in records]
    view = view_from(records, machine=text, commit=text, gpu_name=text)
    view = dataclasses.replace(view, descriptions=dict.fromkeys(view.methods, text))
    return builder(name)(view), view


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", ["fig4", *slow("times", "sweep")])
def test_every_text_of_a_run_is_shown_letter_by_letter(name: str, text: str) -> None:
    fig, _ = build(name, text)
    assert not foreign_markup(fig)
    # In the legend, in hovers and in the footer.
    start = letters(text)[:16]
    assert any(start in letters(shown(t.name)) for t in fig.data)
    assert any(text in shown(h) for t in fig.data for h in (t.hovertext or ()))
    assert letters(text) in letters(footer(fig))


@pytest.mark.parametrize("name", ["fig4", "sweep"])
def test_a_page_of_hostile_texts_has_the_elements_of_any_other_page(name: str) -> None:
    text = " ".join(HOSTILE)
    usual = view_from(sweep("sampling", ("a", "b")) if name == "sweep" else grid(lengths=(1024, 2048)))
    wanted = [tag for tag, _ in Page(html_page(builder(name)(usual))).tags]
    source = html_page(build(name, text)[0])
    page = Page(source)
    assert [tag for tag, _ in page.tags] == wanted
    assert not list(page.loads())
    # The embedded data holds no end of the script and no comment that a browser would read before the script does.
    embedded = source[source.rindex("Plotly.newPlot(") :]
    assert embedded.count("</script>") == 1
    assert "<!--" not in embedded


def test_a_page_carries_the_figure_and_loads_nothing(full_view: View) -> None:
    fig = builder("fig4")(full_view)
    source = html_page(fig)
    page = Page(source)
    assert not list(page.loads())
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "img", "object", "embed", "base", "form"}
    assert not [a for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    scripts = page.inside["script"]
    assert any("plotly.js v" in s for s in scripts)
    assert any("Plotly.newPlot(" in s for s in scripts)
    assert "cdn.plot.ly" not in "".join(s for s in scripts if "Plotly.newPlot(" in s)
    assert "<meta charset" in source
    assert page.inside["title"] == ["Speedup of hyper over flash2, and the error it costs"]


def test_the_embedded_data_is_that_of_the_figure(full_view: View) -> None:
    fig = builder("fig4")(full_view)
    source = html_page(fig)
    start = source.index("[", source.rindex("Plotly.newPlot("))
    data, _ = json.JSONDecoder().raw_decode(source[start:])
    wanted = json.loads(fig.to_json())["data"]
    assert data == wanted


def test_a_method_cannot_hide_in_a_title(tmp_path: Path) -> None:
    records = grid(lengths=(1024, 2048), methods=("flash2", "</title><script>alert(1)</script>"))
    page = Page(html_page(builder("fig4")(view_from(records))))
    assert page.inside["title"] == ["Speedup of </title><script>alert(1)</script> over flash2, and the error it costs"]


@pytest.mark.parametrize("name", ["fig4", "times"])
def test_dollars_are_no_mathematics(name: str) -> None:
    records = grid(lengths=(1024, 2048), methods=("flash2", "$x$"), input="$y$")
    fig = builder(name)(view_from(records, machine="$z$"))
    assert not [t for t in texts(fig) if re.search(r"\$", t)]
    assert any("$z$" in shown(t) for t in texts(fig))


def test_hostile_parameters_reach_ticks_as_letters() -> None:
    fig = builder("sweep")(view_from(sweep("pairing", HOSTILE[:2])))
    axis = fig.get_subplot(2, 1).xaxis
    assert {shown(c) for c in axis.categoryarray} == set(HOSTILE[:2])
    places = {x for t in fig.data for x in t.x}
    assert places <= set(axis.categoryarray)
    assert HYPER["pairing"] not in places
