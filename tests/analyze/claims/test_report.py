"""Claims over several runs: the runs that are meant, the verdict over all of them, and what is printed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from hyperbench.analyze.claims import report
from hyperbench.analyze.claims.findings import Verdict
from hyperbench.commands.console import SafeConsole
from hyperbench.store.files import StoreError
from hyperbench.store.schema import Pass
from tests.helpers.synthetic_runs import GPU_LENGTHS, HOSTILE, grid, point, sweep, timing, write_run


def printed(judged: list[report.Judged], width: int = 100) -> str:
    """The claims as a terminal shows them."""
    text = io.StringIO()
    report.print_claims(judged, SafeConsole(file=text, width=width))
    return text.getvalue()


def verdicts(judged: list[report.Judged]) -> dict[str, Verdict]:
    """Claim -> verdict."""
    return {one.claim.id: one.verdict for one in judged}


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a CPU over the paper's grid."""
    records = grid(GPU_LENGTHS[-3:], change=lambda timed: timed if timed.pass_ is Pass.FORWARD else None)
    return write_run(tmp_path_factory.mktemp("fast") / "run", records)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which hyper gets slower and slower, on a machine with a name that must not be believed."""
    records = [
        timing(p, Pass.FORWARD, p.seq_len ** (2 if p.method == "flash2" else 3) * 1e-9)
        for n in GPU_LENGTHS[:3]
        for p in (point("flash2", n), point("hyper", n, hyper={"block_size": 256, "sample_size": 256}))
    ]
    return write_run(tmp_path_factory.mktemp("slow") / "run", records, {"machine": "\x1b[31m" + HOSTILE[0]})


@pytest.fixture(scope="module")
def both(fast: Path, slow: Path) -> list[report.Judged]:
    """The claims held against the two."""
    return report.judge([fast, slow])


def test_a_cpu_answers_what_is_not_of_a_gpu_and_says_why_it_leaves_the_rest(fast: Path) -> None:
    judged = report.judge([fast])
    found = verdicts(judged)
    assert (found["fig4-range"], found["abstract-causal"]) == (Verdict.HOLDS, Verdict.HOLDS)
    assert {id_ for id_, verdict in found.items() if verdict is not Verdict.OPEN} == {"fig4-range", "abstract-causal"}
    told = printed(judged)
    for part in ("needs CUDA", "language model", "[recalled]", "error.extra=[theory]", "2 hold, 0 do not hold"):
        assert part in told
    for one in judged:
        assert one.found, "every claim has a reason"
        assert all(found.finding.reason or found.finding.verdict is Verdict.HOLDS for found in one.found)


def test_one_run_on_which_a_claim_does_not_hold_decides(both: list[report.Judged], fast: Path, slow: Path) -> None:
    assert verdicts(both)["fig4-range"] is Verdict.FAILS
    grows = next(one for one in both if one.claim.id == "fig4-range")
    assert [(one.run, one.finding.verdict) for one in grows.found] == [(fast, Verdict.HOLDS), (slow, Verdict.FAILS)]


def test_names_of_machines_are_printed_letter_by_letter(both: list[report.Judged]) -> None:
    told = printed(both, width=400)
    assert HOSTILE[0] in told
    assert "\x1b" not in told


def test_what_is_printed_is_there_as_data_too(both: list[report.Judged], fast: Path, slow: Path) -> None:
    data = json.loads(json.dumps(report.claims_data(both, [fast, slow])))
    assert data["counts"] == {"holds": 1, "does not hold": 1, "not measured here": len(both) - 2}
    grows = next(claim for claim in data["claims"] if claim["id"] == "fig4-range")
    assert [found["verdict"] for found in grows["found"]] == ["holds", "does not hold"]
    assert {"label", "value", "low", "high"} <= grows["found"][0]["numbers"][0].keys()


def test_a_run_in_which_nothing_has_a_speedup_is_told(tmp_path: Path) -> None:
    twice = [timing(point("flash2", 64, hyper={"mine": i}), Pass.FORWARD, 1.0) for i in (1, 2)]
    runs = [write_run(tmp_path / "twice", twice), write_run(tmp_path / "empty", [])]
    for run, told in zip(runs, ("baseline 'flash2' has several rows", "no measurement yet"), strict=True):
        judged = report.judge([run])
        assert set(verdicts(judged).values()) == {Verdict.OPEN}
        assert told in printed(judged, width=400)


def test_the_runs_that_are_meant(fast: Path, slow: Path, tmp_path: Path) -> None:
    for name in ("b", "a/deep"):
        write_run(tmp_path / name, sweep("block_size", [128]))
    assert report.chosen_runs([tmp_path]) == [tmp_path / "a" / "deep", tmp_path / "b"]
    assert report.chosen_runs([fast, slow, fast]) == [fast, slow]
    for folder in (tmp_path / "nowhere", tmp_path / "a" / "none"):
        with pytest.raises(StoreError, match="there is no run folder at"):
            report.chosen_runs([folder])
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="is not a run folder"):
        report.chosen_runs([tmp_path / "empty"])


def test_the_reference_runs_are_meant_where_none_is_named_else_the_newest(
    fast: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert {path.name for path in report.chosen_runs(None)} >= {"fig4", "fig4_largest"}
    monkeypatch.setattr(report, "reference_folder", lambda: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="no run under"):
        report.chosen_runs(None)
    write_run(Path("results/runs/mine"), [])
    assert report.chosen_runs(None) == [Path("results/runs/mine")]
