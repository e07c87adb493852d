"""Joins that lose nothing, errors beside their points, and the refusal to mix what a figure does not show."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from hyperbench.analyze.joins import (
    DoesNotFitError,
    check_single,
    error_table,
    inputs_in,
    parse_filters,
    select,
    settings,
    varying,
)
from hyperbench.store import tables as columns
from hyperbench.store.schema import ErrorRow, Pass, Record, Status
from tests.helpers.synthetic_runs import HYPER, PASSES, errors, exact_ms, grid, hyper_ms, point, timing

SHOWN = ("method", "is_causal", "pass", "seq_len")


def frames(records: list[Record]) -> dict[str, pd.DataFrame]:
    return columns.build(records, "run")


def timings(records: list[Record]) -> pd.DataFrame:
    return frames(records)["timings"]


def test_errors_are_medians_over_seeds_and_failed_draws_are_not_zero() -> None:
    p = point("hyper", 1024, hyper=HYPER)
    rows: list[Record] = [
        ErrorRow(point=p, seed=s, metric="out_rel_fro", value=v) for s, v in enumerate((0.3, 0.1, 0.2))
    ]
    rows.append(ErrorRow(point=p, seed=3, metric="out_rel_fro", value=None, status=Status.OOM))
    table = error_table(frames(rows)["errors"])
    row = table.loc[p.point_id]
    assert (row["out_rel_fro"], row["out_rel_fro_low"], row["out_rel_fro_high"]) == pytest.approx((0.2, 0.1, 0.3))


@pytest.mark.parametrize(
    ("dim", "values"),
    [
        ("dtype", ("float32", "bfloat16")),
        ("input", ("gaussian", "clustered")),
        ("heads", (1, 2)),
        ("head_dim", (64, 128)),
        ("seed", (0, 1)),
        ("batch", (1, 4)),
        ("device", ("cpu", "cuda")),
    ],
)
def test_a_figure_refuses_a_dimension_it_does_not_show(dim: str, values: tuple[Any, Any]) -> None:
    records = grid(lengths=(1024,), **{dim: values[0]}) + grid(lengths=(1024,), **{dim: values[1]})
    with pytest.raises(ValueError, match=rf"{dim} varies \(.*{values[1]}.*\)"):
        check_single(timings(records), SHOWN)
    check_single(timings(records), (*SHOWN, dim))


@pytest.mark.parametrize("dim", ["block_size", "sample_size", "num_projections", "min_seq_len", "pairing"])
def test_a_figure_refuses_two_values_of_a_parameter_of_one_method(dim: str) -> None:
    other: Any = "rank" if dim == "pairing" else 3
    records = [timing(point("hyper", 1024, hyper=h), Pass.FORWARD, 1.0) for h in (HYPER, {**HYPER, dim: other})]
    with pytest.raises(ValueError, match=f"{dim} varies"):
        check_single(timings(records), SHOWN)


def test_two_protocols_are_refused() -> None:
    p = point("flash2", 1024)
    records = [timing(p, Pass.FORWARD, 1.0), timing(p, Pass.FORWARD, 1.0, protocol="paper", round=1)]
    with pytest.raises(ValueError, match="protocol varies"):
        check_single(timings(records), SHOWN)


def test_methods_may_differ_in_their_own_parameters() -> None:
    records = [
        timing(point("hyper", 1024, hyper=HYPER), Pass.FORWARD, 1.0),
        timing(point("hyper_paper", 1024, hyper={**HYPER, "min_seq_len": 4096}), Pass.FORWARD, 1.0),
    ]
    check_single(timings(records), SHOWN)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((64, 128), r"rank varies \(64, 128\).*choose one: rank=64"),
        ((0.5, 2), r"rank varies \(0.5, 2\)"),
        (("low", "high"), r"rank varies \(high, low\)"),
        ((True, False), r"rank varies \(false, true\)"),
        ((64, None), r"rank varies \(64, null\)"),
        (([1, 2], [3]), r"rank varies \(\[1, 2\], \[3\]\)"),
    ],
)
def test_a_parameter_of_any_method_is_a_dimension(values: tuple[Any, Any], told: str) -> None:
    records = [timing(point("mine", 1024, hyper={"rank": v}), Pass.FORWARD, 1.0) for v in values]
    frame = timings([*records, timing(point("flash2", 1024), Pass.FORWARD, 2.0)])
    with pytest.raises(ValueError, match=told):
        check_single(frame, SHOWN)
    check_single(frame, (*SHOWN, "rank"))


def test_points_that_differ_in_no_column_are_refused() -> None:
    # The text "1" and the number 1 are one text in a column that holds both.
    records = [timing(point("mine", 1024, hyper={"rank": r}), Pass.FORWARD, 1.0) for r in (1, "1")]
    with pytest.raises(ValueError, match="no column"):
        check_single(timings(records), SHOWN)


def test_a_parameter_of_the_input_stands_for_it_where_nothing_else_differs() -> None:
    def of(**params: Any) -> Record:
        return timing(point("flash2", 1024, input="captured", input_params=params), Pass.FORWARD, 1.0)

    layers = timings([of(layer=0), of(layer=8)])
    check_single(layers, (*SHOWN, "input.layer"))
    check_single(layers, (*SHOWN, "input"))
    with pytest.raises(ValueError, match="input varies"):
        check_single(layers, SHOWN)
    with pytest.raises(ValueError, match="input varies"):
        check_single(timings([of(layer=0, head=0), of(layer=8, head=0), of(layer=8, head=1)]), (*SHOWN, "input.layer"))
    assert list(select(layers, {"input.layer": ["8"]}, keep_method="flash2")["input.layer"]) == [8]


def test_heads_and_kv_heads_count_once_unless_they_part() -> None:
    together = grid(lengths=(1024,), heads=2) + grid(lengths=(1024,), heads=4)
    assert set(varying(timings(together))) >= {"heads"}
    assert "kv_heads" not in varying(timings(together))
    apart = grid(lengths=(1024,), heads=4, kv_heads=1) + grid(lengths=(1024,), heads=4, kv_heads=4)
    assert "kv_heads" in varying(timings(apart))


def test_filters_choose_rows_and_keep_the_baseline() -> None:
    records: list[Record] = []
    for b in (128, 256):
        p = point("hyper", 1024, hyper={**HYPER, "block_size": b})
        records += [timing(p, x, hyper_ms(p, x)) for x in PASSES]
        records += errors(p)
    base = point("flash2", 1024)
    records += [timing(base, x, exact_ms(base, x)) for x in PASSES]
    chosen = select(timings(records), parse_filters(["block_size=128", "method=hyper"]), keep_method="flash2")
    assert set(chosen["method"]) == {"hyper", "flash2"}
    assert set(chosen["block_size"].dropna()) == {128}
    forward = select(chosen, parse_filters(["pass=forward"]), keep_method="flash2")
    assert set(forward["pass"]) == {"forward"}


def test_filters_choose_by_a_parameter_of_any_method_and_by_its_null() -> None:
    mine = [timing(point("mine", 1024, hyper={"rank": r}), Pass.FORWARD, 1.0) for r in (1, 2, None)]
    others = [timing(point("flash2", 1024), Pass.FORWARD, 2.0), timing(point("other", 1024), Pass.FORWARD, 2.0)]
    for wanted, ranks in (("1,2", {"1", "2"}), ("null", set()), ("2", {"2"})):
        chosen = select(timings([*mine, *others]), parse_filters([f"rank={wanted}"]))
        assert {str(r) for r in chosen["rank"].dropna()} == ranks
        assert list(chosen["method"]).count("mine") == max(len(ranks), 1)
        assert {"flash2", "other"} <= set(chosen["method"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blocksize=1", "did you mean 'block_size'"),
        ("seq_len=", "no value"),
        ("nonsense=1", "unknown dimension 'nonsense'"),
        ("gaussian", "'gaussian' is no filter; write KEY=VALUE"),
    ],
)
def test_bad_filters_are_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        select(timings(grid(lengths=(1024,))), parse_filters([text]))
    assert "\n" not in str(caught.value)


def test_a_filter_without_a_match_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match="seq_len=4096 is not in this run; there is: 1024, 2048"):
        select(timings(grid(lengths=(1024, 2048))), parse_filters(["seq_len=4096"]))


def test_a_dimension_that_is_filtered_twice_is_refused_with_what_to_write() -> None:
    with pytest.raises(ValueError, match="input is filtered twice; write it once: input=a,b,c"):
        parse_filters(["input=a", "seq_len=1", "input=b,c"])


def test_a_value_with_spaces_is_quoted_where_it_is_to_be_typed() -> None:
    records = [r for name in ("ramp slope=0", "ramp slope=1") for r in grid(lengths=(1024,), input=name)]
    with pytest.raises(ValueError, match="choose one: 'input=ramp slope=0'"):
        check_single(timings(records), SHOWN)


def test_more_inputs_than_a_figure_has_panels_for_are_refused_with_what_to_type() -> None:
    frame = timings([r for name in ("a", "b", "c d") for r in grid(lengths=(1024,), masks=(False,), input=name)])
    assert inputs_in(frame, 3) == ["a", "b", "c d"]
    with pytest.raises(DoesNotFitError, match=r"3 inputs \(a, b, c d\) are more than the 2 .* choose some: input=a,b$"):
        inputs_in(frame, 2)


def test_settings_are_the_parameters_in_which_points_of_a_method_differ() -> None:
    points = [
        point("hyper", 1024, hyper={**HYPER, "block_size": b, "sampling": s}) for b in (64, 128) for s in ("iid", None)
    ]
    records = [timing(p, Pass.FORWARD, 1.0) for p in (*points, point("uniform", 1024, hyper={"sample_size": 8}))]
    told = settings(timings(records))
    assert [told[p.point_id] for p in points] == [
        "block_size=64 sampling=iid", "block_size=64", "block_size=128 sampling=iid", "block_size=128"
    ]  # fmt: skip
    assert told[records[-1].point.point_id] == ""
