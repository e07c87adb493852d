"""Verdicts on runs in words: a line per method, masking and input, with the numbers of the tables."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from hyperbench.analyze.format import significant
from hyperbench.analyze.show import print_run, run_summary, show_run
from hyperbench.analyze.verdict.report import Verdict, verdict_data, verdict_lines, verdicts
from hyperbench.analyze.verdict.rules import Outcome, Reason
from hyperbench.analyze.view import MAIN_ERROR, View
from hyperbench.store.run_folder import load_run
from hyperbench.store.schema import ErrorRow, Pass, Record, Status
from tests.helpers.synthetic_runs import HOSTILE, HYPER, MakeRun, errors, failed, grid, point, timing, view_from


def run_of(
    numbers: dict[str, tuple[float, float]], n: int = 65_536, passes: Sequence[Pass] = (Pass.FORWARD,), **changes: Any
) -> list[Record]:
    """flash2 at 100 ms, and methods with so many times its speed and such an error."""
    base = point("flash2", n, **changes)
    records: list[Record] = [timing(base, x, 100.0) for x in passes]
    for method, (speedup, error) in numbers.items():
        p = point(method, n, **{"hyper": HYPER, **changes})
        records += [timing(p, x, 100.0 / speedup) for x in passes]
        records += with_error(p, error)
    return records


def with_error(p: Any, error: float) -> list[Record]:
    """Error rows of a point whose main error is about so large, and those of the trivial answers."""
    return [
        dataclasses.replace(row, value=error * (1 + 0.02 * (row.seed - 1)))
        if isinstance(row, ErrorRow) and row.metric == MAIN_ERROR
        else row
        for row in errors(p)
    ]


def view_of(records: list[Record], **kinds: str) -> View:
    """The view of a run whose configuration says of what kind some methods are."""
    return dataclasses.replace(view_from(records), kinds=kinds)


def only(view: View) -> Verdict:
    """The one verdict there is."""
    (found,) = verdicts(view)
    return found


def test_an_error_above_that_of_zero_is_not_useful_and_says_so_with_its_numbers() -> None:
    found = only(view_of(run_of({"hyper": (15.0, 2.9)}, is_causal=True, passes=(Pass.FORWARD, Pass.FORWARD_BACKWARD))))
    assert found.text == (
        "hyper is 15.0 times faster than flash2 at n = 65,536 with a causal mask (forward+backward); its error is "
        "2.90, above answering zero (1.00): not useful on this input (gaussian)"
    )


def test_a_window_that_is_as_fast_and_closer_makes_a_method_not_worth_it() -> None:
    records = run_of({"hyper": (15.0, 0.5), "window_sinks": (15.1, 0.2)})
    found = only(view_of(records, window_sinks="trivial"))
    assert found.finding.outcome is Outcome.NOT_WORTH_IT
    assert found.text == (
        "hyper is 15.0 times faster than flash2 at n = 65,536 without a causal mask (forward); its error is 0.500, "
        "below answering zero (1.00) and answering mean(v) (0.820), but window_sinks is as fast (15.1 times flash2) "
        "and its error is 0.200: not worth it on this input (gaussian)"
    )


def test_a_useful_method_is_called_so_with_what_limits_it() -> None:
    alone = only(view_of(run_of({"hyper": (15.0, 0.1)})))
    assert alone.text.endswith(
        ": useful on this input (gaussian), as far as is known: no trivial method was measured beside it"
    )
    records = run_of({"hyper": (15.0, 0.3), "uniform": (16.0, 0.7), "window_sinks": (9.0, 0.1)})
    beside = only(view_of(records, uniform="trivial", window_sinks="trivial"))
    assert beside.text.endswith(
        "and below every trivial method that is as fast (best: uniform (0.700)): useful on this input (gaussian), "
        "though window_sinks, at 9.00 times the speed of flash2, has an error of 0.100"
    )


def test_exact_and_trivial_methods_and_oracles_get_no_verdict() -> None:
    records = run_of({"hyper": (15.0, 0.3), "uniform": (16.0, 0.7), "top_k": (2.0, 0.1), "math": (0.5, 1e-7)})
    view = dataclasses.replace(
        view_of(records, uniform="trivial", top_k="oracle"), exact_methods=frozenset({"flash2", "math"})
    )
    assert [found.row["method"] for found in verdicts(view)] == ["hyper"]
    # An oracle is no rival either.
    assert only(view).finding.slower_and_closer is None


def test_without_the_baseline_there_is_no_verdict() -> None:
    assert verdicts(view_of([timing(point("hyper", 1024), Pass.FORWARD, 1.0)])) == []


def test_a_method_that_was_never_faster_is_slower_up_to_the_largest_length() -> None:
    records = [r for n in (1024, 2048, 4096) for r in run_of({"hyper": (0.8, 0.1)}, n)]
    assert only(view_of(records)).text == (
        "hyper is slower than flash2 up to n = 4,096 without a causal mask (forward), 0.800 times its "
        "speed: does not pay on this input (gaussian)"
    )
    records = run_of({"hyper": (2.0, 0.1)}, 1024) + run_of({"hyper": (0.8, 0.1)}, 4096)
    assert "slower than flash2 at n = 4,096" in only(view_of(records)).text


def test_the_largest_length_with_a_speedup_and_the_widest_pass_count() -> None:
    lost = [failed(point(m, 131_072, hyper=HYPER if m == "hyper" else {}), Pass.FORWARD) for m in ("flash2", "hyper")]
    records = run_of({"hyper": (3.0, 0.1)}, 1024) + run_of({"hyper": (9.0, 0.1)}, passes=tuple(Pass)) + lost
    row = only(view_of(records)).row
    assert (row["seq_len"], row["pass"]) == (65_536, "forward_backward")


@pytest.mark.parametrize(
    ("records", "reason", "told"),
    [
        (
            [timing(point("flash2", 1024), Pass.FORWARD, 1.0), failed(point("hyper", 1024), Pass.FORWARD)],
            Reason.NO_TIME, "it has no time (oom: out of memory)",
        ),
        (
            [
                failed(point("flash2", 1024), Pass.FORWARD), timing(point("hyper", 1024), Pass.FORWARD, 1.0),
                *with_error(point("hyper", 1024), 0.1),
            ],
            Reason.NO_SPEEDUP, "it has no speedup over flash2 (baseline oom: out of memory)",
        ),
        (run_of({"hyper": (1.001, 0.1)}), Reason.SPEED_WITHIN_INTERVAL, "its speedup is 1.00, and 1 within the"),
        (run_of({"hyper": (9.0, 0.815)}), Reason.ERROR_WITHIN_INTERVAL, "answering mean(v) (0.820) are not apart"),
        (
            [r for r in run_of({"hyper": (9.0, 0.1)}) if not isinstance(r, ErrorRow)],
            Reason.NO_ERROR, "its error, or that of trivial answers, is not known",
        ),
        (
            [*run_of({"hyper": (9.0, 0.1)}), ErrorRow(
                point=point("hyper", 65_536, hyper=HYPER), seed=9, metric=MAIN_ERROR, value=None,
                status=Status.OOM, message="no memory",
            )],
            Reason.NO_ERROR, "is not known (oom: no memory)",
        ),
        (
            [dataclasses.replace(r, samples_ms=r.samples_ms[:1]) if not isinstance(r, ErrorRow) else r
             for r in run_of({"hyper": (9.0, 0.1)})],
            Reason.NO_INTERVAL, "its speedup of 9.00 has too few samples for an interval",
        ),
    ],
)  # fmt: skip
def test_where_the_numbers_do_not_suffice_the_line_says_why(records: list[Record], reason: Reason, told: str) -> None:
    found = only(view_of(records))
    assert (found.finding.outcome, found.finding.reason) == (Outcome.NO_VERDICT, reason)
    assert "no verdict on this input (gaussian): " in found.text
    assert told in found.text


def test_there_is_a_line_per_method_masking_and_input_and_the_best_setting_counts() -> None:
    records: list[Record] = []
    for name in ("gaussian", "clustered"):
        for is_causal in (False, True):
            records += run_of({"mine": (5.0, 0.3)}, input=name, is_causal=is_causal)
            for b, error in ((64, 0.6), (128, 0.2), (256, 3.0)):
                p = point("hyper", 65_536, hyper={**HYPER, "block_size": b}, input=name, is_causal=is_causal)
                records += [timing(p, Pass.FORWARD, 10.0 if b < 256 else 5.0), *with_error(p, error)]
    found = verdicts(view_of(records))
    assert [(v.row["method"], v.row["input"], v.row["is_causal"]) for v in found] == [
        (m, name, is_causal)
        for is_causal in (False, True)
        for m in ("mine", "hyper")
        for name in ("gaussian", "clustered")
    ]
    for v in found:
        if v.row["method"] == "hyper":
            # Both of the useful settings are as fast; the interval does not tell which of them is faster.
            assert v.row["block_size"] in (64, 128)
            assert f"hyper (block_size={v.row['block_size']}, the best of 3 settings) is 10.0 times faster" in v.text
            assert (v.setting, v.num_settings) == (f"block_size={v.row['block_size']}", 3)


def test_shapes_that_vary_have_verdicts_of_their_own_and_are_named() -> None:
    records = [r for heads in (1, 12) for r in run_of({"hyper": (5.0, 0.3)}, heads=heads)]
    assert ["(forward, heads=1)" in v.text or "(forward, heads=12)" in v.text for v in verdicts(view_of(records))] == [
        True, True
    ]  # fmt: skip


def test_numbers_timed_the_authors_way_are_no_verdict() -> None:
    found = only(dataclasses.replace(view_of(run_of({"hyper": (15.0, 2.9)})), as_paper=True))
    assert (found.finding.outcome, found.finding.reason) == (Outcome.NO_VERDICT, Reason.NO_RESULT)
    assert found.text.endswith("no verdict on this input (gaussian): it was timed the authors' way")


def test_data_are_the_numbers_of_the_table_and_strict_json() -> None:
    view = view_from(grid(lengths=(1024, 4096)))
    found = verdicts(view)
    assert len(found) == 2
    for told, verdict in zip(json.loads(json.dumps(verdict_data(found), allow_nan=False)), found, strict=True):
        frame = view.timings
        (row,) = frame[(frame["point_id"] == told["point_id"]) & (frame["pass"] == told["pass"])].to_dict("records")
        for name in ("speedup", "speedup_low", "speedup_high"):
            assert told[name] == row[name]
        assert (told["error"], told["error_low"]) == (row[MAIN_ERROR], row[f"{MAIN_ERROR}_low"])
        assert told["text"] == verdict.text
        assert (told["seq_len"], told["outcome"]) == (4096, str(verdict.finding.outcome))


def test_many_verdicts_are_cut_with_their_number() -> None:
    records = [r for i in range(20) for r in run_of({"hyper": (5.0, 0.3)}, input=f"input {i}")]
    lines = verdict_lines(verdicts(view_of(records)))
    assert len(lines) == 17
    assert lines[-1].startswith("4 more verdicts: hyperbench show --json has all")


def test_a_run_without_an_approximate_method_has_none() -> None:
    assert verdicts(view_from(grid(lengths=(1024,), methods=("flash2",)))) == []
    assert verdicts(view_from([])) == []


def test_verdicts_stand_on_top_of_show_and_at_the_end_of_run(make_run: MakeRun) -> None:
    folder = make_run(grid(lengths=(1024, 4096)))
    shown, ended = (Console(file=io.StringIO(), width=200, color_system=None) for _ in range(2))
    show_run(folder, shown)
    print_run(load_run(folder), ended)
    texts = [console.file.getvalue().splitlines() for console in (shown, ended)]  # type: ignore[attr-defined]
    tables = [next(i for i, line in enumerate(lines) if line.startswith("without causal masking")) for lines in texts]
    for (lines, table), is_before in zip(zip(texts, tables, strict=True), (True, False), strict=True):
        at = [i for i, line in enumerate(lines) if line.startswith("verdict: hyper")]
        assert len(at) == 2
        assert all((i < table) == is_before for i in at)
    summary = run_summary(folder)
    assert [line["text"] for line in summary["verdicts"]] == [v.text for v in verdicts(view_from(grid((1024, 4096))))]
    assert significant(summary["verdicts"][0]["speedup"]) in " ".join(texts[0])


@pytest.mark.parametrize("text", HOSTILE)
def test_any_name_of_a_method_or_input_is_told_as_it_is(text: str) -> None:
    found = only(view_of(run_of({text: (15.0, 2.9)}, input=text)))
    assert found.text.startswith(f"{text} is 15.0 times faster")
    assert found.text.endswith(f"({text})")
