"""The figure of a sweep: it finds its axis, draws what has no such parameter along it, and loses no row."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.analyze.figures.sweep import axes_of, build, swept_axis
from hyperbench.analyze.format import PASS_LABELS, plain
from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.view import MAIN_ERROR
from hyperbench.store.schema import Pass, Record, Status, Timing
from tests.helpers.figure_reading import bands, crosses, curve, footer, has_curve, panel, shown, values
from tests.helpers.synthetic_runs import (
    HYPER,
    PASSES,
    errors,
    exact_ms,
    failed,
    grid,
    hyper_ms,
    point,
    sweep,
    timing,
    view_from,
)

BLOCKS = (32, 64, 128, 256, 512, 1024)
SWEEPS: list[tuple[str, tuple[Any, ...]]] = [
    ("block_size", BLOCKS),
    ("sample_size", (64, 256)),
    ("num_projections", (5, 7, 9)),
    ("min_seq_len", (256, 1024)),
    ("sampling", ("iid", "stratified")),
    ("pairing", ("bucket", "rank")),
    ("heads", (1, 2, 4, 8, 16, 32)),
    ("batch", (1, 4)),
    ("head_dim", (64, 128)),
]


@pytest.mark.parametrize(("axis", "places"), SWEEPS)
def test_the_axis_that_varies_is_found_and_shown(axis: str, places: tuple[Any, ...]) -> None:
    view = view_from(sweep(axis, places))
    assert swept_axis(view.timings) == axis
    fig = build(view)
    line = curve(fig, 1, 1, "hyper, forward")
    rows = view.timings[(view.timings["method"] == "hyper") & (view.timings["pass"] == "forward")]
    assert values(line) == dict(zip(rows[axis], rows["median_ms"], strict=True))
    assert set(line.x) == set(places)
    assert len(bands(fig, 1, 1, "hyper, forward")) == 1
    assert values(curve(fig, 2, 1, "error of out, hyper")) == dict(zip(rows[axis], rows[MAIN_ERROR], strict=True))


@pytest.mark.parametrize("axis", ["block_size", "pairing"])
def test_a_baseline_without_the_parameter_is_a_constant_line_over_the_whole_axis(axis: str) -> None:
    places = dict(SWEEPS)[axis]
    view = view_from(sweep(axis, places, masks=(False, True)))
    fig = build(view)
    for col, is_causal in ((1, False), (2, True)):
        for pass_ in PASSES:
            line = curve(fig, 1, col, f"flash2, {PASS_LABELS[pass_]}")
            rows = view.timings[
                (view.timings["method"] == "flash2")
                & (view.timings["pass"] == str(pass_))
                & (view.timings["is_causal"] == is_causal)
            ]
            assert set(line.x) == set(places)
            assert set(line.y) == set(rows["median_ms"])
            assert len(set(line.y)) == 1


def test_with_heads_the_baseline_moves_too() -> None:
    view = view_from(sweep("heads", (1, 2, 4)))
    line = curve(build(view), 1, 1, "flash2, forward")
    rows = view.timings[(view.timings["method"] == "flash2") & (view.timings["pass"] == "forward")]
    assert values(line) == dict(zip(rows["heads"], rows["median_ms"], strict=True))
    assert len(set(line.y)) == 3


def test_an_approximate_method_without_the_parameter_keeps_its_error() -> None:
    records = sweep("block_size", (64, 128))
    other = point("uniform", 16_384, hyper={"sample_size": 512})
    records += [timing(other, x, 3.0) for x in PASSES] + errors(other, scale=2.0)
    fig = build(view_from(records))
    line = curve(fig, 2, 1, "error of out, uniform")
    assert set(line.x) == {64, 128}
    assert len(set(line.y)) == 1
    assert set(curve(fig, 1, 1, "uniform, forward").x) == {64, 128}


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(st.sets(st.integers(0, 11)))
def test_every_row_is_on_a_curve_or_a_cross(lost: set[int]) -> None:
    timed = [r for r in sweep("block_size", (64, 128, 256)) if isinstance(r, Timing)]
    kept = [failed(r.point, r.pass_, Status.OOM, "no memory") if i in lost else r for i, r in enumerate(timed)]
    view = view_from(kept)
    if len(lost) == len(timed):
        with pytest.raises(DoesNotFitError):
            build(view)
        return
    fig = build(view)
    for r in kept:
        name = PASS_LABELS[r.pass_]
        wanted = f"{r.point.method} {name}: oom: no memory"
        # What has no block size stands at every one of them.
        for place in (r.point.hyper["block_size"],) if r.point.hyper else (64, 128, 256):
            curve_name = f"{r.point.method}, {name}"
            height = values(curve(fig, 1, 1, curve_name))[place] if has_curve(fig, 1, 1, curve_name) else None
            marked = shown(crosses(fig, 1, 1).get(place, ""))
            assert (height is None) == (wanted in marked) == (r.status is Status.OOM)


def test_errors_of_gradients_and_trivial_answers_stand_beside_that_of_the_output() -> None:
    fig = build(view_from(sweep("sample_size", (64, 256))))
    main, gradient = curve(fig, 2, 1, "error of out, hyper"), curve(fig, 2, 1, "error of dq, hyper")
    assert main.line.width > gradient.line.width
    assert main.line.dash != gradient.line.dash
    assert set(curve(fig, 2, 1, "error of answering zero").y) == {1.0}


def test_the_hover_tells_speedup_and_errors_of_a_place() -> None:
    view = view_from(sweep("block_size", (64, 128)))
    told = shown(curve(build(view), 1, 1, "hyper, forward").hovertext[0])
    assert "hyper, forward, block_size = 64" in told
    assert "speedup over flash2" in told
    assert "out_rel_fro" in told


def test_the_footer_names_what_made_the_numbers_and_the_length() -> None:
    told = footer(build(view_from(sweep("block_size", (64, 128)))))
    for part in (
        "float32",
        "m=256",
        "baseline flash2 = torch",
        "protocol strict",
        "commit 0123456789",
        "seq_len=16384",
    ):
        assert part in told
    assert "b=64" not in told


@pytest.mark.parametrize(
    ("records", "told"),
    [
        (lambda: grid(lengths=(1024, 2048)), "no parameter varies in this run but seq_len"),
        (lambda: grid(lengths=(1024,)), "no parameter varies in this run; this figure shows one of "),
        (
            lambda: sweep("block_size", (64, 128)) + sweep("sample_size", (64, 128)),
            r"several axes vary \(block_size: 64, 128, 256; sample_size: 64, 128, 256\)",
        ),
        (
            lambda: sweep("block_size", (64, 128), n=1024) + sweep("block_size", (64, 128), n=2048),
            "several axes vary.*choose a value of each other: seq_len=1024",
        ),
        (
            lambda: [
                timing(point(m, 1024, dtype=t, hyper={**HYPER, "block_size": b}), Pass.FORWARD, 1.0)
                for m in ("flash2", "hyper")
                for t in ("float32", "float16")
                for b in (64, 128)
                if m == "hyper" or b == 64
            ],
            r"dtype varies \(float16, float32\).*choose one: dtype=float16",
        ),
    ],
)
def test_what_has_not_exactly_one_axis_is_refused_in_one_line(records: Any, told: str) -> None:
    with pytest.raises(DoesNotFitError, match=told) as caught:
        build(view_from(records()))
    assert "\n" not in str(caught.value)


def test_methods_with_a_fixed_value_stand_at_their_own_place() -> None:
    records = sweep("block_size", (64, 128))
    fixed = point("hyper_paper", 16_384, hyper={**HYPER, "block_size": 256})
    records += [timing(fixed, x, hyper_ms(fixed, x)) for x in PASSES]
    fig = build(view_from(records))
    assert list(curve(fig, 1, 1, "hyper_paper, forward").x) == [256]
    assert set(curve(fig, 1, 1, "flash2, forward").x) == {64, 128, 256}


def test_an_unsupported_sweep_point_leaves_the_others() -> None:
    base = point("flash2", 16_384)
    records: list[Record] = [timing(base, x, exact_ms(base, x)) for x in PASSES]
    for b in BLOCKS:
        p = point("hyper", 16_384, hyper={**HYPER, "block_size": b})
        records += [
            failed(p, x, Status.UNSUPPORTED, "too small") if b == 32 else timing(p, x, hyper_ms(p, x)) for x in PASSES
        ]
    fig = build(view_from(records))
    assert set(crosses(fig, 1, 1)) == {32}
    assert [y is None for y in curve(fig, 1, 1, "hyper, forward").y] == [True, *[False] * 5]
    assert "unsupported: too small" in footer(fig)
    assert not panel(fig, 2, 1)
    assert set(axes_of(view_from(records).timings)) >= {axis for axis, _ in SWEEPS}


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ((64, 128, 512), [64, 128, 512]),
        ((0.25, 0.5, 1), [0.25, 0.5, 1.0]),
        (("low", "high"), ["high", "low"]),
        ((False, True), ["false", "true"]),
        ((64, 8, None), ["8", "64", "null"]),
    ],
)
def test_a_parameter_of_any_method_is_an_axis(values: tuple[Any, ...], places: list[Any]) -> None:
    base, records = point("flash2", 16_384), []
    points = [point("mine", 16_384, hyper={"window": value, "mode": "a"}) for value in values]
    for p in (base, *points):
        records += [timing(p, x, exact_ms(p, x)) for x in PASSES]
    for p in points:
        records += errors(p)
    view = view_from(records)
    assert swept_axis(view.timings) == "window"
    fig = build(view)
    assert list(curve(fig, 1, 1, "mine, forward").x) == places
    assert list(curve(fig, 1, 1, "flash2, forward").x) == places
    assert list(curve(fig, 2, 1, "error of out, mine").x) == places
    assert "mode=a" in footer(fig)
    assert "window" not in footer(fig).replace("methods without window", "")
    told = shown(curve(fig, 1, 1, "mine, forward").hovertext[0])
    assert f"mine, forward, window = {plain(places[0])}" in told
    assert "mode=a" in told


def test_a_parameter_of_the_input_is_an_axis() -> None:
    records: list[Record] = []
    for layer in (0, 8, 16):
        for method in ("flash2", "mine"):
            p = point(method, 16_384, input="captured", input_params={"layer": layer, "path": "a.safetensors"})
            records += [timing(p, Pass.FORWARD, 1.0 + layer)]
    fig = build(view_from(records))
    assert list(curve(fig, 1, 1, "mine, forward").x) == [0, 8, 16]
    assert list(curve(fig, 1, 1, "flash2, forward").x) == [0, 8, 16]


def test_the_name_of_a_parameter_is_letters_on_the_page() -> None:
    name = "<b>w</b>"
    points = [point("flash2", 1024), *(point("mine", 1024, hyper={name: v}) for v in ("<i>a</i>", "<i>b</i>"))]
    fig = build(view_from([timing(p, Pass.FORWARD, 1.0) for p in points]))
    assert "<b>w" not in fig.to_json().replace("\\u003c", "<").replace("<b>Time and error over", "")
    assert "<i>" not in fig.to_json().replace("\\u003c", "<")
