"""Runs and methods against each other: every change is found where it is, and what cannot be compared says why."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hyperbench.analyze.compare.compare import Comparison, Row, compare
from hyperbench.analyze.compare.report import comparison_data, failures_of, print_comparison, unjudged, unjudged_note
from hyperbench.analyze.format import PASS_LABELS
from hyperbench.commands import compare as command
from hyperbench.stats.rounds import Reason, Verdict
from hyperbench.store.schema import Pass, Record, Status, Timing
from tests.helpers.made_records import a_point, a_timing
from tests.helpers.made_rounds import PASSES, failed, points, rounds, sweep, write_run
from tests.helpers.synthetic_runs import HOSTILE


def printed(comparison: Comparison, width: int = 200) -> str:
    """The text of a comparison on a terminal of this width."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_comparison(comparison, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def runs(folder: Path, a: list[Timing], b: list[Timing], **of_b: Any) -> Comparison:
    """The comparison of two runs that hold these timings."""
    return compare(write_run(folder / "a", a), write_run(folder / "b", b, **of_b))


def only(comparison: Comparison) -> Row:
    """The one row there is."""
    assert (len(comparison.rows), len(comparison.unmatched)) == (1, 0)
    return comparison.rows[0]


def verdicts(comparison: Comparison) -> dict[int, set[str]]:
    """The verdicts by length."""
    found: dict[int, set[str]] = {}
    for row in comparison.rows:
        found.setdefault(row.point.seq_len, set()).add(str(row.judgement.verdict))
    return found


def test_a_run_measured_again_is_the_same(tmp_path: Path) -> None:
    found = runs(tmp_path, sweep("one"), sweep("two"))
    assert found.headline() == "4 points, 8 passes: 8 same, 0 faster, 0 slower, 0 ambiguous"
    assert {row.judgement.reason for row in found.rows} == {Reason.INTERVAL_WITHIN_THRESHOLD}
    assert found.warnings == ()
    assert failures_of(found, 0.0) == []


def test_a_change_is_found_where_it_is_and_turns_round_with_the_runs(tmp_path: Path) -> None:
    before, after = sweep("one"), sweep("two", slowed={2048: 1.05})
    found = runs(tmp_path, before, after)
    assert verdicts(found) == {1024: {"same"}, 2048: {"slower"}}
    for row in found.rows:
        truth = 1.05 if row.point.seq_len == 2048 else 1.0
        assert row.judgement.ratio == pytest.approx(truth)
        assert row.judgement.low is not None
        assert row.judgement.high is not None
        assert row.judgement.low < truth < row.judgement.high
        assert (row.a_ms, row.b_ms) == (pytest.approx(1.0), pytest.approx(truth))
    assert verdicts(compare(tmp_path / "b", tmp_path / "a")) == {1024: {"same"}, 2048: {"faster"}}


@pytest.mark.parametrize(
    ("percent", "fails"), [(0.0, True), (1.0, True), (4.0, True), (5.0, False), (5.1, False), (90.0, False)]
)
def test_a_regression_fails_by_the_lower_end_of_its_interval(tmp_path: Path, percent: float, fails: bool) -> None:
    found = runs(tmp_path, sweep("one"), sweep("two", slowed={2048: 1.05}))
    lines = failures_of(found, percent)
    assert bool(lines) == fails
    assert all("slower" in line and "n=2,048" in line for line in lines)
    assert failures_of(compare(tmp_path / "b", tmp_path / "a"), percent) == []


def test_noise_between_rounds_is_ambiguous_and_no_regression(tmp_path: Path) -> None:
    found = runs(tmp_path, sweep("one", noise=0.2), sweep("two", noise=0.2))
    assert {row.judgement.reason for row in found.rows} == {Reason.INTERVAL_STRADDLES_THRESHOLD}
    assert failures_of(found, 0.0) == []


