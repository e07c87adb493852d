"""From a run's folder to figures in files: what fits is made, what was asked for and does not fit is one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hyperbench.analyze.figures import available, builder
from hyperbench.analyze.plot import plot_run
from tests.helpers.figure_reading import Page
from tests.helpers.slow import slow
from tests.helpers.synthetic_runs import MakeRun, failed, grid, sweep

_ROOT = Path(__file__).resolve().parents[2]
_MODULES = ", ".join(
    f"hyperbench.analyze.{p.relative_to(_ROOT / 'hyperbench/analyze').with_suffix('').as_posix().replace('/', '.')}"
    for p in sorted((_ROOT / "hyperbench/analyze").rglob("*.py"))
    if p.stem != "__init__"
)


def names(folder: Path) -> list[str]:
    """Every file of a folder, hidden ones too."""
    return sorted(p.name for p in folder.iterdir())


def test_a_run_over_lengths_makes_the_figures_that_fit(full_run: Path, tmp_path: Path) -> None:
    paths, messages, _ = plot_run(full_run, None, "html", tmp_path)
    fitting = ["crossover", "fig4", "stages", "times"]
    assert [p.stem for p in paths] == fitting
    assert names(tmp_path) == [f"{name}.html" for name in fitting]
    # There is a reason for every figure that does not fit.
    assert {m.partition(" left out: ")[0] for m in messages} == available().keys() - {*fitting}
    assert any(m.startswith("sweep left out: no parameter varies") for m in messages)


def test_a_run_over_a_parameter_makes_the_sweep(make_run: MakeRun) -> None:
    run = make_run(sweep("block_size", (64, 128)))
    paths, messages, _ = plot_run(run, [], "html", None)
    assert [p.name for p in paths] == names(run / "figures") == ["sweep.html", "tradeoff.html"]
    assert {m.partition(" left out: ")[0] for m in messages} == available().keys() - {"sweep", "tradeoff"}
    assert all("\n" not in m for m in messages)


def test_only_figures_that_were_named_are_made(full_run: Path, tmp_path: Path) -> None:
    _, messages, _ = plot_run(full_run, ["times", "times"], "HTML,html", tmp_path)
    assert names(tmp_path) == ["times.html"]
    assert messages == []


@pytest.mark.parametrize(("name", "near"), [("fig5", "fig4"), ("time", "times"), ("sweeps", "sweep")])
def test_an_unknown_figure_names_the_nearest_and_makes_nothing(
    full_run: Path, tmp_path: Path, name: str, near: str
) -> None:
    with pytest.raises(ValueError, match=f"unknown figure '{name}'; allowed: .*; did you mean '{near}'") as caught:
        plot_run(full_run, [name, "fig4"], "html", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_names_the_nearest(full_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown figure format 'htm'.*did you mean 'html'"):
        plot_run(full_run, None, "png,htm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_named_figure_that_does_not_fit_is_one_line(full_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="figure 'sweep' does not fit this run: ") as caught:
        plot_run(full_run, ["sweep"], "html", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "dim", "values"),
    [
        ("fig4", "dtype", ("bfloat16", "float32")),
        ("times", "heads", (1, 2)),
        ("stages", "seed", (0, 1)),
        *slow(
            ("fig4", "heads", (1, 2)),
            ("fig4", "seed", (0, 1)),
            ("times", "dtype", ("bfloat16", "float32")),
            ("times", "seed", (0, 1)),
            ("stages", "dtype", ("bfloat16", "float32")),
            ("stages", "heads", (1, 2)),
        ),
        ("stages", "input", ("clustered", "gaussian")),
    ],
)  # fmt: skip
def test_a_refusal_to_mix_says_how_to_choose_and_the_choice_works(
    make_run: MakeRun, tmp_path: Path, name: str, dim: str, values: tuple[object, object]
) -> None:
    run = make_run([r for v in values for r in grid(lengths=(1024, 2048), masks=(False,), staged=True, **{dim: v})])
    with pytest.raises(ValueError, match=f"{dim} varies") as caught:
        plot_run(run, [name], "html", tmp_path / "out")
    choice = re.search(r"choose one: (\S+)$", str(caught.value))
    assert choice is not None
    assert not (tmp_path / "out").exists()
    paths, *_ = plot_run(run, [name, choice[1]], "html", tmp_path / "out")
    assert [p.name for p in paths] == [f"{name}.html"]
    assert plot_run(run, [name, f"{dim}={values[1]}"], "html", tmp_path / "out")[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("blocksize=1", "did you mean 'block_size'"),
        ("seq_len=5", "seq_len=5 is not in this run; there is: "),
        ("seq_len=", "no value"),
        ("is_causal=true", "is_causal is filtered twice; write it once: is_causal=false,true"),
    ],
)
def test_a_bad_filter_is_one_line(full_run: Path, tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        plot_run(full_run, ["fig4", "is_causal=false", text], "html", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_run_of_failures_makes_no_figure_and_says_why(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(grid(lengths=(1024, 2048), change=lambda t: failed(t.point, t.pass_)))
    paths, messages, _ = plot_run(run, None, "html", tmp_path / "out")
    assert paths == []
    assert len(messages) == len(available())
    # Some figures show properties of the input, and need no time.
    told = ("no point of this run has a time (status: oom)", "this run holds no ", "this run has no ")
    assert all(any(reason in m for reason in told) for m in messages)
    assert sum(told[0] in m for m in messages) >= 4
    assert not (tmp_path / "out").exists()


def test_a_missing_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run folder at"):
        plot_run(tmp_path / "none", None, "html", None)


def test_speedups_may_be_over_another_method(full_run: Path, tmp_path: Path) -> None:
    ((path,), *_) = plot_run(full_run, ["fig4"], "html", tmp_path, baseline="hyper")
    assert Page(path.read_text(encoding="utf-8")).inside["title"] == [
        "Speedup of flash2 over hyper, and the error it costs"
    ]


def test_a_baseline_that_is_not_there_names_what_is(full_run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"baseline 'flash' is no method of this run; allowed: flash2, hyper; did you mean 'flash2'"
    ):
        plot_run(full_run, ["fig4"], "html", tmp_path, baseline="flash")


def test_every_figure_says_in_a_line_what_it_shows_and_can_be_built() -> None:
    assert {"fig4", "times", "sweep", "stages", "methods"} <= set(available())
    for name, line in available().items():
        assert line.endswith(".")
        assert "\n" not in line
        assert callable(builder(name))


def python(code: str) -> str:
    """The output of some code in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.slow