def test_pairs_of_rounds_see_what_two_runs_with_the_same_luck_cannot(tmp_path: Path) -> None:
    flash, hyper = points(lengths=(1024,))
    shared = [1.0, 1.2, 0.9, 1.1, 0.8]

    def timed(point: Any, factors: list[float]) -> list[Timing]:
        return [
            a_timing(point, round=i, samples_ms=(s * f,)) for i, (s, f) in enumerate(zip(shared, factors, strict=True))
        ]

    a, b = timed(flash, [1.0, 1.001, 0.999, 1.002, 0.998]), timed(hyper, [1.05, 1.049, 1.051, 1.05, 1.052])
    run = write_run(tmp_path / "one", [*a, *b])
    paired = only(compare(run, methods=("flash2", "hyper"))).judgement
    assert (paired.verdict, paired.ratio) == (Verdict.SLOWER, pytest.approx(1.0504, abs=1e-3))
    other = write_run(tmp_path / "other", b)
    assert only(compare(run, other, ("flash2", "hyper"))).judgement.verdict is Verdict.AMBIGUOUS


@pytest.mark.parametrize(("floor", "verdict"), [(None, "slower"), (0.0, "slower"), (0.02, "slower"), (0.06, "same")])
@pytest.mark.parametrize("side", ["a", "b"])
def test_what_a_machine_differs_from_itself_by_is_no_difference(
    tmp_path: Path, side: str, floor: float | None, verdict: str
) -> None:
    floors: dict[str, dict[str, Any]] = {"a": {}, "b": {}, side: {"aa_floor": floor}}
    a = write_run(tmp_path / "a", sweep("one"), **floors["a"])
    b = write_run(tmp_path / "b", sweep("two", slowed={1024: 1.05, 2048: 1.05}), **floors["b"])
    found = compare(a, b)
    assert verdicts(found) == {1024: {verdict}, 2048: {verdict}}
    assert found.threshold == max(0.01, floor or 0.0)
    # A threshold that is asked for takes the place of 1 %, not of the floor.
    assert compare(a, b, threshold=0.002).threshold == max(0.002, floor or 0.0)
    assert verdicts(compare(a, b, threshold=0.06))[1024] == {"same"}


@pytest.mark.parametrize("value", ["0.5", True, -0.1, math.nan, math.inf, [0.1]])
def test_a_floor_that_is_no_number_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="environment key aa_floor"):
        runs(tmp_path, sweep("one"), sweep("two"), aa_floor=value)


def test_points_without_partner_are_listed_and_not_counted(tmp_path: Path) -> None:
    a = [t for t in sweep("one") if t.point.seq_len == 1024 or t.point.method == "flash2"]
    b = [t for t in sweep("two") if t.point.seq_len == 2048 or t.point.method == "flash2"]
    found = runs(tmp_path, a, b)
    assert found.headline() == ("2 points, 4 passes: 4 same, 0 faster, 0 slower, 0 ambiguous; 2 only in A; 2 only in B")
    assert [(r.judgement.reason, r.point.seq_len, r.pass_) for r in found.unmatched] == [
        (reason, n, pass_)
        for reason, n in ((Reason.MISSING_IN_B, 1024), (Reason.MISSING_IN_A, 2048))
        for pass_ in PASSES
    ]
    text = printed(found)
    assert "only in A: hyper n=1,024, forward, forward+backward" in text
    assert "only in B: hyper n=2,048, forward, forward+backward" in text
    # What is new in B is no regression; what A had and B has not is one.
    assert [line.partition(":")[0] for line in failures_of(found, 50)] == [
        f"hyper n=1,024, {PASS_LABELS[p]}" for p in PASSES
    ]


def test_a_pass_that_only_one_side_has_is_listed(tmp_path: Path) -> None:
    b = [t for t in sweep("two") if t.pass_ is Pass.FORWARD]
    found = runs(tmp_path, sweep("one"), b)
    assert {row.pass_ for row in found.rows} == {Pass.FORWARD}
    assert {(row.pass_, row.judgement.reason) for row in found.unmatched} == {
        (Pass.FORWARD_BACKWARD, Reason.MISSING_IN_B)
    }
    assert len(failures_of(found, 50)) == 4


P = points(("hyper",), (1024,))[0]
GOOD, LOST = rounds(P, luck="one"), failed(P)
PARTLY = [*rounds(P, luck="two")[:4], *failed(P, count=5)[4:]]


@pytest.mark.parametrize(
    ("a", "b", "reason", "lost"),
    [
        (GOOD, LOST, Reason.NO_TIMING_IN_B, True),
        (LOST, GOOD, Reason.NO_TIMING_IN_A, False),
        (LOST, LOST, Reason.NO_TIMING, False),
        (GOOD, PARTLY, Reason.UNEQUAL_ROUNDS, True),
        (PARTLY, GOOD, Reason.UNEQUAL_ROUNDS, False),
        (rounds(P, count=2), PARTLY[3:], Reason.TOO_FEW_ROUNDS, True),
        (PARTLY, LOST, Reason.NO_TIMING_IN_B, True),
        (GOOD, rounds(P, count=6), Reason.UNEQUAL_ROUNDS, False),
        (rounds(P, count=6), GOOD, Reason.UNEQUAL_ROUNDS, False),
        (rounds(P, count=1), rounds(P, 2.0, count=1), Reason.TOO_FEW_ROUNDS, False),
        (GOOD, rounds(P, 2.0, noise=0.0), Reason.ZERO_VARIANCE, False),
        (GOOD, rounds(P, 2.0, protocol="short"), Reason.DIFFERENT_PROTOCOL, False),
        (GOOD, rounds(P, 2.0, status=Status.THROTTLED), Reason.THROTTLED, False),
        (GOOD, rounds(P, 0.0), Reason.ZERO_TIME, False),
    ],
)
def test_what_cannot_be_compared_gets_its_reason_and_no_verdict(
    tmp_path: Path, a: list[Timing], b: list[Timing], reason: Reason, lost: bool
) -> None:
    found = runs(tmp_path, a, b)
    row = only(found)
    assert (row.judgement.verdict, row.judgement.reason, row.lost_in_b) == (Verdict.AMBIGUOUS, reason, lost)
    assert str(reason) in printed(found)
    statuses = {str(t.status) for t in (*a, *b) if not t.samples_ms}
    assert all(f"it was {status}" in row.detail for status in statuses)
    assert any("lost in B" in line for line in failures_of(found, 0.0)) == lost


def test_clocks_that_were_throttled_on_both_sides_are_compared(tmp_path: Path) -> None:
    a, b = rounds(P, luck="one", status=Status.THROTTLED), rounds(P, 2.0, luck="two", status=Status.THROTTLED)
    assert only(runs(tmp_path, a, b)).judgement.verdict is Verdict.SLOWER


def test_a_check_in_which_nothing_could_be_judged_does_not_pass(tmp_path: Path) -> None:
    found = runs(tmp_path, rounds(P, count=1), rounds(P, 1.05, count=1))
    assert failures_of(found, 10.0) == ["no point could be judged, so a regression would not be seen"]


def test_a_slow_call_of_few_rounds_that_got_much_slower_does_not_pass_beside_others_that_are_judged(
    tmp_path: Path,
) -> None:
    slow = a_point(seq_len=65536)
    before, after = ([*sweep(luck), *rounds(slow, ms, count=2)] for luck, ms in (("one", 2000.0), ("two", 6000.0)))
    found = runs(tmp_path, before, after)
    (line,) = failures_of(found, 10.0)
    assert "n=65,536" in line
    assert line.endswith("3.000 times as long, and it cannot be judged (too_few_rounds)")
    assert failures_of(found, 250.0) == failures_of(compare(tmp_path / "b", tmp_path / "a"), 10.0) == []
    assert [row.point for row in unjudged(found)] == [slow]
    assert unjudged_note(found) == "1 of 9 passes could not be judged; see their reasons"
    assert unjudged_note(runs(tmp_path / "other", sweep("one"), sweep("two"))) == ""


@pytest.mark.parametrize(
    "setting", [{"cuda_graph": True}, {"as_paper": True}, {"fixed_time": True}, {"input_copies": 8}], ids=str
)
def test_settings_that_change_what_is_timed_are_no_verdict_whatever_the_protocols_name(
    tmp_path: Path, setting: dict[str, Any]
) -> None:
    other = {"protocol": {"name": "strict", "rounds": 5, **setting}}
    found = runs(tmp_path, sweep("one"), sweep("two", slowed={1024: 2.0}), config=other)
    assert {row.judgement.reason for row in found.rows} == {Reason.DIFFERENT_PROTOCOL}
    assert [w for w in found.warnings if w.startswith(f"protocol.{next(iter(setting))} differs")]
    # The defaults may be written down or not.
    defaults = {"cuda_graph": False, "as_paper": False, "fixed_time": False, "input_copies": 1}
    same = runs(tmp_path / "same", sweep("one"), sweep("two"), config={"protocol": {"name": "strict", **defaults}})
    assert same.counts[Verdict.SAME] == 8