def test_reading_a_run_and_drawing_all_of_it_imports_no_torch(full_run: Path, tmp_path: Path) -> None:
    code = f"""
import sys, io
from pathlib import Path
from rich.console import Console
import {_MODULES}
from hyperbench.analyze.export import export_run
from hyperbench.analyze.plot import plot_run
from hyperbench.analyze.show import run_summary, show_run
run, out = Path({str(full_run)!r}), Path({str(tmp_path)!r})
plot_run(run, None, "html", out)
show_run(run, Console(file=io.StringIO()))
run_summary(run)
for fmt in ("csv", "parquet", "latex", "markdown"):
    export_run(run, fmt, out)
print(sorted(m for m in sys.modules if m.split(".")[0] in ("torch", "hyperattn_core", "triton")))
print(sorted(m for m in sys.modules if m.startswith("hyperbench.measure")))
"""
    assert python(code) == "[]\n[]"


def test_importing_the_modules_that_plot_is_light() -> None:
    heavy = ("pandas", "plotly", "numpy", "pyarrow", "torch", "kaleido", "yaml")
    code = f"import sys, hyperbench.analyze.plot; print([m for m in {heavy} if m in sys.modules])"
    assert python(code) == "[]"


def test_listing_figures_imports_none_of_them() -> None:
    code = (
        "import sys; from hyperbench.analyze.figures import available; available(); "
        "print([m for m in sys.modules if m.startswith('hyperbench.analyze.figures.')])"
    )
    assert python(code) == "[]"