def test_flags_of_either_side_stand_below_the_table_with_what_they_mean(tmp_path: Path) -> None:
    found = runs(tmp_path, sweep("one"), sweep("two", flags=("busy_machine", "drift")))
    text = printed(found)
    assert "flags of B: busy_machine at 40 of 40 timings: other processes used the cores meanwhile" in text
    assert "flags of B: drift at 40 of 40 timings" in text
    assert "flags of A" not in text
    assert comparison_data(found)["b"]["flags"] == {"busy_machine": 40, "drift": 40}


def test_a_side_whose_floor_nobody_measured_is_named(tmp_path: Path) -> None:
    found = runs(tmp_path, sweep("one"), sweep("two"), aa_floor=0.0)
    assert "no A/A floor is known of A." in printed(found)
    assert "no A/A floor is known of A and B." in printed(runs(tmp_path / "c", sweep("one"), sweep("two")))
    data = comparison_data(found)
    assert (data["a"]["aa_floor"], data["b"]["aa_floor"]) == (None, 0.0)


def test_runs_of_two_devices_meet_by_configuration_and_the_difference_is_said(tmp_path: Path) -> None:
    on_gpu = [
        dataclasses.replace(t, point=dataclasses.replace(t.point, device="cuda", target="moved.elsewhere"))
        for t in sweep("two", slowed={1024: 0.1, 2048: 0.1})
    ]
    a, b = write_run(tmp_path / "a", sweep("one")), write_run(tmp_path / "b", on_gpu, machine="Some GPU", torch="9.9")
    found = compare(a, b)
    assert found.headline() == "4 points, 8 passes: 0 same, 8 faster, 0 slower, 0 ambiguous"
    assert "machine differs: Some CPU, 2 cores in A, Some GPU in B" in found.warnings
    assert "torch differs: 2.13.0 in A, 9.9 in B" in found.warnings
    assert all(f"warning: {warning}" in printed(found) for warning in found.warnings)
    # What is the same for all rows of a side is no column.
    assert "device" not in printed(found).split("B against A")[1]
    assert {(row.point_a.device, row.point_b.device) for row in found.rows if row.point_a and row.point_b} == {
        ("cpu", "cuda")
    }


@pytest.mark.parametrize(
    "change",
    [
        {"seq_len": 2048}, {"is_causal": True}, {"dtype": "bfloat16"}, {"batch": 2}, {"heads": 8}, {"head_dim": 32},
        {"input": "clustered"}, {"input_params": {"std": 2.0}}, {"seed": 1}, {"hyper": {"block_size": 128}},
        {"hyper": {"block_size": 256, "sampling": "stratified", "gain": 2.0}}, {"method": "uniform"},
    ],
    ids=str,
)  # fmt: skip
def test_points_of_another_configuration_never_meet(tmp_path: Path, change: dict[str, Any]) -> None:
    a, b = a_point(), a_point(**{"device": "cuda", **change})
    found = runs(tmp_path, rounds(a), rounds(b))
    assert found.rows == ()
    assert [row.judgement.reason for row in found.unmatched] == [Reason.MISSING_IN_B, Reason.MISSING_IN_A]


@pytest.mark.parametrize(
    ("key", "value"),
    [("machine", "Other CPU"), ("commit", "cd" * 20), ("torch", "3.0"), ("driver", "1.2"), ("code", "0" * 12)],
)
def test_a_difference_of_the_environment_is_a_warning_that_names_it(tmp_path: Path, key: str, value: str) -> None:
    found = runs(tmp_path, sweep("one"), sweep("two"), **{key: value})
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith(f"{key} differs: ")
    assert found.warnings[0].endswith(f"{value} in B")
    assert found.counts[Verdict.SAME] == 8


def test_other_settings_of_a_protocol_and_other_kernels_are_warnings(tmp_path: Path) -> None:
    found = runs(
        tmp_path, sweep("one"), sweep("two", implementation="other-kernel"), dirty=True,
        config={"protocol": {"name": "strict", "rounds": 7}},
    )  # fmt: skip
    assert set(found.warnings) == {
        "B was measured with uncommitted changes",
        "protocol.rounds differs: 5 in A, 7 in B",
        "implementation of flash2 differs: some-kernel in A, other-kernel in B",
        "implementation of hyper differs: some-kernel in A, other-kernel in B",
    }


@pytest.mark.parametrize("config", [{"protocol": "strict"}, {"protocol": None}, {"protocol": [1]}])
def test_a_configuration_without_a_protocol_is_compared_all_the_same(tmp_path: Path, config: dict[str, Any]) -> None:
    assert runs(tmp_path, sweep("one"), sweep("two"), config=config).counts[Verdict.SAME] == 8


def test_two_methods_of_one_run_meet_at_every_shape(tmp_path: Path) -> None:
    quick = [t for t in sweep("one") if t.point.method == "flash2"]
    slow = [r for p in points(("hyper",)) for pass_ in PASSES for r in rounds(p, 2.0, pass_=pass_, luck="two")]
    run = write_run(tmp_path / "run", [*quick, *slow])
    found = compare(run, methods=("flash2", "hyper"))
    assert found.paired
    assert found.warnings == ()
    assert found.headline() == "2 points, 4 passes: 0 same, 0 faster, 4 slower, 0 ambiguous"
    assert all(row.judgement.ratio == pytest.approx(2.0) for row in found.rows)
    assert "hyper/flash2" in printed(found)
    assert compare(run, run, ("hyper", "flash2")).counts[Verdict.FASTER] == 4


def test_every_configuration_of_a_method_meets_the_other_method(tmp_path: Path) -> None:
    blocks = [a_point(hyper={"block_size": size}) for size in (64, 128, 256)]
    flash = a_point(method="flash2", target="some.flash2", hyper={})
    run = write_run(tmp_path / "run", [t for p in (flash, *blocks) for t in rounds(p, luck=p.point_id)])
    found = compare(run, methods=("flash2", "hyper"))
    assert [row.point_b.hyper["block_size"] for row in found.rows if row.point_b] == [64, 128, 256]
    assert {row.point_a.point_id for row in found.rows if row.point_a} == {flash.point_id}
    for size in (64, 128, 256):
        assert any(f" {size} " in line for line in printed(found).splitlines())


def test_configurations_of_two_methods_meet_by_equal_parameters(tmp_path: Path) -> None:
    made = [
        a_point(method=method, target=method, hyper={"block_size": size})
        for method, sizes in (("one", (64, 128)), ("two", (128, 256)))
        for size in sizes
    ]
    run = write_run(tmp_path / "run", [t for p in made for t in rounds(p)])
    found = compare(run, methods=("one", "two"))
    assert [(r.point_a.hyper, r.point_b.hyper) for r in found.rows if r.point_a and r.point_b] == [
        ({"block_size": 128}, {"block_size": 128})
    ]
    assert [row.point.hyper["block_size"] for row in found.unmatched] == [64, 256]


def test_one_method_of_two_runs(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", sweep("one")), write_run(tmp_path / "b", sweep("two"))
    found = compare(a, b, ("hyper", "hyper"))
    assert {row.point.method for row in found.rows} == {"hyper"}
    assert (len(found.rows), found.unmatched) == (4, ())


def test_a_run_against_itself_says_that_there_is_nothing_to_compare(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", sweep())
    (tmp_path / "elsewhere").mkdir()
    found = compare(run, tmp_path / "elsewhere" / ".." / "run")
    assert found.counts[Verdict.AMBIGUOUS] == 8
    assert "the same run" in found.warnings[0]


def test_of_a_measurement_made_twice_the_last_one_counts(tmp_path: Path) -> None:
    again = rounds(P, 2.0, luck="two")
    assert only(runs(tmp_path, [*again, *GOOD], [*GOOD, *again])).judgement.ratio == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (None, "two of its methods"),
        (("hyper", "hyper"), "two different ones"),
        (("hyper",), "must name two methods"),
        (("hyper", "flsh2"), r"'flsh2' is none of run .*; allowed: flash2, hyper; did you mean 'flash2'\?"),
    ],
)
def test_methods_that_cannot_be_compared_are_one_line(
    tmp_path: Path, methods: tuple[str, ...] | None, message: str
) -> None:
    run = write_run(tmp_path / "run", sweep())
    with pytest.raises(ValueError, match=message) as caught:
        compare(run, None, methods)
    assert "\n" not in str(caught.value)


def test_unreadable_folders_are_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", sweep())
    torn = write_run(tmp_path / "torn", sweep())
    (torn / "environment.json").write_text("{")
    for bad, message in ((tmp_path / "no", "no run folder"), (tmp_path, "not a run folder"), (torn, "is damaged")):
        for pair in ((run, bad), (bad, run)):
            with pytest.raises(ValueError, match=message) as caught:
                compare(*pair)
            assert "\n" not in str(caught.value)


def test_runs_without_measurements_have_nothing_to_show(tmp_path: Path) -> None:
    found = runs(tmp_path, [], [])
    assert found.headline() == "0 points, 0 passes: 0 same, 0 faster, 0 slower, 0 ambiguous"
    assert found.headline() in printed(found)
    assert failures_of(found, 5.0) != []


def awkward(luck: str) -> list[Record]:
    """Points that vary in everything a label may show, some failed, some named to do harm."""
    made = [
        a_point(method=HOSTILE[2], target="x", hyper={"gain": HOSTILE[0], "limit": math.inf}),
        a_point(method=HOSTILE[2], target="x", hyper={"gain": "\x1b[31m[red]", "limit": None}),
        a_point(is_causal=True, input="in\x07put", input_params={"std": math.inf}),
        a_point(dtype="bfloat16", heads=8, kv_heads=2, seed=3),
        a_point(seq_len=2**40, **({"device": "cuda"} if luck == "two" else {})),
        a_point(batch=3 if luck == "two" else 4),
    ]
    timed: list[Record] = [t for p in made[:4] for t in rounds(p, luck=luck)]
    timed += [t for p in made[4:] for t in failed(p, Status.ERROR, message="[bold]\x1b]0;title\x07 torn\nlines")]
    return timed


@pytest.mark.parametrize("width", [30, 80, 200])
def test_whatever_a_run_is_named_it_is_letters_on_a_terminal(tmp_path: Path, width: int) -> None:
    a = write_run(tmp_path / "a", awkward("one"), machine="[red]\x1b[2J" + HOSTILE[1])
    b = write_run(tmp_path / "b", awkward("two"), config={"protocol": {"\x1b[1m": "[/]"}})
    found = compare(a, b)
    text = printed(found, width)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert max(map(len, text.splitlines())) <= width
    seen = "".join(text.split())
    assert "".join(HOSTILE[2].split()) in seen
    assert "[bold]" in seen
    for row in found.rows:
        assert str(row.judgement.verdict) in seen
        assert str(row.judgement.reason) in seen


def test_the_data_is_strict_json_and_holds_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_run(tmp_path / "a", [*awkward("one"), *sweep("one")], machine=HOSTILE[0])
    b = write_run(tmp_path / "b", [*awkward("two"), *sweep("two", slowed={1024: 2.0})])
    found = compare(a, b)
    asked: dict[str, Any] = {"methods": None, "threshold": None, "as_json": True}
    assert command.compare(a, b, fail_on="5", **asked) == 1
    data = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert data["verdict"] == found.headline()
    assert data["counts"] == {"same": 8, "faster": 0, "slower": 4, "ambiguous": 1}
    assert len(data["points"]) == len(found.rows)
    assert len(data["unmatched"]) == len(found.unmatched) == 2
    assert sum(data["counts"].values()) == len(data["points"])
    assert len(data["failures"]) == 4
    for row in data["points"]:
        assert (row["ratio_low"] is None) == (row["ratio_high"] is None)
        if row["ratio_low"] is not None:
            assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert "failures" not in comparison_data(found)
